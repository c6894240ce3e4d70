"""A conversation through standard input: typed, piped, and interrupted."""

import builtins
import io
import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from shearling.cli import main
from shearling.engine.api import Model
from shearling.engine.reference import ReferenceEngine
from shearling.engine.sampling import Sampling
from shearling.engine.templates import Llama2Template
from shearling.errors import UserError
from shearling.experiments.talk import HELP, talk
from shearling.formats import open_checkpoint

GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def model(assets):
    checkpoint = open_checkpoint(assets / "models/stories260K.bin", assets / "tokenizers/tok512/tok512.bin")
    return Model(ReferenceEngine(checkpoint), checkpoint)


@pytest.fixture
def typed(monkeypatch):
    """Types lines at a terminal: `typed("a", KeyboardInterrupt, "b")`; then the input ends."""

    def lines(*items):
        waiting = iter(items)

        def read(prompt=""):
            item = next(waiting, EOFError)
            if isinstance(item, type):
                raise item
            return item

        monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
        monkeypatch.setattr(builtins, "input", read)

    return lines


@pytest.fixture
def piped(monkeypatch):
    """Pipes bytes into standard input."""
    return lambda content: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))


def conversation(model, write=None, **options) -> tuple[str, list[str]]:
    """The text of the replies, and what was said of the conversation."""
    pieces, said = [], []
    talk(model, GREEDY, write=write or pieces.append, say=said.append, **{"limit": 8, **options})
    return "".join(pieces), said


def replies(model, *turns: str, **options) -> list[str]:
    talking = model.conversation(GREEDY, limit=8, say=lambda _: None, **options)
    return ["".join(talking.ask(turn)) for turn in turns]


class TestThroughAPipe:
    def test_each_line_is_a_turn_and_each_reply_ends_its_line(self, model, piped):
        piped(b"Hello\nTell me more\n")
        first, second = replies(model, "Hello", "Tell me more")
        assert conversation(model)[0] == f"{first}\n{second}\n"

    def test_the_first_turn_and_the_system_s_part_may_be_given_beforehand(self, model, piped):
        piped(b"Tell me more")
        expected = replies(model, "Hello", "Tell me more", system="Be brief.")
        text, _ = conversation(model, first="Hello", system="Be brief.")
        assert text.splitlines() == expected

    def test_empty_lines_are_no_turns(self, model, piped):
        piped(b"\n  \nHello\n\n")
        assert conversation(model)[0] == replies(model, "Hello")[0] + "\n"

    def test_bytes_that_are_no_text_are_refused_by_their_line(self, model, piped):
        piped(b"Hello\n\nHel\xfflo\n")
        pieces = []
        with pytest.raises(UserError, match=r"^line 3 of standard input is no valid UTF-8"):
            conversation(model, pieces.append)
        assert "".join(pieces) == replies(model, "Hello")[0] + "\n"

    def test_a_refused_turn_leaves_no_line(self, model, piped):
        piped(b"word " * 600)
        pieces = []
        with pytest.raises(UserError):
            conversation(model, pieces.append)
        assert pieces == []

    def test_an_input_that_is_closed_is_an_empty_one(self, model, monkeypatch):
        monkeypatch.setattr(sys, "stdin", None)
        assert conversation(model)[0] == ""
        assert conversation(model, first="Hello")[0] == replies(model, "Hello")[0] + "\n"

    @pytest.mark.parametrize("turn", ["/rest is a word", "/usr/bin", "/", "a /rest"])
    def test_a_turn_that_merely_has_a_slash_is_the_model_s(self, model, piped, turn):
        piped(turn.encode())
        assert conversation(model)[0] == replies(model, turn)[0] + "\n"

    def test_an_unknown_command_ends_it(self, model, piped):
        piped(b"/rest\nHello\n")
        with pytest.raises(UserError, match=r"^/rest: unknown"):
            conversation(model)

    def test_an_empty_reply_is_a_line(self, model, piped):
        piped(b"Hello\n")
        assert conversation(model, stop=[replies(model, "Hello")[0][:1]])[0] == "\n"

    def test_a_refused_turn_ends_it(self, model, piped):
        piped(b"word " * 600 + b"\nHello\n")
        with pytest.raises(UserError, match="the model's context takes 512"):
            conversation(model)

    def test_a_model_without_a_template_is_talked_to_as_llama_2_with_a_word(self, model, piped):
        piped(b"")
        assert any("without a chat template" in word for word in conversation(model)[1])
        assert not any("without a chat template" in word for word in conversation(model, llama2_template=True)[1])

    def test_it_ends_with_so_many_positions_as_llama2_c_does(self, model, piped):
        piped(b"Hello\nTell me more\n")
        text, _ = conversation(model, positions=30, limit=None)
        assert text.count("\n") == 1

    @pytest.mark.parametrize(
        ("positions", "word"),
        [(30, "the conversation has its 30 tokens (-n): the reply ends here"),
         (0, "the context is full: the reply ends here")],
    )  # fmt: skip
    def test_why_a_reply_was_cut_is_said_on_a_line_of_its_own(self, model, piped, positions, word):
        piped(b"Hello\n")
        shown = io.StringIO()  # what a terminal shows of both

        def say(said):
            shown.write(f"{said}\n")

        short = Model(ReferenceEngine(model._checkpoint), model._checkpoint)
        short.engine.context = 40
        talk(short, GREEDY, positions=positions, llama2_template=True, write=shown.write, say=say)
        reply, said = shown.getvalue().rsplit("\n", 2)[:2]
        assert said == word
        (whole,) = replies(model, "Hello", positions=positions or 40, template=Llama2Template())[:1]
        assert len(whole) >= 8
        assert reply.startswith(whole[:8])


class TestAtATerminal:
    def test_reset_forgets_and_quit_ends(self, model, typed):
        typed("Hello", "/reset", "Hello", " /quit ", "Hello")
        text, said = conversation(model)
        assert text == f"Assistant: {replies(model, 'Hello')[0]}\n" * 2
        assert "forgotten" in said

    def test_ctrl_c_at_the_prompt_says_how_to_end(self, model, typed):
        typed(KeyboardInterrupt, "Hello")
        text, said = conversation(model)
        assert text == f"\nAssistant: {replies(model, 'Hello')[0]}\n\n"
        assert sum("Ctrl-D ends" in word for word in said) == 2  # at the start, and then

    def test_ctrl_c_ends_a_reply_and_not_the_conversation(self, model, typed):
        typed("Hello", "Tell me more")
        pieces = []

        def write(text):
            pieces.append(text)
            if len(pieces) == 4:
                raise KeyboardInterrupt

        conversation(model, write)
        lines = "".join(pieces).splitlines()
        whole = replies(model, "Hello")[0]
        assert len(lines) == 3  # the last is that of the prompt at which the input ended
        assert f"Assistant: {whole}".startswith(lines[0])
        assert len(lines[0]) < len(f"Assistant: {whole}")

    def test_what_is_forgotten_is_said_before_the_reply(self, model, typed):
        typed("Hello", "Tell me more")
        short = Model(ReferenceEngine(model._checkpoint), model._checkpoint)
        short.engine.context = 40
        shown = []
        talk(short, GREEDY, limit=8, llama2_template=True, write=shown.append, say=shown.append)
        place = next(place for place, text in enumerate(shown) if "forgot the oldest turn" in text)
        assert shown[place - 1] == "\n"
        assert shown[place + 1].startswith("Assistant: ")

    def test_what_is_refused_is_said_and_another_turn_asked_for(self, model, typed):
        typed("word " * 600, "Hello")
        text, said = conversation(model)
        assert any(word.startswith("error: ") for word in said)
        assert text.splitlines()[0] == f"Assistant: {replies(model, 'Hello')[0]}"

    def test_ctrl_d_ends_its_line(self, model, typed):
        typed()
        assert conversation(model)[0] == "\n"

    def test_help_says_what_there_is_and_is_no_turn(self, model, typed):
        typed("/help", "/quit")
        text, said = conversation(model)
        assert text == ""
        assert said.count(HELP) == 2  # at the start, and then

    def test_an_unknown_command_is_told_and_another_turn_asked_for(self, model, typed):
        typed("/rest", "Hello", "/quit")
        text, said = conversation(model)
        assert text == f"Assistant: {replies(model, 'Hello')[0]}\n"
        assert "error: /rest: unknown: known are /reset, /help, /quit; say more for it to be the model's" in said


@pytest.mark.parametrize(("flags", "words"), [([], 1), (["--llama2-template"], 0)])
def test_generate_talks_as_llama_2_where_asked(assets, monkeypatch, capsys, flags, words):
    monkeypatch.setattr(sys, "stdin", None)
    files = [str(assets / "models/stories260K.bin"), "-z", str(assets / "tokenizers/tok512/tok512.bin")]
    with pytest.raises(SystemExit) as ended:
        main(["generate", *files, "-m", "chat", "-i", "Hello", "-t", "0", "-n", "30", "--threads", "1", *flags])
    assert ended.value.code == 0
    shown = capsys.readouterr()
    assert shown.out.strip()
    assert shown.err.count("without a chat template") == words


def test_the_command_survives_ctrl_c_in_a_real_terminal(assets, root):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "shearling", "chat", str(assets / "models/stories260K.bin"), "--threads", "1",
               "-z", str(assets / "tokenizers/tok512/tok512.bin"), "-s", "3"]  # fmt: skip
    process = subprocess.Popen(command, cwd=root, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)

    def read_until(mark: bytes) -> bytes:
        seen, until = b"", time.monotonic() + 250
        while mark not in seen:
            assert time.monotonic() < until, seen
            seen += os.read(ours, 4096)
        return seen

    try:
        read_until(b"User: ")
        os.write(ours, b"Tell me of Lily.\n")
        read_until(b"Assistant: ")
        process.send_signal(signal.SIGINT)
        read_until(b"User: ")
        os.write(ours, b"\x04")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
