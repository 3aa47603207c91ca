"""Several runs of one experiment that differ in their seeds alone, trained by one step: vmapped over the runs."""

import contextlib
import operator
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selssm_jax.config import Experiment
from selssm_jax.errors import InputError, out_of_memory
from selssm_jax.shapes import Batch
from selssm_jax.tasks.scores import Sums
from selssm_jax.training import checkpoint, cluster, loop, parallel
from selssm_jax.training.logging import Display

SEEDS = frozenset({"name", "training.seed", "data.seed"})  # what may differ between runs that share a step


def fit_seeds(experiments: Sequence[Experiment], workdirs: Sequence[str]) -> list[loop.Outcome]:
    """Trains every experiment in its own folder, as `loop.fit` would, but all of them by one step of one device.

    Every run has its own parameters, order of the data, draws, records and checkpoints: its folder is the one that
    `fit` writes, to rounding, and either goes on with what the other left. Runs that stand behind others go first, with
    those that stand where they do. Where the device has no memory for all at once, they are trained one after another.
    SIGTERM and SIGINT save all of them and return early.

    Args:
      experiments: equal but for training.seed, data.seed and name.
      workdirs: the folder of each.

    Returns:
      How each run ended, in the order given.

    Raises:
      ValueError: for no experiments, or another number of folders.
      InputError: for experiments that differ in more or not at all, a folder given twice, training.devices that are
        more than one, and what `loop.fit` raises; a loss that is not finite ends all of them, and the message names the
        run.
    """
    device = _check(experiments, workdirs)
    with loop.Stop() as stop:
        try:
            return _fit(experiments, workdirs, device, stop)
        except jax.errors.JaxRuntimeError as error:
            if not out_of_memory(error):
                raise
        # Only here has the exception let go of the states.
        print(
            f"the device has no memory for a step of {len(experiments)} runs: they are trained one after another",
            file=sys.stderr,
        )
        return [loop.fit_unless(stop, *run) for run in zip(experiments, workdirs, strict=True)]


def _fit(
    experiments: Sequence[Experiment], workdirs: Sequence[str], device: jax.Device, stop: loop.Stop
) -> list[loop.Outcome]:
    display, layout = Display(), loop.choose_layout(experiments[0], [device])
    with contextlib.ExitStack() as folders:
        runs = [
            folders.enter_context(loop.open_run_folder(experiment, path, layout, name=f"{path}: ", display=display))
            for experiment, path in zip(experiments, workdirs, strict=True)
        ]
        for run in runs:
            run.evaluate = runs[0].evaluate
            run.validate_if_missing(stop)
        last = experiments[0].training.steps
        while not stop.is_requested() and (
            unfinished := [run for run in runs if run.step < last and not run.ends_early(run.step)]
        ):
            behind = min(run.step for run in unfinished)
            group = [run for run in unfinished if run.step == behind]
            ahead = min((run.step for run in unfinished if run.step > behind), default=last)
            remat = experiments[0].model.remat
            runner = (
                StackedRuns(group[0].train_step, len(group), remat=remat)
                if len(group) > 1
                else loop.SingleRun(group[0].train_step, [device], remat=remat)
            )
            loop.train(group, runner, stop, until=ahead)
        return [run.outcome() for run in runs]


class StackedRuns:
    """The step of several runs on one device: their states and batches have a leading axis of runs.

    Args:
      step: the step of each of them, (state, batch, axis) -> (state, metrics).
      count: how many there are. remat: whether their model recomputes its activations.
    """

    def __init__(self, step: Callable[..., Any], count: int, *, remat: bool = False) -> None:
        every = jax.vmap(partial(step, axis=None))

        def step_stacked(states: Any, batches: Any) -> tuple[Any, list[Any]]:
            states, sums = every(states, batches)
            return states, _split_runs(sums, count)

        self._step = jax.jit(step_stacked, donate_argnums=0, compiler_options=parallel.compiler_options(remat=remat))
        self._stack = jax.jit(partial(_stack_trees, jnp.stack))
        self._unstack = jax.jit(partial(_split_runs, count=count))

    def stack(self, states: Sequence[Any]) -> Any:
        """Returns the states with a leading axis of runs."""
        return self._stack(list(states))

    def unstack(self, states: Any) -> Sequence[Any]:
        """Returns a copy of each run's own state."""
        return self._unstack(states)

    def __call__(self, states: Any, batches: Sequence[Batch]) -> tuple[Any, Sequence[Sums]]:
        """Returns the states after a step, and each run's metrics. The states given are used up."""
        return self._step(states, _stack_trees(np.stack, batches))


def _stack_trees(stack: Callable[[Sequence[Any]], Any], trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: stack(leaves), *trees)


def _split_runs(tree: Any, count: int) -> list[Any]:
    return [jax.tree.map(operator.itemgetter(index), tree) for index in range(count)]


def _check(experiments: Sequence[Experiment], workdirs: Sequence[str]) -> jax.Device:
    """Returns the device that they share."""
    cluster.check_alone("training several runs by one step")
    if not experiments or len(experiments) != len(workdirs):
        raise ValueError(
            f"{len(experiments)} experiments in {len(workdirs)} folders: give at least one, and a folder to each"
        )
    _check_seeds(experiments)
    if len({os.path.realpath(path) for path in workdirs}) < len(workdirs):
        raise InputError(
            f"runs are trained together in folders of their own, found {', '.join(workdirs)}: give each another"
        )
    devices = loop.choose_devices(experiments[0])
    if len(devices) > 1:
        raise InputError(
            f"training.devices={experiments[0].training.devices} is {len(devices)} devices here, but runs are trained "
            "together on one: use training.devices=1, or train each by itself"
        )
    return devices[0]


def _check_seeds(experiments: Sequence[Experiment]) -> None:
    """Raises InputError for experiments that one step cannot serve, and for one that is there twice."""
    for other in experiments[1:]:
        beyond = {
            key: values for key, values in checkpoint.differing(experiments[0], other).items() if key not in SEEDS
        }
        if beyond:
            said = "; ".join(f"{key}: {one!r} and {another!r}" for key, (one, another) in beyond.items())
            raise InputError(
                f"runs that are trained together differ in training.seed, data.seed and name alone, found {said}: "
                "train these apart"
            )
    seeds = [(run.training.seed, run.data.seed) for run in experiments]
    if len(set(seeds)) < len(seeds):
        raise InputError(
            "runs that are trained together need seeds of their own, found (training.seed, data.seed) = "
            f"{', '.join(map(str, seeds))}"
        )
