"""A run as programs that need JAX alone: StableHLO of the whole call and of one step, weights, and a loader.

`jax.export` promises that an artifact can be read for six months by newer versions of JAX, and for three weeks by older
ones; files say which version wrote them.
"""

import contextlib
import dataclasses
import inspect
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax
import jax
import numpy as np
from jax import export
from jaxtyping import Array, PyTree
from safetensors.numpy import save_file

from selssm_jax import __version__
from selssm_jax.errors import ArgumentError, InputError
from selssm_jax.interop import exported_loader
from selssm_jax.model import ModelLike
from selssm_jax.predict import TrainedModel
from selssm_jax.tasks.registry import kind_of

PLATFORMS = ("cpu", "cuda", "tpu")
CALL, STEP, WEIGHTS, STATE, ABOUT, LOADER = (
    "call.bin",
    "step.bin",
    "weights.safetensors",
    "state.npz",
    "model.json",
    "load.py",
)
Flat = dict[str, Any]


def export_model(trained: TrainedModel, folder: str | pathlib.Path) -> None:
    """Writes a model into a new folder.

    call.bin: (weights, inputs (B, T, ...), state) -> (outputs, state), for any B, and T = `lookback`; outputs and
    inputs are the model's own, standardised numbers or token numbers. step.bin: the same for one step, inputs (B, ...).
    weights.safetensors; state.npz, the empty memory of one sequence; model.json, all shapes and types, and what the run
    remembers of its data; load.py, which reads the folder with JAX and NumPy alone.

    Raises:
      InputError: for a folder that holds something, and a model that draws noise.
    """
    place = pathlib.Path(folder)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ArgumentError(
            "folder", f"={folder} exists already: move or remove it, or name another folder", flag="export"
        )
    _check_can_be_made(place)
    model, length = trained.model, max(trained.lookback, 1)
    empty = trained.initial_state()
    trees = jax.tree.structure(trained.params), jax.tree.structure(empty)
    layout = _Layout(_name_leaves(trained.params), _name_leaves(empty), *trees)
    inputs = kind_of(model.config.task).inputs(model.config, 1, length)
    batch = export.symbolic_shape("b")[0]
    rows = jax.ShapeDtypeStruct((batch, *inputs.shape[1:]), inputs.dtype)
    step = jax.ShapeDtypeStruct((batch, *inputs.shape[2:]), inputs.dtype)
    about = {
        "selssm_jax": __version__,
        "jax": jax.__version__,
        "platforms": list(PLATFORMS),
        "inputs": _describe({"call": rows, "step": step}),
        "weights": _describe(layout.params),
        "state": _describe(layout.state),
        "model": dataclasses.asdict(model.config),
        "data": {name: value for name, value in trained.dataset.metadata().items() if name != "file"},
    }
    with _saying():
        programs = {
            CALL: _export(model, layout, rows, batch, None),
            STEP: _export(model, layout, step, batch, "step"),
        }
    place.mkdir(parents=True, exist_ok=True)
    for name, program in programs.items():
        (place / name).write_bytes(program)
    save_file({name: np.asarray(value) for name, value in layout.params.items()}, place / WEIGHTS)
    arrays: dict[str, Any] = {name: np.asarray(value) for name, value in layout.state.items()}
    np.savez(place / STATE, **arrays)
    (place / LOADER).write_text(inspect.getsource(exported_loader))
    (place / ABOUT).write_text(json.dumps(about, indent=2) + "\n")


def _check_can_be_made(folder: pathlib.Path) -> None:
    """Raises ArgumentError, before programs are made, where a folder cannot be; leaves nothing."""
    around = next(place for place in (folder, *folder.absolute().parents) if os.path.exists(place))
    try:
        with tempfile.TemporaryDirectory(dir=around):
            pass
    except OSError as error:
        raise ArgumentError(
            "folder", f"={folder} cannot be written ({error.strerror}): name another folder", flag="export"
        ) from error


class _Layout(NamedTuple):
    """Trees of parameters and of the empty memory of one sequence as flat dictionaries of arrays, which need no classes
    to be read, and what they were.
    """

    params: Flat
    state: Flat
    params_tree: Any
    state_tree: Any

    def build(self, params: Flat, state: Flat) -> tuple[PyTree, Any]:
        """The trees of such dictionaries."""
        return (
            jax.tree.unflatten(self.params_tree, [params[name] for name in self.params]),
            jax.tree.unflatten(self.state_tree, [state[name] for name in self.state]),
        )


def _export(model: ModelLike, layout: _Layout, inputs: Any, batch: Any, method: str | None) -> bytes:
    """A program of any number of sequences, for all platforms, as bytes."""

    def run(params: Flat, inputs: Array, state: Flat) -> tuple[Array, Flat]:
        weights, before = layout.build(params, state)
        outputs, after = model.apply({"params": weights}, inputs, before, method=method)
        return outputs, _name_leaves(after)

    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), layout.params)
    carried = {
        name: jax.ShapeDtypeStruct((leaf.shape[0] * batch, *leaf.shape[1:]), leaf.dtype)
        for name, leaf in layout.state.items()
    }
    return bytes(export.export(jax.jit(run), platforms=PLATFORMS)(shapes, inputs, carried).serialize())


@contextlib.contextmanager
def _saying() -> Iterator[None]:
    """Says as a user's mistake what no program can be made of."""
    try:
        yield
    except flax.errors.InvalidRngError as error:
        raise InputError("this model draws noise at every step, which no exported program can") from error


def _name_leaves(tree: PyTree) -> Flat:
    """{path: array}, in the order of the leaves."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _describe(arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {name: {"shape": list(map(str, leaf.shape)), "dtype": str(leaf.dtype)} for name, leaf in arrays.items()}
