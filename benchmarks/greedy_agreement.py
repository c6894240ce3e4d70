"""Greedy continuations of a GGUF file, ours beside llama.cpp's: python benchmarks/greedy_agreement.py MODEL.gguf

Ten prompts, 64 tokens each. llama.cpp rounds the vectors that meet quantized weights to 8 bits, we to 16, so that two
tokens whose logits lie close together may change places; where texts part, the gap between the two in our logits says
how close they were.
"""

import sys
from pathlib import Path

import llama_cpp
import numpy as np

from shearling.engine.fast import FastEngine
from shearling.formats import open_checkpoint

TOKENS = 64
PROMPTS = (
    "Once upon a time", "The capital of France is", "def fibonacci(n):", "Water boils at", "My favourite book is",
    "In 1969, the first", "The three states of matter are", "To bake a cake, you", "Dear Sir or Madam,", "1, 2, 3, 4,",
)  # fmt: skip


def main(model: Path) -> None:
    """Print, for each prompt, how many tokens agree, and the gap where they part."""
    checkpoint = open_checkpoint(model)
    engine, tokenizer = FastEngine(checkpoint), checkpoint.tokenizer
    assert tokenizer is not None, f"{model}: no tokenizer"
    peer = llama_cpp.Llama(str(model), n_ctx=256, verbose=False)
    equal = 0
    for prompt in PROMPTS:
        tokens = ([tokenizer.bos_id] if checkpoint.begins_with_bos else []) + tokenizer.encode(prompt)
        session = engine.session()
        peer.reset()
        peer.eval(tokens)
        logits = session.feed(tokens)
        for count in range(TOKENS):  # noqa: B007 (told below)
            ours, theirs = int(logits.argmax()), _peers_choice(peer)
            if ours != theirs:
                break
            logits = session.feed([ours])
            peer.eval([ours])
        else:
            equal += 1
            print(f"{prompt!r}: all {TOKENS} equal")
            continue
        gap = float(logits[ours] - logits[theirs])
        print(f"{prompt!r}: {count} equal, then {ours} and {theirs}, whose logits are {gap:.3f} apart")
    print(f"{equal} of {len(PROMPTS)} equal throughout")


def _peers_choice(peer: llama_cpp.Llama) -> int:
    address = llama_cpp.llama_get_logits(peer.ctx)
    return int(np.ctypeslib.as_array(address, shape=(peer.n_vocab(),)).argmax())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
