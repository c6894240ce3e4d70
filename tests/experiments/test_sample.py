"""Text from models of any format: llama2.c's, a run folder's, a Hugging Face folder's."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from shearling.cli import main
from shearling.data.tokenizers import load_tokenizer, train_tokenizer
from shearling.engine.sampling import Sampling
from shearling.errors import UserError
from shearling.experiments.sample import open_model, write_text
from shearling.models.transformer import Transformer
from shearling.training.checkpoints import load_checkpoint, saved_steps, step_folder
from shearling.training.loop import train
from shearling.training.run_folder import RunFolder
from shearling.training.state import load_weights

GREEDY = {"temperature": 0.0}


def written(path, prompt: str = "Lily", *, steps: int = 20, **sampling) -> str:
    pieces: list[str] = []
    sampling = Sampling(**(sampling or GREEDY))
    write_text(open_model(path), prompt, steps=steps, sampling=sampling, write=pieces.append, say=lambda _: None)
    return "".join(pieces)


def command(capsys, *arguments: str) -> tuple[int, str, str]:
    """Status, output and errors of the program."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    captured = capsys.readouterr()
    return ended.value.code or 0, captured.out, captured.err


@pytest.fixture(scope="module")
def stories(assets) -> list[str]:
    """Arguments that name stories260K and its tokenizer, in one thread."""
    files = assets / "models/stories260K.bin", assets / "tokenizers/tok512/tok512.bin"
    return [str(files[0]), "-z", str(files[1]), "--threads", "1"]


OF_LLAMA2C = [
    ("-t 0 -n 60", None,
     "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
     "big, red ball. She wanted to play with it, but it was too high"),
    ("-t 0.8 -p 0.9 -s 42 -n 60", None,
     "Once upon a time, there was a little girl named Lily. She loved to play outside in the sun. One day, Lily's mom "
     "told her to teach him to cut one toys and bring it"),
    ("-s 1 -n 70", None,
     "Once upon a time, there was a little boy named Tim. Tim loved to show his friends her a big, shiny blue bug. One "
     "day, Tim's mom was making his favorite bug in the park. Tim"),
    ("-p 1.0 -s 7 -n 70", None,
     "Once upon a time, there was a little girl named Lily. She loved to play with her toys all day long. One sunny "
     "day, she went to the park to play with her friend, Timmy. She went to the park and saw a big sign"),
    ("-t 1.3 -p 0.5 -s 2147483647 -n 70", None,
     "Once upon a time, there was a little girl named Lily. She loved to play outside in the sunshine. One day, she "
     'found a big, green car that was different. She picked it up and said, "'),
    ("-t 0.6 -p 0 -s 31337 -n 70", None,
     "Once upon a time, there was a little boy named Tim. Tim loved to play outside in the park. One day, he saw a big "
     "red box. The box was very small and had lots of colors. Tim wanted to to"),
    ("-p 0.95 -s 12 -n 50", 'The sheep said, "',
     'The sheep said, "Oh, I am a big room with our wings!"\n"Yes, I don\'t use it to put it to it!" said the'),
    ("-t 0.9 -s 5 -n 0", "Tom",
     "Tom and Sam were playing in the forest. They liked to pick flowers and grow all day. Sam was very proud of "
     "himself and loved to swim.\nOne day, they saw a shiny dog near a big pond. The dog liked to play in the big blue "
     'room. But the dog said, "Hello, Whiskers! What are you doing?"\n"I am your best?" Tom asked. "Can you help me," '
     'Tom said. "But I have no other old dog, and I can play too."\nTom was so happy to see the bear and said, "Yes, I '
     'will go. I will find a snack."\nThey ran back home and back. They had a great time.'),
    ("-t 0.5 -p 0.3 -s 99 -n 9", "One day a", "One day a time, there was a little"),
    ("-t 0 -n 5", "Once upon a time there was a cat", "Once upon a time there"),
    ("-s 3 -n 3", "", "One day,"),
]  # fmt: skip
"""What `run` prints: its flags, its prompt, its text."""

CHATS_OF_LLAMA2C = [
    ("You tell stories.", "Tell me of Lily.", "-s 5 -t 0.9 -n 150",
     'with a tree, feeling faster." \nLeo said, “Yes," he said. \nWhen they reacheround, Conealter is some ways. We '
     "should find a cave together. They all jumped and had pull"),
    ("Be kind.", "Hello!", "-s 77 -p 1.0 -n 100",
     "all the smoothter. His owner said, “I'm sorry for your promise.\"\n\"I will help you try in the g"),
    ("", "Hello!", "-t 0 -n 60", '. What is that is a special special?" \n"It\'s a specia'),
]  # fmt: skip
"""What `run -m chat` prints behind "Assistant: ", without the space before it."""


class TestAgainstLlama2C:
    @pytest.mark.parametrize(("flags", "prompt", "text"), OF_LLAMA2C)
    def test_the_text_is_the_same_byte_for_byte(self, stories, capsys, flags, prompt, text):
        prompted = [] if prompt is None else ["-i", prompt]
        status, out, _ = command(capsys, "generate", *stories, *flags.split(), *prompted)
        assert (status, out) == (0, text + "\n")

    @pytest.mark.parametrize(("system", "turn", "flags", "text"), CHATS_OF_LLAMA2C)
    def test_a_chat_is_the_same(self, stories, capsys, monkeypatch, system, turn, flags, text):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
        arguments = ["-m", "chat", "-y", system, "-i", turn, *flags.split()]
        status, out, _ = command(capsys, "generate", *stories, *arguments)
        assert (status, out) == (0, text + "\n")

    def test_a_letter_of_several_byte_tokens_is_whole_which_llama2_c_drops(self, stories, capsys):
        assert command(capsys, "generate", *stories, "-t", "0", "-n", "14", "-i", "Zoë")[1].startswith("Zoë")


class TestTheCommand:
    def test_tells_the_speed_apart_from_the_text(self, stories, capsys):
        err = command(capsys, "generate", *stories, "-n", "30")[2]
        assert float(err.removeprefix("achieved tok/s: ")) > 0

    def test_gives_its_figures_as_json(self, stories, capsys):
        status, out, err = command(capsys, "generate", *stories, "-t", "0", "-n", "20", "-i", "Once upon", "--json")
        figures = json.loads(out)
        assert (status, err) == (0, "")
        assert figures["text"].startswith(" a time")
        assert figures["prompt_tokens"] + figures["tokens"] == 1 + 20  # BOS is no text
        assert figures["finish"] == "length"
        assert figures["tokens_per_second"] > 0
        assert figures["first_seconds"] > 0

    def test_names_the_seed_that_the_clock_gave(self, stories, capsys):
        figures = json.loads(command(capsys, "generate", *stories, "-n", "30", "--json")[1])
        again = command(capsys, "generate", *stories, "-n", "30", "--json", "-s", str(figures["seed"]))[1]
        assert json.loads(again)["text"] == figures["text"]

    def test_ends_at_a_stop_string(self, stories, capsys):
        status, out, _ = command(capsys, "generate", *stories, "-t", "0", "--stop", "girl", "--stop", "park")
        assert (status, out) == (0, "Once upon a time, there was a little \n")
        figures = json.loads(command(capsys, "generate", *stories, "-t", "0", "--stop", "girl", "--json")[1])
        assert figures["finish"] == "stop"

    def test_says_that_a_prompt_has_all_the_tokens_asked_for(self, stories, capsys):
        _, out, err = command(capsys, "generate", *stories, "-n", "3", "-i", "Once upon a time there")
        assert out == "Once upon a\n"
        assert "-n 3: the prompt alone has 5 tokens" in err

    @pytest.mark.parametrize(
        "flags",
        ["--top-k 1", "--min-p 1", "--kv bf16 -t 0", "--context 40 -t 0", "--repetition-window 0 -t 0 --threads 2"],
    )
    def test_takes_the_flags_that_llama2_c_lacks(self, stories, capsys, flags):
        greedy = command(capsys, "generate", *stories, "-t", "0", "-n", "30")[1]
        assert command(capsys, "generate", *stories, "-n", "30", *flags.split())[1] == greedy

    def test_penalizes_repetition(self, stories, capsys):
        flags = ["--repetition-penalty", "1000", "-t", "0", "-n", "40", "--json"]
        text = json.loads(command(capsys, "generate", *stories, *flags)[1])["text"]
        tokens = load_tokenizer(Path(stories[2])).encode(text)
        assert len(set(tokens)) > 0.9 * len(tokens)

    @pytest.mark.parametrize(
        ("flags", "named"),
        [
            (["-y", "Be kind."], "-y"),
            (["-m", "chat", "--json"], "--json"),
            (["--repetition-penalty", "0"], "repetition_penalty"),
            (["--stop", ""], "stop string"),
            (["--context", "600"], "context 600"),
            (["-i", "word " * 600], "the model's context takes 1 to 512"),
        ],
    )
    def test_refuses_what_has_no_meaning_in_a_line(self, stories, capsys, flags, named):
        status, out, err = command(capsys, "generate", *stories, *flags)
        assert (status, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert named in err

    @pytest.mark.parametrize("flags", [["-y", "Be kind."], ["-m", "chat", "--json"]])
    def test_refuses_what_has_no_meaning_before_the_model_is_opened(self, capsys, flags):
        assert "nowhere" not in command(capsys, "generate", "nowhere", *flags)[2]

    def test_interrupted_ends_its_line_and_says_so(self, stories, capsys, monkeypatch):
        def write(text):
            print(text, end="")
            if text == ",":
                raise KeyboardInterrupt

        monkeypatch.setattr("shearling.cli.writing._write", write)
        assert command(capsys, "generate", *stories, "-t", "0") == (130, "Once upon a time,", "\ninterrupted\n")

    @pytest.mark.parametrize(
        "flags", ["-n -1", "-t -1", "-p 2", "-s -1", "-m sing", "--kv f64", "--threads 0", "--top-k -1", "--min-p 2"]
    )
    def test_refuses_values_out_of_range_naming_the_option(self, stories, capsys, flags):
        status, out, err = command(capsys, "generate", *stories, *flags.split())
        assert (status, out) == (2, "")
        assert f"'{flags.split()[0]}'" in err

    def test_imports_no_torch_for_a_model_of_llama_s_graph(self, stories, root):
        code = (
            "import sys\nfrom shearling.cli import main\n"
            "try:\n    main(sys.argv[1:])\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)"
        )
        flags = ["generate", *stories, "-t", "0", "-n", "4"]
        done = subprocess.run(
            [sys.executable, "-c", code, *flags], cwd=root, capture_output=True, text=True, timeout=250
        )
        assert done.stdout == "Once upon a time\n"
        assert done.stderr.splitlines()[-1] == "False"


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


def continuation(config, step: int, prompt: str, steps: int = 20) -> str:
    """Greedy text from the weights of a step, by full passes, decoded together with its prompt."""
    run = RunFolder(config.output_dir)
    model = Transformer(config.model).eval()
    load_weights(model, load_checkpoint(step_folder(run.checkpoints, step)).weights)
    tokenizer = load_tokenizer(run.tokenizer)
    tokens = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    while len(tokens) <= steps:
        with torch.no_grad():
            tokens.append(int(model.logits(model(torch.tensor([tokens])))[0, -1].argmax()))
        if tokens[-1] == tokenizer.bos_id:
            break
    return tokenizer.decode(tokens)


class TestARunFolder:
    @pytest.mark.parametrize("prompt", ["Lily saw", "Lily saw ", ""])
    def test_gives_the_decoded_sequence_of_prompt_and_drawn_tokens(self, trained, prompt):
        expected = continuation(trained, 40, prompt)
        assert written(trained.output_dir, prompt) == expected
        assert " " in expected[len(prompt) :]

    @pytest.mark.parametrize("prompt", ["Zoë's 🐑\n\tball  ", "\ufffd", "<s>"])
    def test_begins_with_the_prompt_as_it_was_given(self, trained, prompt):
        assert written(trained.output_dir, prompt, steps=30).startswith(prompt)

    def test_of_the_same_seed_gives_the_same_text(self, trained):
        first, again, other = (
            written(trained.output_dir, "", temperature=1.5, top_p=1.0, seed=seed) for seed in (1, 1, 2)
        )
        assert first == again != other

    def test_takes_its_newest_checkpoint(self, trained):
        early, late = (continuation(trained, step, "Lily") for step in (20, 40))
        assert early != late
        assert written(trained.output_dir) == late

    def test_takes_the_one_before_a_damaged_one_with_a_warning_apart_from_the_text(self, trained, copy, capsys):
        (step_folder(copy.checkpoints, 40) / "model.safetensors").write_bytes(b"")
        assert written(copy.path) == continuation(trained, 20, "Lily")
        output = capsys.readouterr()
        assert output.out == ""
        assert "step_00000040: damaged" in output.err

    def test_without_a_checkpoint_is_refused(self, copy):
        for step in saved_steps(copy.checkpoints):
            shutil.rmtree(step_folder(copy.checkpoints, step))
        with pytest.raises(UserError, match="no whole checkpoint"):
            open_model(copy.path)

    def test_with_a_tokenizer_that_it_was_not_trained_with_is_refused(self, copy):
        train_tokenizer([f"some other text, number {i}" for i in range(300)], 290).save(copy.tokenizer)
        with pytest.raises(UserError, match="not the tokenizer that the model was trained with"):
            open_model(copy.path)

    def test_without_its_tokenizer_is_refused(self, copy):
        shutil.rmtree(copy.tokenizer)
        with pytest.raises(UserError, match="tokenizer"):
            written(copy.path)

    def test_whose_config_is_not_the_weights_is_refused(self, copy):
        copy.config.write_text(copy.config.read_text().replace("intermediate_size: 64", "intermediate_size: 128"))
        with pytest.raises(UserError, match="the checkpoint's weights are not this model's"):
            open_model(copy.path)

    def test_can_be_moved(self, trained, copy):
        assert written(copy.path) == written(trained.output_dir)


@pytest.fixture(scope="module")
def post(tmp_path_factory, make_experiment):
    """A run of what LLaMA's graph cannot express, whose branches grow to the end."""
    placement = {"kind": "post", "residual_warmup": 20}
    model = {"placement": placement, "norm": {"kind": "layernorm"}, "position": {"kind": "learned"}}
    training = {"steps": 40, "save_every": 20, "evaluate_every": 20}
    config = make_experiment(tmp_path_factory.mktemp("post"), model=model, training=training)
    train(config)
    return config


class TestBeyondLlama:
    def test_a_model_writes_what_its_full_passes_say(self, post):
        assert written(post.output_dir, "Lily") == continuation(post, 40, "Lily")

    def test_a_residual_warm_up_is_as_far_as_training_came(self, post, tmp_path):
        run = RunFolder(shutil.copytree(post.output_dir, tmp_path / "early", symlinks=True))
        shutil.rmtree(step_folder(run.checkpoints, 40))
        model = Transformer(post.model).eval()
        load_weights(model, load_checkpoint(step_folder(run.checkpoints, 20)).weights)
        model.step = 20
        with torch.no_grad():
            expected = model.logits(model(torch.tensor([[1, 40, 41]])))[0].numpy()
        assert np.allclose(open_model(run.path).logits([1, 40, 41]), expected, atol=1e-5)

    def test_a_model_keeps_no_keys_and_values_in_fewer_bits(self, post):
        with pytest.raises(UserError, match=r"kv int8: PyTorch, on which this model runs for its norm\.kind"):
            open_model(post.output_dir, kv="int8")


@pytest.mark.parametrize("made", [False, True])
def test_what_is_no_model_is_refused(tmp_path, made):
    path = tmp_path if made else tmp_path / "nowhere"
    with pytest.raises(UserError, match=f"^{path}: no "):
        open_model(path)


class TestAHuggingFaceFolder:
    @pytest.fixture
    def llama(self):
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
        tokens = llama.generate(prompt, max_length=1 + 20, do_sample=False, eos_token_id=tokenizer.eos_id)
        assert written(folder, "Lily saw", steps=20) == tokenizer.decode(tokens[0].tolist())

    def test_of_an_encoder_is_refused_before_any_text(self, folder):
        from transformers import BertConfig, BertModel

        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        BertModel(BertConfig(vocab_size=300, **sizes)).save_pretrained(folder)
        with pytest.raises(UserError, match="continues no text"):
            open_model(folder)

    def test_whose_tokenizer_has_tokens_that_the_model_has_not_is_refused(self, llama, folder):
        llama.resize_token_embeddings(8)
        llama.save_pretrained(folder)
        with pytest.raises(UserError, match="and the model only 8"):
            written(folder)

    def test_without_a_tokenizer_is_refused_until_one_is_named(self, llama, folder, tmp_path):
        llama.save_pretrained(tmp_path / "bare")
        with pytest.raises(UserError, match="tokenizer"):
            written(tmp_path / "bare")
        model = open_model(tmp_path / "bare", tokenizer=folder)
        assert model.generate("Lily", max_new_tokens=4, seed=1)
