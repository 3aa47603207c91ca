"""Mutual information from samples: every estimator of theory, section 8, with its direction, and one that chooses.

All take samples x (N, dx) and y (N, dy), or (N,) for one column, rows paired, and return an `Estimate` in nats. Which to
believe: `estimate` chooses and says why. A "lower" or "upper" direction holds in expectation for whatever law the samples
come from, independent over rows; "estimate" means that there is no such statement. No bound from N samples alone, without
knowledge of the law, can be high and sure at once: it hardly exceeds 2 ln N nats (McAllester and Stratos 2020).
"""

import dataclasses
import math
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from selssm_jax.information import critics, crossfit
from selssm_jax.information.canonical import gaussian
from selssm_jax.information.crossfit import SMALLEST, HeldOut, Training
from selssm_jax.information.discrete import count, mutual_information
from selssm_jax.information.estimate import Direction, Estimate
from selssm_jax.information.inputs import Samples, check_rounding, check_whole, pairs, scores
from selssm_jax.information.neighbours import ksg, mixed

__all__ = ["Training", "club", "donsker_varadhan", "estimate", "gaussian", "hybrid", "infonce", "ksg", "mixed", "nwj", "sliced", "smile"]

NEIGHBOURS = 6  # columns of x and of y, and
RELIABLE = 2.0  # nats, up to which nearest neighbours are a witness (theory, section 8)
WITNESSES = 4000  # samples a nearest-neighbour witness looks at
COLLAPSE = 0.1  # nats by which a witness must contradict a bound, beyond three standard errors
DEFAULT = Training()


def infonce(x: Samples, y: Samples, *, training: Training = DEFAULT) -> Estimate:
    """InfoNCE (van den Oord et al. 2018) with a separable critic: E[f(x, y) - log 1/K sum_j e^{f(x, y_j)}], a lower bound.

    At most log K, K the held-out samples that are scored against one another (a fold, at most 2048); within a nat of it, the
    value says little but "more", and a note says so. Cost: `training.steps` products of (batch, width) a fold; see `Training`.

    Raises:
      ValueError: for samples that are no numbers, not finite, not paired, or fewer than 100.
    """
    return _estimated(x, y, critics.SEPARABLE, critics.INFONCE, training, "lower", "InfoNCE")


def hybrid(x: Samples, y: Samples, *, training: Training = DEFAULT) -> Estimate:
    """InfoNCE with the hybrid critic: log-ratio of fitted normal laws + function of the radii + perceptrons. A lower bound.

    The marginals are rank-normalised, so the first part alone is exact for every Gaussian copula and training need only find
    what is left. The best generic default (theory, section 8). Limits, cost and errors: see `infonce`.
    """
    return _estimated(x, y, critics.HYBRID, critics.INFONCE, training, "lower", "InfoNCE, hybrid critic")


def nwj(x: Samples, y: Samples, *, training: Training = DEFAULT) -> Estimate:
    """Nguyen, Wainwright and Jordan (2010): E_joint[f] + 1 - E_product[e^f], a lower bound. Its variance grows like e^I / N.

    Cost and errors: see `infonce`.
    """
    return _estimated(x, y, critics.SEPARABLE, critics.NWJ, training, "lower", "NWJ")


def donsker_varadhan(x: Samples, y: Samples, *, training: Training = DEFAULT) -> Estimate:
    """E_joint[f] - log E_product[e^f] (Donsker and Varadhan 1983; MINE, Belghazi et al. 2018). Not a bound from samples.

    The logarithm of a mean over a sample lies under that of the expectation, so the value may lie over the truth: it is
    labelled "estimate". Cost and errors: see `infonce`.
    """
    return _estimated(x, y, critics.SEPARABLE, critics.DONSKER_VARADHAN, training, "estimate", "Donsker-Varadhan")


def smile(x: Samples, y: Samples, *, clip: float = 5.0, training: Training = DEFAULT) -> Estimate:
    """SMILE (Song and Ermon 2020): trained by the Jensen-Shannon objective, read out by Donsker-Varadhan with e^f clipped to e^-clip..e^clip.

    Less variance at high information, for a bias that clipping brings; no bound. Cost and errors: see `infonce`.
    """
    if not clip > 0:
        raise ValueError(f"clip={clip}: expected a positive number of nats, for example 5")
    return _estimated(x, y, critics.SEPARABLE, critics.smile(clip), training, "estimate", f"SMILE, clip {clip:g}")


def club(x: Samples, y: Samples, *, log_conditional: Callable[[Array, Array], Array] | None = None, training: Training = DEFAULT) -> Estimate:
    """CLUB (Cheng et al. 2020): E_joint[log p(y | x)] - E_product[log p(y | x)], an upper bound if the conditional is exact.

    Args:
      x, y: samples. training: of the fitted conditional.
      log_conditional: (x_i, y_j) -> log p(y_j | x_i) in nats, of one row each. Without it, a normal law with a perceptron's
        mean and variances is fitted, cross-fit, and the value is no bound but an estimate.

    Cost: (N, N) densities where `log_conditional` is given. Errors: see `infonce`.
    """
    if log_conditional is None:
        return _estimated(x, y, critics.CONDITIONAL, critics.CLUB, training, "estimate", "CLUB, fitted normal conditional")
    x, y = pairs(x, y, least=2)
    for name, z in (("x", x), ("y", y)):
        check_rounding(name, z)
    densities = lambda a: jax.vmap(lambda b: log_conditional(a, b))(jnp.asarray(y))  # noqa: E731
    values = np.asarray(jax.lax.map(lambda pair: _gap(densities, *pair), (jnp.asarray(x), jnp.arange(len(x))), batch_size=64), np.float64)
    if not np.isfinite(values).all():
        raise ValueError("log_conditional gives -inf or nan for some pairs: CLUB needs a density that is positive everywhere")
    return Estimate(float(values.mean()), float(values.std() / len(x) ** 0.5), "upper", "CLUB, exact conditional")


def sliced(x: Samples, y: Samples, *, slices: int = 64, k: int = 5, seed: int = 0) -> Estimate:
    """Sliced mutual information (Goldfeld and Greenewald 2021): the mean of I(u'x; v'y) over random directions u, v, each by `ksg`.

    At most I(x; y), zero iff they are independent; it does not obey data processing (a linear map of x may raise it). For one
    column each it is I itself. The standard error is that over the directions. Cost: `slices` times `ksg` of two columns.

    Raises:
      ValueError: for fewer than 2 slices, and what `ksg` raises.
    """
    check_whole(2, slices=slices)  # the spread over directions is the error
    x, y = pairs(x, y, least=SMALLEST)
    rng = np.random.default_rng(seed)
    values = [ksg(_projected(rng, x), _projected(rng, y), k=k).nats for _ in range(slices)]
    return Estimate(float(np.mean(values)), float(np.std(values, ddof=1) / slices**0.5), "estimate", f"sliced, {slices} directions, KSG k={k}")


def estimate(x: Samples, y: Samples, *, training: Training = DEFAULT) -> Estimate:
    """The estimator that these samples ask for; `method` and `notes` say which it was and why.

    Integers in one column each are labels: the counts' plug-in value, corrected (`discrete.mutual_information`). Else three are run:
    `hybrid`, a held-out lower bound; the bias-corrected Gaussian value of the normal scores; `ksg`. Where the hybrid critic finds
    nothing that the Gaussian one does not, two standard errors beyond chance, the law is taken for a Gaussian copula, and the Gaussian value
    is returned: it is unbiased there. Else the bound is. In either case nearest neighbours, which lose information by smoothing and
    rarely invent any, take over where they say more by three standard errors, in up to 6 columns each.

    Cost: about 10 s for 5,000 samples on two cores. Errors: see `infonce`.
    """
    if all(np.issubdtype(np.asarray(z).dtype, np.integer) and np.squeeze(z).ndim == 1 for z in (x, y)):
        found = mutual_information(count(x, y), correction="miller-madow")
        return dataclasses.replace(found, notes=("integers in one column each are taken for labels; give floats to have them taken for numbers", *found.notes))
    x, y = pairs(x, y, least=SMALLEST)
    held_out = crossfit.fit(x, y, critics.HYBRID, critics.INFONCE, training)
    return _overruled(_bound_or_gaussian(held_out, x, y, training), x, y)


def _bound_or_gaussian(held_out: HeldOut, x: np.ndarray, y: np.ndarray, training: Training) -> Estimate:
    bound, error = held_out.mean_and_error(held_out.trained)
    gain, chance = held_out.mean_and_error(held_out.trained - held_out.untrained)
    if gain > 2 * chance:
        why = f"the critic finds {gain:.3f} nats more in held-out samples than a Gaussian copula does"
        return _noted(Estimate(bound, error, "lower", "InfoNCE, hybrid critic", (why,)), held_out)
    normal = gaussian(*(scores(z, np.random.default_rng(0)) for z in (x, y)))
    why = "a trained critic finds nothing in held-out samples that a Gaussian copula does not"
    return dataclasses.replace(normal, method="Gaussian copula (normal scores, canonical correlations, bias-corrected)", notes=(why, *normal.notes))


def _overruled(found: Estimate, x: np.ndarray, y: np.ndarray) -> Estimate:
    """Nearest neighbours in place of `found` where they say significantly more."""
    if max(x.shape[1], y.shape[1]) > NEIGHBOURS:
        return found
    witness = ksg(x, y)
    if witness.nats <= found.nats + 3 * math.hypot(witness.stderr, found.stderr):
        return found
    why = f"nearest neighbours say more than {found.method} ({found.nats:.3f} nats), and their bias in so few columns is towards less"
    return dataclasses.replace(witness, notes=(why, *witness.notes))


def _estimated(
    x: Array | np.ndarray, y: Array | np.ndarray, critic: critics.Critic, bound: critics.Bound, training: Training, direction: Direction, method: str
) -> Estimate:
    x, y = pairs(x, y, least=SMALLEST)
    held_out = crossfit.fit(x, y, critic, bound, training)
    nats, stderr = held_out.mean_and_error(held_out.trained)
    found = Estimate(nats, stderr, direction, f"{method}, {training.folds} folds")
    found = _noted(found, held_out) if bound is critics.INFONCE else found
    return _witnessed(found, x, y) if bound is not critics.CLUB else found


def _noted(found: Estimate, held_out: HeldOut) -> Estimate:
    ceiling = math.log(min(held_out.trained.shape[1], crossfit.LARGEST))
    if found.nats < ceiling - 1:
        return found
    return dataclasses.replace(found, notes=(*found.notes, f"saturated: within a nat of the bound's ceiling, log K = {ceiling:.2f}; give more samples"))


def _witnessed(found: Estimate, x: np.ndarray, y: np.ndarray) -> Estimate:
    """`found`, with a note and a warning where a Gaussian or nearest-neighbour value says that its critic has found nothing of what there is."""
    x, y = x[:WITNESSES], y[:WITNESSES]
    witnesses = [gaussian(*(scores(z, np.random.default_rng(0)) for z in (x, y)))]
    witnesses += [ksg(x, y)] if max(x.shape[1], y.shape[1]) <= NEIGHBOURS else []
    strongest = max(witnesses, key=lambda witness: witness.nats)
    if found.nats > strongest.nats - COLLAPSE - 3 * math.hypot(found.stderr, strongest.stderr):
        return found
    note = f"collapsed? {strongest.method} says {strongest.nats:.3f} nats: the critic has not found what there is; use estimate() or longer training"
    warnings.warn(f"{found.method} gives {found.nats:.3f} nats; {note}", stacklevel=4)
    return dataclasses.replace(found, notes=(*found.notes, note))


def _gap(densities: Callable[[Array], Array], x: Array, own: Array) -> Array:
    log_p = densities(x)
    return (log_p[own] - jnp.mean(log_p)) * (len(log_p) / (len(log_p) - 1))  # against the others only


def _projected(rng: np.random.Generator, z: np.ndarray) -> np.ndarray:
    direction = rng.normal(size=z.shape[1])
    return z @ (direction / np.linalg.norm(direction))
