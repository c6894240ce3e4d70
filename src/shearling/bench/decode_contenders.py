"""Decoding side by side: our engine, llama.cpp and transformers, each as fast as its own interface goes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

START = 1
"""The token that every text begins with."""


@dataclass(frozen=True)
class Setup:
    """What a contender is built with: the model, threads that work together, and the longest text in tokens."""

    path: Path
    threads: int
    context: int


class Decoder(ABC):
    """A library with a model, ready to read one text.

    Attributes:
        measures: what it can be measured at, names in `decode_worker.MEASURES`.
        vocab_size: of the model.
        bytes_per_token: of the matrices that it multiplies each token with; None: those of its file.
    """

    measures: ClassVar[tuple[str, ...]] = ("decode", "prefill")
    vocab_size: int
    bytes_per_token: int | None = None

    @abstractmethod
    def restart(self) -> None:
        """Forget the text."""

    @abstractmethod
    def feed(self, tokens: Sequence[int]) -> int:
        """Append tokens in one call; the likeliest to follow them."""


class FastDecoder(Decoder):
    """Our engine, as `generate` drives it."""

    measures = ("decode", "prefill", "batch")

    def __init__(self, setup: Setup) -> None:
        from shearling.engine.fast import FastEngine
        from shearling.formats import open_checkpoint

        checkpoint = open_checkpoint(setup.path)
        self._engine = FastEngine(checkpoint, threads=setup.threads, context=setup.context)
        self._one = self._engine.session()
        self._several = self._one
        self.vocab_size = checkpoint.spec.vocab_size
        looked_up = 0 if checkpoint.spec.tie_embeddings else checkpoint.tensors["embed.weight"].nbytes
        self.bytes_per_token = self._engine.packed.nbytes - looked_up

    def restart(self) -> None:
        self._one.rewind(0)

    def feed(self, tokens: Sequence[int]) -> int:
        return int(self._one.feed(tokens).argmax())

    def restart_several(self, sequences: int) -> None:
        """Forget the texts, and begin so many."""
        if len(self._several.lengths) != sequences:
            self._several = self._engine.session(sequences)
        for sequence in range(sequences):
            self._several.rewind(0, sequence)

    def feed_each(self, tokens: Sequence[int]) -> list[int]:
        """Append a token to each text; the likeliest to follow each."""
        following: list[int] = self._several.step(tokens).argmax(axis=1).tolist()
        return following


class LlamaCppDecoder(Decoder):
    """llama.cpp through llama-cpp-python's `eval`, which hands tokens on and copies no logits."""

    def __init__(self, setup: Setup) -> None:
        import llama_cpp

        self._model: Any = llama_cpp.Llama(
            str(setup.path), n_ctx=setup.context, n_batch=setup.context, n_threads=setup.threads,
            n_threads_batch=setup.threads, verbose=False,
        )  # fmt: skip
        self._logits: Callable[[Any], Any] = llama_cpp.llama_get_logits
        self.vocab_size = self._model.n_vocab()

    def restart(self) -> None:
        self._model.reset()

    def feed(self, tokens: Sequence[int]) -> int:
        self._model.eval(tokens)
        logits = np.ctypeslib.as_array(self._logits(self._model.ctx), shape=(self.vocab_size,))
        return int(logits.argmax())


class TransformersDecoder(Decoder):
    """transformers, eager, with its own cache of keys and values; without `generate`, whose loop takes longer."""

    def __init__(self, setup: Setup) -> None:
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(setup.threads)
        torch.set_grad_enabled(False)
        self._torch = torch
        self._cache_of: Callable[[], Any] = transformers.DynamicCache
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(setup.path, dtype="auto", local_files_only=True)
        self._model = model.eval()
        self.vocab_size = model.config.vocab_size
        sizes = [weight.nbytes for weight in model.parameters() if weight.dim() == 2]
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        self.bytes_per_token = sum(sizes) - (0 if tied else model.get_input_embeddings().weight.nbytes)
        self.restart()

    def restart(self) -> None:
        self._cache = self._cache_of()

    def feed(self, tokens: Sequence[int]) -> int:
        torch = self._torch
        with torch.inference_mode():
            given = torch.tensor([list(tokens)])
            logits = self._model(given, past_key_values=self._cache, use_cache=True, logits_to_keep=1).logits
            return int(logits[0, -1].argmax())


@dataclass(frozen=True)
class Contender:
    """How a library takes part.

    Attributes:
        build: makes its Decoder.
        reads: the format of its model, a name in FORMATS.
        needs: the module that must be installed, and the package that has it; None: ours.
    """

    build: Callable[[Setup], Decoder]
    reads: str
    needs: tuple[str, str] | None = None


OURS = "shearling"

CONTENDERS: dict[str, Contender] = {
    OURS: Contender(FastDecoder, "gguf"),
    "llama.cpp": Contender(LlamaCppDecoder, "gguf", ("llama_cpp", "llama-cpp-python")),
    "transformers": Contender(TransformersDecoder, "huggingface", ("transformers", "transformers")),
}
