"""Sources: which documents a name stands for, and in which order."""

import json
import sysconfig
from pathlib import Path

import pytest

from shearling.data import hub
from shearling.data.hub import HubCorpus, HubSource, join_articles
from shearling.data.readers import UNMARKED_PIECE, Ledger, TextOptions
from shearling.data.sources import resolve_source
from shearling.errors import UserError


def read(name: str, **options) -> tuple[list[str], Ledger]:
    ledger = Ledger()
    return list(resolve_source(name).documents(TextOptions(**options), ledger)), ledger


def write_records(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def test_a_folder_gives_its_files_in_the_order_of_their_paths(tmp_path: Path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "b" / "2.txt").write_text("two")
    (tmp_path / "b" / "10.txt").write_text("ten")
    (tmp_path / "a.TXT").write_text("A")
    (tmp_path / "notes.md").write_text("not a source")
    (tmp_path / ".hidden" / "x.txt").write_text("hidden")
    write_records(tmp_path / "c.jsonl", ["C1", "C2"])
    assert read(str(tmp_path))[0] == ["A", "ten", "two", "C1", "C2"]


def test_files_of_a_folder_stay_whole_where_a_single_long_file_is_cut(tmp_path: Path):
    text = "a line of text\n" * (4 * UNMARKED_PIECE // 15)
    (tmp_path / "a.txt").write_text(text)
    assert read(str(tmp_path))[0] == [text]
    pieces, _ = read(str(tmp_path / "a.txt"))
    assert len(pieces) >= 4
    assert "".join(pieces) == text


def test_an_empty_file_in_a_folder_is_located_and_the_rest_goes_on(tmp_path: Path):
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "b.txt").write_text("B")
    documents, ledger = read(str(tmp_path))
    assert documents == ["B"]
    assert [problem.file for problem in ledger.first_problems] == [str(tmp_path / "a.txt")]


def test_identity_changes_with_content_and_names_but_not_with_place(tmp_path: Path):
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    (tmp_path / "one" / "a.txt").write_text("A")
    (tmp_path / "two" / "a.txt").write_text("A")
    (tmp_path / "three" / "b.txt").write_text("A")
    one, two, three = (resolve_source(str(tmp_path / name)).identity() for name in ("one", "two", "three"))
    assert one == two != three


def test_the_standard_library_is_there_one_module_a_document():
    documents, ledger = read("pystdlib")
    assert ledger.problems == 0
    assert sum(len(document) for document in documents) > 5_000_000
    argparse = (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_text(encoding="utf-8")
    assert argparse in documents


@pytest.mark.parametrize("name", ["no/such/file.txt", "tinystory"])
def test_an_unknown_name_lists_the_named_corpora(name: str):
    with pytest.raises(UserError, match=r"pystdlib, tinystories, slimpajama, wikitext, fineweb-edu"):
        resolve_source(name)


def test_an_unreadable_kind_of_file_says_what_can_be_read(tmp_path: Path):
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    for name in (tmp_path / "a.pdf", tmp_path):
        with pytest.raises(UserError, match=r"\.txt.*\.jsonl.*\.parquet"):
            resolve_source(str(name))


@pytest.fixture
def quiet_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` keeps its cache in the test's own folder."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("quiet_library")
def test_a_local_data_set_streams_through_the_hubs_library(tmp_path: Path):
    texts = [f"story {i}" for i in range(50)]
    write_records(tmp_path / "set" / "train.jsonl", [*texts, " "])
    documents, ledger = read(f"hub:{tmp_path / 'set'}")
    assert documents == texts
    assert ledger.empty_documents == 1
    assert ledger.problems == 0


@pytest.mark.usefixtures("quiet_library")
def test_a_data_sets_missing_field_is_located(tmp_path: Path):
    write_records(tmp_path / "set" / "train.jsonl", ["one", "two"])
    documents, ledger = read(f"hub:{tmp_path / 'set'}", text_field="content")
    assert documents == []
    assert [problem.line for problem in ledger.first_problems] == [1, 2]
    assert "no field 'content'; there are text" in ledger.first_problems[0].what


@pytest.mark.usefixtures("quiet_library")
def test_a_broken_file_of_a_data_set_is_a_problem_and_no_exception(tmp_path: Path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text('{"text": "one"}\n{"text": broken}\n')
    _, ledger = read(f"hub:{tmp_path / 'set'}")
    assert "cannot be read further" in ledger.first_problems[0].what


@pytest.mark.usefixtures("quiet_library")
@pytest.mark.parametrize(("suffix", "complaint"), [(":nosuch", "nosuch"), ("::nosuch", "nosuch")])
def test_a_wrong_configuration_or_split_is_told_with_those_there_are(tmp_path: Path, suffix: str, complaint: str):
    write_records(tmp_path / "set" / "train.jsonl", ["one"])
    with pytest.raises(UserError, match=complaint):
        read(f"hub:{tmp_path / 'set'}{suffix}")


@pytest.mark.usefixtures("quiet_library")
def test_wikitext_rows_become_articles(tmp_path: Path):
    rows = ["", " = One = \n", "", " Text . \n", " = = Part = = \n", " More . \n", " = Two = \n", " Text . \n"]
    write_records(tmp_path / "set" / "train.jsonl", rows)
    source = HubSource("wikitext", HubCorpus(str(tmp_path / "set"), join=join_articles))
    documents = list(source.documents(TextOptions(), Ledger()))
    assert documents == [" = One = \n Text . \n = = Part = = \n More . \n", " = Two = \n Text . \n"]


def test_a_data_set_out_of_reach_says_so_and_what_else_would_do(monkeypatch: pytest.MonkeyPatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def unreachable(*arguments, **options):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    source = resolve_source("tinystories")
    with pytest.raises(UserError, match=r"roneneldan/TinyStories could not be had.*not known.*local file"):
        source.identity()


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'shearling\[data\]'"):
        hub.hub_source("tinystories").identity()
