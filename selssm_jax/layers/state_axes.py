"""What a mixer says of its parameters, so that components of its state can be weighed and removed without anyone
knowing the mixer.

A mixer's method `state_axes()` returns `StateAxes`; `compression.pruning` needs no more than that (theory, section 10).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class StateAxes:
    """Where the n components of a mixer's state are in its parameters, which are named by their paths: "A", "G/kernel".

    Attributes:
      components: n, the numbers that can be removed one by one.
      size: of the mixer's d_state, what one component takes: 2 where it is a complex number, more where numbers go
        together, else 1.
      axes: the axes of each parameter that run over the components, once or, longer, several times one after another:
        real, then imaginary parts; a parameter that is not named has none, and not every one need be there.
      drive, readout: the parameters, of one such axis each, by which a component is written and is read; a drive of ""
        is a map of ones, no parameter.
      mask: a parameter, not among the others, of shape (n,), by which the mixer multiplies what is read of each
        component, where the readout itself reaches the output through something that is not linear; "" where it does
        not.
      settled: what to make of a parameter whose entries depend on one another, so that any part of it means what it
        meant in the whole.
    """

    components: int
    axes: Mapping[str, tuple[int, ...]]
    drive: str
    readout: str
    size: int = 1
    mask: str = ""
    settled: Mapping[str, Callable[[Array], Array]] = dataclasses.field(default_factory=dict)

    def take(self, params: Params, kept: Int[np.ndarray, "k"]) -> dict[str, Any]:
        """Returns the mixer's parameters with the components `kept` alone, in that order."""
        flat = flatten_dict(dict(params), sep="/")
        settled = flat | {name: settle(flat[name]) for name, settle in self.settled.items()}
        return unflatten_dict({name: self._take_slices(name, value, kept) for name, value in settled.items()}, sep="/")

    def mask_readout(self, params: Params, mask: Float[Array, "n"]) -> dict[str, Any]:
        """Returns the mixer's parameters with the readout of component i times mask_i: 0 leaves it unread."""
        flat = flatten_dict(dict(params), sep="/")
        if self.mask:
            return unflatten_dict(flat | {self.mask: mask}, sep="/")
        value = flat[self.readout]
        shape, axis = [1] * value.ndim, self.axes[self.readout][0]
        shape[axis] = -1
        scale = jnp.tile(mask, value.shape[axis] // self.components).reshape(shape)
        return unflatten_dict(flat | {self.readout: value * scale}, sep="/")

    def norms(self, params: Params, name: str) -> Float[np.ndarray, "n"]:
        """Returns the Euclidean norm of what parameter `name` holds of each component; 1 for the parameter "", which is
        none.
        """
        if not name:
            return np.ones(self.components)
        value = np.asarray(flatten_dict(dict(params), sep="/")[name], np.float64)
        value = np.moveaxis(value, self.axes[name][0], 0)
        rows = value.reshape(len(value) // self.components, self.components, -1)
        return np.sqrt((rows**2).sum(axis=(0, 2)))

    def _take_slices(self, name: str, value: Array, kept: np.ndarray) -> Array:
        for axis in self.axes.get(name, ()):
            runs = np.arange(value.shape[axis] // self.components)[:, None] * self.components
            value = jnp.take(value, (runs + kept).ravel(), axis=axis)
        return value
