"""Readers: what a document is, and what becomes of what is none."""

import gzip
import json
from pathlib import Path

import pyarrow
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from shearling.data.readers import LONGEST_DOCUMENT, Ledger, TextOptions, cut_document, read_documents
from shearling.errors import UserError

MARK = "<|endoftext|>"


def read(path: Path, **options) -> tuple[list[str], Ledger]:
    ledger = Ledger()
    return list(read_documents(path, TextOptions(**options), ledger)), ledger


def compressed(content: bytes, suffix: str) -> bytes:
    return {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress, "": bytes}[suffix](content)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_text_is_split_at_lines_that_are_the_separator(tmp_path: Path, suffix: str):
    file = tmp_path / f"a.txt{suffix}"
    file.write_bytes(compressed(f"one\n\n{MARK}\ntwo {MARK} is\n {MARK}\n{MARK}\r\nthree".encode(), suffix))
    documents, ledger = read(file)
    assert documents == ["one\n", f"two {MARK} is\n {MARK}", "three"]
    assert ledger.problems == 0


def test_the_last_document_is_the_same_with_and_without_a_separator_after_it(tmp_path: Path):
    with_mark, without = tmp_path / "a.txt", tmp_path / "b.txt"
    with_mark.write_text(f"one\n{MARK}\ntwo\n{MARK}\n")
    without.write_text(f"one\n{MARK}\ntwo\n")
    assert read(with_mark)[0] == read(without)[0] == ["one", "two"]


def test_another_separator_can_be_named(tmp_path: Path):
    file = tmp_path / "a.txt"
    file.write_text(f"one\n%%\ntwo\n{MARK}\n")
    assert read(file, separator="%%")[0] == ["one", f"two\n{MARK}"]


def test_text_without_separators_is_one_document_with_its_line_ends(tmp_path: Path):
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffone\r\n\ttwo\n\n".encode())
    assert read(file)[0] == ["one\r\n\ttwo\n\n"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40), min_size=1))
def test_splitting_gives_back_the_documents_that_were_joined(tmp_path_factory, texts: list[str]):
    texts = [text for text in texts if text.strip() and text.strip() != MARK and not text.startswith("\ufeff")]
    file = tmp_path_factory.mktemp("joined") / "a.txt"
    file.write_bytes("".join(f"{text}\n{MARK}\n" for text in texts).encode())
    assert read(file)[0] == texts


@pytest.mark.parametrize("line", ["word été\n" * 7, "\u20ac" * 1000])
def test_long_text_without_separators_is_cut_into_bounded_documents_and_nothing_is_lost(tmp_path: Path, line: str):
    file = tmp_path / "a.txt"
    text = line * (3_000_000 // len(line.encode()))
    file.write_text(text, encoding="utf-8")
    documents, ledger = read(file, longest_unmarked=5000)
    assert "".join(documents) == text
    assert max(len(document.encode()) for document in documents) <= 5000
    assert ledger.documents_cut == len(documents) - 1
    assert "\n" not in line or all(document.endswith("\n") for document in documents)


def test_a_long_document_between_separators_is_cut_only_beyond_the_limit(tmp_path: Path):
    file = tmp_path / "a.txt"
    within = "x" * (LONGEST_DOCUMENT - 10) + "\nyyy"
    beyond = ("z" * 99 + "\n") * (LONGEST_DOCUMENT // 100 + 5)
    file.write_text(f"short\n{MARK}\n{within}\n{MARK}\n{beyond}\n{MARK}\nlast\n")
    documents, ledger = read(file)
    assert documents[:2] == ["short", within]
    assert "".join(documents[2:4]) == beyond
    assert documents[4:] == ["last"]
    assert ledger.documents_cut == 1


def test_an_undecodable_document_is_located_and_its_neighbours_are_kept(tmp_path: Path):
    file = tmp_path / "a.txt"
    file.write_bytes(f"one\n{MARK}\ngood line\nbad \xff line\n{MARK}\nthree\n".encode("latin-1"))
    documents, ledger = read(file)
    assert documents == ["one", "three"]
    assert (ledger.problems, ledger.first_problems[0].line) == (1, 4)
    assert "0xff" in ledger.first_problems[0].what


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_malformed_lines_are_counted_and_located_and_the_rest_is_read(tmp_path: Path, suffix: str):
    lines = [
        b'{"text": "one"}',
        b'{"text": 1}',
        b"[1]",
        b'{"text": "cut',
        b'{"text": "\\ud800"}',
        b'{"text": "\xff"}',
        b"",
        b'{"other": "x"}',
        b"[" * 100_000,
        b'{"text": "  "}',
        '{"text": "zwölf", "more": [1]}'.encode(),
    ]
    file = tmp_path / f"a.jsonl{suffix}"
    file.write_bytes(compressed(b"\n".join(lines), suffix))
    documents, ledger = read(file)
    assert documents == ["one", "zwölf"]
    assert [problem.line for problem in ledger.first_problems] == [2, 3, 4, 5, 6, 8, 9]
    assert ledger.problems == 7
    assert ledger.empty_documents == 1
    assert "other" in ledger.first_problems[5].what


def test_many_problems_are_counted_but_only_the_first_are_kept(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one"}\n' + "x\n" * 1000)
    _, ledger = read(file)
    assert ledger.problems == 1000
    assert len(ledger.first_problems) == 20


def test_strict_makes_the_first_problem_an_error_that_names_its_place(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one"}\nx\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 2: not JSON"):
        list(read_documents(file, TextOptions(), Ledger(strict=True)))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_truncated_file_gives_what_it_has_and_a_problem(tmp_path: Path, suffix: str):
    file = tmp_path / f"a.jsonl{suffix}"
    whole = compressed(b"".join(json.dumps({"text": f"text {i}"}).encode() + b"\n" for i in range(100_000)), suffix)
    file.write_bytes(whole[: len(whole) * 3 // 4])
    documents, ledger = read(file)
    assert documents[:2] == ["text 0", "text 1"]
    assert 1000 < len(documents) < 100_000
    assert any("cannot be read further" in problem.what for problem in ledger.first_problems)


def test_parquet_rows_are_documents_of_the_named_column(tmp_path: Path):
    file = tmp_path / "a.parquet"
    rows = [f"row {i}" for i in range(1000)]
    rows[500] = None
    parquet.write_table(pyarrow.table({"content": rows, "n": list(range(1000))}), file, row_group_size=300)
    documents, ledger = read(file, text_field="content")
    assert documents == [row for row in rows if row]
    assert [problem.line for problem in ledger.first_problems] == [501]
    documents, ledger = read(file)
    assert documents == []
    assert "there are content, n" in ledger.first_problems[0].what


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.parquet", "a.jsonl.zst"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff garbage \xfe" * 9])
def test_an_empty_or_foreign_file_is_a_problem_and_no_exception(tmp_path: Path, name: str, content: bytes):
    file = tmp_path / name
    file.write_bytes(content)
    documents, ledger = read(file)
    assert documents == []
    assert ledger.problems >= 1
    assert ledger.first_problems[0].file == str(file)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(1, 50))
def test_cutting_a_document_loses_nothing(text: str, times: int):
    whole = (text + "\n") * times + text * (LONGEST_DOCUMENT // max(len(text.encode()), 20_000))
    pieces = list(cut_document(whole, Ledger()))
    assert "".join(pieces) == whole
    assert all(len(piece.encode()) <= LONGEST_DOCUMENT for piece in pieces)


def test_a_document_beyond_the_limit_is_cut_at_a_line_end():
    whole = "été " * 100_000 + "\n" + "x" * LONGEST_DOCUMENT
    ledger = Ledger()
    first, second = cut_document(whole, ledger)
    assert first.endswith(" \n")
    assert first + second == whole
    assert ledger.documents_cut == 1
