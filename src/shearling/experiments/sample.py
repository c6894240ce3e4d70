"""Text from a model of any format, and how a model is opened for it."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from shearling.engine.api import Model
from shearling.engine.sampling import Sampling, clock_seed
from shearling.engine.session import Engine
from shearling.errors import UserError
from shearling.formats import open_checkpoint
from shearling.formats.checkpoint import Checkpoint


def open_model(
    path: str | Path,
    *,
    tokenizer: str | Path | None = None,
    threads: int | None = None,
    context: int | None = None,
    kv: str = "f32",
) -> Model:
    """A model in a file or folder of any format that is known here, ready to write.

    What LLaMA's graph can express runs on the engine, without PyTorch; the rest on PyTorch.

    Args:
        path: a run folder, a Hugging Face or Meta folder, a GGUF file, or a llama2.c file.
        tokenizer: a tokenizer's file or folder, in place of what came with the model.
        threads: that work together; None: one a core.
        context: the longest text, in tokens; None: the model's.
        kv: how the engine keeps keys and values: f32, bf16 or int8.

    Raises:
        UserError: there is no model that continues text, it is damaged, or an argument does not fit.
    """
    checkpoint = open_checkpoint(Path(path), None if tokenizer is None else Path(tokenizer))
    spec = checkpoint.spec
    if not spec.causal:
        raise UserError(f"{path}: a model of arch {spec.arch} fills in masked tokens and continues no text")
    if not spec.head:
        raise UserError(f"{path}: model.head is false: it gives hidden states and no logits: take one with a head")
    build = _in_torch if spec.beyond_llama() else _on_the_engine
    return Model(build(checkpoint, threads, context, kv), checkpoint)


def _on_the_engine(checkpoint: Checkpoint, threads: int | None, context: int | None, kv: str) -> Engine:
    from shearling.engine.fast import FastEngine

    return FastEngine(checkpoint, threads=threads, context=context, kv=kv)


def _in_torch(checkpoint: Checkpoint, threads: int | None, context: int | None, kv: str) -> Engine:
    import torch

    from shearling.experiments.torch_engine import TorchEngine
    from shearling.formats.in_torch import load_transformer

    if kv != "f32":
        beyond = ", ".join(checkpoint.spec.beyond_llama())
        raise UserError(f"{checkpoint.origin}: kv {kv}: PyTorch, on which this model runs for its {beyond}, keeps f32")
    if threads is not None:
        torch.set_num_threads(threads)
    model = load_transformer(checkpoint)
    if checkpoint.spec.placement.residual_warmup is not None:  # which has not ended
        model.step = checkpoint.notes["step"]
    return TorchEngine(model, context)


class Written(NamedTuple):
    """What came of a prompt.

    Attributes:
        text: what follows it.
        finish: `stop` where the model or a stop string ended it, `length` where it was long enough.
        seed: of its coins.
        prompt_tokens: of the prompt, BOS among them.
        tokens: that were drawn.
        first_seconds: from the start to the first of them.
        tokens_per_second: of those after the first; None where there are none.
    """

    text: str
    finish: str
    seed: int
    prompt_tokens: int
    tokens: int
    first_seconds: float
    tokens_per_second: float | None

    def as_data(self) -> dict[str, Any]:
        """The figures, as JSON has them."""
        return self._asdict()


def write_text(
    model: Model,
    prompt: str,
    *,
    steps: int,
    sampling: Sampling,
    stop: Sequence[str] = (),
    write: Callable[[str], None],
    say: Callable[[str], None],
) -> Written:
    """Continue a prompt as llama2.c's `run` does, handing on text as it comes.

    Args:
        steps: tokens in all, those of the prompt but for BOS among them; 0: as many as the context takes. A prompt
            that has more is cut there.
        stop: strings that end the text; nothing of them is given out.
        write: takes the prompt, then pieces of complete UTF-8.
        say: takes a word to the user.

    Raises:
        UserError: the prompt does not fit into the context, the tokenizer is not the model's, or there is none.
    """
    tokens = model.prompt_tokens(prompt)
    bos = int(tokens[0] == model.tokenizer.bos_id)
    read = len(tokens) - bos
    seed = sampling.seed or clock_seed()
    text = model.continuation(tokens, replace(sampling, seed=seed), max(0, steps - read) if steps else None, stop)
    if steps and steps <= read:
        say(f"-n {steps}: the prompt alone has {read} tokens: nothing follows it: raise -n")
    if steps and steps < read:
        decoder = model.tokenizer.stream_decoder()
        prompt = "".join(map(decoder.push, tokens[: bos + steps]))
    write(prompt)
    for piece in text:
        write(piece)
    assert text.finish, "a text that was read to its end has ended"
    return Written(
        text.text, text.finish, seed, len(tokens), len(text.drawn), text.first_seconds, text.tokens_per_second
    )
