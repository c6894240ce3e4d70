"""Tokenizers on their way from one format to another."""

from collections.abc import Sequence
from pathlib import Path

from shearling.data.tokenizers import Tokenizer, load_tokenizer
from shearling.data.tokenizers.llama2c import llama2c_tokenizer
from shearling.errors import UserError
from shearling.experiments.convert.draft import draft_of
from shearling.formats import FORMATS, Checkpoint
from shearling.formats.llama2c import tokenizer_name, tokenizer_names

SPOKEN = (
    "Once upon a time, there was a little girl.",
    "  Zoë's 🐑 paid 1,234.50 €\n\tfor it…",
    "def f(x):\n    return x",
    "",
)


def same_tokens(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers, perhaps of different kinds, give a few texts the same tokens."""
    return one.sha256 == other.sha256 or all(one.encode(text) == other.encode(text) for text in SPOKEN)


def check_beside(dest: Path, model: Checkpoint, overwrite: bool) -> None:
    """Refuse a place where the tokenizer of a llama2.c model would not be found, or would take another's place.

    Raises:
        UserError: the model is named as a tokenizer; or another tokenizer lies where the model's is looked for, and is
            not to be replaced, or may be that of other models there.
    """
    names = tokenizer_names(model.spec.vocab_size)
    if dest.name in names:
        raise UserError(f"{dest}: a model's tokenizer goes by this name: name the model otherwise")
    if model.tokenizer is None:
        return
    for file in map(dest.with_name, names):
        if not file.exists() or not _is_another(file, model, model.tokenizer):
            continue
        others = _other_models(dest, names)
        may_go = file.name == tokenizer_name(model.spec.vocab_size) and file.is_file() and not others
        if may_go and overwrite:
            continue
        whose = f" (perhaps that of {others[0].name})" if others else ""
        mend = ", or give --overwrite" if may_go else ""
        raise UserError(
            f"{file}: another tokenizer{whose}, which would be taken for that of {dest}: name a destination in another "
            f"folder{mend}"
        )


def put_beside(dest: Path, model: Checkpoint) -> list[str]:
    """Write the tokenizer of a llama2.c model beside it, as `tok512.bin`: by that name, of its size, it is found.

    One that is there already and is the same stays as it is.

    Returns:
        What the user should know: where it is, or why there is none.

    Raises:
        UserError: it cannot be written.
    """
    from shearling.data.tokenizers.conversion import to_tokenizer_bin

    file = dest.with_name(tokenizer_name(model.spec.vocab_size))
    if model.tokenizer is None:
        found = next(
            (path for name in tokenizer_names(model.spec.vocab_size) if (path := dest.with_name(name)).exists()), None
        )
        unless = f"if {found} is not its own, " if found else ""
        return [f"no tokenizer came with the model: {unless}give one with -z"]
    try:
        content = to_tokenizer_bin(model.tokenizer)
        kept = llama2c_tokenizer(content)
    except UserError as error:
        return [f"no tokenizer was written: {error}"]
    if not same_tokens(model.tokenizer, kept):
        return ["no tokenizer was written: llama2.c's files cannot hold it, read back it gives other tokens"]
    note = f"the tokenizer is {file}"
    if another := file.exists() and _is_another(file, model, model.tokenizer):
        note += ", in place of another that was there"
    if another or not file.exists():
        with draft_of(file) as draft:
            draft.write_bytes(content)
    if model.tokenizer.vocab_size < model.spec.vocab_size:
        note += f"; it has fewer pieces than the model has rows: give it with -z {file}"
    return [note]


def _is_another(file: Path, model: Checkpoint, tokenizer: Tokenizer) -> bool:
    """Whether the file would be taken for the model's tokenizer, or stands in its place, and is not the same."""
    try:
        found = load_tokenizer(file)
    except UserError:
        return True  # damaged: the model would be refused with it
    if found.vocab_size != model.spec.vocab_size and file.name != tokenizer_name(model.spec.vocab_size):
        return False  # it is passed over
    return not _are_same(found, tokenizer)


def _are_same(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether two tokenizers, perhaps of different kinds, have the same pieces, and give a few texts the same tokens.

    Their scores may differ, as a `tokenizer.json` has ranks instead.
    """
    from shearling.data.tokenizers.conversion import pieces_of

    try:
        alike = one.sha256 == other.sha256 or pieces_of(one).texts == pieces_of(other).texts
    except UserError:
        return False
    return alike and same_tokens(one, other)


def _other_models(dest: Path, tokenizers: Sequence[str]) -> list[Path]:
    beside = sorted(dest.parent.glob("*.bin"))
    recognizes = FORMATS["llama2c"].recognizes
    return [file for file in beside if file.name not in (dest.name, *tokenizers) and recognizes(file)]
