"""How far apart two samples are."""

from collections.abc import Iterable

import torch

GAMMAS = tuple(10.0**power for power in range(-3, 4))


def gaussian_kernels(
    x: torch.Tensor, y: torch.Tensor, gammas: Iterable[float]
) -> torch.Tensor:
    """The sum of Gaussian kernels of x (n, F) and y (m, F): (n, m)."""
    distances = (
        (x**2).sum(-1)[:, None] + (y**2).sum(-1) - 2 * x @ y.T  # squared
    ).clamp_min(1e-30)
    return sum((-gamma * distances).exp() for gamma in gammas)


def gaussian_mmd(
    x: torch.Tensor, y: torch.Tensor, gammas: Iterable[float] = GAMMAS
) -> torch.Tensor:
    """The squared maximum mean discrepancy of x (n, F) and y (m, F), biased.

    Gretton et al., 2012, https://jmlr.org/papers/v13/gretton12a.html, equation 5
    """
    kernel = gaussian_kernels
    own = kernel(x, x, gammas).mean() + kernel(y, y, gammas).mean()
    return own - 2 * kernel(x, y, gammas).mean()


def mean_cov(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The mean squared differences of the means and of the covariances, added.

    Sun & Saenko, 2016, https://arxiv.org/abs/1607.01719, and the means beside it.
    """
    means, covariances = zip(*(moments(t) for t in (x, y)), strict=True)
    return squared(*means) + squared(*covariances)


def moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean (F,) and the unbiased covariance (F, F) of x (n, F)."""
    mean = x.mean(0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1)


def squared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return ((a - b) ** 2).mean()
