"""Drawing tokens from a model, one at a time, with a cache of keys and values."""

from collections.abc import Iterator, Sequence

import torch

from shearling.errors import UserError
from shearling.models.transformer import Transformer


def sample(logits_V: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator | None = None) -> int:
    """A token drawn from softmax(logits / temperature), cut to the smallest set of mass `top_p` (arXiv 1904.09751).

    Temperature 0 takes the likeliest token; `top_p` outside of (0, 1) cuts nothing.
    """
    if temperature == 0:
        return int(logits_V.argmax())
    p, tokens = torch.softmax(logits_V.float() / temperature, dim=-1).sort(descending=True)
    if 0 < top_p < 1:
        p = torch.where(p.cumsum(-1) - p < top_p, p, 0.0)  # keeps the token that crosses the mass
    return int(tokens[torch.multinomial(p, 1, generator=generator)])


@torch.no_grad()
def generate(
    model: Transformer,
    prompt: Sequence[int],
    n_tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 0.9,
    seed: int = 0,
    stop: int | None = None,
) -> Iterator[int]:
    """Up to `n_tokens` tokens that follow `prompt`, until the context is full or `stop` is drawn (and not given out).

    Raises:
        UserError: the prompt is empty or leaves no room in the model's context.
    """
    capacity = model.spec.max_seq_len
    if not 0 < len(prompt) < capacity:
        raise UserError(f"a prompt of {len(prompt)} tokens: the model's context takes 1 to {capacity - 1}")
    model.eval()
    device = model.embed.weight.device
    generator = torch.Generator().manual_seed(seed)
    caches = model.new_caches(1, capacity)
    tokens = torch.tensor([list(prompt)], device=device)
    for _ in range(min(n_tokens, capacity - len(prompt))):
        hidden_BTD = model(tokens, caches=caches)
        token = sample(model.logits(hidden_BTD[:, -1:])[0, 0].cpu(), temperature, top_p, generator)
        if token == stop:
            return
        yield token
        tokens = torch.tensor([[token]], device=device)
