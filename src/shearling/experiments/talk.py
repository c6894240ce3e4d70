"""A conversation in the terminal, or through a pipe: a line is a turn."""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from io import TextIOWrapper

from shearling.engine.api import Model
from shearling.engine.arguments import check_text
from shearling.engine.chat import Conversation
from shearling.engine.sampling import Sampling
from shearling.engine.templates import Llama2Template
from shearling.errors import UserError

HELP = "/reset forgets what was said, /help says this, Ctrl-C ends a reply, /quit or Ctrl-D ends the conversation"
COMMANDS = ("/reset", "/help", "/quit")


def talk(
    model: Model,
    sampling: Sampling,
    *,
    first: str | None = None,
    system: str | None = None,
    limit: int | None = None,
    positions: int | None = None,
    stop: Sequence[str] = (),
    llama2_template: bool = False,
    write: Callable[[str], None],
    say: Callable[[str], None],
) -> None:
    """Read turns from standard input and write replies, until input ends; one that is closed has ended.

    At a terminal turns are asked for, and what is refused is said; through a pipe there are only replies, each ending
    its line, and the first refusal ends the conversation. A turn of a slash and a single word is a command.

    Args:
        first: the first turn; None: as the others.
        system: what the model is told before all turns.
        limit: tokens of a reply at most; None: as many as fit.
        positions: end where the conversation has so many tokens in all, as llama2.c does; 0: as the context takes.
            None: it goes on, and forgets its oldest turns.
        stop: strings that end a reply.
        llama2_template: talk as Llama 2 does, whatever template the model carries.
        write: takes the replies' text.
        say: takes a word to the user, on a line of its own.

    Raises:
        UserError: a turn is refused, and nobody is there to give another.
    """
    page = _Page(write, say)
    template = Llama2Template() if llama2_template else model.template
    conversation = model.conversation(
        sampling, system=system or "", template=template, limit=limit, stop=stop,
        positions=model.context if positions == 0 else positions, say=page.say,
    )  # fmt: skip
    if not llama2_template and isinstance(template, Llama2Template):
        say(f"{model.origin} comes without a chat template: it is talked to as Llama 2")
    at_terminal = sys.stdin is not None and sys.stdin.isatty()
    if at_terminal:
        with suppress(ImportError):  # where there is none, lines are edited as the terminal can
            import readline  # noqa: F401 (importing it gives input() its keys)
        say(HELP)
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # what is no text is refused by its line
    for where, turn in _turns(first, at_terminal, write, say):
        if turn.strip() == "/quit":
            break
        if turn.strip() == "/reset":
            conversation.reset()
            say("forgotten")
        elif turn.strip() == "/help":
            say(HELP)
        elif turn.strip():
            try:
                check_text(turn, where)
                _check_command(turn.strip())
                page.reply(conversation, turn, "Assistant: " if at_terminal else "")
            except UserError as error:
                if not at_terminal:
                    raise
                say(f"error: {error}")
        if positions is not None and conversation.full:
            break


def _check_command(turn: str) -> None:
    if re.fullmatch(r"/\w+", turn) and turn not in COMMANDS:
        raise UserError(f"{turn}: unknown: known are {', '.join(COMMANDS)}; say more for it to be the model's")


def _turns(
    first: str | None, at_terminal: bool, write: Callable[[str], None], say: Callable[[str], None]
) -> Iterator[tuple[str, str]]:
    """Where each turn comes from, for messages, and what it says, until input ends."""
    if first is not None:
        yield "-i", first
    if sys.stdin is None:  # closed by whoever started the program
        return
    line = 1
    while True:
        try:
            turn = input("User: " if at_terminal else "")
        except EOFError:
            if at_terminal:
                write("\n")  # which Ctrl-D, unlike Enter, has not written
            return
        except KeyboardInterrupt:
            if not at_terminal:
                raise
            write("\n")
            say(HELP)
            continue
        yield f"line {line} of standard input", turn
        line += 1


class _Page:
    """Replies and words to the user, which a terminal shows in one place: a word never goes on a reply's line."""

    def __init__(self, write: Callable[[str], None], say: Callable[[str], None]) -> None:
        self._write = write
        self._say = say
        self._within_line = False

    def say(self, word: str) -> None:
        self._end_line()
        self._say(word)

    def reply(self, conversation: Conversation, turn: str, before: str) -> None:
        """Write a reply as it comes, what stands before it, and its line's end; Ctrl-C ends it."""
        begun = False
        try:
            with suppress(KeyboardInterrupt), closing(conversation.ask(turn)) as pieces:
                for piece in pieces:
                    self._within_line = True
                    self._write(piece if begun else before + piece)
                    begun = True
            if not begun:  # an empty reply is one
                self._within_line = True
                self._write(before)
        finally:
            self._end_line()

    def _end_line(self) -> None:
        if self._within_line:
            self._within_line = False
            self._write("\n")
