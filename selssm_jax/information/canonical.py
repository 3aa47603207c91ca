"""Information between Gaussian samples, from their canonical correlations (theory, section 8)."""

import math

import numpy as np

from selssm_jax.information._estimate import Estimate
from selssm_jax.information.checks import Samples, centre, pairs

DECISIVE = 0.5  # share of a direction's variance that is one sample's, above which it decides alone
RANK = 1e-6  # share of the largest variance under which a direction counts as none: columns that say the same


def gaussian(x: Samples, y: Samples) -> Estimate:
    """-1/2 sum log(1 - rho_i^2) over the canonical correlations rho_i of the samples, less its bias, in nats.

    The bias of the sample's value for jointly Gaussian x and y is exactly 1/2 [sum_{i<=dx} psi((N-i)/2) + sum_{i<=dy}
    psi((N-i)/2) - sum_{i<=dx+dy} psi((N-i)/2)], whatever the correlations, and the result unbiased. For other laws it
    sees linear dependence only, and is neither an upper nor a lower bound: rank-normalise the columns (a Gaussian
    copula), or use `estimators.estimate`, which looks.

    The standard error is (sum rho_i^2 / N + dx dy / 2 N^2)^(1/2): of a Gaussian law, to first order, and of what
    remains without correlation. Cost: O(N d^2 + d^3).

    Raises:
      ValueError: for samples that are no numbers, not finite, not paired, or no more than the columns.
    """
    arrays = pairs(x, y, least=2)
    N = len(arrays[0])
    if arrays[0].shape[1] + arrays[1].shape[1] + 1 >= N:
        raise ValueError(
            f"{N} samples of {arrays[0].shape[1]} and {arrays[1].shape[1]} columns: expected more samples than "
            "columns, in all"
        )
    bases = [_orthonormal(value) for value in arrays]
    dx, dy = (basis.shape[1] for basis in bases)
    lost = {name: value.shape[1] - basis.shape[1] for name, value, basis in zip("xy", arrays, bases, strict=True)}
    notes = [f"{count} columns of {name} follow from the others" for name, count in lost.items() if count]
    notes += [
        f"row {row} of {name} alone makes {share:.0%} of a direction's variance: no normal law; rank first, as "
        "`estimate` does, or leave it out"
        for name, (row, share) in ((name, _leverage(basis)) for name, basis in zip("xy", bases, strict=True))
        if share > DECISIVE
    ]
    square = np.clip(np.linalg.svd(bases[0].T @ bases[1], compute_uv=False), 0, 1) ** 2 if dx and dy else np.zeros(0)
    stderr = math.sqrt(square.sum() / N + dx * dy / (2 * N**2))
    if (square > 1 - 1e-12).any():
        return Estimate(math.inf, 0.0, "estimate", "Gaussian", (*notes, "x and y share a direction without noise"))
    nats = float(-0.5 * np.log1p(-square).sum()) - _bias(N, dx, dy)
    return Estimate(nats, stderr, "estimate", "Gaussian (canonical correlations, bias-corrected)", tuple(notes))


def _orthonormal(z: np.ndarray) -> np.ndarray:
    """An orthonormal basis of the centred, scaled columns."""
    z, _ = centre(z)
    z = z - z.mean(axis=0, keepdims=True)
    scale = np.sqrt((z**2).mean(axis=0, keepdims=True))
    vectors, sizes, _ = np.linalg.svd(z / np.where(scale > 0, scale, 1), full_matrices=False)
    return vectors[:, sizes > RANK * max(float(sizes.max(initial=0)), np.finfo(float).tiny)]


def _leverage(basis: np.ndarray) -> tuple[int, float]:
    """The row that weighs most in an orthonormal basis, and the squared length of its projection: 1 of a direction that
    is its own.
    """
    if not basis.shape[1]:
        return 0, 0.0
    weights = (basis**2).sum(axis=1)
    return int(weights.argmax()), float(weights.max())


def _bias(N: int, dx: int, dy: int) -> float:
    def total(count: int) -> float:
        return math.fsum(float(value) for value in np.asarray(_digamma((N - np.arange(1, count + 1)) / 2)))

    return 0.5 * (total(dx) + total(dy) - total(dx + dy))


def _digamma(values: np.ndarray) -> np.ndarray:
    """psi by its asymptotic series after eight steps of psi(x) = psi(x + 1) - 1/x: to 1e-13, where float32's would
    leave 1e-6 times N columns.
    """
    shift = np.sum(1 / (values[None] + np.arange(8)[:, None]), axis=0)
    x = values + 8
    return np.log(x) - 1 / (2 * x) - 1 / (12 * x**2) + 1 / (120 * x**4) - 1 / (252 * x**6) + 1 / (240 * x**8) - shift
