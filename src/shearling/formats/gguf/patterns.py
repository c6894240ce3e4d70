r"""How byte-level tokenizers cut a text before they merge: llama.cpp's names, as patterns of the `tokenizers` library.

A name stands for patterns that cut one after the other, each within what the one before left (`llama-vocab.cpp` of
ggml-org/llama.cpp, `llm_tokenizer_bpe`). Where llama.cpp rewrote a published pattern for its own matcher, which has no
`(?i:…)`, the published one stands here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shearling.errors import UserError

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
DIGIT = r"\p{N}"
DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")


@dataclass(frozen=True)
class Pattern:
    """What a name stands for.

    Attributes:
        cuts: the patterns, in the order in which they cut.
        ignore_merges: a cut that is a token is taken whole.
        adds_bos: BOS stands before a text where the file does not say.
    """

    cuts: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False

    def pre_tokenizer(self) -> dict[str, Any]:
        """The same as `tokenizer.json` has it."""
        splits = [
            {"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False} for cut in self.cuts
        ]
        to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        return {"type": "Sequence", "pretokenizers": [*splits, to_bytes]}


PATTERNS: dict[str, Pattern] = {
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "gigachat", "mellum", "trillion"), Pattern((GPT2,))),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), Pattern((DIGIT, GPT2))
    ),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), Pattern((LLAMA3,), True, True)),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), Pattern((LLAMA3,))),
    **dict.fromkeys(("qwen2", "stablelm2", "deepseek-r1-qwen", "megrez", "hunyuan"), Pattern((QWEN2,))),
    "default": Pattern(DEFAULT),
}
"""By `tokenizer.ggml.pre`; of several names for one thing the first is written."""


def pattern_name(
    pre_tokenizer: Mapping[str, Any] | None, normalizer: Mapping[str, Any] | None, ignore_merges: bool
) -> str:
    """llama.cpp's name for how `tokenizer.json` cuts a text.

    Raises:
        UserError: it has none.
    """
    if normalizer is not None:
        raise UserError(f"llama.cpp does not normalize texts, and this tokenizer does ({_kind(normalizer)}): GGUF "
                        "cannot hold it")  # fmt: skip
    cuts = _cuts(pre_tokenizer)
    for name, pattern in PATTERNS.items():
        if cuts == _alike(pattern.cuts) and ignore_merges == pattern.ignore_merges:
            return name
    raise UserError(f"llama.cpp has no name for how this tokenizer cuts a text ({_kind(pre_tokenizer)}): GGUF cannot "
                    "hold it")  # fmt: skip


def _kind(part: Mapping[str, Any] | None) -> str:
    return str(part.get("type")) if part else "not at all"


def _cuts(pre_tokenizer: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """The patterns that a `pre_tokenizer` cuts with; None where it does something else besides."""
    if pre_tokenizer is None:
        return None
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    if not steps or steps[-1].get("type") != "ByteLevel":
        return None
    cuts: list[str] = []
    for step in steps:
        match step:
            case {"type": "Split", "pattern": {"Regex": str(cut)}, "behavior": "Isolated", "invert": False}:
                cuts.append(cut)
            case {"type": "Split", "pattern": {"Regex": str(cut)}, "behavior": "Removed", "invert": True}:
                cuts.append(cut)  # the same, for all that is between the matches of these patterns is nothing
            case {"type": "Digits", "individual_digits": True}:
                cuts.append(DIGIT)
            case {"type": "ByteLevel", "add_prefix_space": False}:
                cuts += [GPT2] * bool(step.get("use_regex", True))
            case _:
                return None
    return _alike(cuts)


def _alike(cuts: "tuple[str, ...] | list[str]") -> tuple[str, ...]:
    """Patterns without what does not matter: how they ignore case, and groups that nothing asks for."""
    ignored = r"'s|'t|'re|'ve|'m|'ll|'d"
    spelled = "(?:" + "|".join("'" + "".join(f"[{c}{c.upper()}]" for c in end[1:]) for end in ignored.split("|")) + ")"
    return tuple(cut.replace(spelled, f"(?i:{ignored})").replace(r"\p{N}{1}", r"\p{N}") for cut in cuts)
