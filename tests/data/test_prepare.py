"""What `prepare` promises: the same bytes, the same split, problems told, nothing of the user's overwritten."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shearling.data.manifest import Manifest
from shearling.data.prepare import prepare
from shearling.data.sampling import sample_documents
from shearling.data.shards import load_tokenizer_of, open_dataset
from shearling.data.tokenizers import load_tokenizer
from shearling.errors import UserError


def quiet(progress) -> None:
    pass


def write_records(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def texts_of(folder: Path, split) -> list[str]:
    dataset, tokenizer = open_dataset(folder, split, verify=True), load_tokenizer_of(folder)
    ends = np.append(dataset.document_starts[1:], dataset.total_tokens)
    return [
        tokenizer.decode(dataset.tokens(int(start) + 1, int(end)).tolist())
        for start, end in zip(dataset.document_starts, ends, strict=True)
    ]


@pytest.fixture
def source(tmp_path: Path, documents: list[str]) -> str:
    return write_records(tmp_path / "source.jsonl", documents)


def test_every_document_lands_in_one_split_in_order(tmp_path: Path, source: str, documents: list[str]):
    manifest = prepare([source], tmp_path / "data", vocab_size=400, progress=quiet)
    train, validation = texts_of(tmp_path / "data", "train"), texts_of(tmp_path / "data", "validation")
    assert sorted(train + validation) == sorted(documents)
    held_out = set(validation)
    assert train == [text for text in documents if text not in held_out]
    assert 0.01 < len(validation) / len(documents) < 0.12
    assert sum(split.bytes for split in manifest.splits.values()) == sum(len(text.encode()) for text in documents)


@pytest.mark.parametrize("given", [True, False])
def test_twice_and_with_any_number_of_workers_the_bytes_are_the_same(
    tmp_path: Path, source: str, small_tokenizer_file: Path, given: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("shearling.data.prepare.BATCH_CHARACTERS", 2000)
    how = {"tokenizer": small_tokenizer_file} if given else {"vocab_size": 400}
    for workers in (1, 5):
        prepare([source], tmp_path / str(workers), workers=workers, tokens_per_shard=3000, progress=quiet, **how)
    assert contents(tmp_path / "1") == contents(tmp_path / "5")
    assert len(contents(tmp_path / "1")) > 8


def test_tokens_are_those_of_the_tokenizer_alone(tmp_path: Path, source: str, small_tokenizer_file: Path):
    prepare([source], tmp_path / "data", tokenizer=small_tokenizer_file, progress=quiet)
    tokenizer = load_tokenizer(small_tokenizer_file)
    expected = [
        token for text in texts_of(tmp_path / "data", "train") for token in [tokenizer.bos_id, *tokenizer.encode(text)]
    ]
    dataset = open_dataset(tmp_path / "data", "train")
    assert dataset.tokens(0, dataset.total_tokens).tolist() == expected


def test_held_out_documents_stay_held_out_when_sources_grow_move_and_repeat(
    make_documents, tmp_path: Path, documents: list[str], small_tokenizer_file: Path
):
    small = write_records(tmp_path / "small.jsonl", documents)
    grown = write_records(tmp_path / "grown.jsonl", [*make_documents(300, seed=1), *documents[::-1], *documents[:50]])
    for name in (small, grown):
        prepare([name], tmp_path / Path(name).stem, tokenizer=small_tokenizer_file, progress=quiet)
    before, after = texts_of(tmp_path / "small", "validation"), texts_of(tmp_path / "grown", "validation")
    assert set(after) & set(documents) == set(before)
    assert set(after).isdisjoint(texts_of(tmp_path / "grown", "train"))
    assert len(set(after)) > len(set(before))


def test_few_documents_still_give_a_validation_split_and_say_by_which_share(make_documents, tmp_path: Path):
    source = write_records(tmp_path / "few.jsonl", make_documents(6))
    manifest = prepare([source], tmp_path / "data", vocab_size=300, validation_share=1e-6, progress=quiet)
    assert manifest.splits["validation"].documents == 1
    assert manifest.validation_share > manifest.settings.validation_share
    again = prepare(
        [source], tmp_path / "again", vocab_size=300, validation_share=manifest.validation_share, progress=quiet
    )
    assert again.hash == manifest.hash
    assert prepare([source], tmp_path / "data", vocab_size=300, validation_share=1e-6, progress=quiet) == manifest


def test_a_single_document_is_too_little(tmp_path: Path, small_tokenizer_file: Path):
    source = write_records(tmp_path / "one.jsonl", ["only one"])
    with pytest.raises(UserError, match="at least two are needed"):
        prepare([source], tmp_path / "data", tokenizer=small_tokenizer_file, progress=quiet)


def test_a_large_vocabulary_takes_four_bytes_a_token(tmp_path: Path, source: str):
    tokenizers = pytest.importorskip("tokenizers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: 70_000 + i for i, character in enumerate(alphabet)}
    library = tokenizers.Tokenizer(tokenizers.models.BPE({**vocabulary, "<s>": 0}, []))
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    library.save(str(tmp_path / "tokenizer.json"))
    manifest = prepare([source], tmp_path / "data", tokenizer=tmp_path / "tokenizer.json", progress=quiet)
    train = manifest.splits["train"]
    assert manifest.dtype == "uint32"
    assert (tmp_path / "data" / "train_00000.bin").stat().st_size == 4 * train.tokens
    assert train.tokens == train.bytes + train.documents
    assert texts_of(tmp_path / "data", "train")[0].startswith("Story 0.")


def test_problems_are_counted_located_and_left_out(
    tmp_path: Path, documents: list[str], small_tokenizer_file: Path, source: str
):
    broken = tmp_path / "broken.jsonl"
    broken.write_text(Path(source).read_text() + "not json\n")
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    sources = [str(broken), str(empty)]
    manifest = prepare(sources, tmp_path / "data", tokenizer=small_tokenizer_file, progress=quiet)
    assert manifest.problems == 2
    assert [(p.file, p.line) for record in manifest.sources for p in record.first_problems] == [
        (str(broken), len(documents) + 1),
        (str(empty), None),
    ]
    assert [record.documents for record in manifest.sources] == [len(documents), 0]
    with pytest.raises(UserError, match=rf"broken\.jsonl, line {len(documents) + 1}"):
        prepare(sources, tmp_path / "strict", tokenizer=small_tokenizer_file, strict=True, progress=quiet)
    with pytest.raises(UserError, match=r"2 problems, the first in .*broken\.jsonl"):
        prepare(sources, tmp_path / "data", tokenizer=small_tokenizer_file, strict=True, progress=quiet)


def test_a_finished_folder_is_verified_and_not_written_again(tmp_path: Path, source: str, small_tokenizer_file: Path):
    out = tmp_path / "data"
    first = prepare([source], out, tokenizer=small_tokenizer_file, progress=quiet)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert prepare([source], out, tokenizer=small_tokenizer_file, progress=quiet) == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times
    (out / "train_00000.bin").write_bytes(b"\0" * (out / "train_00000.bin").stat().st_size)
    with pytest.raises(UserError, match=r"train_00000\.bin: damaged"):
        prepare([source], out, tokenizer=small_tokenizer_file, progress=quiet)


def test_other_arguments_or_sources_for_a_finished_folder_are_named(
    make_documents, tmp_path: Path, source: str, small_tokenizer_file: Path
):
    out = tmp_path / "data"
    prepare([source], out, tokenizer=small_tokenizer_file, progress=quiet)
    with pytest.raises(UserError, match=r"validation_share was 0\.05 and is 0\.5"):
        prepare([source], out, tokenizer=small_tokenizer_file, validation_share=0.5, progress=quiet)
    write_records(Path(source), make_documents(30, seed=2))
    with pytest.raises(UserError, match=r"source\.jsonl has changed"):
        prepare([source], out, tokenizer=small_tokenizer_file, progress=quiet)
    changed = prepare([source], out, tokenizer=small_tokenizer_file, overwrite=True, progress=quiet)
    assert sum(split.documents for split in changed.splits.values()) == 30


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path, source: str, small_tokenizer_file: Path):
    out = tmp_path / "data"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not empty"):
        prepare([source], out, tokenizer=small_tokenizer_file, progress=quiet)
    prepare([source], out, tokenizer=small_tokenizer_file, overwrite=True, progress=quiet)
    assert (out / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"sources": []}, "no source"),
        ({"tokenizer": Path("x"), "vocab_size": 3}, "--tokenizer and --vocab-size"),
        ({"validation_share": 0.0}, "--validation-share"),
        ({"separator": "\n"}, "--separator"),
        ({"tokenizer": Path("no/such.model")}, r"no/such\.model: no such tokenizer file"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: dict, complaint: str, source: str
):
    arguments = {"sources": [source], **arguments}
    with pytest.raises(UserError, match=complaint):
        prepare(arguments.pop("sources"), tmp_path / "data", progress=quiet, **arguments)
    assert not (tmp_path / "data").exists()


def test_a_data_set_of_the_hubs_library_gives_the_same_tokens_as_its_files(
    tmp_path: Path, documents: list[str], small_tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    write_records(tmp_path / "set" / "train.jsonl", documents)
    hashes = {
        prepare([name], tmp_path / kind, tokenizer=small_tokenizer_file, progress=quiet).hash
        for kind, name in (("hub", f"hub:{tmp_path / 'set'}"), ("folder", str(tmp_path / "set")))
    }
    assert len(hashes) == 1


def test_progress_ends_with_all_documents_and_bytes(tmp_path: Path, source: str, documents: list[str]):
    seen = []
    prepare([source], tmp_path / "data", vocab_size=400, progress=seen.append)
    assert list(dict.fromkeys(progress.phase for progress in seen)) == [
        "sampling",
        "tokenizing",
    ]
    last = seen[-1]
    assert (last.items, last.done, last.total) == (len(documents), *[Path(source).stat().st_size] * 2)


def test_a_failing_worker_fails_the_preparation(
    tmp_path: Path, source: str, small_tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(tokenizer, texts):
        raise MemoryError("no more")

    monkeypatch.setattr("shearling.data.tokenizers.SentencePieceTokenizer.encode_batch", fail)
    with pytest.raises(MemoryError, match="no more"):
        prepare([source], tmp_path / "data", tokenizer=small_tokenizer_file, progress=quiet)
    monkeypatch.undo()
    manifest = prepare([source], tmp_path / "data", tokenizer=small_tokenizer_file, progress=quiet)
    assert isinstance(manifest, Manifest)


def test_a_tokenizer_sample_is_bounded_and_the_same_in_any_order(documents: list[str]):
    budget = 5000
    sample = sample_documents(documents, 0.05, budget)
    size = sum(len(text.encode()) for text in sample)
    assert budget * 0.8 < size <= budget
    assert sample_documents(documents[::-1] * 2, 0.05, budget) == sample


def test_a_tokenizer_never_sees_held_out_text(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch):
    seen: list[str] = []
    from shearling.data import prepare as module

    def spy(texts, vocab_size):
        seen.extend(texts)
        return original(seen, vocab_size)

    original = module.train_tokenizer
    monkeypatch.setattr(module, "train_tokenizer", spy)
    prepare([source], tmp_path / "data", vocab_size=400, progress=quiet)
    assert set(seen) == set(texts_of(tmp_path / "data", "train"))


@pytest.mark.parametrize("content", [b"", b"\n\n", "spät".encode("utf-16")])
def test_a_source_without_readable_text_is_an_error_in_words(tmp_path: Path, content: bytes):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError) as caught:
        prepare([str(tmp_path / "a.txt")], tmp_path / "data", vocab_size=300, progress=quiet)
    assert "INTERNAL" not in str(caught.value)
    assert "text" in str(caught.value)


def test_a_field_that_is_not_there_is_told_with_its_first_line(tmp_path: Path, source: str):
    with pytest.raises(UserError, match=r"could not be read; the first: .*source\.jsonl: "):
        prepare([source], tmp_path / "data", vocab_size=300, text_field="nope", progress=quiet)


def test_a_first_try_that_made_nothing_does_not_stand_in_the_way(tmp_path: Path, source: str):
    with pytest.raises(UserError, match="too large for so little text"):
        prepare([source], tmp_path / "data", vocab_size=1_000_000, progress=quiet)
    assert prepare([source], tmp_path / "data", vocab_size=400, progress=quiet).tokenizer.vocab_size == 400


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"vocab_size": 0}, "--vocab-size 0"),
        ({"workers": 0}, "--workers 0"),
        ({"workers": -1}, "--workers -1"),
        ({"separator": "\udcff"}, "--separator"),
    ],
)
def test_options_out_of_range_are_named(tmp_path: Path, source: str, options: dict, named: str):
    with pytest.raises(UserError, match=named):
        prepare([source], tmp_path / "data", progress=quiet, **options)


@pytest.mark.parametrize("name", ["", "hub:", "hub::x"])
def test_a_source_without_a_name_is_an_error(tmp_path: Path, name: str):
    with pytest.raises(UserError, match=r"a source is empty|names no data set"):
        prepare([name], tmp_path / "data", progress=quiet)


def test_a_full_disk_is_told_and_the_same_command_goes_on(tmp_path: Path, source: str):
    """A limit on file sizes makes the system refuse a write, as a full disk does."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY));"
        "from shearling.cli import main; main(sys.argv[1:])"
    )
    arguments = ["prepare", source, "--out", str(tmp_path / "data"), "--vocab-size", "400"]
    limited = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert limited.returncode == 2, limited.stderr
    assert "Traceback" not in limited.stderr
    assert "make room; the same command then goes on" in limited.stderr
    resumed = prepare([source], tmp_path / "data", vocab_size=400, progress=quiet)
    assert resumed == prepare([source], tmp_path / "whole", vocab_size=400, progress=quiet)
