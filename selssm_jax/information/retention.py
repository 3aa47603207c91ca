"""Retention by lag: what a decoder reads of single past inputs, from recorded states of any model (theory, section
4.4).

A decoder q(x_{t-k} | h_t) that is judged on states it was not fitted to gives a lower bound (Barber and Agakov 2003),

    I(h_t; x_{t-k}) >= H(x_{t-k}) + E log q(x_{t-k} | h_t),

whatever model made the states. For linear-Gaussian states `gaussian.retention` is exact.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from selssm_jax.information.checks import check_real, ranks
from selssm_jax.information.crossfit import Training, best_of_training, randomised_scores

SHARES = (0.6, 0.15)  # of the groups, to fit on and to stop on; the rest is held out
STRENGTHS = 9  # of a decoder's answer, from none to full, one is chosen for every target on the stopping part
LEAST = 0.02  # nats, beyond two standard errors, from which on something is known
PROBE = Training(steps=400, batch=256, width=256, rate=2e-3)


class Probe(NamedTuple):
    """What was decoded from states about K targets, on held-out states.

    Attributes:
      nats: (K,) lower bounds on I(h; target). stderr: (K,) their standard errors.
      entropy: (K,) of the targets in nats: the most there is; inf for values, of which a state may tell ever more
        digits.
      error: (K,) share of wrong labels of the decoder; for values the mean squared error of normal scores, of variance
        1.
      pointwise: (M, K) log q(target | h) - log p(target) of the held-out samples; its means are `nats`.
      held_out: (M,) indices of these samples.
    """

    nats: np.ndarray
    stderr: np.ndarray
    entropy: np.ndarray
    error: np.ndarray
    pointwise: np.ndarray
    held_out: np.ndarray


def tokens(
    states: Float[Array | np.ndarray, "N n"],
    targets: Int[Array | np.ndarray, "N K"],
    *,
    classes: int,
    groups: Int[Array | np.ndarray, "N"] | None = None,
    training: Training = PROBE,
) -> Probe:
    """Lower bounds on I(h; x_k) for K tokens each, by one perceptron with a head a target.

    The entropy is that of the held-out frequencies, which lies under the truth by about (classes - 1) / 2M: the bound
    is the safer for it. Cost: training.steps products of (batch, width) with (width, K classes).

    Args:
      states: one row a moment. targets: what is to be decoded from it, from 0 to classes - 1.
      groups: samples of one group (one sequence) are never on both sides of the split, for they are alike; None: each
        is its own.
      training: how the decoder is fitted; `folds` plays no part.

    Raises:
      ValueError: for states that are not finite, targets out of range, shapes that do not fit, and fewer than 10
        groups.
    """
    states, parts = _split(states, targets, groups, training.seed)
    targets = np.asarray(targets)
    if targets.size and not 0 <= targets.min() <= targets.max() < classes:
        raise ValueError(
            f"targets go from {targets.min()} to {targets.max()}, expected 0 to classes - 1 = {classes - 1}"
        )
    fit, _, held_out = parts
    # of all labels, seen or not
    log_p = np.log((_frequencies(targets[fit], classes) * len(fit) + 1) / (len(fit) + classes))
    log_q, right = _decode(states, targets, parts, jnp.asarray(log_p, jnp.float32), "tokens", training)
    frequencies = _frequencies(targets[held_out], classes)
    own = np.log(np.take_along_axis(frequencies, targets[held_out].T, axis=1)).T
    entropy = -np.sum(frequencies * np.log(np.where(frequencies > 0, frequencies, 1)), axis=1)
    return _probe(log_q - own, entropy, 1 - right.mean(axis=0), held_out, groups)


def values(
    states: Float[Array | np.ndarray, "N n"],
    targets: Float[Array | np.ndarray, "N K"],
    *,
    groups: Int[Array | np.ndarray, "N"] | None = None,
    training: Training = PROBE,
) -> Probe:
    """Lower bounds on I(h; x_k) for K real values each: a normal law whose mean and deviation a perceptron gives.

    The targets become normal scores first, of ranks, ties parted at random, so that their law is the standard normal
    one and the bound needs no estimate of their entropy; the information is the same.
    Arguments, cost and errors: see `tokens`.
    """
    states, parts = _split(states, targets, groups, training.seed)
    fit, _, held_out = parts
    # the first and the last rank have no end
    places = np.random.default_rng(training.seed).uniform(1e-3, 1 - 1e-3, np.shape(targets))
    order = jnp.asarray(ranks(np.asarray(targets)).astype(np.float32))
    scores = np.asarray(jax.jit(randomised_scores)(order[fit], order, jnp.asarray(places, jnp.float32)))
    start = jnp.zeros((scores.shape[1], 2))
    log_q, square = _decode(states, scores, parts, start, "values", training)
    own = -0.5 * (scores[held_out] ** 2 + np.log(2 * np.pi))
    return _probe(log_q - own, np.full(scores.shape[1], np.inf), square.mean(axis=0), held_out, groups)


def horizon(lags: Sequence[int], nats: np.ndarray, stderr: np.ndarray, *, least: float = LEAST) -> int | None:
    """The largest lag of which at least `least` nats are known, two standard errors aside; None where there is none."""
    known = np.flatnonzero(np.asarray(nats) - 2 * np.asarray(stderr) >= least)
    return int(lags[known[-1]]) if len(known) else None


class HalfLife(NamedTuple):
    """The lag at which half of the first information is left, and the interval of it that the errors allow; inf where
    it is not reached.
    """

    lag: float
    low: float
    high: float


def half_life(
    lags: Sequence[int] | np.ndarray, nats: Sequence[float] | np.ndarray, stderr: Sequence[float] | np.ndarray
) -> HalfLife:
    """Returns the first lag at which I(lag) <= I(first) / 2, in a line between lags.

    Its interval is cautious: low is that of the curve two standard errors lower, against half of a first value two
    standard errors higher; high the other way round.

    Args:
      lags: ascending. nats: information at each, of any unit. stderr: of each.

    Raises:
      ValueError: for fewer than two lags, lags that do not ascend, other shapes, and where the first value is not known
        to be above 0: half of nothing is no lag.
    """
    places, values, errors = (np.asarray(numbers, np.float64) for numbers in (lags, nats, stderr))
    if not (places.ndim == 1 and places.shape == values.shape == errors.shape and len(places) > 1):
        raise ValueError(
            f"lags, nats and stderr have shapes {places.shape}, {values.shape} and {errors.shape}: expected one value "
            "and one error at each of two lags or more"
        )
    if not (np.diff(places) > 0).all():
        raise ValueError(f"lags {list(lags)} do not ascend: order them, each once")
    if not values[0] - 2 * errors[0] > 0:
        raise ValueError(
            f"the first value is {values[0]:.3g} +- {errors[0]:.2g}, expected two standard errors above 0: it is not "
            "known that there is anything of which half could be left; give more samples"
        )
    shifts = (0.0, -2.0, 2.0)
    return HalfLife(*(_cross(places, values + s * errors, (values[0] - s * errors[0]) / 2) for s in shifts))


def _cross(lags: np.ndarray, curve: np.ndarray, level: float) -> float:
    """The first lag at which the curve, in a line between lags, is down at the level; inf where it is never."""
    below = np.flatnonzero(curve <= level)
    if not len(below):
        return float("inf")
    after = below[0]
    if after == 0:
        return float(lags[0])
    rise = (curve[after - 1] - level) / (curve[after - 1] - curve[after])
    return float(lags[after - 1] + rise * (lags[after] - lags[after - 1]))


def _probe(pointwise: np.ndarray, entropy: np.ndarray, error: np.ndarray, held_out: np.ndarray, groups: Any) -> Probe:
    groups = held_out if groups is None else np.asarray(groups)[held_out]
    return Probe(pointwise.mean(axis=0), error_of_mean(pointwise, groups), entropy, error, pointwise, held_out)


def error_of_mean(values: Float[np.ndarray, "M K"], groups: Int[np.ndarray, "M"]) -> Float[np.ndarray, "K"]:
    """Standard errors of the means of M samples, of which those of one group may say the same: sqrt(sum over groups of
    (sum of v - mean)^2) / M.
    """
    _, member, size = np.unique(groups, return_inverse=True, return_counts=True)
    sums = np.zeros((len(size), values.shape[1]))
    np.add.at(sums, member, values - values.mean(axis=0, keepdims=True))
    return np.sqrt((sums**2).sum(axis=0)) / len(values)


def _frequencies(labels: np.ndarray, classes: int) -> np.ndarray:
    """(K, classes)."""
    return np.stack([np.bincount(column, minlength=classes) for column in labels.T]) / len(labels)


def _split(
    states: Any, targets: Any, groups: Any, seed: int
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The states, and the indices to fit on, to stop on and to hold out, cut between groups."""
    check_real(states=states, targets=targets)
    states, targets = np.asarray(states), np.asarray(targets)
    groups = np.arange(len(states)) if groups is None else np.asarray(groups)
    if not len(states) == len(targets) == len(groups):
        raise ValueError(
            f"states, targets and groups have {len(states)}, {len(targets)} and {len(groups)} rows: expected one each "
            "for every moment"
        )
    if not (np.isfinite(states).all() and np.isfinite(targets).all()):
        raise ValueError(
            "states or targets hold numbers that are not finite: leave such moments out, or mend the model that made "
            "them"
        )
    names = np.unique(groups)
    if len(names) < 10:
        raise ValueError(
            f"{len(names)} groups, expected at least 10: some are fitted on, some stopped on, some held out; record "
            "more sequences"
        )
    names = np.random.default_rng(seed).permutation(names)
    cuts = np.cumsum([round(share * len(names)) for share in SHARES])
    fitted, stopped, held_out = (np.flatnonzero(np.isin(groups, chosen)) for chosen in np.split(names, cuts))
    return states, (fitted, stopped, held_out)


def _decode(
    states: np.ndarray,
    targets: np.ndarray,
    parts: tuple[np.ndarray, np.ndarray, np.ndarray],
    start: Array,
    kind: str,
    training: Training,
) -> tuple[np.ndarray, np.ndarray]:
    """(log q, score) of the held-out samples, (M, K) each; the score is 1 for a right label, or the squared error of a
    value.
    """
    fit = parts[0]
    mean, deviation = states[fit].mean(axis=0, dtype=np.float64), states[fit].std(axis=0, dtype=np.float64)
    states = ((states - mean[None]) / np.where(deviation > 0, deviation, 1)[None]).astype(np.float32)
    data = tuple((jnp.asarray(states[part]), jnp.asarray(targets[part])) for part in parts)
    log_q, score = _fit_and_decode(data, start, kind, training)
    return np.asarray(log_q, np.float64), np.asarray(score, np.float64)


@partial(jax.jit, static_argnums=(2, 3))
def _fit_and_decode(
    data: tuple[tuple[Array, Array], ...], start: Array, kind: str, training: Training
) -> tuple[Array, Array]:
    fit, stop, held_out = data

    def likelihood(params: Any, states: Array, targets: Array) -> Array:
        return _log_q(_answer(params, start, states), targets, kind)[0].mean()

    loss = lambda params, chosen: -likelihood(params, fit[0][chosen], fit[1][chosen])  # noqa: E731
    initial = _initial(fit[0].shape[1], start, training)
    params = best_of_training(
        initial, loss, lambda params: likelihood(params, *stop), len(fit[0]), jax.random.key(training.seed), training
    )
    strengths = jnp.linspace(0, 1, STRENGTHS)
    judged = jax.lax.map(
        lambda strength: _log_q(_answer(params, start, stop[0], strength), stop[1], kind)[0].mean(axis=0), strengths
    )
    strength = strengths[jnp.argmax(judged, axis=0)]
    return _log_q(_answer(params, start, held_out[0], strength), held_out[1], kind)


def _initial(inputs: int, start: Array, training: Training) -> dict[str, Array]:
    """A decoder that answers `start` whatever the state is."""
    key = jax.random.key(training.seed)
    outputs = start.size
    hidden = jax.random.normal(key, (inputs, training.width)) / jnp.sqrt(inputs)
    return {
        "hidden": hidden,
        "bias": jnp.zeros(training.width),
        "out": jnp.zeros((training.width, outputs)),
        "direct": jnp.zeros((inputs, outputs)),
    }


def _answer(params: dict[str, Array], start: Array, states: Array, strength: Array | float = 1.0) -> Array:
    """(N, K, P): what the decoder says beyond `start`, times its strength."""
    hidden = jax.nn.gelu(states @ params["hidden"] + params["bias"][None])
    said = (hidden @ params["out"] + states @ params["direct"]).reshape(-1, *start.shape)
    return start[None] + jnp.broadcast_to(strength, start.shape[:1])[None, :, None] * said


def _log_q(answer: Array, targets: Array, kind: str) -> tuple[Array, Array]:
    """Log-likelihood and score of every target, (N, K)."""
    if kind == "tokens":
        log_q = jnp.take_along_axis(jax.nn.log_softmax(answer), targets[..., None], axis=-1)[..., 0]
        return log_q, (jnp.argmax(answer, axis=-1) == targets).astype(answer.dtype)
    mean, log_deviation = answer[..., 0], answer[..., 1]
    square = (targets - mean) ** 2
    return -0.5 * (square * jnp.exp(-2 * log_deviation) + jnp.log(2 * jnp.pi)) - log_deviation, square
