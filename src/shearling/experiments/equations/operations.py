"""What torch's functions mean in an equation: one entry in `OPERATIONS` for each that has a sign of its own.

Any other function is written by its name. An operation is called with what converts arguments to nodes, and with the
very arguments that torch was called with; these still have their shapes.
"""

from collections.abc import Callable
from typing import Any

import torch

from shearling.experiments.equations.nodes import Node, call, number, raw

ToNode = Callable[[Any], Node]
Operation = Callable[..., Node]

READS = {"__bool__", "__float__", "__int__", "__index__", "item", "tolist", "numpy", "is_nonzero", "equal", "allclose"}
"""Functions that take a tensor's values to where no tracing follows."""

ONE_MORE = "append 1"
"""What `pad` is where a vector gets a 1 at its end, which a matrix's last column then adds as a bias."""


def meaning(function: str, node: ToNode, args: tuple[Any, ...], options: dict[str, Any]) -> Node:
    """The node for a call of torch's `function`."""
    plain = function.strip("_")
    if plain in OPERATIONS:
        return OPERATIONS[plain](node, *args, **options)
    inputs = [node(value) for value in args if value is not None and not isinstance(value, bool)]
    named = [f"{key}={value}" for key, value in options.items() if value is not None and value is not False]
    return call(plain, *inputs, *map(raw, named))


def divide(above: Node, below: Node) -> Node:
    """above / below."""
    return Node("div", (above, below))


def root(x: Node) -> Node:
    """√x."""
    return Node("sqrt", (x,))


def _times(node: ToNode, a: Any, b: Any, **_: Any) -> Node:
    """Elementwise ⊙; numbers, and one number a token, take · and the plain numbers stand first."""
    left, right = node(a), node(b)
    if _single(b) and not _single(a):
        left, right = right, left
    for one, other in ((left, right), (right, left)):
        if other.kind == "div" and other.inputs[0].text == "1":  # x · (1 / y)
            return divide(one, other.inputs[1])
    each_token = not (_single(a) or _single(b)) and a.ndim == b.ndim and 1 in (a.size(-1), b.size(-1))
    return Node("scale" if _single(a) or _single(b) or each_token else "mul", (left, right))


def _single(value: Any) -> bool:
    return not isinstance(value, torch.Tensor) or value.numel() == 1


def _plus(node: ToNode, a: Any, b: Any, *, alpha: float = 1, **_: Any) -> Node:
    return Node("add", (node(a), node(b) if alpha == 1 else _times(node, alpha, b)))


def _minus(node: ToNode, a: Any, b: Any, *, alpha: float = 1, **_: Any) -> Node:
    return Node("sub", (node(a), node(b) if alpha == 1 else _times(node, alpha, b)))


def _over(node: ToNode, a: Any, b: Any, *, rounding_mode: str | None = None, **_: Any) -> Node:
    quotient = divide(node(a), node(b))
    if rounding_mode is None:
        return quotient
    return _rounded_down(quotient) if rounding_mode == "floor" else call(rounding_mode, quotient)


def _rounded_down(x: Node) -> Node:
    return Node("between", (x,), "⌊⌋")


def _power(node: ToNode, base: Any, exponent: Any) -> Node:
    if not isinstance(exponent, torch.Tensor) and exponent in (0.5, -0.5):
        return root(node(base)) if exponent > 0 else divide(number(1), root(node(base)))
    return Node("pow", (node(base), node(exponent)))


def _square(x: Node) -> Node:
    return Node("pow", (x, number(2)))


def _over_last(function: str, opened: str = "", closed: str = "") -> Operation:
    """A statistic over the last dimension; over others it says which."""

    def reduce(node: ToNode, x: torch.Tensor, dim: Any = None, *rest: Any, **options: Any) -> Node:
        dims = options.pop("axis", dim)
        extra = [f"{key}={value}" for key, value in options.items() if key not in ("keepdim", "dtype", "_stacklevel")]
        dims = range(x.ndim) if dims is None else [dims] if isinstance(dims, int) else dims
        if {d % x.ndim for d in dims} != {x.ndim - 1}:
            extra.insert(0, "everywhere" if len(dims) == x.ndim else f"dim={', '.join(map(str, dims))}")
        if opened and not extra:
            return Node("between", (node(x),), opened + closed)
        return call(function, node(x), *map(raw, extra))

    return reduce


def _variance(function: str) -> Operation:
    """The biased variance or deviation by its name alone, the unbiased one with what it subtracts from the count."""

    def reduce(node: ToNode, x: torch.Tensor, dim: Any = None, unbiased: bool = True, **options: Any) -> Node:
        correction = options.pop("correction", int(unbiased))
        return _over_last(function)(node, x, dim, **options, **({"correction": correction} if correction else {}))

    return reduce


def _norm(node: ToNode, x: torch.Tensor, *rest: Any, **options: Any) -> Node:
    """The length; `Tensor.norm`, `torch.linalg.norm` and `vector_norm` begin with the order p."""
    order = options.pop("p", options.pop("ord", rest[0] if rest else 2))
    dim = options.pop("dim", rest[1] if len(rest) > 1 else None)
    options.pop("keepdim", None)
    if order not in (None, 2, "fro"):
        options["p"] = order
    return _over_last("norm", "‖", "‖")(node, x, dim, **options)


def _normalize(node: ToNode, x: torch.Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, **_: Any) -> Node:
    return divide(node(x), call("max", _norm(node, x, p, dim), number(eps)))


def _rms_norm(node: ToNode, x: torch.Tensor, shape: Any, weight: Any = None, eps: float | None = None) -> Node:
    statistic = _mean(node, _square(node(x)), x, shape)
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return divide(_gained(node, weight, node(x)), root(Node("add", (statistic, number(eps)))))


def _layer_norm(
    node: ToNode, x: torch.Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Node:
    centred = Node("sub", (node(x), _mean(node, node(x), x, shape)))
    variance = _mean(node, node(x), x, shape, "var")
    y = divide(_gained(node, weight, centred), root(Node("add", (variance, number(eps)))))
    return y if bias is None else Node("add", (y, node(bias)))


def _mean(node: ToNode, of: Node, x: torch.Tensor, shape: Any, function: str = "mean") -> Node:
    dims = [*range(x.ndim - len(shape), x.ndim)]
    return _over_last(function)(lambda _: of, x, dims)


def _gained(node: ToNode, weight: Any, x: Node) -> Node:
    return x if weight is None else Node("scale" if _single(weight) else "mul", (node(weight), x))


def _clamp(node: ToNode, x: Any, min: Any = None, max: Any = None) -> Node:
    result = node(x) if min is None else call("max", node(x), node(min))
    return result if max is None else call("min", result, node(max))


def _linear(node: ToNode, x: Any, weight: Any, bias: Any = None) -> Node:
    W, h = node(weight), node(x)
    if W.text == "concat" and h.text == ONE_MORE and len(W.inputs) == 2:  # (W, b) (h, 1) is a product with a bias
        return Node("add", (Node("apply", (W.inputs[0], h.inputs[0])), W.inputs[1]))
    y = Node("apply", (W, h))
    return y if bias is None else Node("add", (y, node(bias)))


def _pad(node: ToNode, x: Any, pad: Any, mode: str = "constant", value: float | None = None) -> Node:
    return call(ONE_MORE if (tuple(pad), value) == ((0, 1), 1.0) else f"pad {tuple(pad)} with {value or 0}", node(x))


def _dropout(node: ToNode, x: Any, p: float = 0.5, training: bool = True, **_: Any) -> Node:
    return call("dropout", node(x), number(p)) if p and training else node(x)


def _gelu(node: ToNode, x: Any, approximate: str = "none") -> Node:
    return call("gelu" if approximate == "none" else f"gelu_{approximate}", node(x))


def _joined(function: str) -> Operation:
    """Tensors side by side; along the first dimension they are several streams."""

    def join(node: ToNode, tensors: Any, dim: int = 0, **_: Any) -> Node:
        inputs = tuple(map(node, tensors))
        return Node("tuple", inputs) if function == "stack" and dim == 0 else call(function, *inputs)

    return join


def _index(node: ToNode, x: Any, index: Any) -> Node:
    if isinstance(index, int) and index >= 0:
        return Node("item", (node(x),), str(index))
    parts = [_index_text(part) for part in (index if isinstance(index, tuple) else (index,))]
    return node(x) if set(parts) <= {":", "…", "None"} else Node("index", (node(x),), ", ".join(parts))


def _index_text(part: Any) -> str:
    if isinstance(part, slice):
        start, stop = ("" if end is None else str(end) for end in (part.start, part.stop))
        return f"{start}:{stop}" + (f":{part.step}" if part.step else "")
    return "…" if part is Ellipsis else "[…]" if isinstance(part, torch.Tensor) else str(part)


def _transpose(node: ToNode, x: torch.Tensor, *dims: int) -> Node:
    """ᵀ of the last two dimensions; any other exchange only moves heads about."""
    last_two = {d % x.ndim for d in dims} == {x.ndim - 2, x.ndim - 1} if dims else True
    return Node("after", (node(x),), "ᵀ") if last_two else node(x)


def _same(node: ToNode, x: Any, *_: Any, **__: Any) -> Node:
    return node(x)


def _cast(node: ToNode, x: torch.Tensor, *args: Any, **options: Any) -> Node:
    """Another precision is not mentioned; what rounds to whole numbers is."""
    dtype = next((value for value in (*args, *options.values()) if isinstance(value, torch.dtype)), x.dtype)
    return call(str(dtype).removeprefix("torch."), node(x)) if _whole(dtype) and not _whole(x.dtype) else node(x)


def _whole(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex)


OPERATIONS: dict[str, Operation] = {
    **dict.fromkeys(("type_as", "float", "half", "bfloat16", "double", "contiguous", "clone"), _same),
    **dict.fromkeys(("to", "type"), _cast),
    **dict.fromkeys(("view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "permute"), _same),
    **dict.fromkeys(("squeeze", "unsqueeze", "expand", "expand_as", "broadcast_to", "repeat_interleave"), _same),
    "add": _plus,
    **dict.fromkeys(("sub", "subtract"), _minus),
    **dict.fromkeys(("mul", "multiply"), _times),
    **dict.fromkeys(("div", "divide", "true_divide"), _over),
    **dict.fromkeys(("floor_divide", "floordiv"), lambda node, a, b: _rounded_down(divide(node(a), node(b)))),
    "floor": lambda node, x: _rounded_down(node(x)),
    "rsub": lambda node, a, b, **_: Node("sub", (node(b), node(a))),
    **dict.fromkeys(("rdiv", "rtruediv"), lambda node, a, b: divide(node(b), node(a))),
    "rpow": lambda node, a, b: Node("pow", (node(b), node(a))),
    "neg": lambda node, x: Node("neg", (node(x),)),
    "pow": _power,
    "square": lambda node, x: _square(node(x)),
    "sqrt": lambda node, x: root(node(x)),
    "rsqrt": lambda node, x: divide(number(1), root(node(x))),
    "reciprocal": lambda node, x: divide(number(1), node(x)),
    "abs": lambda node, x: Node("between", (node(x),), "||"),
    "addcmul": lambda node, x, a, b, *, value=1: Node(
        "add", (node(x), _times(node, a, b) if value == 1 else Node("scale", (number(value), _times(node, a, b))))
    ),
    "lerp": lambda node, a, b, weight: Node(
        "add", (node(a), Node("scale" if _single(weight) else "mul", (node(weight), Node("sub", (node(b), node(a))))))
    ),
    **{function: _over_last(function) for function in ("mean", "sum", "softmax", "logsumexp", "amax", "amin", "prod")},
    "var": _variance("var"),
    "std": _variance("std"),
    **dict.fromkeys(("norm", "linalg_norm", "linalg_vector_norm"), _norm),
    "normalize": _normalize,
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    **dict.fromkeys(("clamp", "clip"), _clamp),
    "clamp_min": lambda node, x, min: _clamp(node, x, min),
    "clamp_max": lambda node, x, max: _clamp(node, x, None, max),
    "maximum": lambda node, a, b: call("max", node(a), node(b)),
    "minimum": lambda node, a, b: call("min", node(a), node(b)),
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm"), lambda node, a, b: Node("apply", (node(a), node(b)))),
    "embedding": lambda node, index, weight, *_, **__: Node("index", (node(weight),), node(index).text),
    "pad": _pad,
    "dropout": _dropout,
    "gelu": _gelu,
    "detach": lambda node, x: call("stopgrad", node(x)),
    "stack": _joined("stack"),
    **dict.fromkeys(("cat", "concat", "concatenate"), _joined("concat")),
    "getitem": _index,
    **dict.fromkeys(("transpose", "swapaxes", "swapdims", "mT", "T", "t"), _transpose),
}
