"""Computes what a printed equation says, from its text alone: a reader independent of the code that printed it."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

TOKEN = re.compile(r"\s*(\d+(?:\.\d+)?(?:e[-+]?\d+)?|[A-Za-zα-ω][A-Za-z0-9_α-ω]*[₀-₉]*|\[[^\]]*\]|\S)")
ENDS_A_FACTOR = set("+−⊙·/),‖|⌋=")
BETWEEN: dict[str, tuple[str, Callable[..., Any]]] = {
    "(": (")", lambda x: x),
    "‖": ("‖", lambda x: x.norm(dim=-1, keepdim=True)),
    "|": ("|", lambda x: x.abs()),
    "⌊": ("⌋", lambda x: x.floor()),
}
POWERS = {"²": 2, "³": 3, "⁴": 4}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "mean": lambda x: x.mean(-1, keepdim=True),
    "sum": lambda x: x.sum(-1, keepdim=True),
    "var": lambda x: x.var(-1, correction=0, keepdim=True),
    "softmax": lambda x: torch.softmax(x, -1),
    "max": lambda x, y: torch.maximum(x, torch.as_tensor(y)),
    "min": lambda x, y: torch.minimum(torch.as_tensor(x), torch.as_tensor(y)),
    "tanh": torch.tanh,
    "erf": torch.erf,
    "relu": torch.relu,
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "stopgrad": lambda x: x,
}


class Transposed:
    """kᵀ, to be multiplied with q."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value


def split(text: str) -> list[str]:
    """The parts between commas that stand outside brackets."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign in "([") - (sign in ")]")
        if sign == "," and not depth:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts]


class Reader:
    """Evaluates texts where `names` gives tensors, matrices and functions their meaning.

    Args:
        head_dim: width of a head; a product of queries and keys parts both into heads of it.
    """

    def __init__(self, names: Mapping[str, Any], head_dim: int = 0) -> None:
        self.names = {**FUNCTIONS, "heads": self.heads, **names}
        self.head_dim = head_dim

    def equation(self, line: str) -> tuple[list[str], list[Any]]:
        """The targets of a line, and what it says they become."""
        left, right = re.split(r" [←=] ", line, maxsplit=1)
        targets, parts = split(left), split(right.replace(", with ", ", "))
        for part in parts[len(targets) :]:
            if definition := re.match(r"(\S+) = (.*)", part):
                self.names[definition[1]] = definition[2]  # evaluated when it is used
        return targets, [self.value(part) for part in parts[: len(targets)]]

    def value(self, text: str) -> Any:
        return _Parse(self, TOKEN.findall(text)).whole()

    def name(self, name: str) -> Any:
        meaning = self.names[name]
        if isinstance(meaning, str):
            meaning = self.names[name] = self.value(meaning)
        return meaning

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.ndim == 4 else x.unflatten(-1, (-1, self.head_dim))

    def apply(self, left: Any, right: Any) -> Any:
        """A matrix times a vector of each token, scores of queries and keys, or weights times values."""
        if isinstance(right, Transposed):
            q, k = self.heads(left), self.heads(right.value)
            return torch.einsum("bthk,bshk->bhts", q, k.repeat_interleave(q.size(2) // k.size(2), dim=2))
        if left.ndim == 4:
            v = self.heads(right)
            return torch.einsum("bhts,bshk->bthk", left, v.repeat_interleave(left.size(1) // v.size(2), dim=2))
        return (right.flatten(2) if right.ndim == 4 else right) @ left.mT


class _Parse:
    """Sums of products of applications of factors, as the signs bind."""

    def __init__(self, reader: Reader, tokens: list[str]) -> None:
        self.reader = reader
        self.tokens = tokens
        self.at = 0

    def whole(self) -> Any:
        result = self.sum()
        assert self.at == len(self.tokens), self.tokens[self.at :]
        return result

    def next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else "="

    def take(self, expected: str = "") -> str:
        token = self.next()
        assert expected in ("", token), (expected, self.tokens[self.at :])
        self.at += 1
        return token

    def sum(self) -> Any:
        result = self.product()
        while self.next() in "+−":
            result = result + self.product() if self.take() == "+" else result - self.product()
        return result

    def product(self) -> Any:
        if self.next() == "−":
            self.take()
            return -self.product()
        result = self.applied()
        while self.next() in "⊙·/":
            result = result / self.applied() if self.take() == "/" else result * self.applied()
        return result

    def applied(self) -> Any:
        result = self.factor()
        return result if self.next() in ENDS_A_FACTOR else self.reader.apply(result, self.applied())

    def factor(self) -> Any:
        token = self.take()
        if token == "√":
            return torch.as_tensor(self.factor()).sqrt()
        if token in BETWEEN:
            closed, function = BETWEEN[token]
            result = function(self.sum())
            self.take(closed)
        elif token[0].isdigit():
            result = float(token)
        elif self.next() == "(" and callable(self.reader.names.get(token)):
            result = self.reader.name(token)(*self.arguments())
        else:
            result = self.reader.name(token)
        return self.behind(result)

    def arguments(self) -> list[Any]:
        self.take("(")
        values = [self.sum()]
        while self.next() == ",":
            self.take()
            values.append(self.sum())
        self.take(")")
        return values

    def behind(self, result: Any) -> Any:
        """What may stand behind a factor: a power, ᵀ, an index."""
        while self.next() in POWERS or self.next() in ("ᵀ", "^") or self.next().startswith("["):
            token = self.take()
            if token == "ᵀ":
                result = Transposed(result)
            elif token == "^":
                result = result ** self.factor()
            elif token in POWERS:
                result = result ** POWERS[token]
            elif ":" in token:
                result = result[..., : int(token.partition(":")[2].rstrip("]"))]
            else:
                result = result[self.reader.name(token.strip("[]"))]
        return result
