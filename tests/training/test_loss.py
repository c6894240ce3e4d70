"""The chunked head loss against PyTorch's plain cross-entropy in float64."""

import pytest
import torch
import torch.nn.functional as F

from shearling.models.head import Head
from shearling.training import loss as loss_module
from shearling.training.loss import head_loss, token_losses


def example(dtype: torch.dtype, n: int = 37, scale: float = 1.0):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, 16, generator=generator).to(dtype).requires_grad_()
    weight = (scale * torch.randn(50, 16, generator=generator)).requires_grad_()
    return hidden, weight, torch.randint(50, (n,), generator=generator)


def reference(hidden, weight, targets, softcap=None):
    """Loss and gradients of the plain loss in float64, with the weight rounded as the arithmetic rounds it."""
    h = hidden.detach().double().requires_grad_()
    w = weight.detach().to(hidden.dtype).double().requires_grad_()
    logits = h @ w.t()
    loss = F.cross_entropy(logits if softcap is None else softcap * torch.tanh(logits / softcap), targets)
    return loss.detach(), *torch.autograd.grad(loss, (h, w))


@pytest.fixture(params=[(2**30, 2**30), (14 * 50, 4 * 50), (50, 50)], ids=["one-chunk", "fourteen-rows", "one-row"])
def chunking(request, monkeypatch):
    monkeypatch.setattr(loss_module, "HEAD_LOGITS", request.param[0])
    monkeypatch.setattr(loss_module, "HEAD_EXACT_LOGITS", request.param[1])
    monkeypatch.setattr(loss_module, "PRODUCT_ROWS", 23)


@pytest.mark.usefixtures("chunking")
@pytest.mark.parametrize("softcap", [None, 2.5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_loss_and_gradients_are_those_of_the_plain_loss(dtype, tolerance, softcap):
    hidden, weight, targets = example(dtype)
    loss = head_loss(hidden, Head(weight, softcap), targets)
    (3 * loss).backward()
    expected, hidden_gradient, weight_gradient = reference(hidden, weight, targets, softcap)
    assert loss.dtype == weight.grad.dtype == torch.float32
    assert abs(loss - expected) < tolerance
    for got, want in ((hidden.grad, 3 * hidden_gradient), (weight.grad, 3 * weight_gradient)):
        assert (got.double() - want).norm() < tolerance * want.norm()


@pytest.mark.usefixtures("chunking")
def test_token_losses_are_those_of_the_plain_loss():
    hidden, weight, targets = example(torch.float32)
    logits = hidden.double() @ weight.double().t()
    for softcap, exact in ((None, logits), (2.5, 2.5 * torch.tanh(logits / 2.5))):
        expected = F.cross_entropy(exact, targets, reduction="none")
        got = token_losses(hidden, Head(weight, softcap), targets).double()
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1e3, 1e-6])
def test_extreme_logits_neither_overflow_nor_vanish(scale):
    hidden, weight, targets = example(torch.float32, scale=scale)
    loss = head_loss(hidden, Head(weight), targets)
    loss.backward()
    expected, _, weight_gradient = reference(hidden, weight, targets)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    assert (weight.grad.double() - weight_gradient).norm() < 1e-3 * weight_gradient.norm()


def test_a_tied_weight_gathers_gradients_of_both_its_uses():
    weight = torch.randn(50, 16, requires_grad=True)
    x, targets = torch.randint(50, (20,)), torch.randint(50, (20,))
    head_loss(F.embedding(x, weight), Head(weight), targets).backward()
    expected = torch.autograd.grad(F.cross_entropy(F.embedding(x, weight) @ weight.t(), targets), weight)[0]
    torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-6)


def test_the_logits_are_never_all_there():
    """Peak memory of the chunked loss at V = 32,000 stays far below the logits' own size."""
    from torch.profiler import ProfilerActivity, profile

    hidden = torch.randn(2048, 64, dtype=torch.bfloat16, requires_grad=True)
    weight, targets = torch.randn(32_000, 64, requires_grad=True), torch.randint(32_000, (2048,))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        head_loss(hidden, Head(weight), targets)
    largest = max(event.self_cpu_memory_usage for event in profiler.events())
    assert largest < 2048 * 32_000 * 4 / 4
