"""Loss on held-out text."""

import math
from collections.abc import Callable

import torch

from shearling.data.stream import EvaluationSet
from shearling.models.transformer import Transformer
from shearling.training.examples import make_examples
from shearling.training.loss import token_losses
from shearling.training.spec import NextTokenSpec, ObjectiveSpec
from shearling.training.state import Evaluation

NEXT_TOKEN = NextTokenSpec()


@torch.no_grad()
def evaluate(
    model: Transformer,
    held_out: EvaluationSet,
    step: int,
    *,
    seq_len: int,
    sequences: int,
    mask_documents: bool,
    objective: ObjectiveSpec = NEXT_TOKEN,
    check: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Token-mean loss over every target of `held_out`, in nats; bits per byte over the same documents' UTF-8 bytes.

    Where the objective masks tokens, the same ones are masked at every evaluation; they say nothing of the others, so
    that bits per byte is not a number.

    Args:
        sequences: per forward pass.
        check: called between batches; may raise to stop.
    """
    device = model.embed.weight.device
    model.eval()
    model.step = step
    total, count = 0.0, 0
    row = 0
    for batch, _ in held_out.batches(seq_len, sequences, mask_documents):
        check()
        examples = make_examples(objective, batch, model.spec.vocab_size, "evaluation", first_row=row)
        row += len(batch.tokens)
        usual = batch.tokens.shape == (sequences, seq_len + 1)
        with torch.compiler.set_stance("default" if usual else "force_eager"):  # nothing is compiled for a remainder
            hidden, targets = examples.states_and_targets(model, device)
        total += token_losses(hidden, model.lm_head, targets).double().sum().item()
        count += len(targets)
    loss = total / count
    perplexity = math.exp(loss) if loss < 700 else math.inf
    whole_text = isinstance(objective, NextTokenSpec)
    return Evaluation(step, loss, perplexity, total / math.log(2) / held_out.n_bytes if whole_text else math.nan)
