"""Text from a trained model."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from shearling.config import load
from shearling.data.tokenizers import Tokenizer, load_tokenizer
from shearling.errors import UserError
from shearling.formats.huggingface import load_huggingface
from shearling.models.generation import generate
from shearling.models.transformer import Transformer
from shearling.training.checkpoints import load_latest
from shearling.training.run_folder import RunFolder
from shearling.training.spec import ExperimentSpec
from shearling.training.state import load_weights


class Opened(NamedTuple):
    """A model, its tokenizer, and the token that ends a text: in a run's data documents only have a beginning."""

    model: Transformer
    tokenizer: Tokenizer
    stop: int


def open_model(path: Path) -> Opened:
    """The newest whole checkpoint of a run folder, or the model in a Hugging Face folder.

    Raises:
        UserError: `path` is neither, what is there is not whole, or the tokenizer is not the model's.
    """
    if RunFolder(path).begun:
        return _open_run(RunFolder(path))
    if (path / "config.json").is_file():
        tokenizer = load_tokenizer(path)
        return Opened(load_huggingface(path), tokenizer, tokenizer.eos_id)
    raise UserError(
        f"{path}: no run folder (it has no experiment_config.yaml) and no Hugging Face folder (no config.json): "
        "train one, or check the path"
    )


def _open_run(run: RunFolder) -> Opened:
    config = load(ExperimentSpec, run.config).value
    checkpoint = load_latest(run.checkpoints, warn=lambda text: print(f"warning: {text}", file=sys.stderr))
    if checkpoint is None:
        raise UserError(f"{run.checkpoints}: no whole checkpoint: train the run first")
    tokenizer = load_tokenizer(run.tokenizer)
    if tokenizer.sha256 != checkpoint.state["identity"]["tokenizer"]:
        raise UserError(f"{run.tokenizer}: not the tokenizer that the model was trained with: put that one back")
    model = Transformer(config.model)
    load_weights(model, checkpoint.weights)
    model.step = checkpoint.state["progress"]["step"]
    return Opened(model, tokenizer, tokenizer.bos_id)


def write_text(
    path: Path,
    prompt: str,
    n_tokens: int,
    *,
    temperature: float,
    top_p: float,
    seed: int | None,
    write: Callable[[str], None],
) -> float:
    """Continue `prompt` with the model in a run folder or a Hugging Face folder, handing on text as it comes.

    Args:
        seed: of the draws; None takes the clock.
        write: takes the prompt, then pieces of complete UTF-8.

    Returns:
        Tokens per second.

    Raises:
        UserError: there is no model that continues text, or the tokenizer is not the model's.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:  # a command line's undecodable bytes arrive as lone surrogates
        raise UserError("the prompt is no valid UTF-8: check the terminal's encoding") from None
    model, tokenizer, stop = open_model(path)
    tokens = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    if max(tokens) >= model.spec.vocab_size:
        raise UserError(f"{path}: its tokenizer gives token {max(tokens)}, and the model has {model.spec.vocab_size}: "
                        "they belong to different models")  # fmt: skip
    decoder = tokenizer.stream_decoder()
    for token in tokens:
        decoder.push(token)  # the text goes on within the prompt's sequence: only its very start loses a space
    seed = time.time_ns() % 2**32 if seed is None else seed
    count, began = 0, time.perf_counter()
    drawn = generate(
        model, tokens, n_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop,
        vocab_size=tokenizer.vocab_size,
    )  # fmt: skip
    write(prompt)
    for token in drawn:
        write(decoder.push(token))
        count += 1
    write(decoder.flush())
    return count / (time.perf_counter() - began)
