"""Shards: what was appended comes back as one row, whatever files it lies in."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shearling.data.manifest import Manifest, load_manifest
from shearling.data.prepare import prepare
from shearling.data.shards import load_tokenizer_of, open_dataset
from shearling.data.writer import SplitWriter
from shearling.errors import UserError


def quiet(progress) -> None:
    pass


@pytest.fixture
def folder(tmp_path: Path, documents: list[str], small_tokenizer_file: Path) -> Path:
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    prepare(
        [str(source)],
        tmp_path / "data",
        tokenizer=small_tokenizer_file,
        tokens_per_shard=5000,
        validation_share=0.1,
        progress=quiet,
    )
    return tmp_path / "data"


@given(
    batches=st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=6), min_size=1, max_size=6),
    limit=st.integers(1, 100),
)
def test_documents_fill_shards_in_order_and_none_is_cut(tmp_path_factory, batches: list[list[int]], limit: int):
    out = tmp_path_factory.mktemp("shards")
    writer = SplitWriter(out, "train", np.dtype("<u2"), limit)
    position = 0
    for lengths in batches:
        total = sum(lengths)
        writer.append(
            np.arange(position, position + total, dtype=np.int32),
            np.array(lengths),
            np.array(lengths, dtype=np.int64) * 3,
        )
        position += total
    record = writer.finish()
    lengths = [length for batch in batches for length in batch]
    assert (record.tokens, record.documents, record.bytes) == (sum(lengths), len(lengths), 3 * sum(lengths))
    rows = [np.fromfile(out / shard.file, "<u2") for shard in record.shards]
    np.testing.assert_array_equal(np.concatenate(rows), np.arange(position))
    pairs = [np.fromfile(out / shard.docs_file, "<u4").reshape(-1, 2) for shard in record.shards]
    np.testing.assert_array_equal(np.concatenate(pairs)[:, 0], lengths)
    for row, documents in zip(rows, pairs, strict=True):
        assert len(row) == documents[:, 0].sum()
        assert len(row) <= limit or len(documents) == 1
    assert all(a.tokens + int(b[0, 0]) > limit for a, b in zip(record.shards, pairs[1:], strict=False))


@given(st.data())
def test_going_on_from_a_synced_state_gives_the_same_files(tmp_path_factory, data: st.DataObject):
    lengths = data.draw(st.lists(st.integers(1, 30), min_size=2, max_size=12))
    kept = data.draw(st.integers(0, len(lengths) - 1))
    lost = data.draw(st.integers(kept, len(lengths)))
    whole, broken = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("broken")

    def append(writer: SplitWriter, first: int, last: int) -> None:
        for i in range(first, last):
            writer.append(np.full(lengths[i], i, np.int32), np.array([lengths[i]]), np.array([i]))

    writer = SplitWriter(whole, "train", np.dtype("<u2"), 40)
    append(writer, 0, len(lengths))
    expected = writer.finish()
    writer = SplitWriter(broken, "train", np.dtype("<u2"), 40)
    append(writer, 0, kept)
    state = writer.sync()
    append(writer, kept, lost)  # written, but not in the state
    writer.close()
    writer = SplitWriter(broken, "train", np.dtype("<u2"), 40, state)
    append(writer, kept, len(lengths))
    assert writer.finish() == expected
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == {p.name: p.read_bytes() for p in broken.iterdir()}


def test_the_row_is_the_shards_one_after_the_other(folder: Path):
    dataset = open_dataset(folder, "train")
    shards = dataset.manifest.splits["train"].shards
    assert len(shards) > 2
    row = np.concatenate([np.fromfile(folder / shard.file, "<u2") for shard in shards]).astype(np.int64)
    assert dataset.total_tokens == len(row)
    border = shards[0].tokens
    for start, stop in [(0, len(row)), (border - 3, border + 3), (border, border), (5, border + shards[1].tokens + 9)]:
        tokens = dataset.tokens(start, stop)
        assert tokens.dtype == np.int64
        np.testing.assert_array_equal(tokens, row[start:stop])
    for start, stop in [(-1, 3), (0, len(row) + 1), (3, 2)]:
        with pytest.raises(IndexError):
            dataset.tokens(start, stop)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_documents_begin_with_bos_and_decode_to_their_text(folder: Path, documents: list[str], split):
    dataset, tokenizer = open_dataset(folder, split, verify=True), load_tokenizer_of(folder)
    starts = dataset.document_starts
    ends = [*starts[1:].tolist(), dataset.total_tokens]
    assert len(starts) == dataset.n_documents > 5
    found = []
    for start, end, n_bytes in zip(starts.tolist(), ends, dataset.document_bytes.tolist(), strict=True):
        bos, *tokens = dataset.tokens(start, end).tolist()
        assert bos == tokenizer.bos_id
        text = tokenizer.decode(tokens)
        assert len(text.encode()) == n_bytes
        found.append(text)
    assert found == [text for text in documents if text in set(found)]


def test_a_missing_folder_says_how_to_make_one(tmp_path: Path):
    with pytest.raises(UserError, match=r"shearling prepare SOURCE\.\.\. --out .*nowhere"):
        open_dataset(tmp_path / "nowhere", "train")


def test_a_truncated_shard_is_told_by_its_size(folder: Path):
    shard = folder / "train_00001.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"train_00001\.bin: [\d,]+ bytes, where the manifest tells of"):
        open_dataset(folder, "train")


@pytest.mark.parametrize("name", ["train_00001.bin", "train_00000.docs"])
def test_a_changed_shard_is_found_when_asked_to_verify(folder: Path, name: str):
    content = bytearray((folder / name).read_bytes())
    content[7] ^= 1
    (folder / name).write_bytes(content)
    open_dataset(folder, "train")
    with pytest.raises(UserError, match=rf"{name}: damaged"):
        open_dataset(folder, "train", verify=True)


def test_another_tokenizer_in_the_folder_is_noticed(folder: Path, assets_free_tokenizer: bytes):
    (folder / "tokenizer" / "tokenizer.model").write_bytes(assets_free_tokenizer)
    with pytest.raises(UserError, match="its hash differs"):
        load_tokenizer_of(folder)


@pytest.fixture
def assets_free_tokenizer(documents: list[str]) -> bytes:
    from shearling.data.tokenizers import train_tokenizer

    return train_tokenizer(documents, 350).serialized


def replaced(manifest: Path, *changes: tuple[str, object]) -> None:
    content = json.loads(manifest.read_text())
    for path, value in changes:
        *parents, last = path.split("/")
        place = content
        for key in parents:
            place = place[int(key) if key.isdigit() else key]
        place[last] = value
    manifest.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("splits/train/tokens", 17),
        ("splits/train/shards/0/sha256", "0" * 64),
        ("splits/train/shards/0/file", "../../etc/passwd"),
        ("splits/train/shards/0/tokens", -1),
        ("dtype", "int8"),
        ("version", 2),
        ("hash", "0" * 64),
        ("extra", 1),
    ],
)
def test_an_altered_manifest_is_refused(folder: Path, path: str, value: object):
    replaced(folder / "manifest.json", (path, value))
    with pytest.raises(UserError, match=r"manifest\.json"):
        load_manifest(folder)


def test_the_manifest_reads_back_as_it_was_written(folder: Path):
    manifest = load_manifest(folder)
    assert Manifest.model_validate_json(manifest.to_json()) == manifest
    assert (folder / "manifest.json").read_text() == manifest.to_json()
