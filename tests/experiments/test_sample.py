"""Text from a run folder, and from a Hugging Face folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from shearling.data.tokenizers import load_tokenizer
from shearling.errors import UserError
from shearling.experiments import sample
from shearling.experiments.sample import write_text
from shearling.models.transformer import Transformer
from shearling.training.checkpoints import load_checkpoint, saved_steps, step_folder
from shearling.training.loop import train
from shearling.training.run_folder import RunFolder
from shearling.training.state import load_weights


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory, make_experiment):
    """A run that has seen its text a little; tests that alter it take a copy."""
    config = make_experiment(
        tmp_path_factory.mktemp("trained"), training={"steps": 40, "save_every": 20, "evaluate_every": 20}
    )
    train(config)
    return config


@pytest.fixture
def copy(trained, tmp_path):
    return RunFolder(shutil.copytree(trained.output_dir, tmp_path / "copy", symlinks=True))


def written(path, prompt="Lily", n_tokens=20, *, temperature=0.0, top_p=0.9, seed=0) -> list[str]:
    pieces: list[str] = []
    write_text(path, prompt, n_tokens, temperature=temperature, top_p=top_p, seed=seed, write=pieces.append)
    return pieces


def continuation(config, step: int, prompt: str, n_tokens: int) -> str:
    """Greedy text from the weights of a step, by full passes, decoded together with its prompt."""
    run = RunFolder(config.output_dir)
    model = Transformer(config.model).eval()
    load_weights(model, load_checkpoint(step_folder(run.checkpoints, step)).weights)
    tokenizer = load_tokenizer(run.tokenizer)
    tokens = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    for _ in range(n_tokens):
        with torch.no_grad():
            tokens.append(int(model.logits(model(torch.tensor([tokens])))[0, -1].argmax()))
    return tokenizer.decode(tokens)


class TestText:
    @pytest.mark.parametrize("prompt", ["Lily saw", "Lily saw ", ""])
    def test_is_the_decoded_sequence_of_prompt_and_drawn_tokens(self, trained, prompt):
        expected = continuation(trained, 40, prompt, 12)
        assert "".join(written(trained.output_dir, prompt, 12)) == expected
        assert " " in expected[len(prompt) :]

    def test_that_goes_on_after_a_whole_word_keeps_its_space(self, trained):
        """The start of a sequence loses the space that its first piece carries; that of a continuation must not."""
        assert "".join(written(trained.output_dir, "Lily saw", 1)) == "Lily saw a"

    def test_begins_with_the_prompt_as_it_was_given(self, trained):
        for prompt in ("Zoë's 🐑\n\tball  ", "\ufffd", "<s>"):
            assert written(trained.output_dir, prompt, 1)[0] == prompt

    def test_comes_in_pieces_one_for_each_token(self, trained):
        assert len(written(trained.output_dir, "Tom", 10)) == 1 + 10 + 1  # prompt, tokens, what was held back

    def test_gives_out_no_half_of_a_character(self, trained, monkeypatch):
        tokenizer = load_tokenizer(RunFolder(trained.output_dir).tokenizer)
        text = "é🐑 naïve"
        tokens = tokenizer.encode("Tom" + text)[len(tokenizer.encode("Tom")) :]
        assert len(tokens) > len(text)  # of bytes, since the tokenizer has no such letters
        monkeypatch.setattr(sample, "generate", lambda *_, **__: iter(tokens))
        pieces = written(trained.output_dir, "Tom")
        assert "".join(pieces) == "Tom" + text
        assert not any("\ufffd" in piece for piece in pieces)

    def test_marks_a_character_that_never_came_whole(self, trained, monkeypatch):
        tokenizer = load_tokenizer(RunFolder(trained.output_dir).tokenizer)
        monkeypatch.setattr(sample, "generate", lambda *_, **__: iter(tokenizer.encode("Tom🐑")[-4:-1]))
        assert "".join(written(trained.output_dir, "Tom")) == "Tom\ufffd"

    def test_is_the_same_from_the_same_seed(self, trained):
        first, again, other = (
            "".join(written(trained.output_dir, "", 25, temperature=1.5, top_p=1.0, seed=seed)) for seed in (1, 1, 2)
        )
        assert first == again != other

    def test_without_a_seed_differs_from_time_to_time(self, trained):
        texts = {"".join(written(trained.output_dir, "", 25, temperature=1.5, top_p=1.0, seed=None)) for _ in range(3)}
        assert len(texts) > 1

    def test_ends_where_the_model_begins_another_document_and_has_only_tokens_with_a_text(self, trained, monkeypatch):
        asked = {}

        def spy(*_, **options):
            asked.update(options)
            return iter(())

        monkeypatch.setattr(sample, "generate", spy)
        written(trained.output_dir)
        tokenizer = load_tokenizer(RunFolder(trained.output_dir).tokenizer)
        assert (asked["stop"], asked["vocab_size"]) == (tokenizer.bos_id, tokenizer.vocab_size)


class TestTheCheckpoint:
    def test_is_the_newest(self, trained):
        early, late = (continuation(trained, step, "Lily", 15) for step in (20, 40))
        assert early != late
        assert "".join(written(trained.output_dir, "Lily", 15)) == late

    def test_before_a_damaged_one_is_taken_with_a_warning_apart_from_the_text(self, trained, copy, capsys):
        (step_folder(copy.checkpoints, 40) / "model.safetensors").write_bytes(b"")
        assert "".join(written(copy.path, "Lily", 15)) == continuation(trained, 20, "Lily", 15)
        output = capsys.readouterr()
        assert output.out == ""
        assert "step_00000040: damaged" in output.err

    def test_must_be_there(self, copy):
        for step in saved_steps(copy.checkpoints):
            shutil.rmtree(step_folder(copy.checkpoints, step))
        with pytest.raises(UserError, match="no whole checkpoint"):
            written(copy.path)


class TestRefusals:
    def test_of_a_folder_that_is_no_run(self, tmp_path):
        for path in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(UserError, match=f"{path}: no run folder"):
                written(path)

    def test_of_a_tokenizer_that_the_model_was_not_trained_with(self, copy, tmp_path):
        from shearling.data.tokenizers import train_tokenizer

        train_tokenizer([f"some other text, number {i}" for i in range(300)], 290).save(copy.tokenizer)
        with pytest.raises(UserError, match="not the tokenizer that the model was trained with"):
            written(copy.path)

    def test_of_a_run_without_its_tokenizer(self, copy):
        shutil.rmtree(copy.tokenizer)
        with pytest.raises(UserError, match="tokenizer"):
            written(copy.path)

    def test_of_a_config_that_is_not_the_weights(self, copy):
        copy.config.write_text(copy.config.read_text().replace("intermediate_size: 64", "intermediate_size: 128"))
        with pytest.raises(UserError, match="the checkpoint's weights are not this model's"):
            written(copy.path)

    def test_of_a_prompt_longer_than_the_context_before_any_text(self, trained):
        pieces: list[str] = []
        with pytest.raises(UserError, match="the model's context takes 1 to 31"):
            write_text(trained.output_dir, "Lily " * 40, 5, temperature=0, top_p=1, seed=0, write=pieces.append)
        assert pieces == []


class TestAHuggingFaceFolder:
    @pytest.fixture
    def llama(self, trained):
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=32, initializer_range=0.3,
            )
        ).eval()  # fmt: skip

    @pytest.fixture
    def folder(self, trained, tmp_path):
        return Path(shutil.copytree(RunFolder(trained.output_dir).tokenizer, tmp_path / "folder"))

    def test_continues_a_text_as_transformers_does(self, llama, folder):
        llama.save_pretrained(folder)
        tokenizer = load_tokenizer(folder)
        prompt = torch.tensor([[tokenizer.bos_id, *tokenizer.encode("Lily saw")]])
        tokens = llama.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=tokenizer.eos_id)
        assert "".join(written(folder, "Lily saw", 12)) == tokenizer.decode(tokens[0].tolist())

    def test_ends_a_text_where_its_tokenizer_says(self, llama, folder, monkeypatch):
        llama.save_pretrained(folder)
        asked = {}
        monkeypatch.setattr(sample, "generate", lambda *_, **options: asked.update(options) or iter(()))
        written(folder)
        tokenizer = load_tokenizer(folder)
        assert asked["stop"] == tokenizer.eos_id != tokenizer.bos_id

    def test_of_an_encoder_is_refused_before_any_text(self, folder):
        from transformers import BertConfig, BertModel

        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        BertModel(BertConfig(vocab_size=300, **sizes)).save_pretrained(folder)
        with pytest.raises(UserError, match="continues no text"):
            written(folder)

    def test_whose_tokenizer_has_tokens_that_the_model_has_not_is_refused(self, llama, folder):
        llama.resize_token_embeddings(8)
        llama.save_pretrained(folder)
        with pytest.raises(UserError, match=r"its tokenizer gives token .* and the model has 8"):
            written(folder)

    def test_without_a_tokenizer_is_refused(self, llama, tmp_path):
        llama.save_pretrained(tmp_path / "bare")
        with pytest.raises(UserError, match="bare: no tokenizer in this folder"):
            written(tmp_path / "bare")


def test_the_speed_is_tokens_by_seconds(trained, monkeypatch):
    now = iter([100.0, 104.0])
    monkeypatch.setattr(sample.time, "perf_counter", lambda: next(now))
    speed = write_text(trained.output_dir, "Tom", 10, temperature=0, top_p=1, seed=0, write=lambda _: None)
    assert speed == 10 / 4


def test_a_run_folder_can_be_moved(trained, copy):
    assert json.loads(copy.results.read_text())["step"] == 40
    assert written(copy.path) == written(trained.output_dir)
