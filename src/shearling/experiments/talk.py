"""A conversation in the terminal, or through a pipe: a line is a turn."""

import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from io import TextIOWrapper

from shearling.engine.api import Model
from shearling.engine.chat import Conversation
from shearling.engine.sampling import Sampling
from shearling.engine.templates import Llama2Template
from shearling.errors import UserError

HELP = "/reset forgets what was said, Ctrl-C ends a reply, /quit or Ctrl-D ends the conversation"


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
    """Read turns from standard input and write replies, until input ends.

    At a terminal turns are asked for, and what is refused is said; through a pipe there are only replies, each ending
    its line, and the first refusal ends the conversation.

    Args:
        first: the first turn; None: as the others.
        system: what the model is told before all turns.
        limit: tokens of a reply at most; None: as many as fit.
        positions: end where the conversation has so many tokens in all, as llama2.c does; 0: as the context takes.
            None: it goes on, and forgets its oldest turns.
        stop: strings that end a reply.
        llama2_template: talk as Llama 2 does, whatever template the model carries.
        write: takes the replies' text.
        say: takes a word to the user.

    Raises:
        UserError: a turn is refused, and nobody is there to give another.
    """
    template = Llama2Template() if llama2_template else model.template
    if not llama2_template and isinstance(template, Llama2Template):
        say(f"{model.origin} comes without a chat template: it is talked to as Llama 2")
    conversation = model.conversation(
        sampling, system=system or "", template=template, limit=limit, stop=stop, positions=positions or None, say=say
    )
    at_terminal = sys.stdin.isatty()
    if at_terminal:
        with suppress(ImportError):  # where there is none, lines are edited as the terminal can
            import readline  # noqa: F401 (importing it gives input() its keys)
        say(HELP)
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    while positions is None or not conversation.full:
        try:
            turn, first = (input("User: " if at_terminal else "") if first is None else first), None
        except EOFError:
            break
        except KeyboardInterrupt:
            if not at_terminal:
                raise
            write("\n")
            say(HELP)
            continue
        if turn.strip() == "/quit":
            break
        if turn.strip() == "/reset":
            conversation.reset()
            say("forgotten")
        elif turn.strip():
            try:
                _write_reply(conversation, turn, "Assistant: " if at_terminal else "", write)
            except UserError as error:
                if not at_terminal:
                    raise
                say(f"error: {error}")


def _write_reply(conversation: Conversation, turn: str, before: str, write: Callable[[str], None]) -> None:
    write(before)
    try:
        with suppress(KeyboardInterrupt), closing(conversation.ask(turn)) as reply:
            for piece in reply:
                write(piece)
    finally:
        write("\n")
