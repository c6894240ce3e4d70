"""A model to work with in Python: text, pieces of text, logits, replies."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypedDict

from shearling.data.tokenizers.base import StreamDecoder, Tokenizer
from shearling.engine.arguments import check_text, several, stop_strings, whole_number, whole_numbers
from shearling.engine.batch import Batch
from shearling.engine.chat import Conversation
from shearling.engine.generation import Finish, Generation, Text, Transcript, check_prompt, generate_tokens
from shearling.engine.sampling import Sampler, Sampling, clock_seed, sampling_of
from shearling.engine.session import Engine
from shearling.engine.templates import Message, Template, template_of
from shearling.errors import UserError
from shearling.formats.checkpoint import Checkpoint
from shearling.models.spec import ModelSpec
from shearling.quantization import FloatArray

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling`, as keywords."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    repetition_window: int
    seed: int | None


class Model:
    """A model, its tokenizer, and an engine that runs it. `shearling.load(path)` gives one.

    Every method that draws takes the fields of `Sampling` as keywords: `temperature` (1.0), `top_p` (0.9), `top_k`,
    `min_p`, `repetition_penalty`, `repetition_window`, `seed` (the clock). A seed gives the same text each time.

    Args:
        engine: runs the model.
        checkpoint: where it came from.

    Attributes:
        engine: what runs it.
        origin: the file or folder that it came from.
    """

    def __init__(self, engine: Engine, checkpoint: Checkpoint) -> None:
        self.engine = engine
        self.origin = checkpoint.origin
        self._checkpoint = checkpoint
        self._idle: deque[Transcript] = deque(maxlen=1)  # more would keep their keys and values for nothing

    @property
    def spec(self) -> ModelSpec:
        """The architecture."""
        return self.engine.spec

    @property
    def context(self) -> int:
        """The longest text, in tokens, prompt included."""
        return self.engine.context

    @property
    def tokenizer(self) -> Tokenizer:
        """What the model's tokens mean.

        Raises:
            UserError: the model came without one.
        """
        tokenizer = self._checkpoint.tokenizer
        if tokenizer is None:
            raise UserError(f"{self.origin}: it comes without a tokenizer: name one (-z FILE, or load(…, tokenizer=…))")
        return tokenizer

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end a text: those that the file names, and BOS, which begins another."""
        named = self._checkpoint.stop_ids or (self.tokenizer.eos_id,)
        return frozenset((*named, self.tokenizer.bos_id))

    @property
    def template(self) -> Template:
        """How conversations become tokens: the model's own template, or Llama 2's where it comes without one."""
        return template_of(self._checkpoint.chat_template, self.origin)

    def conversation(
        self,
        sampling: Sampling,
        *,
        system: str = "",
        template: Template | None = None,
        limit: int | None = None,
        positions: int | None = None,
        stop: str | Sequence[str] | None = (),
        say: Callable[[str], None],
    ) -> Conversation:
        """A conversation that remembers its turns.

        Args:
            template: None: the model's.
            system, limit, positions, stop, say: see `Conversation`.
        """
        return Conversation(
            self.engine.session(), self.tokenizer, template or self.template, sampling=sampling, system=system,
            stop_ids=self.stop_ids | {self.tokenizer.eos_id}, limit=limit, positions=positions, stop=stop, say=say,
        )  # fmt: skip

    def prompt_tokens(self, prompt: str) -> list[int]:
        """The tokens of a text that the model is to continue, with BOS before it where the model expects one.

        Raises:
            UserError: it is no text, or no valid UTF-8, or its tokens are not the model's.
        """
        check_text(prompt, "the prompt")
        tokens = self.tokenizer.encode(prompt)
        if not tokens or self._checkpoint.begins_with_bos:
            tokens = [self.tokenizer.bos_id, *tokens]
        return tokens

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int | None = 256,
        stop: str | Sequence[str] | None = (),
        **sampling: "Unpack[SamplingOptions]",
    ) -> str:
        """What follows `prompt`, without it.

        Args:
            max_new_tokens: tokens at most; None: as many as the context takes.
            stop: a string, or several, that end the text; None: none; nothing of them is in it.

        Raises:
            UserError: an argument is of another kind or out of its range, the prompt does not fit into the context,
                or the model came without a tokenizer.
        """
        return "".join(self.stream(prompt, max_new_tokens=max_new_tokens, stop=stop, **sampling))

    def stream(
        self,
        prompt: str,
        *,
        max_new_tokens: int | None = 256,
        stop: str | Sequence[str] | None = (),
        **sampling: "Unpack[SamplingOptions]",
    ) -> Iterator[str]:
        """The same in pieces of complete UTF-8, each as soon as it is certain. What is refused is refused at once."""
        return iter(self.continuation(self.prompt_tokens(prompt), sampling_of(sampling), max_new_tokens, stop))

    def generate_many(
        self,
        prompts: Sequence[str],
        *,
        batch_size: int = 8,
        max_new_tokens: int | None = 256,
        stop: str | Sequence[str] | None = (),
        **sampling: "Unpack[SamplingOptions]",
    ) -> list[str]:
        """What follows each of several prompts, drawn side by side, which takes less time than one after another.

        The coins of prompt i, counted from 0, have the seed `seed + i`: its text is that of
        `generate(prompts[i], seed=seed + i, …)`, and a prompt that is given twice has two texts.

        Args:
            batch_size: texts that grow at once, each with its own keys and values; the next prompt takes the place of
                one that has ended.
            max_new_tokens, stop: of each text, as for `generate`.

        Raises:
            UserError: as `generate`, of any prompt, before a token is drawn.
        """
        at_once = _at_least("batch_size", batch_size, 1)
        limit = _limit(max_new_tokens)
        options, stops = sampling_of(sampling), stop_strings(stop)
        tokenizer, stop_ids, seed = self.tokenizer, self.stop_ids, options.seed or clock_seed()
        waiting: list[tuple[Text, list[int], Sampler]] = []
        for place, prompt in enumerate(several("prompts", prompts)):
            tokens = self.prompt_tokens(prompt)
            check_prompt(tokens, self.context)
            sampler = Sampler(replace(options, seed=seed + place), tokenizer.vocab_size)
            waiting.append((Text(self._decoder_behind(tokens), stops), tokens, sampler))
        if not waiting:
            return []
        batch = Batch(self.engine.session(min(at_once, len(waiting))))
        for text, tokens, sampler in waiting:
            while batch.full:
                batch.step()
            batch.begin(text, tokens, sampler, limit=limit, stop_ids=stop_ids)
        while not batch.empty:
            batch.step()
        return [text.text for text, _, _ in waiting]

    def logits(self, tokens: Sequence[int]) -> FloatArray:
        """float32 (T, V): behind each of the tokens.

        Raises:
            UserError: there are none, one is no whole number or not in the vocabulary, or they do not fit into the
                context.
        """
        return self.engine.session().feed_for_all_logits(whole_numbers("tokens", tokens))

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_new_tokens: int | None = None,
        stop: str | Sequence[str] | None = (),
        **sampling: "Unpack[SamplingOptions]",
    ) -> str:
        """The reply to a conversation: `[{"role": "user", "content": "…"}]`. Arguments as for `generate`."""
        return "".join(self.stream_chat(messages, max_new_tokens=max_new_tokens, stop=stop, **sampling))

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_new_tokens: int | None = None,
        stop: str | Sequence[str] | None = (),
        **sampling: "Unpack[SamplingOptions]",
    ) -> Iterator[str]:
        """The same in pieces of complete UTF-8. What is refused is refused at once."""
        given = [Message.of(each) for each in several("messages", messages)]
        return iter(self.reply(given, sampling_of(sampling), max_new_tokens, stop))

    def continuation(
        self, tokens: Sequence[int], sampling: Sampling, limit: int | None, stop: str | Sequence[str] | None = ()
    ) -> Generation:
        """As `stream`, with its figures, from the tokens of a prompt."""
        tokens = whole_numbers("tokens", tokens)
        drawn = self._drawn(tokens, sampling, limit, self.stop_ids, afresh=True)
        return Generation(drawn, self._decoder_behind(tokens), stop_strings(stop))

    def reply(
        self, messages: Sequence[Message], sampling: Sampling, limit: int | None, stop: str | Sequence[str] | None = ()
    ) -> Generation:
        """As `stream_chat`, with its figures. What the last call read and this one begins with is not read again."""
        tokens = self.template.tokens(messages, self.tokenizer)
        drawn = self._drawn(tokens, sampling, limit, self.stop_ids | {self.tokenizer.eos_id}, afresh=False)
        return Generation(drawn, self.tokenizer.stream_decoder(), stop_strings(stop))

    def _drawn(
        self, prompt: Sequence[int], sampling: Sampling, limit: int | None, stop_ids: frozenset[int], *, afresh: bool
    ) -> Generator[int, None, Finish]:
        limit = _limit(limit)
        check_prompt(prompt, self.context)
        sampler = Sampler(sampling, self.tokenizer.vocab_size)

        def draw() -> Generator[int, None, Finish]:
            try:
                transcript = self._idle.pop()  # which no one else uses
            except IndexError:
                transcript = Transcript(self.engine.session())
            try:
                # Same seed, same text: PyTorch rounds otherwise where it reads a prompt in other pieces.
                if afresh:
                    transcript.keep(0)
                return (yield from generate_tokens(transcript, prompt, sampler, limit=limit, stop_ids=stop_ids))
            finally:
                self._idle.append(transcript)

        return draw()

    def _decoder_behind(self, tokens: Sequence[int]) -> StreamDecoder:
        """Of a text that goes on within its prompt's sequence: only the very start of that loses a space."""
        decoder = self.tokenizer.stream_decoder()
        for token in tokens:
            decoder.push(token)
        return decoder


def _limit(max_new_tokens: int | None) -> int | None:
    return None if max_new_tokens is None else _at_least("max_new_tokens", max_new_tokens, 0)


def _at_least(name: str, value: int, least: int) -> int:
    if (value := whole_number(name, value)) < least:
        raise UserError(f"{name} {value}: should be at least {least}")
    return value
