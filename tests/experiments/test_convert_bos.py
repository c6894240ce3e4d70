"""Whether a text begins with BOS: what training saw goes with the model from format to format."""

from dataclasses import replace

import pytest
import tokenizers

from shearling.data.prepare import prepare
from shearling.data.tokenizers import load_tokenizer
from shearling.engine.api import Model
from shearling.engine.reference import ReferenceEngine
from shearling.errors import UserError
from shearling.experiments.convert import convert
from shearling.experiments.convert.verify import check_kept
from shearling.formats import open_checkpoint
from shearling.training.loop import train

TEXT = "Lily saw a cat."


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    """A tokenizer like GPT-2's, whose file asks for no BOS."""
    library = tokenizers.ByteLevelBPETokenizer()
    library.train_from_iterator([TEXT, "Tom lost a hat."] * 20, 300, special_tokens=["<|endoftext|>"])
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    library.save(str(file))
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory, byte_level, make_experiment):
    """A run whose documents began with BOS, as all prepared documents do."""
    folder = tmp_path_factory.mktemp("trained")
    text = "\n<|endoftext|>\n".join(f"Lily saw {i} cats. Tom lost {i % 7}." for i in range(200))
    (folder / "text.txt").write_text(text)
    prepare([str(folder / "text.txt")], folder / "shards", tokenizer=byte_level)
    data = {"path": str(folder / "shards"), "validation_tokens": 200}
    vocab_size = load_tokenizer(byte_level).vocab_size
    config = make_experiment(folder, model={"vocab_size": vocab_size}, data=data, training={"steps": 3})
    train(config)
    return config.output_dir


def first_token(path, tokenizer=None) -> int:
    checkpoint = open_checkpoint(path, tokenizer)
    return Model(ReferenceEngine(checkpoint), checkpoint).prompt_tokens(TEXT)[0]


def test_a_run_trained_with_a_tokenizer_that_adds_none_begins_with_bos(trained, byte_level):
    assert not load_tokenizer(byte_level).adds_bos
    assert first_token(trained) == load_tokenizer(byte_level).bos_id


def test_it_still_does_as_gguf_as_a_folder_of_transformers_and_as_a_run_again(trained, byte_level, tmp_path):
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    source = trained
    for name, options in {"a.gguf": {}, "hf": {}, "run": {"to": "run"}}.items():
        convert(source, tmp_path / name, **options)
        source = tmp_path / name
        assert first_token(source) == load_tokenizer(byte_level).bos_id
    assert GGUFReader(tmp_path / "a.gguf").fields["tokenizer.ggml.add_bos_token"].contents() is True
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs(TEXT).input_ids == [theirs.bos_token_id, *load_tokenizer(byte_level).encode(TEXT)]


def test_a_model_that_expects_none_gets_none_in_any_format(trained, byte_level, tmp_path):
    from transformers import AutoTokenizer

    convert(trained, tmp_path / "with")
    options = tmp_path / "with" / "tokenizer_config.json"
    options.write_text(options.read_text().replace('"add_bos_token": true', '"add_bos_token": false'))
    source = tmp_path / "with"
    for name, how in {"run": {"to": "run"}, "a.gguf": {}, "hf": {}}.items():
        convert(source, tmp_path / name, **how)
        source = tmp_path / name
        assert first_token(source) == load_tokenizer(byte_level).encode(TEXT)[0]
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs(TEXT).input_ids == load_tokenizer(byte_level).encode(TEXT)


def test_a_tokenizer_that_is_named_changes_nothing_of_it(trained, byte_level, tmp_path):
    convert(trained, tmp_path / "a.gguf")
    assert first_token(tmp_path / "a.gguf", byte_level) == load_tokenizer(byte_level).bos_id


def test_a_result_that_begins_otherwise_is_refused(trained):
    model = open_checkpoint(trained)
    with pytest.raises(UserError, match="its texts begin without BOS"):
        check_kept(model, replace(model, adds_bos=False))
