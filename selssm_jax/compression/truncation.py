"""Balanced truncation of a model's time-invariant blocks: fewer components, with a bound over all inputs on what they
change (theory, section 10).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from selssm_jax.compression.hankel import hankel_singular_values
from selssm_jax.compression.pruning import mixers
from selssm_jax.compression.reduction import RANK, balanced_truncation, diagonalise, merge_equal_poles
from selssm_jax.config import Model
from selssm_jax.layers.linear import Systems
from selssm_jax.layers.variables import parameters
from selssm_jax.model import block_names

PyTree = Any
SILENT = 0.5  # the pole of a component that is neither written nor read


class Truncation(NamedTuple):
    """Of one block, over all its systems: components of each before and after, the Hankel bound on the largest gain of
    the difference, and sigma_1.

    error_bound: |G - G_k| <= 2 sum_{i>k} sigma_i at every frequency. largest: the largest sigma, which the largest gain
    of G is at least.
    """

    before: int
    after: int
    error_bound: float
    largest: float


def truncatable(config: Model) -> list[str]:
    """Returns the blocks whose mixer is a time-invariant system: it has the methods `systems` and `of_systems`."""
    return [
        name
        for name, mixer in mixers(config).items()
        if not config.bidirectional and callable(getattr(mixer, "of_systems", None))
    ]


def truncate(config: Model, params: PyTree, keep: Mapping[str, int]) -> tuple[Model, PyTree, dict[str, Truncation]]:
    """Returns (config, parameters) of the model whose blocks have so many components a system, and what is proved of
    each block.

    Equal poles are merged first, which changes nothing; then the directions of the largest Hankel singular values are
    kept, and brought to poles again. A system of fewer directions that carry anything gets components that are not
    read. The bound is of the recurrence, before what the layer makes of its output, in exact arithmetic.

    Args:
      config: the model's, with its task filled in. keep: k of each block that is to be truncated, from 1 to the
        components that there are.

    Raises:
      ValueError: for a block that is none of `truncatable`, a k out of range, and for what
        `reduction.balanced_truncation` and `diagonalise` refuse.
    """
    params, sizes, said = dict(parameters(params)), [part.d_state for part in config.blocks], {}
    blocks, layers = truncatable(config), mixers(config)
    for name, count in keep.items():
        if name not in blocks:
            raise ValueError(f"{name} is no time-invariant block: use some of {blocks}")
        mixer, own = layers[name], params[name]["mixer"]
        systems = mixer.apply({"params": own}, method="systems")
        if not 1 <= count <= systems.a.shape[1]:
            raise ValueError(f"keep[{name!r}]={count}: use from 1 to {systems.a.shape[1]} components")
        parts = [_truncate_system(a, B, C, count) for a, B, C in zip(*systems, strict=True)]
        small = Systems(*(np.stack([part[index] for part, _, _ in parts]) for index in range(3)))
        fresh = {
            key: jnp.asarray(value, jnp.float32)
            for key, value in mixer.apply({"params": own}, small, method="of_systems").items()
        }
        params[name] = params[name] | {"mixer": {**own, **fresh}}
        sizes[block_names(config).index(name)] = mixer.state_axes().size * count
        said[name] = Truncation(
            systems.a.shape[1], count, max(bound for _, bound, _ in parts), max(largest for _, _, largest in parts)
        )
    return dataclasses.replace(config, block_states=tuple(sizes)), params, said


def _truncate_system(
    a: np.ndarray, B: np.ndarray, C: np.ndarray, count: int
) -> tuple[tuple[np.ndarray, ...], float, float]:
    """(poles, B, C) of `count` components, the bound of what went, and the largest singular value."""
    merged = merge_equal_poles(a, B, C).system
    values = hankel_singular_values(*merged).values
    left = min(count, int((values > RANK * values[0]).sum()))
    if not left:  # nothing is read, or nothing written
        return (
            (
                np.full(count, SILENT, complex),
                np.zeros((count, B.shape[1]), complex),
                np.zeros((len(C), count), complex),
            ),
            0.0,
            0.0,
        )
    small = balanced_truncation(*merged, left)
    poles, inward, outward = diagonalise(*small.system)
    spare = count - left
    padded = (
        np.pad(poles, (0, spare), constant_values=SILENT),
        np.pad(inward, ((0, spare), (0, 0))),
        np.pad(outward, ((0, 0), (0, spare))),
    )
    return padded, small.error_bound, float(values[0])
