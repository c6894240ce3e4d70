"""What the libraries of tokenizers make of a text, beside which ours are held."""

from pathlib import Path

import sentencepiece
import tokenizers

from shearling.data.tokenizers import Tokenizer


def processor_of(tokenizer: Tokenizer) -> sentencepiece.SentencePieceProcessor:
    """SentencePiece's own reading of a tokenizer's model."""
    return sentencepiece.SentencePieceProcessor(model_proto=tokenizer.serialized)


def ids_of(library: tokenizers.Tokenizer, text: str) -> list[int]:
    """As `transformers` with split_special_tokens: names of special tokens are text."""
    library.encode_special_tokens = True
    return library.encode(text, add_special_tokens=False).ids


def berts_word_pieces(assets: Path) -> tokenizers.Tokenizer:
    """BERT's word pieces, without its normalizer."""
    library = tokenizers.Tokenizer(
        tokenizers.models.WordPiece.from_file(str(assets / "tokenizers/bert/vocab.txt"), unk_token="[UNK]")
    )
    library.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    library.decoder = tokenizers.decoders.WordPiece()
    library.add_special_tokens(["[CLS]", "[SEP]"])
    return library
