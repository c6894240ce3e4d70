"""How a conversation becomes the tokens of one text: Llama 2's way, or the template that came with a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from shearling.data.tokenizers.base import Tokenizer
from shearling.engine.arguments import check_text
from shearling.engine.rendering import RenderingError, render
from shearling.errors import UserError

MEND = "give it other messages, or talk as Llama 2 (--llama2-template, or conversation(…, template=Llama2Template()))"


@dataclass(frozen=True)
class Message:
    """What one side said.

    Attributes:
        role: system, user or assistant; a model's own template may know others.
        content: the text.
        tokens: of a reply that was drawn here, its tokens: another cut of the same text would have to be read again.

    Raises:
        UserError: the text is no valid UTF-8.
    """

    role: str
    content: str
    tokens: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_text(self.content, f"what the {self.role} says")

    @classmethod
    def of(cls, value: Mapping[str, str]) -> "Message":
        """From {"role": …, "content": …}.

        Raises:
            UserError: a key is missing, is another, or has no text.
        """
        given = value if isinstance(value, Mapping) else {}
        if given.keys() != {"role", "content"} or not all(isinstance(text, str) for text in given.values()):
            raise UserError(f"a message has the texts role and content, and nothing else: not {value!r:.80}")
        return cls(value["role"], value["content"])


class Template(Protocol):
    """Turns a conversation into the tokens that a reply follows."""

    def tokens(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
        """Tokens of the whole conversation, up to where the reply begins.

        Raises:
            UserError: the template does not take these messages.
        """
        ...


class Llama2Template:
    """Llama 2's: each turn a text of its own, from BOS to EOS (arXiv 2307.09288).

    `[INST] <<SYS>>\\n{system}\\n<</SYS>>\\n\\n{user} [/INST]` and the reply; later turns without the system's part. The
    tokens are llama2.c's.
    """

    def tokens(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
        opened = len(messages) > 0 and messages[0].role == "system"
        system, turns = (messages[0].content, messages[1:]) if opened else ("", messages)
        if [turn.role for turn in turns] != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
            raise UserError("Llama 2's template takes a system message or none, then user and assistant by turns, "
                            f"the user last: not {', '.join(message.role for message in messages)}")  # fmt: skip
        tokens: list[int] = []
        for place in range(0, len(turns), 2):
            said = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system and not place else ""
            said = f"[INST] {said}{turns[place].content} [/INST]"
            reply = turns[place + 1] if place + 1 < len(turns) else None
            if reply and reply.tokens is None:
                said += f" {reply.content}"
            tokens += [tokenizer.bos_id, *tokenizer.encode(said)]
            if reply:
                tokens += [*(reply.tokens or ()), tokenizer.eos_id]
        return tokens


class JinjaTemplate:
    """A template in Jinja, as `transformers` understands them.

    Args:
        source: its text.
        origin: what it came with, for messages.
    """

    def __init__(self, source: str, origin: str) -> None:
        self._source = source
        self._origin = origin

    def tokens(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
        """As in `Template`. Names of special tokens become these tokens, in what a message says as well."""
        tokens = tokenizer.encode_with_specials(self.render(messages, tokenizer))
        if not tokens:
            raise UserError(f"{self._origin}: its chat template makes no text of these messages: {MEND}")
        return tokens

    def render(self, messages: Sequence[Message], tokenizer: Tokenizer) -> str:
        """The conversation as one text.

        Raises:
            UserError: the template is none, raises an error of its own for these messages, takes too much, or makes
                what is no valid UTF-8.
        """
        names = {token: name for name, token in tokenizer.special_ids.items()}
        try:
            text = render(
                self._source,
                messages=[{"role": message.role, "content": message.content} for message in messages],
                bos_token=names.get(tokenizer.bos_id, ""),
                eos_token=names.get(tokenizer.eos_id, ""),
                add_generation_prompt=True,
                tools=None,
                documents=None,
            )
        except RenderingError as error:
            raise UserError(f"{self._origin}: its chat template fails ({error}): {MEND}") from error
        check_text(text, f"{self._origin}: what its chat template makes")
        return text


def template_of(source: str | None, origin: str) -> Template:
    """The template that came with a model, or Llama 2's where none came, or an empty one.

    Args:
        source: its text.
        origin: what it came with, for messages.
    """
    return JinjaTemplate(source, origin) if source and not source.isspace() else Llama2Template()
