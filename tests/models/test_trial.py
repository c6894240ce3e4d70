"""A user's own classes are tried before anything is trained with them."""

import sys

import pytest

from shearling.errors import UserError
from shearling.models.spec import ModelSpec
from shearling.models.trial import try_custom_parts

CLASSES = """
import torch
from torch import nn

class Good(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
    def forward(self, x):
        self.seen += 1
        return x / (1 + self.seen)

class Future(Good):
    def forward(self, x):
        return x - x.mean(1, keepdim=True)

class Neighbours(Good):
    def forward(self, x):
        return x - x.mean(0, keepdim=True)

class Flat(Good):
    def forward(self, x):
        return x.mean(-1)

class Double(Good):
    def forward(self, x):
        return x.double()

class NoDim(nn.Module):
    def forward(self, x):
        return x
"""


@pytest.fixture(autouse=True)
def classes(tmp_path, monkeypatch):
    (tmp_path / "tried.py").write_text(CLASSES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("tried", None)


def spec(name: str, **options) -> ModelSpec:
    small = {"d_model": 16, "n_heads": 2, "n_layers": 3, "intermediate_size": 24}
    return ModelSpec(**small, norm={"kind": f"tried:{name}"}, **options)


@pytest.mark.parametrize("options", [{}, {"placement": {"kind": "sandwich"}, "position": {"kind": "learned"}}])
def test_what_works_passes_even_where_it_keeps_statistics(options):
    try_custom_parts(spec("Good", **options))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("Future", "depends on later tokens: work over the last dimension alone"),
        ("Neighbours", "depends on other sequences of the batch"),
        ("Flat", r"it makes \(2, 3\) in torch.bfloat16: a norm keeps shape and dtype"),
        ("Double", "in torch.float64: a norm keeps shape and dtype"),
        ("NoDim", "tried:NoDim: fails when it is tried: TypeError"),
    ],
)
def test_what_no_comparison_could_trust_is_refused(name, complaint):
    with pytest.raises(UserError, match=complaint):
        try_custom_parts(spec(name))


def test_an_encoder_may_see_later_tokens():
    try_custom_parts(spec("Future", arch="bert"))


def test_a_model_without_own_classes_is_not_tried():
    try_custom_parts(ModelSpec())
