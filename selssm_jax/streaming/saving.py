"""Trees of arrays on disk, as checkpoints of Orbax that a killed process leaves whole."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree


def save_tree(folder: str | pathlib.Path, number: int, tree: PyTree) -> None:
    """Writes a tree beside the last one, which goes when it is written; nothing where that has the same number."""
    with _open(folder) as manager:
        if manager.latest_step() != number:
            manager.save(number, args=ocp.args.StandardSave(_name_leaves(tree)))
            manager.wait_until_finished()


def restore_tree(folder: str | pathlib.Path, like: PyTree) -> PyTree:
    """Returns the newest tree of a folder, in the form of `like`, bit for bit: NumPy's arrays stay NumPy's.

    Raises:
      ValueError: where there is none.
    """
    with _open(folder) as manager:
        newest = manager.latest_step()
        if newest is None:
            raise ValueError(f"{folder} holds no state of a stream: give the folder that `save` wrote")
        leaves = manager.restore(newest, args=ocp.args.StandardRestore(_name_leaves(like)))

    def take(path: Any, leaf: Any) -> Any:
        if not leaf.size:
            return leaf
        value = np.asarray(leaves[_name_leaf(path)])
        # by way of the host: arrays that are committed to a device ask for programs of their own
        return value.copy() if isinstance(leaf, np.ndarray) else jnp.asarray(value)

    return jax.tree_util.tree_map_with_path(take, like)


def has_tree(folder: str | pathlib.Path) -> bool:
    """Whether a folder holds a whole tree."""
    if not pathlib.Path(folder).is_dir():
        return False
    with _open(folder) as manager:
        return manager.latest_step() is not None


def _open(folder: str | pathlib.Path) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(pathlib.Path(folder).absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=2))


def _name_leaf(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _name_leaves(tree: PyTree) -> dict[str, Any]:
    """The arrays of a tree by name, but for those without a number, which Orbax does not write."""
    return {_name_leaf(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if leaf.size}
