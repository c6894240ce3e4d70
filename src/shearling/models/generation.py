"""Drawing tokens from a model, one at a time, with a cache of keys and values."""

from collections.abc import Callable, Iterator, Sequence

import torch

from shearling.errors import UserError
from shearling.models.layers.attention import KVCache
from shearling.models.transformer import Transformer


def sample(logits_V: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator | None = None) -> int:
    """A token drawn from softmax(logits / temperature), cut to the smallest set of mass `top_p` (arXiv 1904.09751).

    Temperature 0 takes the likeliest token; `top_p` outside of (0, 1) cuts nothing.

    Raises:
        UserError: a logit is NaN or infinite.
    """
    if not logits_V.isfinite().all():
        raise UserError("the model's logits are not finite: its training diverged: train it with a lower learning rate")
    if temperature == 0:
        return int(logits_V.argmax())
    distances_V = logits_V.double() - logits_V.max()  # at most 0: no temperature, however small, makes them overflow
    p, tokens = torch.softmax(distances_V / temperature, dim=-1).sort(descending=True)
    if 0 < top_p < 1:
        p = torch.where(p.cumsum(-1) - p < top_p, p, 0.0)  # keeps the token that crosses the mass
    return int(tokens[torch.multinomial(p, 1, generator=generator)])


def generate(
    model: Transformer,
    prompt: Sequence[int],
    n_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 0.9,
    seed: int = 0,
    stop: int | None = None,
    vocab_size: int | None = None,
) -> Iterator[int]:
    """Up to `n_tokens` tokens that follow `prompt`, until the context is full or `stop` is drawn (and not given out).

    Args:
        vocab_size: only tokens below it are drawn: an embedding may have more rows than its tokenizer has pieces.

    Raises:
        UserError: at once where the prompt is empty or leaves no room in the model's context, or where the model
            reads both ways; later, where its logits are not finite.
    """
    context = model.spec.max_seq_len
    if not 0 < len(prompt) < context:
        raise UserError(f"a prompt of {len(prompt)} tokens: the model's context takes 1 to {context - 1}")
    n_tokens = min(n_tokens, context - len(prompt))
    generator = torch.Generator().manual_seed(seed)

    def choose(logits_V: torch.Tensor) -> int:
        return sample(logits_V[:vocab_size], temperature, top_p, generator)

    return _draw(model, list(prompt), n_tokens, model.new_caches(1, len(prompt) + n_tokens), choose, stop)


@torch.no_grad()
def _draw(
    model: Transformer,
    prompt: list[int],
    n_tokens: int,
    caches: list[KVCache],
    choose: Callable[[torch.Tensor], int],
    stop: int | None,
) -> Iterator[int]:
    model.eval()
    device = model.embed.weight.device
    tokens = torch.tensor([prompt], device=device)
    for _ in range(n_tokens):
        hidden_BTD = model(tokens, caches=caches)
        token = choose(model.logits(hidden_BTD[:, -1:])[0, 0].cpu())
        if token == stop:
            return
        yield token
        tokens = torch.tensor([[token]], device=device)
