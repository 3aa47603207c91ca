"""All that a model carries from one step to the next, as one vector of real components (theory, section 10).

Mixers' states, the inputs that convolutions, encoders and heads still see, and what a class head has pooled: whatever
`initial_state` holds is memory. A few numbers stay as they are: how many steps were pooled, and the scale of a
forecast. The scope "mixers" leaves all but mixers' states so.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from selssm_jax.model import ModelLike

State = Any
PyTree = Any
KEPT = ("count", "scale")  # leaves that are no vectors of components, by a name on their path
# names of leaves that a recurrence updates, of whatever shape: a mixer's only array, or the one that it calls h
RECURRENT = ("mixer", "h")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of a state: its name, the shape of a row, and its dtype. A row of two axes is a window of time, the
    newest last, but in `RECURRENT` ones.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Any

    @property
    def size(self) -> int:
        """Real components of a row; a complex number is two."""
        return int(np.prod(self.shape)) * (2 if jnp.issubdtype(self.dtype, jnp.complexfloating) else 1)

    @property
    def slots(self) -> int:
        """How many steps of the past a window holds; 1 for what is no window."""
        return self.shape[0] if len(self.shape) == 2 and self.name.rpartition("/")[2] not in RECURRENT else 1


class StateLayout:
    """How the state of a model is laid out: `vector` joins the components of all leaves but those that are kept as they
    are, `state` is its inverse.
    """

    def __init__(self, model: ModelLike, params: PyTree, scope: str = "all") -> None:
        like = jax.eval_shape(lambda params: model.apply({"params": params}, 1, method="initial_state"), params)
        paths, self._tree = jax.tree_util.tree_flatten_with_path(like)
        self._is_kept = [_is_fixed(path, leaf.size, scope) for path, leaf in paths]
        packed = [(path, leaf) for (path, leaf), kept in zip(paths, self._is_kept, strict=True) if not kept]
        self.leaves = [Leaf(_name(path), leaf.shape[1:], leaf.dtype) for path, leaf in packed]
        self.kept_bytes = sum(
            leaf.size * leaf.dtype.itemsize for (_, leaf), kept in zip(paths, self._is_kept, strict=True) if kept
        )
        self.rows = packed[0][1].shape[0]  # of one sequence: its channels, where they run apart

    @property
    def size(self) -> int:
        """Components of one row."""
        return sum(leaf.size for leaf in self.leaves)

    def parts(self) -> Iterator[tuple[Leaf, slice]]:
        """Yields every leaf and where its components are in the vector."""
        start = 0
        for leaf in self.leaves:
            yield leaf, slice(start, start + leaf.size)
            start += leaf.size

    def of_block(self, index: int) -> Int[np.ndarray, "n"]:
        """Returns which components the mixer of a block carries, in the order in which `mixer_components` has them."""
        parts = [
            np.arange(at.start, at.stop) for leaf, at in self.parts() if leaf.name.startswith(f"blocks/{index}/mixer")
        ]
        return np.concatenate(parts) if parts else np.zeros(0, int)

    def find_single_array(self, block: int) -> tuple[Leaf, slice] | None:
        """Returns the array that the mixer of a block carries, and where its components are; None where it carries
        several, or is not packed.
        """
        return next(((leaf, at) for leaf, at in self.parts() if leaf.name == f"blocks/{block}/mixer"), None)

    def vector(self, state: State) -> Float[Array, "R M"]:
        """Returns the components of a state, one row a sequence (or a channel of one)."""
        found = [leaf for leaf, kept in zip(jax.tree.leaves(state), self._is_kept, strict=True) if not kept]
        return jnp.concatenate([components(leaf.reshape(len(leaf), -1)).astype(jnp.float32) for leaf in found], axis=1)

    def select_fixed(self, state: State) -> list[Array]:
        """Returns the leaves of a state that are kept as they are."""
        return [leaf for leaf, kept in zip(jax.tree.leaves(state), self._is_kept, strict=True) if kept]

    def state(self, vector: Float[Array, "R M"], kept: list[Array]) -> State:
        """Returns the state of these components and these kept leaves."""
        parts, rest = self.parts(), iter(kept)
        leaves = [next(rest) if is_kept else _leaf(*next(parts), vector) for is_kept in self._is_kept]
        return jax.tree.unflatten(self._tree, leaves)

    def channels(self) -> Int[np.ndarray, "M"]:
        """Returns what a component holds, as a number: slots of one window that hold the same channel at different ages
        share theirs.
        """
        found, first = [], 0
        for leaf in self.leaves:
            width = leaf.size // leaf.slots
            found.append(first + np.arange(leaf.size) % width)
            first += width
        return np.concatenate(found)

    def newest_most(self, values: Float[np.ndarray, "M"]) -> Float[np.ndarray, "M"]:
        """Returns values made to fall with age within every window: a slot gets the largest of its own and of all older
        ones of its channel.

        What a step moves from slot to slot cannot regain what an earlier slot has rounded away.
        """
        values = np.array(values, np.float64)
        for leaf, at in self.parts():
            values[at] = np.maximum.accumulate(values[at].reshape(leaf.slots, -1), axis=0).ravel()
        return values


def components(state: Array) -> Array:
    """Returns states as real numbers: complex ones as real and then imaginary parts."""
    return jnp.concatenate([state.real, state.imag], axis=-1) if jnp.iscomplexobj(state) else state


def mixer_components(state: State) -> Float[Array, "R n"]:
    """Returns all components that one mixer carries, in the order of its arrays' names; not how many slots of a cache
    are filled.
    """
    leaves = [
        leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0] if not _is_fixed(path, leaf.size, "all")
    ]
    return jnp.concatenate([components(leaf.reshape(len(leaf), -1)).astype(jnp.float32) for leaf in leaves], axis=1)


def _leaf(like: Leaf, at: slice, vector: Array) -> Array:
    part = vector[:, at]
    part = jax.lax.complex(*jnp.split(part, 2, axis=1)) if jnp.issubdtype(like.dtype, jnp.complexfloating) else part
    return part.reshape(-1, *like.shape).astype(like.dtype)


def _is_fixed(path: tuple[Any, ...], size: int, scope: str) -> bool:
    keys = [getattr(part, "key", None) for part in path]
    return not size or any(key in KEPT for key in keys) or (scope == "mixers" and "mixer" not in keys)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
