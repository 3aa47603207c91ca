"""Critics: functions f(x, y) that are fitted to log p(x, y) / (p(x) p(y)), and what is made of their scores (theory,
section 8).

A critic scores all pairs of two batches at once, S_ij = f(x_i, y_j); (x_i, y_i) are pairs of the joint law, all others
stand for the product of the marginals. Every critic starts as one that knows nothing of what is to be learned, so that
training which finds nothing leaves it there. A `Bound` says what training maximises and what is reported, both from
such scores.
"""

import functools
from collections.abc import Callable
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

Params = Any
# added to unit variances: what twins of a column and constant columns need, and too little to see otherwise
RIDGE = 1e-3
RANK = 32  # of the learned part, f = sum over so many products of a function of x and one of y
RADIAL_WIDTH, RADIAL_RANK = 32, 16


class Critic(NamedTuple):
    """init(key, x, y, width) -> params, from training data; score(params, x, y) -> (K, K), S_ij = f(x_i, y_j)."""

    init: Callable[[Array, Array, Array, int], Params]
    score: Callable[[Params, Array, Array], Array]


class Bound(NamedTuple):
    """objective(S) -> what training maximises; values(S) -> (K,), whose mean is reported and whose spread is its
    error.
    """

    objective: Callable[[Array], Array]
    values: Callable[[Array], Array]


def _separable_init(key: Array, x: Array, y: Array, width: int) -> Params:
    of_x, of_y = _perceptrons(key, *((_features(z[:1]).shape[1], width, width, RANK) for z in (x, y)))
    return {"x": of_x, "y": of_y, "scale": jnp.zeros(())}


def _separable_score(params: Params, x: Array, y: Array) -> Array:
    return params["scale"] * (_perceptron(params["x"], _features(x)) @ _perceptron(params["y"], _features(y)).T)


def _hybrid_init(key: Array, x: Array, y: Array, width: int) -> Params:
    of_radii, rest = jax.random.split(key)
    of_x, of_y = _perceptrons(of_radii, *[(2, RADIAL_WIDTH, RADIAL_WIDTH, RADIAL_RANK)] * 2)
    radial = {"x": of_x, "y": of_y, "scale": jnp.zeros(())}
    return {
        "gaussian": _gaussian_fit(x, y),
        "gain": jnp.ones(()),
        "radial": radial,
        "rest": _separable_init(rest, x, y, width),
    }


def _hybrid_score(params: Params, x: Array, y: Array) -> Array:
    radial = params["radial"]
    radii = _perceptron(radial["x"], _radius(x)) @ _perceptron(radial["y"], _radius(y)).T
    return (
        params["gain"] * _gaussian_score(params["gaussian"], x, y)
        + radial["scale"] * radii
        + _separable_score(params["rest"], x, y)
    )


def _gaussian_fit(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """The parts of the difference of inverse covariances, joint minus product: xy, xx and yy."""
    d = x.shape[1]
    joint = jnp.cov(jnp.concatenate([x, y], axis=1), rowvar=False) + RIDGE * jnp.eye(d + y.shape[1], dtype=x.dtype)
    inverse = jnp.linalg.inv(joint)
    return (
        inverse[:d, d:],
        inverse[:d, :d] - jnp.linalg.inv(joint[:d, :d]),
        inverse[d:, d:] - jnp.linalg.inv(joint[d:, d:]),
    )


def _gaussian_score(fit: tuple[Array, Array, Array], x: Array, y: Array) -> Array:
    """The log-ratio of normal laws but for its constant, which no bound here needs from it."""
    across, of_x, of_y = jax.lax.stop_gradient(fit)  # they are fitted, not trained
    return -x @ across @ y.T - 0.5 * jnp.sum(x @ of_x * x, axis=1)[:, None] - 0.5 * jnp.sum(y @ of_y * y, axis=1)[None]


def _conditional_init(key: Array, x: Array, y: Array, width: int) -> Params:
    (net,) = _perceptrons(key, (_features(x[:1]).shape[1], width, width, 2 * y.shape[1]))
    return {"net": net, "scale": jnp.zeros(())}


def _conditional_score(params: Params, x: Array, y: Array) -> Array:
    """log q(y_j | x_i) of a normal law with independent components, but for a constant."""
    mean, log_deviation = jnp.split(params["scale"] * _perceptron(params["net"], _features(x)), 2, axis=1)
    precision = jnp.exp(-2 * log_deviation)
    square = precision @ (y**2).T - 2 * (precision * mean) @ y.T + jnp.sum(precision * mean**2, axis=1)[:, None]
    return -0.5 * square - jnp.sum(log_deviation, axis=1)[:, None]


def _features(z: Array) -> Array:
    """z beside its radius and beside itself scaled by a bounded function of the radius, which a rotation by radius
    needs.
    """
    square = jnp.mean(z**2, axis=1, keepdims=True)
    return jnp.concatenate([z, _radius(z), z * (square - 1) / (square + 1)], axis=1)


def _radius(z: Array) -> Array:
    square = jnp.mean(z**2, axis=1, keepdims=True)
    return jnp.concatenate([jnp.sqrt(square + 1e-6), jnp.log(square + 0.1)], axis=1)


def _perceptrons(key: Array, *sizes: tuple[int, ...]) -> list[list[tuple[Array, Array]]]:
    """Layers of (weight, bias). All weights are one draw: many small ones take longer to compile than all of the
    training.
    """
    shapes = [list(pairwise(size)) for size in sizes]
    counts = [inputs * outputs for shape in shapes for inputs, outputs in shape]
    drawn = iter(jnp.split(jax.random.normal(key, (sum(counts),)), list(accumulate(counts))))
    return [[(next(drawn).reshape(i, o) * jnp.sqrt(2 / i), jnp.zeros(o)) for i, o in shape] for shape in shapes]


def _perceptron(layers: list[tuple[Array, Array]], x: Array) -> Array:
    for weight, bias in layers[:-1]:
        x = jax.nn.silu(x @ weight + bias[None])
    weight, bias = layers[-1]
    return x @ weight + bias[None]


SEPARABLE = Critic(_separable_init, _separable_score)
"""f(x, y) = u(x)' v(y), two perceptrons."""
HYBRID = Critic(_hybrid_init, _hybrid_score)
"""The log-ratio of fitted normal laws, plus a function of the two radii (which elliptical laws need), plus a separable
rest.
"""
CONDITIONAL = Critic(_conditional_init, _conditional_score)
"""log q(y | x), a normal law whose mean and variances a perceptron gives."""


def _infonce(S: Array) -> Array:
    """Both ways of asking, which y is x's and which x is y's, are bounds; so is their mean, with less spread."""
    own = jnp.diagonal(S)
    return own - 0.5 * (jax.nn.logsumexp(S, axis=0) + jax.nn.logsumexp(S, axis=1)) + jnp.log(len(S))


def _others(S: Array) -> Array:
    """(K,): log of the mean of exp S over the pairs of row i that are not its own."""
    return jax.nn.logsumexp(jnp.where(jnp.eye(len(S), dtype=bool), -jnp.inf, S), axis=1) - jnp.log(len(S) - 1)


def _nwj(S: Array) -> Array:
    """With the critic f + 1 of the usual form, so that f = 0 gives 0."""
    return jnp.diagonal(S) + 1 - jnp.exp(_others(S))


def _donsker_varadhan(S: Array) -> Array:
    """The last term sums to zero: it carries the spread of the normaliser to first order."""
    others = _others(S)
    normaliser = jax.nn.logsumexp(others) - jnp.log(len(S))
    return jnp.diagonal(S) - normaliser - (jnp.exp(others - normaliser) - 1)


def _jensen_shannon(S: Array) -> Array:
    apart = 1 - jnp.eye(len(S), dtype=S.dtype)
    return -jnp.mean(jax.nn.softplus(-jnp.diagonal(S))) - jnp.sum(jax.nn.softplus(S) * apart) / jnp.sum(apart)


def _clip_donsker_varadhan(S: Array, clip: float) -> Array:
    own = jnp.diagonal(S)
    return _donsker_varadhan(jnp.where(jnp.eye(len(S), dtype=bool), own[None], jnp.clip(S, -clip, clip)))


def _club(S: Array) -> Array:
    """Own pairs against the others: the factor takes the own ones out of the mean over all."""
    return (jnp.diagonal(S) - jnp.mean(S, axis=1)) * (len(S) / (len(S) - 1))


INFONCE = Bound(lambda S: jnp.mean(_infonce(S)), _infonce)
NWJ = Bound(lambda S: jnp.mean(_nwj(S)), _nwj)
DONSKER_VARADHAN = Bound(lambda S: jnp.mean(_donsker_varadhan(S)), _donsker_varadhan)
CLUB = Bound(lambda S: jnp.mean(jnp.diagonal(S)), _club)


@functools.cache  # one function a value, or every call would be compiled anew
def smile(clip: float) -> Bound:
    """Trained by the Jensen-Shannon objective, read out by Donsker-Varadhan with exp(S) clipped to e^-clip..e^clip in
    the normaliser.
    """
    return Bound(_jensen_shannon, lambda S: _clip_donsker_varadhan(S, clip))
