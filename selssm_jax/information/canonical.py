"""Information between Gaussian samples, from their canonical correlations (theory, section 8)."""

import math

import numpy as np

from selssm_jax.information._estimate import Estimate
from selssm_jax.information.checks import Samples, centre, pairs, triples

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
    x, y = pairs(x, y, least=2)
    _check_enough(x, y)
    return _between(x, y, np.zeros((len(x), 0)), "Gaussian (canonical correlations, bias-corrected)")


def conditional(x: Samples, y: Samples, z: Samples) -> Estimate:
    """I(x; y | z) of Gaussian samples: `gaussian` of what a linear regression on z leaves of x and of y, in nats.

    Partial canonical correlations. Each column of z takes one degree of freedom away, N - rank(z) for N in the bias,
    and the result is unbiased where all are jointly Gaussian. For other laws it sees linear dependence only, and a
    nonlinear common cause z looks like information: neither an upper nor a lower bound. A column that z determines to
    1e-6 of its deviation says nothing more, and a note says so. Standard error, cost and errors: see `gaussian`.

    Raises:
      ValueError: for samples that are no numbers, not finite, not paired, or no more than the columns.
    """
    x, y, z = triples(x, y, z, least=2)
    _check_enough(x, y, z)
    return _between(x, y, _orthonormal(z), "Gaussian (partial canonical correlations, bias-corrected)")


def _check_enough(*samples: np.ndarray) -> None:
    N, widths = len(samples[0]), [value.shape[1] for value in samples]
    if sum(widths) + 1 >= N:
        raise ValueError(
            f"{N} samples of {' and '.join(map(str, widths))} columns: expected more samples than columns, in all"
        )


def _between(x: np.ndarray, y: np.ndarray, given: np.ndarray, method: str) -> Estimate:
    """The information between what is left of x and y beside an orthonormal basis of what is given."""
    arrays, N = (x, y), len(x) - given.shape[1]
    bases = [_orthonormal(value, given) for value in arrays]
    dx, dy = (basis.shape[1] for basis in bases)
    lost = {name: value.shape[1] - basis.shape[1] for name, value, basis in zip("xy", arrays, bases, strict=True)}
    others = "z and the others" if given.shape[1] else "the others"
    notes = [f"{count} columns of {name} follow from {others}" for name, count in lost.items() if count]
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
    return Estimate(nats, stderr, "estimate", method, tuple(notes))


def _orthonormal(z: np.ndarray, given: np.ndarray | None = None) -> np.ndarray:
    """An orthonormal basis of the centred, scaled columns, or of what they have beside an orthonormal basis that is
    given.

    A direction of which less than `RANK` is left, of all that the columns have, is one of rounding.
    """
    z, _ = centre(z)
    z = z - z.mean(axis=0, keepdims=True)
    scale = np.sqrt((z**2).mean(axis=0, keepdims=True))
    z = z / np.where(scale > 0, scale, 1)
    left = z if given is None else z - given @ (given.T @ z)
    vectors, sizes, _ = np.linalg.svd(left, full_matrices=False)
    most = np.linalg.norm(z, 2) if given is not None and given.size else sizes.max(initial=0)
    return vectors[:, sizes > RANK * max(float(most), np.finfo(float).tiny)]


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
