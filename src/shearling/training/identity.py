"""What makes a run that run, besides its options: hashes that must be the same wherever it goes on."""

from shearling.config import fingerprint
from shearling.data.manifest import Manifest
from shearling.models.custom import custom_code_hash
from shearling.training.run_folder import RunFolder, read_json
from shearling.training.spec import ExperimentSpec


def identity_of(config: ExperimentSpec, manifest: Manifest) -> dict[str, str]:
    """Hashes of the config, of the data and their tokenizer, and of the code of a user's own norm or placement."""
    return {
        "config": fingerprint(config),
        "data": manifest.hash,
        "tokenizer": manifest.tokenizer.sha256,
        "code": custom_code_hash(config.model),
    }


def changed_hashes(run: RunFolder, identity: dict[str, str]) -> set[str]:
    """What of `data`, `tokenizer` and `code` is not what the run in a folder began with."""
    recorded = {"code": "", **read_json(run.provenance)["hashes"]}
    return {what for what in ("data", "tokenizer", "code") if recorded[what] != identity[what]}
