"""docs/extending.md, followed to the letter."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BLOCK = re.compile(
    r"```(?:python|yaml)\n# (?P<file>\S+?)(?:, before (?P<quote>[\"'])(?P<place>[^\n]*)(?P=quote))?\n(?P<text>.*?)```",
    re.S,
)
LINES = 10


def blocks(root: Path) -> list[re.Match]:
    return list(BLOCK.finditer((root / "docs/extending.md").read_text()))


def shearling(folder: Path, package: Path, *arguments: str) -> str:
    """What the command prints, run in `folder` on the package in `package`."""
    done = subprocess.run(
        [sys.executable, "-m", "shearling", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=200, env={**os.environ, "PYTHONPATH": str(package)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def code_lines(text: str) -> int:
    return sum(1 for line in text.splitlines() if line.strip() and not line.startswith(("import ", "from ")))


def tiny(corpus: Path) -> list[str]:
    return [
        f"data.path={corpus}", "d_model=16", "n_heads=2", "n_layers=2", "intermediate_size=24", "vocab_size=300",
        "steps=3", "warmup_steps=0", "seq_len=16", "tokens_per_update=64", "validation_tokens=500",
    ]  # fmt: skip


@pytest.fixture
def followed(root, tmp_path) -> Path:
    """A folder with the text's own files, and the shipped experiment that they extend."""
    shutil.copytree(root / "configs", tmp_path / "configs")
    shutil.copytree(root / "examples", tmp_path / "examples")
    for block in blocks(root):
        if block["place"] is None:
            target = tmp_path / block["file"]
            target.write_text(block["text"])
    return tmp_path


def test_a_norm_and_a_placement_from_files_of_ones_own(root, followed, corpus):
    text = shearling(followed, root / "src", "show", "my_norm.yaml", *tiny(corpus))
    assert "|x|³" in text  # the equation of the code in the file
    text = shearling(followed, root / "src", "show", "my_placement.yaml", *tiny(corpus))
    assert "x ← N₂(x + W_o softmax" in text
    everywhere = ["model.placement.kind=sandwich", "model.qk_norm.kind=per_head"]
    for name, more in (("my_norm", everywhere), ("my_placement", [])):
        shearling(followed, root / "src", "train", f"{name}.yaml", *tiny(corpus), *more)
        assert (followed / f"outputs/{name}/results.json").exists()


def test_a_norm_and_a_placement_in_the_package(root, followed, corpus):
    shutil.copytree(root / "src", followed / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for block in blocks(root):
        if block["place"] is not None:
            path = followed / block["file"]
            source = path.read_text()
            assert block["place"] in source
            first = source.index(f"\n{block['place']}") + 1
            path.write_text(f"{source[:first]}{block['text']}\n\n{source[first:]}".replace(",\n\n\n", ",\n"))
    for option in ("model.norm.kind=cuberoot", "model.placement.kind=pre_and_post"):
        config = [
            "configs/experiments/preln.yaml",
            option,
            f"name={option[-4:]}",
            "qk_norm.kind=per_head",
            *tiny(corpus),
        ]
        shearling(followed, followed / "src", "train", *config)
        assert (followed / f"outputs/{option[-4:]}/results.json").exists()


def test_each_takes_under_ten_lines(root):
    by_file: dict[str, int] = {}
    in_package: list[int] = []
    for block in blocks(root):
        if block["place"] is None:
            by_file[block["file"]] = code_lines(block["text"])
        else:
            in_package.append(code_lines(block["text"]))
    assert by_file["my_norms.py"] < LINES
    assert by_file["my_placements.py"] < LINES
    assert len(in_package) == 8
    assert sum(in_package[:4]) < LINES
    assert sum(in_package[4:]) < LINES
