"""Critics, trained and judged on different samples: folds, one training loop, early stopping, held-out values (theory,
section 8).

The samples are cut into folds. For each, a critic is trained on most of the others, stopped where it was best on a
separate part of them, and evaluated on the fold itself, once. So no sample that is evaluated was trained on, nor used
for choosing.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import ndtri
from jaxtyping import Array

from selssm_jax.information.checks import ranks
from selssm_jax.information.critics import Bound, Critic

LARGEST = 2048  # samples that are scored against one another in an evaluation: memory grows with its square
CHECKS = 24  # how often a training run is looked at on its validation part
SMALLEST = 100  # samples


@dataclasses.dataclass(frozen=True)
class Training:
    """How critics are trained. The defaults suit 1,000 to 100,000 samples of up to some tens of dimensions.

    Attributes:
      steps: optimiser steps (Adam, cosine decay) a fold. batch: pairs a step, all scored against one another.
      width: hidden units of the two layers of a perceptron. rate: peak learning rate.
      folds: parts of the cross-fit. seed: of the cut into folds, the initial weights and the batches.
      shuffle: False for rows in the order of time whose neighbours are alike: folds are then runs of rows.
    """

    steps: int = 600
    batch: int = 256
    width: int = 128
    rate: float = 3e-3
    folds: int = 5
    seed: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        for name in ("batch", "folds"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 2")
        if not self.rate > 0:
            raise ValueError(f"rate={self.rate}: expected a positive learning rate")


class HeldOut(NamedTuple):
    """Values of the samples of every fold by the critic that did not see them, (folds, samples), and by the same critic
    before training.

    Of the first folds also by a critic that was trained on half as many samples, (halves, samples).
    """

    trained: np.ndarray
    untrained: np.ndarray
    halved: np.ndarray

    def mean_and_error(self, values: np.ndarray) -> tuple[float, float]:
        """The mean, and the larger of its standard errors from the samples' and from the folds' spread."""
        folds = values.mean(axis=1)
        return float(values.mean()), max(
            float(values.std() / values.size**0.5), float(folds.std(ddof=1) / len(folds) ** 0.5)
        )

    def estimate_loss(self) -> tuple[float, float]:
        """How much less a critic finds that saw half of the training samples, and the standard error of that: the same
        samples judge both.
        """
        apart = self.trained[: len(self.halved)] - self.halved
        return float(apart.mean()), float(apart.std() / apart.size**0.5)

    def ceiling(self) -> float:
        """The most that an InfoNCE bound of these folds can say: log K."""
        return math.log(min(self.trained.shape[1], LARGEST))


def fit(x: np.ndarray, y: np.ndarray, critic: Critic, bound: Bound, training: Training, *, halves: int = 0) -> HeldOut:
    """Cross-fits `critic` on (N, dx) and (N, dy) and returns the values of `bound` on the held-out folds.

    Marginals become normal scores, by ranks among the training samples of each fold: information is the same for every
    monotone map of a column, heavy tails no longer matter, and nothing of a held-out sample enters its own critic.
    A few samples are left out where the folds or the groups of an evaluation do not divide their number. For the first
    `halves` folds a second critic is trained on half of the samples, each twice, so that it is one program more times
    and not one program more.
    """
    rng = np.random.default_rng(training.seed)
    size = len(x) // training.folds
    mixed = rng.permutation if training.shuffle else np.asarray
    order = mixed(np.arange(len(x)))[: size * training.folds].reshape(training.folds, size)
    cut = size // 2  # of the rest, for validation
    rests = np.stack([mixed(np.delete(order, k, axis=0).ravel()) for k in range(training.folds)])
    places = [ranks(z).astype(np.float32) for z in (x, y)]  # all that is used of the samples, and exact
    pick = lambda indices: tuple(jnp.asarray(z[indices]) for z in places)  # noqa: E731
    keys = jax.random.split(jax.random.key(training.seed), training.folds)
    again = np.r_[np.arange(training.folds), np.arange(halves)]
    seen = rests[again, cut:]
    seen[training.folds :] = seen[training.folds :, np.arange(seen.shape[1]) % -(-seen.shape[1] // 2)]
    values = _run((*pick(seen), *pick(rests[again, :cut]), *pick(order[again]), keys[again]), critic, bound, training)
    trained, untrained = (np.asarray(value, np.float64).reshape(len(again), -1) for value in values)
    return HeldOut(trained[: training.folds], untrained[: training.folds], trained[training.folds :])


@partial(jax.jit, static_argnums=(1, 2, 3))
def _run(folds: tuple[Array, ...], critic: Critic, bound: Bound, training: Training) -> tuple[Array, Array]:
    return jax.lax.map(lambda fold: _fold(*fold, critic=critic, bound=bound, training=training), folds)


def _fold(
    x: Array,
    y: Array,
    x_stop: Array,
    y_stop: Array,
    x_test: Array,
    y_test: Array,
    key: Array,
    *,
    critic: Critic,
    bound: Bound,
    training: Training,
) -> tuple[Array, Array]:
    x_stop, x_test, x = (normal_scores(x, z) for z in (x_stop[:LARGEST], x_test, x))
    y_stop, y_test, y = (normal_scores(y, z) for z in (y_stop[:LARGEST], y_test, y))
    init, batches = jax.random.split(key)
    start = critic.init(init, x, y, training.width)
    loss = lambda params, chosen: -bound.objective(critic.score(params, x[chosen], y[chosen]))  # noqa: E731
    judge = lambda params: jnp.mean(bound.values(critic.score(params, x_stop, y_stop)))  # noqa: E731
    best = best_of_training(start, loss, judge, len(x), batches, training)
    return _values(best, x_test, y_test, critic, bound), _values(start, x_test, y_test, critic, bound)


def normal_scores(reference: Array, z: Array) -> Array:
    """Normal quantiles of the mid-ranks of z among `reference`, column by column; equal values get equal scores."""
    return randomised_scores(reference, z, jnp.full(z.shape, 0.5))


def randomised_scores(reference: Array, z: Array, at: Array) -> Array:
    """Normal quantiles of the place `at`, in (0, 1), within the ranks of z among `reference` that are equal to it.

    With `at` drawn uniformly the score of a new sample is exactly standard normal, over references too, ties or not;
    and it says as much of anything else as z does, for z can be read from it.
    """

    def column(reference: Array, z: Array, at: Array) -> Array:
        ordered = jnp.sort(reference)
        below, not_above = (jnp.searchsorted(ordered, z, side=side) for side in ("left", "right"))
        return ndtri((below + at * (not_above - below + 1)) / (len(ordered) + 1))

    return jax.vmap(column, in_axes=1, out_axes=1)(reference, z, at)


def best_of_training(
    start: Any,
    loss: Callable[[Any, Array], Array],
    judge: Callable[[Any], Array],
    samples: int,
    key: Array,
    training: Training,
) -> Any:
    """The parameters that did best by `judge`, those of the start included; loss(params, indices) is of a batch out of
    so many samples.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(training.rate, training.steps))
    every = max(training.steps // CHECKS, 1)

    def better(best: Any, params: Any) -> Any:
        return _keep_larger(best, (judge(params), params))

    def step(carry: Any, i: Array) -> tuple[Any, None]:
        params, moments, best = carry
        chosen = jax.random.randint(jax.random.fold_in(key, i), (min(training.batch, samples),), 0, samples)
        updates, moments = optimizer.update(jax.grad(loss)(params, chosen), moments)
        params = optax.apply_updates(params, updates)
        best = jax.lax.cond((i + 1) % every == 0, better, lambda best, _: best, best, params)
        return (params, moments, best), None

    carry = (start, optimizer.init(start), (judge(start), start))
    return jax.lax.scan(step, carry, jnp.arange(training.steps))[0][2][1]


def _keep_larger(old: Any, new: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(new[0] > old[0], b, a), old, new)


def _values(params: Any, x: Array, y: Array, critic: Critic, bound: Bound) -> Array:
    groups = -(-len(x) // LARGEST)
    size = len(x) // groups
    cut = [z[: groups * size].reshape(groups, size, -1) for z in (x, y)]
    return jax.lax.map(lambda group: bound.values(critic.score(params, *group)), tuple(cut)).ravel()
