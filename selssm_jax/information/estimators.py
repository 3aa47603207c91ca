"""Estimators of mutual information from samples, each with its direction, and `estimate`, which chooses (theory,
section 8).

All take samples x (N, dx) and y (N, dy), or (N,) for one column, rows paired, and return an `Estimate` in nats. Which
to believe: `estimate` chooses and says why. A "lower" or "upper" direction holds in expectation for whatever law the
samples come from, independent over rows; "estimate" means that there is no such statement. No bound from N samples
alone, without knowledge of the law, can be high and sure at once: it hardly exceeds 2 ln N nats (McAllester and Stratos
2020).
"""

import dataclasses
import math
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from selssm_jax.information import agreement, critics, crossfit
from selssm_jax.information._estimate import Direction, Estimate
from selssm_jax.information.canonical import gaussian
from selssm_jax.information.checks import Samples, check_rounding, check_whole, pairs, standardise
from selssm_jax.information.crossfit import SMALLEST, HeldOut, Training
from selssm_jax.information.neighbours import ksg, mixed

__all__ = [
    "Training",
    "club",
    "donsker_varadhan",
    "estimate",
    "gaussian",
    "hybrid",
    "infonce",
    "ksg",
    "mixed",
    "nwj",
    "sliced",
    "smile",
]

WITNESSES = 4000  # samples a nearest-neighbour witness looks at
COLLAPSE = 0.1  # nats by which a witness must contradict a bound, beyond three standard errors
DEFAULT = Training()


def infonce(x: Samples, y: Samples, *, training: Training = DEFAULT) -> Estimate:
    """InfoNCE (van den Oord et al. 2018) with a separable critic: E[f(x, y) - log 1/K sum_j e^{f(x, y_j)}], a lower
    bound.

    At most log K, K the held-out samples that are scored against one another (a fold, at most 2048); within a nat of
    it, the value says little but "more", and a note says so. Cost: `training.steps` products of (batch, width) a fold;
    see `Training`.

    Raises:
      ValueError: for samples that are no numbers, not finite, not paired, or fewer than 100.
    """
    return _estimate(x, y, critics.SEPARABLE, critics.INFONCE, training, "lower", "InfoNCE")


def hybrid(x: Samples, y: Samples, *, training: Training = DEFAULT) -> Estimate:
    """InfoNCE with the hybrid critic: log-ratio of fitted normal laws + function of the radii + perceptrons. A lower
    bound.

    The marginals are rank-normalised, so the first part alone is exact for every Gaussian copula and training need only
    find what is left. The best generic default (theory, section 8). Limits, cost and errors: see `infonce`.
    """
    return _estimate(x, y, critics.HYBRID, critics.INFONCE, training, "lower", "InfoNCE, hybrid critic")


def nwj(x: Samples, y: Samples, *, training: Training = DEFAULT) -> Estimate:
    """Nguyen, Wainwright and Jordan (2010): E_joint[f] + 1 - E_product[e^f], a lower bound. Its variance grows like e^I
    / N.

    Cost and errors: see `infonce`.
    """
    return _estimate(x, y, critics.SEPARABLE, critics.NWJ, training, "lower", "NWJ")


def donsker_varadhan(x: Samples, y: Samples, *, training: Training = DEFAULT) -> Estimate:
    """E_joint[f] - log E_product[e^f] (Donsker and Varadhan 1983; MINE, Belghazi et al. 2018). Not a bound from
    samples.

    The logarithm of a mean over a sample lies under that of the expectation, so the value may lie over the truth: it is
    labelled "estimate". Cost and errors: see `infonce`.
    """
    return _estimate(x, y, critics.SEPARABLE, critics.DONSKER_VARADHAN, training, "estimate", "Donsker-Varadhan")


def smile(x: Samples, y: Samples, *, clip: float = 5.0, training: Training = DEFAULT) -> Estimate:
    """SMILE (Song and Ermon 2020): trained by the Jensen-Shannon objective, read out by Donsker-Varadhan with e^f
    clipped to e^-clip..e^clip.

    Less variance at high information, for a bias that clipping brings; no bound. Cost and errors: see `infonce`.
    """
    if not clip > 0:
        raise ValueError(f"clip={clip}: expected a positive number of nats, for example 5")
    return _estimate(x, y, critics.SEPARABLE, critics.smile(clip), training, "estimate", f"SMILE, clip {clip:g}")


def club(
    x: Samples,
    y: Samples,
    *,
    log_conditional: Callable[[Array, Array], Array] | None = None,
    training: Training = DEFAULT,
) -> Estimate:
    """CLUB (Cheng et al. 2020): E_joint[log p(y | x)] - E_product[log p(y | x)], an upper bound if the conditional is
    exact.

    Args:
      x, y: samples. training: of the fitted conditional.
      log_conditional: (x_i, y_j) -> log p(y_j | x_i) in nats, of one row each. Without it, a normal law with a
        perceptron's mean and variances is fitted, cross-fit, and the value is no bound but an estimate.

    Cost: (N, N) densities where `log_conditional` is given. Errors: see `infonce`.
    """
    if log_conditional is None:
        return _estimate(
            x, y, critics.CONDITIONAL, critics.CLUB, training, "estimate", "CLUB, fitted normal conditional"
        )
    x, y = pairs(x, y, least=2)
    for name, z in (("x", x), ("y", y)):
        check_rounding(name, z)
    densities = lambda a: jax.vmap(lambda b: log_conditional(a, b))(jnp.asarray(y))  # noqa: E731
    values = np.asarray(
        jax.lax.map(lambda pair: _gap(densities, *pair), (jnp.asarray(x), jnp.arange(len(x))), batch_size=64),
        np.float64,
    )
    if not np.isfinite(values).all():
        raise ValueError(
            "log_conditional gives -inf or nan for some pairs: CLUB needs a density that is positive everywhere"
        )
    return Estimate(float(values.mean()), float(values.std() / len(x) ** 0.5), "upper", "CLUB, exact conditional")


def sliced(x: Samples, y: Samples, *, slices: int = 64, k: int = 5, seed: int = 0) -> Estimate:
    """Sliced mutual information (Goldfeld and Greenewald 2021): the mean of I(u'x; v'y) over random directions u, v,
    each by `ksg`, of `checks.standardise` columns, so that units do not matter.

    At most I(x; y), zero iff they are independent; it does not obey data processing (a linear map of x may raise it).
    For one column each it is I itself. The standard error is that over the directions, and the mean of those of `ksg`,
    for all directions see the same samples. Cost: `slices` times `ksg` of two columns.

    Raises:
      ValueError: for fewer than 2 slices, and what `ksg` raises.
    """
    check_whole(2, slices=slices)  # the spread over directions is the error
    x, y = (standardise(side) for side in pairs(x, y, least=SMALLEST))
    rng = np.random.default_rng(seed)
    estimates = [ksg(_project(rng, x), _project(rng, y), k=k) for _ in range(slices)]
    values, errors = np.array([(estimate.nats, estimate.stderr) for estimate in estimates]).T
    return Estimate(
        float(values.mean()),
        math.hypot(float(values.std(ddof=1) / slices**0.5), float(errors.mean())),
        "estimate",
        f"sliced, {slices} directions, KSG k={k}",
    )


def estimate(x: Samples, y: Samples, *, training: Training = DEFAULT) -> Estimate:
    """The value on which the methods that these samples allow agree, with an error that holds their differences; see
    `agreement`.

    Whatever the columns are, only their ranks are used, taken in float64: no unit, place or outlier matters.
      Few different values on both sides: labels, by `discrete.of_labels`; where its corrections differ, as numbers too.
      Else the mean, weighted by errors, of the bound of `hybrid` and what half of the samples say it still lacks, or,
      where the critic finds no more than chance beyond it, the unbiased Gaussian value of the normal scores; and, for
      at most three columns in all, or labels beside numbers, nearest neighbours corrected for smoothing. In up to 6
      columns each neighbours are asked too whether they contradict the rest: they are heard where they say more by
      three standard errors and nothing of the same samples paired at random.

    The error holds the spread over samples, half of each correction, and the differences between methods. It cannot
    hold what no method sees: structure finer than the samples, in columns that are many. Direction: "estimate"; "lower"
    where the bound is saturated and nothing else can tell, or where no whole number repeats and each tells the other.

    Cost: about 10 s for 5,000 samples on two cores. Errors: see `infonce`.
    """
    whole = all(np.issubdtype(np.asarray(z).dtype, np.integer) for z in (x, y))
    return agreement.estimate(*pairs(x, y, least=2 if whole else SMALLEST), training, whole=whole)


def _estimate(
    x: Array | np.ndarray,
    y: Array | np.ndarray,
    critic: critics.Critic,
    bound: critics.Bound,
    training: Training,
    direction: Direction,
    method: str,
) -> Estimate:
    x, y = pairs(x, y, least=SMALLEST)
    held_out = crossfit.fit(x, y, critic, bound, training)
    nats, stderr = held_out.mean_and_error(held_out.trained)
    result = Estimate(nats, stderr, direction, f"{method}, {training.folds} folds")
    result = _add_saturation_note(result, held_out) if bound is critics.INFONCE else result
    return _add_witness_note(result, x, y) if bound is not critics.CLUB else result


def _add_saturation_note(result: Estimate, held_out: HeldOut) -> Estimate:
    if result.nats < (ceiling := held_out.ceiling()) - agreement.SATURATION:
        return result
    return dataclasses.replace(
        result,
        notes=(
            *result.notes,
            f"saturated: within a nat of the bound's ceiling, log K = {ceiling:.2f}; give more samples",
        ),
    )


def _add_witness_note(result: Estimate, x: np.ndarray, y: np.ndarray) -> Estimate:
    """`found`, with a note and a warning where a Gaussian or nearest-neighbour value says that its critic has found
    nothing of what there is.
    """
    x, y = x[:WITNESSES], y[:WITNESSES]
    witnesses = [agreement.copula(x, y), *agreement.neighbours(x, y)]
    strongest = max(witnesses, key=lambda witness: witness.nats)
    if result.nats > strongest.nats - COLLAPSE - 3 * math.hypot(result.stderr, strongest.stderr):
        return result
    note = (
        f"collapsed? {strongest.method} says {strongest.nats:.3f} nats: the critic has not found what there is; use "
        "estimate() or longer training"
    )
    warnings.warn(f"{result.method} gives {result.nats:.3f} nats; {note}", stacklevel=4)
    return dataclasses.replace(result, notes=(*result.notes, note))


def _gap(densities: Callable[[Array], Array], x: Array, own: Array) -> Array:
    log_p = densities(x)
    return (log_p[own] - jnp.mean(log_p)) * (len(log_p) / (len(log_p) - 1))  # against the others only


def _project(rng: np.random.Generator, z: np.ndarray) -> np.ndarray:
    direction = rng.normal(size=z.shape[1])
    return z @ (direction / np.linalg.norm(direction))
