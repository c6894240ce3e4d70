"""The choice itself: width, depth, batch, rates, and why each."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from shearling.errors import UserError
from shearling.experiments.plan.laws import Law, effective_tokens
from shearling.experiments.plan.machine import Speed
from shearling.models.cost import parameters, training_flops_per_token
from shearling.models.spec import ModelSpec

HEAD_DIM = 64
MULTIPLE = 64
"""Widths are multiples of it: what matrix units like, and whole heads."""

SMALLEST, LARGEST = 64, 4096
CHINCHILLA = 20
"""Tokens a parameter (arXiv 2203.15556)."""

BATCH_TOKENS, BATCH_RUN, BATCH_POWER = 4096, 4e6, 0.383
"""Tokens an update at so many tokens in all, and the power of the latter that they grow with (arXiv 2505.13738)."""

MATRIX_RATE, OTHER_RATE, RATE_WIDTH = 0.014, 4e-3, 192
"""Muon's and AdamW's peak rates at that batch, and the width that the second was found at."""

EMBEDDING_RATE, TIED_FROM = 5, 4
"""The embedding's share of AdamW's rate where it is not the head as well, and the tokens a parameter from which one
table at both ends serves no worse."""

APART = {"embedding_std": 0.1, "head_std": 0.0}
"""How embedding and head begin where they are two."""

WARMUP_STEPS = 20
MICRO_BATCH = 16


@dataclass(frozen=True)
class Choice:
    """One way to spend the budget.

    Attributes:
        n: parameters that each token is multiplied with.
        tokens: that the budget pays for; repeated ones count.
        loss: that the law expects, in bits per byte.
    """

    d_model: int
    n_layers: int
    n: int
    tokens: float
    tokens_per_second: float | None
    epochs: float
    loss: float

    @property
    def tokens_per_parameter(self) -> float:
        """Chinchilla's measure."""
        return self.tokens / self.n

    @property
    def tied(self) -> bool:
        """Whether one table serves at both ends."""
        return self.tokens_per_parameter >= TIED_FROM


@dataclass(frozen=True)
class Budget:
    """One of minutes, FLOPs and tokens."""

    minutes: float | None = None
    flops: float | None = None
    tokens: float | None = None

    def __str__(self) -> str:
        if self.minutes is not None:
            return f"{self.minutes:g} minutes"
        return f"{self.flops:.3g} FLOPs" if self.flops is not None else f"{self.tokens:,.0f} tokens"


def model_options(d_model: int, n_layers: int, vocab_size: int, seq_len: int, tied: bool = False) -> dict[str, Any]:
    """A LLaMA of that width and depth: heads of 64, 8/3 of the width inside."""
    return {
        "d_model": d_model,
        "n_layers": n_layers,
        "n_heads": max(1, d_model // HEAD_DIM),
        "intermediate_size": max(MULTIPLE, round(8 * d_model / 3 / MULTIPLE) * MULTIPLE),
        "vocab_size": vocab_size,
        "max_seq_len": seq_len,
        "tie_embeddings": tied,
        **({} if tied else APART),
    }


def candidates(
    budget: Budget, speed: Speed | None, law: Law, vocab_size: int, seq_len: int, available: int, aspect: float
) -> list[Choice]:
    """What the budget gives at each width.

    Args:
        speed: of this machine, for a budget of minutes.
        available: tokens of the training split.

    Raises:
        UserError: the budget pays for no training at any width.
    """
    choices = []
    for d_model in _widths():
        n_layers = max(2, round(d_model / aspect))
        spec = ModelSpec.model_validate(model_options(d_model, n_layers, vocab_size, seq_len))
        n, rate = parameters(spec).multiplied, None
        if budget.minutes is not None:
            assert speed
            rate = speed.tokens_per_second(d_model, n_layers)
            tokens = (60 * budget.minutes - speed.start) * rate
        elif budget.flops is not None:
            tokens = budget.flops / training_flops_per_token(spec, seq_len)
        else:
            tokens = budget.tokens or 0.0
        if tokens < 10 * seq_len:
            continue
        worth = effective_tokens(tokens, available)
        choices.append(Choice(d_model, n_layers, n, tokens, rate, tokens / available, law.loss(n, worth)))
    if not choices:
        raise UserError(f"plan: {budget} pay for no training on this machine: give more")
    return choices


def _widths() -> Iterable[int]:
    """Steps of 64, then of about an eighth."""
    width = SMALLEST
    while width <= LARGEST:
        yield width
        width += max(MULTIPLE, width // 8 // MULTIPLE * MULTIPLE)


def best(choices: list[Choice], budget: Budget) -> Choice:
    """The lowest expected loss; where tokens are given and compute is not, Chinchilla's share of parameters."""
    if budget.tokens is not None:
        return min(choices, key=lambda choice: abs(math.log(choice.tokens_per_parameter / CHINCHILLA)))
    return min(choices, key=lambda choice: choice.loss)


def tokens_per_update(tokens: float, seq_len: int) -> int:
    """Whole sequences, a power of two of them."""
    wanted = BATCH_TOKENS * (tokens / BATCH_RUN) ** BATCH_POWER / seq_len
    return seq_len * 2 ** max(0, round(math.log2(max(wanted, 1.0))))


def training_options(choice: Choice, budget: Budget, seq_len: int) -> dict[str, Any]:
    """Batch, optimizer, schedule and horizon of a choice."""
    per_update = tokens_per_update(choice.tokens, seq_len)
    growth = math.sqrt(per_update / BATCH_TOKENS)
    horizon = {key: value for key, value in vars(budget).items() if value is not None}
    if budget.minutes is None:
        horizon = {"tokens": round(choice.tokens)}
    steps = choice.tokens / per_update
    return {
        **horizon,
        "tokens_per_update": per_update,
        "micro_batch": min(MICRO_BATCH, per_update // seq_len),
        "optimizer": {
            "kind": "muon",
            "learning_rate": _rounded(MATRIX_RATE * min(growth, 2.0)),
            "rate_of_others": _rounded(OTHER_RATE * min(growth, 2.0) * math.sqrt(RATE_WIDTH / choice.d_model)),
            **({} if choice.tied else {"rates": {"embedding": EMBEDDING_RATE}}),
            "iteration": "polar_express",
            "betas_of_others": [0.8, 0.98],
            "weight_decay": 0.1,
        },
        "clip": None,
        "schedule": {
            "kind": "wsd", "shape": "linear", "cooldown": 0.6,
            "warmup_steps": max(1, min(WARMUP_STEPS, int(steps / 5))),
        },
        "evaluate_every": None,
        "save_every": max(100, round(steps / 5)),
    }  # fmt: skip


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")


def reasons(
    choice: Choice, choices: list[Choice], training: dict[str, Any], law: Law, budget: Budget, aspect: float
) -> list[tuple[str, str, str]]:
    """What was chosen, its value, and the rule that gave it."""
    per_update, optimizer = training["tokens_per_update"], training["optimizer"]
    loss_rule = f"law: {law.source}"
    rows = [
        ("width", f"{choice.d_model:,}", "lowest expected loss" if budget.tokens is None else "20 tokens a parameter"),
        ("layers", f"{choice.n_layers}", f"width / {aspect:g} (nanochat: deeper and thinner wins)"),
        ("parameters", f"{choice.n:,}", "each token is multiplied with, head included"),
        ("tokens", f"{choice.tokens:,.0f}", _token_rule(choice, budget)),
        ("tokens per parameter", f"{choice.tokens_per_parameter:.1f}", "Chinchilla's optimum is 20, of unlimited text"),
        ("tokens per update", f"{per_update:,}", "4,096 at 4M tokens, × (tokens / 4M)^0.383 (arXiv 2505.13738)"),
        ("steps", f"{choice.tokens / per_update:,.0f}", "tokens over tokens per update"),
        ("rate of matrices", f"{optimizer['learning_rate']:g}", f"Muon, {MATRIX_RATE:g} × √(update / 4,096)"),
        (
            "rate of the rest", f"{optimizer['rate_of_others']:g}",
            f"AdamW, {OTHER_RATE:g} × √(update / 4,096) × √({RATE_WIDTH} / width)",
        ),
        (
            "embedding", "is the head as well" if choice.tied else f"apart, {EMBEDDING_RATE} × that rate",
            f"an own one learns faster, below {TIED_FROM} tokens a parameter",
        ),
        ("cool-down", "60 % of the run", "a line to zero; by the clock under a budget of minutes"),
        ("expected loss", f"{choice.loss:.3f} bits per byte", loss_rule),
    ]  # fmt: skip
    near = [each for each in choices if each.loss <= choice.loss * 1.01]
    if budget.tokens is None and len(near) > 1:
        sizes = f"{min(each.n for each in near):,} to {max(each.n for each in near):,} parameters"
        rows.append(("as good within 1 %", sizes, "take the smaller to run it faster"))
    return rows


def _token_rule(choice: Choice, budget: Budget) -> str:
    if choice.tokens_per_second is not None:
        return f"{choice.tokens_per_second:,.0f} tokens/s measured here, {budget} less start and end"
    return "FLOPs over FLOPs per token" if budget.flops is not None else "given"


def warnings(choice: Choice) -> list[str]:
    """What an experienced trainer would say of the plan."""
    said = []
    if choice.epochs > 4:
        said.append(
            f"the text would be seen {choice.epochs:.1f} times: beyond four it gives little (arXiv 2305.16264): "
            "prepare more text"
        )
    elif choice.epochs > 1:
        said.append(f"the text would be seen {choice.epochs:.1f} times; up to four that is nearly as good as new text")
    return said
