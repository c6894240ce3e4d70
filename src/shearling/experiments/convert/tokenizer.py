"""Tokenizers on their way from one format to another."""

from pathlib import Path

from shearling.data.tokenizers import Tokenizer, load_tokenizer
from shearling.errors import UserError
from shearling.files import write_atomically
from shearling.formats import Checkpoint

SPOKEN = (
    "Once upon a time, there was a little girl.",
    "  Zoë's 🐑 paid 1,234.50 €\n\tfor it…",
    "def f(x):\n    return x",
    "",
)


def same_tokens(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers, perhaps of different kinds, give a few texts the same tokens."""
    return one.sha256 == other.sha256 or all(one.encode(text) == other.encode(text) for text in SPOKEN)


def put_beside(dest: Path, model: Checkpoint, overwrite: bool) -> list[str]:
    """Write the tokenizer of a llama2.c model beside it, as `tok512.bin`: by that name, of its size, it is found.

    Returns:
        What the user should know: where it is, or why there is none.
    """
    from shearling.data.tokenizers.conversion import to_tokenizer_bin

    file = dest.with_name(f"tok{model.spec.vocab_size}.bin")
    if model.tokenizer is None:
        return ["no tokenizer came with the model: give one with -z"]
    try:
        content = to_tokenizer_bin(model.tokenizer)
    except UserError as error:
        return [f"no tokenizer was written: {error}"]
    if file.exists() and file.read_bytes() != content and not overwrite:
        return [f"{file} is another tokenizer and was left as it is: give --overwrite, or the model's own with -z"]
    write_atomically(file, content)
    if not same_tokens(model.tokenizer, load_tokenizer(file)):
        file.unlink()
        return ["no tokenizer was written: llama2.c's files cannot hold it, read back it gives other tokens"]
    first = dest.with_name("tokenizer.bin")
    if first.is_file() and first.read_bytes() != content:
        return [f"the tokenizer is {file}; {first}, which is looked for first, is another: give -z {file}"]
    return [f"the tokenizer is {file}"]
