"""What lies beside the weights in a folder: tokenizer, chat template, and the tokens that end a text."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from shearling.data.tokenizers import Tokenizer, load_tokenizer
from shearling.errors import UserError
from shearling.formats.huggingface.options import Options, is_text, read_json, read_text
from shearling.formats.specification import shown

CONFIG, GENERATION, TOKENIZER_CONFIG = "config.json", "generation_config.json", "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def tokenizer_loader(folder: Path) -> Callable[[], Tokenizer] | None:
    """What loads the tokenizer that lies in a folder; None where there is none."""
    there = any((folder / name).is_file() for name in TOKENIZERS)
    return partial(load_tokenizer, folder) if there else None


def stop_ids(folder: Path, config: Options, vocab_size: int) -> tuple[int, ...]:
    """What ends a text, from the options of generation where they say, else from the model's own.

    Raises:
        UserError: it is no token.
    """
    file, options = folder / CONFIG, config
    if (folder / GENERATION).is_file():
        generation = read_json(folder / GENERATION)
        if generation.get("eos_token_id") is not None:
            file, options = folder / GENERATION, generation
    given: Any = options.get("eos_token_id")
    ids = given if isinstance(given, list) else [] if given is None else [given]
    if not all(type(token) is int for token in ids):
        raise UserError(f"{file}: eos_token_id: should be a token or a list of tokens, not {shown(given)}")
    return tuple(dict.fromkeys(token for token in ids if 0 <= token < vocab_size))  # no other is ever drawn


def adds_bos(folder: Path) -> bool | None:
    """Whether BOS stands before a text, where the tokenizer's options say so.

    Raises:
        UserError: it is no truth value.
    """
    file = folder / TOKENIZER_CONFIG
    given = read_json(file).get("add_bos_token") if file.is_file() else None
    if not isinstance(given, bool | None):
        raise UserError(f"{file}: add_bos_token: should be true or false, not {shown(given)}")
    return given


def chat_template(folder: Path) -> str | None:
    """The template in a file of its own, or in the tokenizer's options; of several the default one.

    Raises:
        UserError: it is no text.
    """
    file = folder / TEMPLATE
    if file.is_file():
        return read_text(file)
    file = folder / TOKENIZER_CONFIG
    given = read_json(file).get("chat_template") if file.is_file() else None
    if isinstance(given, list):
        given = next((e.get("template") for e in given if isinstance(e, dict) and e.get("name") == "default"), None)
    if given is not None and not is_text(given):
        raise UserError(f"{file}: chat_template: should be a text, not {shown(given)}")
    return given
