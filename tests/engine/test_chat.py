"""Conversations: what the model reads of them, and templates against transformers' rendering."""

import signal
import time
from contextlib import closing, contextmanager

import pytest
from fake_engine import FakeEngine, checkpoint_of, make_tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from shearling.engine.api import Model
from shearling.engine.sampling import Sampling
from shearling.engine.templates import JinjaTemplate, Llama2Template, Message, template_of
from shearling.errors import UserError

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
OF_LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
WITH_EXTENSIONS = """
    {%- for message in messages %}
        {%- if message.role == "system" %}{% continue %}{% endif %}
        {%- if message.role == "assistant" %}
            {%- generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}
        {%- else %}
            {{- {"<said>": message.content, "bytes": "é"} | tojson }}
        {%- endif %}
    {% endfor %}
    {{- strftime_now("%Y") }}{% if tools is none and documents is none %} no tools{% endif %}
"""
GROWING = """
{%- set ns = namespace(s='ab', l=[1], n=99) -%}
{%- for i in range(999) -%}{%- set doubled -%}{{ ns.s }}{{ ns.s }}{%- endset -%}BODY{%- endfor -%}
"""
SAID = [
    Message("system", "You are a sheep."),
    Message("user", " Who are you? "),
    Message("assistant", "A <sheep> & 'more'."),
    Message("user", "Say it again."),
]


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


class TestJinja:
    @pytest.mark.parametrize("said", [SAID, SAID[1:], SAID[1:2]])
    @pytest.mark.parametrize("source", [CHATML, OF_LLAMA_2, WITH_EXTENSIONS])
    def test_renders_as_transformers_does(self, tokenizer, source, said):
        messages = [{"role": message.role, "content": message.content} for message in said]
        (expected,), _ = render_jinja_template(
            [messages], chat_template=source, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
        )
        assert JinjaTemplate(source, "here").render(said, tokenizer) == expected

    def test_turns_names_of_special_tokens_into_them_and_adds_no_others(self, tokenizer):
        tokens = JinjaTemplate("{{ bos_token }}Tom{{ eos_token }}", "here").tokens(SAID, tokenizer)
        assert tokens == [tokenizer.bos_id, *tokenizer.encode("Tom"), tokenizer.eos_id]

    def test_says_what_a_template_refuses_naming_where_it_is_from(self, tokenizer):
        with pytest.raises(
            UserError, match=r"model\.gguf: its chat template fails \(Conversation roles must alternate"
        ):
            JinjaTemplate(OF_LLAMA_2, "model.gguf").render(SAID[2:], tokenizer)

    @pytest.mark.parametrize(
        "source",
        [
            "{% for",
            "{{ nothing.of.this }}",
            "{{ 1 / 0 }}",
            "{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "{{ messages.append(1) }}",
            "{{ cycler.__init__.__globals__ }}",
            "{% include '/etc/passwd' %}",
            "{{ 'a' * 10**10 }}",
            "{{ 10000000000 * 'a' }}",
            "{{ [0] * 10000000000 }}",
            "{{ 9 ** (9 ** (9 ** 9)) }}",
            "{{ 'a' | center(10000000000) }}",
            "{{ 'a' | indent(width=10000000000, first=true) }}",
            "{{ 'a'.ljust(10000000000) }}",
            "{{ '%10000000000d' % 1 }}",
            "{{ '{:10000000000}'.format(1) }}",
            "{{ '%10000000000d' | format(1) }}",
            "{% for i in range(10000000000) %}a{% endfor %}",
            "{% for i in range(99999) %}{{ 'a' * 4000000 }}{% endfor %}",
            "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        ],
    )
    def test_lets_no_stranger_s_program_out_or_grow(self, tokenizer, source):
        began = time.monotonic()
        with pytest.raises(UserError, match="here: its chat template fails"):
            JinjaTemplate(source, "here").render(SAID, tokenizer)
        assert time.monotonic() - began < 20

    @pytest.mark.parametrize(
        "body",
        [
            "{% set ns.s = ns.s ~ ns.s %}",
            "{% set ns.s = ns.s + ns.s %}",
            "{% set ns.s = [ns.s, ns.s] | join(ns.s) %}",
            "{% set ns.s = ns.s | replace('a', ns.s) %}",
            "{% set ns.s = ns.s.replace('a', ns.s) %}",
            "{% set ns.s = doubled %}",
            "{% set ns.l = ns.l + ns.l %}",
        ],
    )
    def test_ends_what_grows_from_line_to_line_at_its_memory(self, tokenizer, body):
        with pytest.raises(UserError, match=r"here: its chat template fails \(it takes more than 512 MiB of memory\)"):
            JinjaTemplate(GROWING.replace("BODY", body), "here").render(SAID, tokenizer)

    @pytest.mark.parametrize(
        "body",
        [
            "{% set ns.n = ns.n * ns.n %}",
            "{% set ns.l = [ns.l, ns.l] %}{% if loop.index == 60 %}{{ ns.l }}{% endif %}",
            "{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}",
        ],
    )
    def test_ends_what_goes_on_for_ever_at_its_time(self, tokenizer, body):
        with pytest.raises(UserError, match=r"here: its chat template fails \(it takes more than 2 seconds\)"):
            JinjaTemplate(GROWING.replace("BODY", body), "here").render(SAID, tokenizer)
        assert JinjaTemplate("{{ bos_token }}", "here").render(SAID, tokenizer) == "<s>"

    def test_is_ended_by_ctrl_c_and_renders_the_next(self, tokenizer):
        endless = "{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}"
        with interrupted_after(0.3), pytest.raises(KeyboardInterrupt):
            JinjaTemplate(endless, "here").render(SAID, tokenizer)
        assert JinjaTemplate("{{ bos_token }}", "here").render(SAID, tokenizer) == "<s>"

    def test_takes_a_long_conversation_and_gives_it_back(self, tokenizer):
        long = "é\n" * 1_000_000
        text = JinjaTemplate("{{ messages[0].content }}", "here").render([Message("user", long)], tokenizer)
        assert text == long

    def test_that_makes_no_tokens_is_refused_with_a_mend(self, tokenizer):
        with pytest.raises(UserError, match=r"^here: its chat template makes no text .*--llama2-template"):
            JinjaTemplate("{% if false %}a{% endif %}", "here").tokens(SAID, tokenizer)

    def test_that_makes_no_utf_8_is_refused(self, tokenizer):
        with pytest.raises(UserError, match=r"^here: what its chat template makes is no valid UTF-8"):
            JinjaTemplate("{{ '\\ud800' }}", "here").tokens(SAID, tokenizer)


@contextmanager
def interrupted_after(seconds: float):
    """Ctrl-C, some time from now."""

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("source", [None, "", " \n"])
def test_a_template_that_is_empty_is_as_none(source):
    assert isinstance(template_of(source, "here"), Llama2Template)
    assert isinstance(template_of("{{ bos_token }}", "here"), JinjaTemplate)


class TestLlama2:
    def test_makes_each_turn_a_text_of_its_own(self, tokenizer):
        first = "[INST] <<SYS>>\nYou are a sheep.\n<</SYS>>\n\n Who are you?  [/INST] A <sheep> & 'more'."
        assert Llama2Template().tokens(SAID, tokenizer) == [
            tokenizer.bos_id, *tokenizer.encode(first), tokenizer.eos_id,
            tokenizer.bos_id, *tokenizer.encode("[INST] Say it again. [/INST]"),
        ]  # fmt: skip

    def test_takes_a_reply_s_own_tokens(self, tokenizer):
        said = [Message("user", "a"), Message("assistant", "b", (77, 78)), Message("user", "c")]
        tokens = Llama2Template().tokens(said, tokenizer)
        before = [tokenizer.bos_id, *tokenizer.encode("[INST] a [/INST]")]
        assert tokens[: len(before) + 3] == [*before, 77, 78, tokenizer.eos_id]

    @pytest.mark.parametrize("roles", [[], ["assistant"], ["user", "user"], ["user", "assistant"], ["user", "system"]])
    def test_refuses_roles_out_of_turn(self, tokenizer, roles):
        with pytest.raises(UserError, match="user and assistant by turns"):
            Llama2Template().tokens([Message(role, "x") for role in roles], tokenizer)


class Parrot(FakeEngine):
    """Says the same words after each [/INST], and then EOS."""

    def __init__(self, tokenizer, words: str, context: int = 400) -> None:
        end, reply = tokenizer.encode("[INST] x [/INST]")[-3:], [*tokenizer.encode(words), tokenizer.eos_id]

        def following(held: list[int]) -> int:
            place = max(at for at in range(len(held)) if held[at : at + len(end)] == end) + len(end)
            return reply[min(len(held) - place, len(reply) - 1)]

        super().__init__(following, context)


@pytest.fixture
def talking(tokenizer):
    """Begins a conversation: `talking(context=100)`. Its engine is in `.engine`, its words to the user in `.said`."""

    def begin(words: str = "Tom saw Lily", context: int = 400, **options):
        engine = Parrot(tokenizer, words, context)
        said: list[str] = []
        model = Model(engine, checkpoint_of(engine, tokenizer))
        conversation = model.conversation(Sampling(temperature=0.0), say=said.append, **options)
        conversation.engine, conversation.said = engine, said
        return conversation

    return begin


class TestAConversation:
    def test_reads_the_tokens_that_the_template_makes_of_it(self, talking, tokenizer):
        conversation = talking(system="You are a sheep.")
        assert "".join(conversation.ask("Who are you?")) == "Tom saw Lily"
        said = [Message("system", "You are a sheep."), Message("user", "Who are you?")]
        assert conversation.engine.fed[0] == Llama2Template().tokens(said, tokenizer)

    def test_reads_of_a_later_turn_only_what_is_new(self, talking, tokenizer):
        conversation = talking()
        for _ in conversation.ask("Who are you?"):
            pass
        before = len(conversation.engine.fed)
        for _ in conversation.ask("And who else?"):
            pass
        new = [tokenizer.eos_id, tokenizer.bos_id, *tokenizer.encode("[INST] And who else? [/INST]")]
        assert conversation.engine.fed[before] == new
        assert [message.content for message in conversation.messages] == [
            "Who are you?", "Tom saw Lily", "And who else?", "Tom saw Lily",
        ]  # fmt: skip

    def test_forgets_all_but_the_system_s_part_when_reset(self, talking):
        conversation = talking(system="You are a sheep.")
        for _ in conversation.ask("Who are you?"):
            pass
        conversation.reset()
        assert conversation.messages == [Message("system", "You are a sheep.")]

    def test_drops_its_oldest_turns_with_a_word_where_no_room_is_left_for_a_reply(self, talking):
        conversation = talking(context=120, system="Be a sheep.")
        for turn in ("first", "second", "third", "fourth"):
            assert "".join(conversation.ask(f"The {turn} question")) == "Tom saw Lily"
        kept = [message.content for message in conversation.messages]
        assert kept[0] == "Be a sheep."
        assert kept[-2:] == ["The fourth question", "Tom saw Lily"]
        assert "The first question" not in kept
        assert any("forgot the oldest turn" in word for word in conversation.said)

    def test_says_where_the_context_ends_a_reply(self, talking):
        conversation = talking("Tom saw Lily and the dogs and then Tom went home" * 9, context=100)
        reply = "".join(conversation.ask("Who?"))
        assert "Tom saw Lily and the dogs".startswith(reply[:20])
        assert conversation.reply.finish == "length"
        assert conversation.full
        assert conversation.said == ["the context is full: the reply ends here"]

    def test_says_where_the_length_asked_for_ends_a_reply(self, talking):
        conversation = talking("Tom saw Lily and the dogs and then Tom went home" * 9, positions=90)
        assert "".join(conversation.ask("Who?"))
        assert conversation.said == ["the conversation has its 90 tokens (-n): the reply ends here"]

    def test_of_so_many_positions_forgets_nothing_and_refuses_what_does_not_fit(self, talking):
        conversation = talking(positions=60)
        assert "".join(conversation.ask("Who?")) == "Tom saw Lily"
        with pytest.raises(
            UserError, match=r"^a conversation of \d+ tokens: -n takes 60: raise it, or shorten the text$"
        ):
            list(conversation.ask("And who else is there?"))
        assert [message.content for message in conversation.messages] == ["Who?", "Tom saw Lily"]
        assert conversation.said == []

    def test_names_the_system_s_part_where_a_turn_is_too_long_with_it(self, talking):
        with pytest.raises(
            UserError, match=r"^a turn of \d+ tokens, the system's part among them: the model's context"
        ):
            list(talking(context=100, system="a very long part " * 40).ask("Who?"))

    def test_refuses_an_empty_stop_string_before_any_turn(self, talking):
        with pytest.raises(UserError, match="a stop string is empty"):
            talking(stop=[""])

    def test_refuses_a_turn_too_long_and_keeps_what_was_said_before(self, talking):
        conversation = talking(context=100)
        for _ in conversation.ask("Who?"):
            pass
        before = list(conversation.messages)
        with pytest.raises(UserError, match="the model's context takes 100"):
            list(conversation.ask("a very long turn " * 40))
        assert conversation.messages == before
        assert "".join(conversation.ask("Who?")) == "Tom saw Lily"

    def test_of_so_many_positions_ends_there_as_one_of_that_context(self, talking):
        long = "Tom saw Lily and the dogs and then Tom went home" * 9
        conversation, other = talking(long, positions=90), talking(long, context=90)
        assert "".join(conversation.ask("Who?")) == "".join(other.ask("Who?"))
        assert conversation.full

    def test_ends_replies_at_the_length_and_at_the_strings_asked_for(self, talking):
        conversation = talking(limit=2)
        assert len("".join(conversation.ask("Who?"))) < len("Tom saw Lily")
        assert len(conversation.reply.drawn) == 2
        assert "".join(talking(stop=["saw"]).ask("Who?")) == "Tom "
        assert "".join(talking(stop="saw").ask("Who?")) == "Tom "
        assert "".join(talking(stop=None).ask("Who?")) == "Tom saw Lily"


class TestAReplyThatIsLeft:
    def test_stays_as_far_as_it_came(self, talking):
        conversation = talking()
        with closing(conversation.ask("Who?")) as reply:
            next(reply)
        assert [message.role for message in conversation.messages] == ["user", "assistant"]
        assert "Tom saw Lily".startswith(conversation.messages[1].content)
        assert "".join(conversation.ask("And who else?")) == "Tom saw Lily"

    @pytest.mark.parametrize("where", ["reading", "rendering"])
    def test_before_it_began_is_taken_back_with_its_question(self, talking, monkeypatch, where):
        def interrupted(*_):
            raise KeyboardInterrupt

        conversation = talking()
        with monkeypatch.context() as patch:
            if where == "reading":
                patch.setattr(conversation.engine, "following", interrupted)
            else:
                patch.setattr(Llama2Template, "tokens", interrupted)
            with pytest.raises(KeyboardInterrupt):
                list(conversation.ask("Who?"))
        assert conversation.messages == []
        assert "".join(conversation.ask("Who?")) == "Tom saw Lily"


@pytest.mark.parametrize(
    "message", [{}, {"role": "user"}, {"role": "user", "content": 1}, {"role": "user", "content": "a", "name": "b"}]
)
def test_a_message_of_other_parts_is_refused(message):
    with pytest.raises(UserError, match="a message has the texts role and content"):
        Message.of(message)


def test_a_message_that_is_no_text_is_refused():
    with pytest.raises(UserError, match="what the user says is no valid UTF-8"):
        Message("user", "\udcff")
