"""Trains a SentencePiece BPE tokenizer with LLaMA's conventions (arXiv 2302.13971, section 2.1)."""

import io
import re
from collections.abc import Iterable, Iterator

from shearling.data.tokenizers.sentence_piece import SentencePieceTokenizer, model_proto
from shearling.errors import UserError

LONGEST_LINE = 1 << 16


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> SentencePieceTokenizer:
    """Train on the lines of some texts. The same texts give the same model, on any number of cores.

    As in LLaMA's tokenizer: unknown 0, BOS 1, EOS 2, bytes 3 to 258, no normalization, digits apart, runs of spaces
    as pieces (Python's indentation is one token), and the line end as its byte `<0x0A>`, in no longer piece. Pieces
    such as ":\\n" would make Python source 6 % and prose 1 to 2 % shorter (4,096 pieces), but then a prompt that ends
    at a line's end is cut elsewhere than the text the model learned from, and the tokenizer is no longer LLaMA's kind.

    Raises:
        UserError: vocab_size is too small for the characters of the texts, or too large for their number.
    """
    from sentencepiece import SentencePieceTrainer

    model_file = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=model_file,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            # A line seldom begins a document: with the prefix, lines would teach pieces such as five spaces where
            # the text has four. The model gets it below.
            add_dummy_prefix=False,
            character_coverage=0.99995,
            max_sentence_length=LONGEST_LINE,
            shuffle_input_sentence=False,
            num_threads=1,  # stored in the model, so it must not depend on the machine
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explained(error, vocab_size) from error
    model = model_proto().FromString(model_file.getvalue())
    model.normalizer_spec.add_dummy_prefix = True
    return SentencePieceTokenizer(model.SerializeToString(deterministic=True))


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Lines with something in them, none longer than the trainer takes."""
    longest = LONGEST_LINE // 4  # in characters of at most four bytes
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), longest):
                yield line[start : start + longest]


def _explained(error: RuntimeError, vocab_size: int) -> UserError:
    """The trainer's complaint in the user's terms."""
    message = str(error)
    if highest := re.search(r"too high \(\d+\).*<= (\d+)", message):
        return UserError(
            f"--vocab-size {vocab_size} is too large for so little text: at most {highest[1]}, or give more text"
        )
    if lowest := re.search(r"smaller than required_chars. \d+ vs (\d+)", message):
        return UserError(f"--vocab-size {vocab_size} is too small for this text's characters: at least {lowest[1]}")
    return UserError(f"the tokenizer could not be trained on this text: {message}")
