"""The diagnostics as functions of tensors: each with its formula and where it comes from.

Shapes: B batch, T time, D model, H heads, S keys, V vocabulary, N tokens; `...` is any shape. Where the arithmetic is
ill-conditioned (a fourth power, an arc cosine near 1) it is float64.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F


def residual_variance(x_BTD: torch.Tensor) -> torch.Tensor:
    """mean over tokens of σ², σ² = (1/D) Σ_d (x_d − x̄)²: the stream's variance over features.

    The curse of depth is its growth from layer to layer under Pre-LN (arXiv 2502.05795, figure 1).
    """
    return x_BTD.float().var(dim=-1, correction=0).mean()


def angular_distance(x_BTD: torch.Tensor, y_BTD: torch.Tensor) -> torch.Tensor:
    """mean over tokens of arccos(x·y / ‖x‖‖y‖) / π, in [0, 1]: how far a layer turns its input x into its output y.

    Gromov et al., arXiv 2403.17887, on every token as in Mix-LN, arXiv 2412.13795. A zero vector is at 1/2 from all.
    """
    cosine_BT = F.cosine_similarity(x_BTD.double(), y_BTD.double(), dim=-1)
    return (cosine_BT.clamp(-1, 1).arccos() / torch.pi).mean()


def max_over_median(x: torch.Tensor) -> torch.Tensor:
    """max |x| / median |x| over all values: massive activations are at 1000 and more (arXiv 2402.17762).

    Their second condition, |x| > 100, is one on the model's scale, which small models never reach: it is left out.
    Of an even number of values the median is the lower of the middle two.
    """
    magnitudes = x.float().abs().flatten()
    return magnitudes.max() / magnitudes.median()


def kurtosis(x: torch.Tensor) -> torch.Tensor:
    """mean((x − x̄)⁴) / mean((x − x̄)²)² − 3 over all values: excess kurtosis, 0 for a Gaussian.

    The measure of outliers in arXiv 2506.19697, where a usual model comes to 1,800 and one without outliers to 0.04.
    """
    squares = (x.double() - x.double().mean()).square()
    return squares.square().mean() / squares.mean().square() - 3


def attention_entropies(scores_HTS: torch.Tensor, visible_HTS: torch.Tensor) -> torch.Tensor:
    """−Σ_s A_s ln A_s / ln n of every row A = softmax(scores) that sees n > 1 keys, (rows,): 1 where it is uniform.

    The entropy of arXiv 2303.06296, whose collapse goes with instability. It is divided by its largest value, since the
    i-th row of causal attention sees i keys and could not reach that of the last. The diagnostic is the rows' mean.
    """
    weights_HTS = torch.softmax(scores_HTS.float().masked_fill(~visible_HTS, -torch.inf), dim=-1)
    keys_HT = visible_HTS.sum(dim=-1)
    entropies_HT = torch.special.entr(weights_HTS).sum(dim=-1)
    return entropies_HT[keys_HT > 1] / keys_HT[keys_HT > 1].log()


def largest_attention_logit(products_HTS: torch.Tensor, visible_HTS: torch.Tensor) -> torch.Tensor:
    """max over visible pairs of scale · ⟨q, k⟩, with scale 1 / sqrt(K) as a rule (arXiv 2309.14322, section 3.1.1).

    Position biases, as ALiBi's, are no part of it.
    """
    return products_HTS.float().masked_fill(~visible_HTS, -torch.inf).max()


def l2_norm(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """sqrt(Σ x²) over all values of all tensors: of a layer's gradients it is that layer's gradient norm.

    The gradients are those of a mean over tokens, before clipping (the quantity of arXiv 2002.04745).
    """
    return torch.stack([tensor.double().square().sum() for tensor in tensors]).sum().sqrt()


def update_norm(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> torch.Tensor:
    """‖w' − w‖ of a layer's weights w over one optimizer step, weight decay included (arXiv 2410.23922)."""
    return l2_norm(new.double() - old.double() for old, new in zip(before, after, strict=True))


def relative_update_norm(before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> torch.Tensor:
    """‖w' − w‖ / ‖w‖ of a layer's weights w over one optimizer step (arXiv 2410.23922)."""
    return update_norm(before, after) / l2_norm(before)


def log_z(logits_NV: torch.Tensor) -> torch.Tensor:
    """ln Σ_v exp(logit_v) of each token, (N,): the logarithm of the softmax's divisor Z. The diagnostic is its mean.

    Its growth is the divergence of output logits that the z-loss restrains (arXiv 2204.02311; 2309.14322, 3.1.2).
    """
    return torch.logsumexp(logits_NV.float(), dim=-1)


def expected_calibration_error(confidences_N: torch.Tensor, correct_N: torch.Tensor, bins: int = 15) -> torch.Tensor:
    """Σ_b (n_b / N) |accuracy_b − mean confidence_b| over bins of equal width of (0, 1] (arXiv 1706.04599).

    Args:
        confidences_N: the probability of the likeliest token.
        correct_N: whether that was the next token, boolean.
    """
    confidences = confidences_N.double()
    bin_N = (confidences * bins).ceil().long().sub(1).clamp(0, bins - 1)
    excess = torch.zeros(bins, dtype=torch.float64, device=confidences.device)
    excess.index_add_(0, bin_N, correct_N.double() - confidences)  # n_b (accuracy_b − confidence_b)
    return excess.abs().sum() / len(confidences)


def spike_score(values: Sequence[float], window: int = 1000, deviations: float = 7.0, least: int = 100) -> float:
    """Share of values at least `deviations` standard deviations from the mean of the `window` values before them.

    OLMo 2's measure of stability (arXiv 2501.00656). So that short runs have one too, a value counts as soon as it has
    `least` before it; the first ones do not. Not a number where none counts.
    """
    if len(values) <= least:
        return float("nan")
    series = np.asarray(values, dtype=np.float64) - values[0]  # near 0, so that sums of squares lose no digits
    sums, squares = (np.concatenate([[0.0], np.cumsum(x)]) for x in (series, series**2))
    stop = np.arange(least, len(series))
    start = np.maximum(0, stop - window)
    mean = (sums[stop] - sums[start]) / (stop - start)
    variance = (squares[stop] - squares[start]) / (stop - start) - mean**2
    distance = np.abs(series[stop] - mean)
    return float(((distance > 0) & (distance**2 >= deviations**2 * variance)).mean())
