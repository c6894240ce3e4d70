"""Perplexity of a model on a sample of text, by an engine."""

import math
import os
import sys
from codecs import getincrementaldecoder
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shearling.data.tokenizers import Tokenizer
from shearling.engine.session import Engine
from shearling.errors import UserError
from shearling.experiments.convert.tokenizer import same_tokens

SAMPLE_TOKENS = 4096
WINDOW = 512
BYTES_READ = 1 << 20
LARGEST_LOSS = math.log(sys.float_info.max)


def sample_tokens(data: Path, tokenizer: Tokenizer | None, n_tokens: int = SAMPLE_TOKENS) -> list[int]:
    """So many tokens, or what there is, of a prepared folder's validation split or of a text file's beginning.

    Raises:
        UserError: there is no tokenizer, the data are another tokenizer's, or hold fewer than two tokens.
    """
    if tokenizer is None:
        raise UserError(f"{data}: text needs the model's tokenizer, and none came with it: give --tokenizer")
    folder = os.path.isdir(data)  # noqa: PTH112 (False, where Path raises, of a name that is too long)
    tokens = _prepared(data, tokenizer, n_tokens) if folder else _text(data, tokenizer)
    if len(tokens) < 2:
        raise UserError(f"{data}: holds no text: name another file")
    return tokens[:n_tokens]


def _prepared(data: Path, tokenizer: Tokenizer, n_tokens: int) -> list[int]:
    from shearling.data.shards import load_tokenizer_of, open_dataset
    from shearling.data.stream import EvaluationSet

    theirs = load_tokenizer_of(data)
    if not same_tokens(theirs, tokenizer):
        raise UserError(f"{data}: its tokens are of another tokenizer than the model's: prepare it with the model's")
    return EvaluationSet.take(open_dataset(data, "validation"), n_tokens).tokens.tolist()


def _text(data: Path, tokenizer: Tokenizer) -> list[int]:
    try:
        with data.open("rb") as file:
            text = getincrementaldecoder("utf-8")().decode(file.read(BYTES_READ))  # the last letter may be cut
    except OSError as error:
        raise UserError(f"{data}: cannot be read ({error.strerror}): give a text or a folder of `prepare`") from None
    except UnicodeDecodeError:
        raise UserError(f"{data}: no text in UTF-8: give a text or a folder of `prepare`") from None
    return [tokenizer.bos_id, *tokenizer.encode(text)]


def perplexity(engine: Engine, tokens: Sequence[int]) -> float:
    """exp of the mean loss over all but the first token of each window of at most WINDOW tokens.

    Raises:
        UserError: it is larger than any float.
    """
    window = min(WINDOW, engine.context)
    total, count = 0.0, 0
    for start in range(0, len(tokens) - 1, window):
        part = tokens[start : start + window]
        logits_TV = engine.session().feed_for_all_logits(part).astype(np.float64)[:-1]
        largest_T = logits_TV.max(axis=1)
        normalizers_T = largest_T + np.log(np.exp(logits_TV - largest_T[:, None]).sum(axis=1))
        total += float((normalizers_T - logits_TV[np.arange(len(part) - 1), part[1:]]).sum())
        count += len(part) - 1
    if (loss := total / count) > LARGEST_LOSS:
        raise UserError(f"--data: with a loss of {loss:,.0f} a token the perplexity is beyond any number: leave it out")
    return math.exp(loss)
