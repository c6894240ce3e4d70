"""Text from a run folder."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from shearling.config import load
from shearling.data.tokenizers import load_tokenizer
from shearling.errors import UserError
from shearling.models.generation import generate
from shearling.models.transformer import Transformer
from shearling.training.checkpoints import load_latest
from shearling.training.run_folder import RunFolder
from shearling.training.spec import ExperimentSpec
from shearling.training.state import load_weights


def write_text(
    run_path: Path,
    prompt: str,
    n_tokens: int,
    *,
    temperature: float,
    top_p: float,
    seed: int | None,
    write: Callable[[str], None],
) -> float:
    """Continue `prompt` with the newest whole checkpoint of a run folder, handing on text as it comes.

    Args:
        seed: of the draws; None takes the clock.
        write: takes the prompt, then pieces of complete UTF-8.

    Returns:
        Tokens per second.

    Raises:
        UserError: there is no run, no whole checkpoint, or the tokenizer is not the one the model was trained with.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError:  # a command line's undecodable bytes arrive as lone surrogates
        raise UserError("the prompt is no valid UTF-8: check the terminal's encoding") from None
    run = RunFolder(run_path)
    if not run.begun:
        raise UserError(f"{run_path}: no run folder (it has no experiment_config.yaml): train one, or check the path")
    config = load(ExperimentSpec, run.config).value
    checkpoint = load_latest(run.checkpoints, warn=lambda text: print(f"warning: {text}", file=sys.stderr))
    if checkpoint is None:
        raise UserError(f"{run.checkpoints}: no whole checkpoint: train the run first")
    tokenizer = load_tokenizer(run.tokenizer)
    if tokenizer.sha256 != checkpoint.state["identity"]["tokenizer"]:
        raise UserError(f"{run.tokenizer}: not the tokenizer that the model was trained with: put that one back")
    model = Transformer(config.model)
    load_weights(model, checkpoint.weights)
    tokens = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    decoder = tokenizer.stream_decoder()
    for token in tokens:
        decoder.push(token)  # the text goes on within the prompt's sequence: only its very start loses a space
    seed = time.time_ns() % 2**32 if seed is None else seed
    count, began = 0, time.perf_counter()
    drawn = generate(
        model, tokens, n_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=tokenizer.bos_id,
        vocab_size=tokenizer.vocab_size,
    )  # fmt: skip
    write(prompt)
    for token in drawn:
        write(decoder.push(token))
        count += 1
    write(decoder.flush())
    return count / (time.perf_counter() - began)
