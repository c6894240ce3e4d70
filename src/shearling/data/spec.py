"""The options of training data. Imports no torch."""

from pydantic import Field

from shearling.config import HARMLESS, Spec, UserPath


class DataSpec(Spec):
    """Which token shards a run reads, and how sequences are cut from them."""

    path: UserPath = Field(description="folder written by `shearling prepare`", json_schema_extra=HARMLESS)
    seq_len: int = Field(256, gt=0, description="tokens per training sequence")
    mask_documents: bool = Field(
        False, description="attention stays inside a document where several are packed into one sequence"
    )
    validation_tokens: int = Field(
        262_144, gt=0, description="evaluate on whole documents of the validation split up to about this many tokens"
    )
