"""A conversation with a model. Its sequence holds what was said, so that a turn reads only what is new."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing

from shearling.data.tokenizers.base import Tokenizer
from shearling.engine.arguments import stop_strings
from shearling.engine.generation import Generation, StopStrings, Transcript, generate_tokens
from shearling.engine.sampling import Sampler, Sampling
from shearling.engine.session import Session
from shearling.engine.templates import Message, Template
from shearling.errors import UserError

ROOM = 4
"""One part in so many of the context is kept free for a reply when old turns are dropped."""


class Conversation:
    """Turns of a user and a model.

    Args:
        session: of one sequence, which the conversation alone uses.
        tokenizer: the model's.
        template: makes tokens of what was said.
        sampling: how replies are drawn.
        stop_ids: tokens that end a reply.
        system: what the model is told before all turns.
        limit: tokens of a reply at most; None: as many as fit.
        positions: the conversation's length, in tokens, as llama2.c counts: what does not fit is refused. None: the
            context's, of which some is kept free for the reply, and old turns are forgotten.
        stop: a string, or several, that end a reply; nothing of them is given out.
        say: takes a word to the user on what happens to the conversation.

    Attributes:
        messages: what was said, the system's part first if there is one.
        reply: the newest reply's figures.

    Raises:
        UserError: an option is out of its range.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        template: Template,
        *,
        sampling: Sampling,
        stop_ids: frozenset[int],
        system: str = "",
        limit: int | None = None,
        positions: int | None = None,
        stop: str | Sequence[str] | None = (),
        say: Callable[[str], None],
    ) -> None:
        self.messages = [Message("system", system)] if system else []
        self.reply: Generation | None = None
        self._opening = list(self.messages)
        self._transcript = Transcript(session)
        self._tokenizer = tokenizer
        self._template = template
        self._sampler = Sampler(sampling, tokenizer.vocab_size)
        self._stop_ids = stop_ids
        self._limit = limit
        self._context = min(positions or session.context, session.context)
        self._forgets = positions is None
        self._bounded = self._context < session.context
        self._stop = stop_strings(stop)
        StopStrings(self._stop)  # refuses an empty one now, and not at the first reply
        self._say = say

    @property
    def full(self) -> bool:
        """Whether the sequence has reached its end."""
        return len(self._transcript.tokens) >= self._context

    def reset(self) -> None:
        """Forget all but the system's part."""
        self.messages = list(self._opening)

    def ask(self, text: str) -> Generator[str, None, None]:
        """The reply to a user's turn, in pieces of complete UTF-8.

        A reply that is left before its end stays in the conversation as far as it came; one that has not begun is
        taken back, with its question.

        Raises:
            UserError: the turn alone does not fit into the context, or the template does not take it.
        """
        self.messages.append(Message("user", text))
        self.reply = None
        try:
            prompt = self._fitting_prompt()
            room = self._context - len(prompt) + 1  # the last token drawn need not fit
            drawn = generate_tokens(
                self._transcript, prompt, self._sampler,
                limit=min(self._limit or room, room), stop_ids=self._stop_ids, coins_for_prompt=True,
            )  # fmt: skip
            self.reply = Generation(drawn, self._tokenizer.stream_decoder(), self._stop)
            with closing(drawn):
                yield from self.reply
        finally:
            if self.reply and (self.reply.drawn or self.reply.finish):
                self.messages.append(Message("assistant", self.reply.text, tuple(self.reply.drawn)))
            else:
                self.messages.pop()
        if self.reply.finish == "length" and self.full:
            full = f"the conversation has its {self._context} tokens (-n)" if self._bounded else "the context is full"
            self._say(f"{full}: the reply ends here")

    def _fitting_prompt(self) -> list[int]:
        """The tokens of the conversation, without its oldest turns where all would leave no room for a reply."""
        first, kept = len(self._opening), list(self.messages)
        tokens = self._template.tokens(kept, self._tokenizer)
        while self._forgets and len(tokens) > self._context - self._context // ROOM and len(kept) > first + 1:
            del kept[first : first + 2]
            tokens = self._template.tokens(kept, self._tokenizer)
        if len(tokens) > self._context:
            raise self._too_long(len(tokens), len(kept) == first + 1)
        if dropped := (len(self.messages) - len(kept)) // 2:
            self._say(f"the context is full: forgot the oldest turn{'s' if dropped > 1 else ''} ({dropped})")
        self.messages = kept
        return tokens

    def _too_long(self, n_tokens: int, alone: bool) -> UserError:
        what = "a turn" if alone else "a conversation"
        within = ", the system's part among them" if self._opening else ""
        bound, mend = ("-n takes", "raise it, or ") if self._bounded else ("the model's context takes", "")
        return UserError(f"{what} of {n_tokens} tokens{within}: {bound} {self._context}: {mend}shorten the text")
