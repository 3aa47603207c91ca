"""Runs that begin with the parameters of another: fine-tuning, on other data, at other lengths, of imported models."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from selssm_jax.config import Experiment
from selssm_jax.errors import InputError
from selssm_jax.training import checkpoint

KEY = "training.start"
SHOWN = 3  # differences that a message names


def take_over(experiment: Experiment, base: Experiment, workdir: str) -> tuple[Experiment, Experiment]:
    """Returns both with the model of the run that training starts from, or of its own where it has begun.

    Args:
      experiment: as the command line asks for it. base: its config before anything was overridden: keys of the model in
        which the two differ are the user's word, and stay. workdir: the folder that is trained in.

    Raises:
      InputError: where training.start is no run, or a compressed one; and for a model that cannot be had of both.
    """
    start = experiment.training.start
    if not checkpoint.is_run(workdir) and not checkpoint.is_run(start):
        raise InputError(f"{KEY}={start} is not a run: give the folder of one, as --workdir named it")
    theirs = checkpoint.read_experiment(workdir if checkpoint.is_run(workdir) else start)
    _check_plain(theirs)
    given, before, asked = (dataclasses.asdict(one.model) for one in (theirs, base, experiment))
    as_read = experiment.data.level == base.data.level  # tokens are what they are there, unless the user says so
    level = theirs.data.level if as_read else experiment.data.level
    return (
        _replace(experiment, _merge(given, before, asked), level),
        _replace(base, given, theirs.data.level if as_read else base.data.level),
    )


def recall(experiment: Experiment) -> Mapping[str, Any]:
    """Returns what the run that an experiment starts from remembers of its data; nothing where it starts from none.

    Raises:
      InputError: where training.start is no run that can be read, or its tokens are others than those of data.level.
    """
    start, level = experiment.training.start, experiment.data.level
    if not start:
        return {}
    theirs = checkpoint.read_experiment(start).data.level
    if theirs != level:
        raise InputError(f"data.level={level!r}, but tokens of {KEY}={start} are of the level {theirs!r}: use that")
    return checkpoint.read_metadata(start)


def read_params(experiment: Experiment, drawn: PyTree) -> tuple[PyTree, int]:
    """Returns (the parameters that training begins with, the step that they are of).

    Args:
      drawn: parameters, or their shapes, as the experiment's own model draws them.

    Raises:
      InputError: where training.start is no run that can be read, or a packed one; and for parameters of other
        names or shapes, the first of which are named, with the keys of the model that differ.
    """
    start = experiment.training.start
    theirs, params, step = checkpoint.restore_for_eval(start)
    _check_plain(theirs)
    if any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(params)):
        raise InputError(
            f"{KEY}={start} holds its weights in int8, which cannot be trained: start from the run that it was made of"
        )
    have, need = (_list_shapes(tree) for tree in (params, drawn))
    wrong = [
        f"{name}: {have.get(name, 'nothing')} there, {need.get(name, 'nothing')} asked for"
        for name in sorted(have | need)
        if have.get(name) != need.get(name)
    ]
    if wrong:
        other = [
            f"{key}={ours!r} (there {there!r})"
            for key, (there, ours) in checkpoint.differing(theirs, experiment).items()
            if key.startswith("model.")
        ]
        raise InputError(
            f"{KEY}={start} holds the parameters of another model ({'; '.join(wrong[:SHOWN])}; {len(wrong)} in all), "
            f"which comes of {', '.join(other) or 'the form of the data'}: leave these as they are there"
        )
    return jax.tree.map(lambda like, leaf: jnp.asarray(leaf, like.dtype), drawn, params), step


def _replace(experiment: Experiment, model: dict[str, Any], level: str) -> Experiment:
    values = dataclasses.asdict(experiment)
    return Experiment.from_dict(values | {"model": model, "data": values["data"] | {"level": level}})


def _merge(given: Mapping[str, Any], before: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `given`, but for those in which `asked` is not what was there before."""
    return {
        key: _merge(value, before.get(key, {}), asked.get(key, {}))
        if isinstance(value, Mapping)
        else (asked[key] if key in asked and asked[key] != before.get(key) else value)
        for key, value in given.items()
    }


def _check_plain(theirs: Experiment) -> None:
    if theirs.model.memory_bits:
        raise InputError(
            f"{KEY} names a run whose memory is packed, which cannot be trained: start from the run that it was made of"
        )


def _list_shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
