"""Runs that share a step: each is the run that it would be alone, in a folder that either goes on with; what stops them
names which.
"""

import dataclasses
import os
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest

import runs
from selssm_jax.config import Experiment
from selssm_jax.errors import InputError
from selssm_jax.training import checkpoint, loop, multi_seed

STEPS = 8
OPTIONS = {
    "model__selective__gate": "hard_concrete",  # draws at random, as dropout does
    "model__dropout": 0.2,
    "training__target_dimension": 0.1,  # with a multiplier in the state
    "training__average": 0.5,  # and an average
    "training__steps": STEPS,
    "training__log_every": 1,
    "training__eval_every": 4,
    "training__checkpoint_every": 4,
}


def recipe(seed: int, **changes: object) -> Experiment:
    made = runs.experiment(**OPTIONS, training__seed=seed, data__seed=seed + 10)
    return dataclasses.replace(made, name=f"seed {seed}", training=dataclasses.replace(made.training, **changes))


def fit(folder: pathlib.Path, seeds: tuple[int, ...], **changes: object) -> list[loop.Outcome]:
    return multi_seed.fit_seeds(
        [recipe(seed, **changes) for seed in seeds], [str(folder / str(seed)) for seed in seeds]
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Two runs, each by itself."""
    folder = tmp_path_factory.mktemp("alone")
    for seed in (0, 1):
        loop.fit(recipe(seed), str(folder / str(seed)))
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The same two runs by one step."""
    folder = tmp_path_factory.mktemp("together")
    outcomes = fit(folder, (0, 1))
    assert [(outcome.step, outcome.finished) for outcome in outcomes] == [(STEPS, True)] * 2
    assert outcomes[0].validation["nats"] != outcomes[1].validation["nats"]
    return folder


def assert_same_run(found: pathlib.Path, expected: pathlib.Path) -> None:
    """To rounding of float32: the vmapped program sums in another order, and Adam divides small gradients by their own
    size.

    Everything that is drawn at random is the same, or losses would differ in their first digits.
    """
    assert {path.name for path in found.iterdir()} == {path.name for path in expected.iterdir()}
    for name in ("config.json", "dataset.json"):
        assert (found / name).read_text() == (expected / name).read_text()
    records, wanted = runs.history(found), runs.history(expected)
    assert [(record["step"], record["split"]) for record in records] == [
        (record["step"], record["split"]) for record in wanted
    ]
    for record, other in zip(records, wanted, strict=True):
        numbers = [name for name in other if name != "split"]
        np.testing.assert_allclose(
            [record[name] for name in numbers], [other[name] for name in numbers], rtol=1e-4, atol=1e-5
        )
    state, other = (runs.state(folder, STEPS) for folder in (found, expected))
    assert state["data"] == other["data"]
    assert jax.tree.structure(state) == jax.tree.structure(other)
    for part in ("step", "rng"):
        np.testing.assert_array_equal(state["state"][part], other["state"][part])
    assert other["state"]["multiplier"] > 0
    for part in ("params", "multiplier", "average"):
        jax.tree.map(
            lambda one, another: np.testing.assert_allclose(one, another, rtol=1e-4, atol=1e-5),
            state["state"][part],
            other["state"][part],
        )


@pytest.mark.always
def test_a_run_among_others_is_the_run_alone(both, alone):
    for seed in ("0", "1"):
        assert_same_run(both / seed, alone / seed)
    assert runs.history(both / "0") != runs.history(both / "1")
    experiment, params, step = checkpoint.restore_for_eval(str(both / "1"))
    assert experiment == recipe(1) and step in (4, STEPS)
    assert {leaf.ndim for leaf in jax.tree.leaves(params)} == {
        leaf.ndim for leaf in jax.tree.leaves(runs.state(alone / "1", STEPS)["state"]["params"])
    }


def at_half(folder: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """A copy of a run as it stood after half of its steps."""
    shutil.copytree(folder, target)
    shutil.rmtree(target / "checkpoints" / str(STEPS))
    return target


def test_folders_are_exchanged(both, alone, tmp_path):
    one = at_half(both / "0", tmp_path / "alone")
    assert loop.fit(recipe(0), str(one)).finished
    assert_same_run(one, alone / "0")
    for seed in ("0", "1"):
        at_half(alone / seed, tmp_path / seed)
    assert all(outcome.finished for outcome in fit(tmp_path, (0, 1)))
    for seed in ("0", "1"):
        assert_same_run(tmp_path / seed, both / seed)


def test_runs_behind_come_first(both, tmp_path, monkeypatch):
    """One is finished, one half through, one not begun: which steps are taken by how many."""
    taken, train = [], loop.train

    def noted(group, take, stop, *, until):
        first = group[0].step
        train(group, take, stop, until=until)
        taken.append((len(group), first, until))

    monkeypatch.setattr(loop, "train", noted)
    shutil.copytree(both / "0", tmp_path / "0")
    at_half(both / "1", tmp_path / "1")
    assert [outcome.step for outcome in fit(tmp_path, (0, 1, 2))] == [STEPS] * 3
    assert taken == [(1, 0, 4), (2, 4, STEPS)]
    assert_same_run(tmp_path / "1", both / "1")
    before = runs.content(tmp_path / "2" / "checkpoints")
    assert all(outcome.finished and outcome.validation["nats"] > 0 for outcome in fit(tmp_path, (0, 1, 2)))
    assert runs.content(tmp_path / "2" / "checkpoints") == before and len(taken) == 2, (
        "finished runs are left as they are"
    )


def test_a_signal_saves_them_all(both, tmp_path, monkeypatch, capfd):
    record = loop.Run.record_metrics

    def signalled(self, number, sums):
        record(self, number, sums)
        if number == 2 and self.name.endswith("0: "):
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "record_metrics", signalled)
        outcomes = fit(tmp_path, (0, 1))
    # a step's metrics are read while the next one runs
    assert [(outcome.step, outcome.finished) for outcome in outcomes] == [(3, False)] * 2
    assert all((tmp_path / seed / "checkpoints" / "3").is_dir() for seed in ("0", "1"))
    assert all(outcome.finished for outcome in fit(tmp_path, (0, 1)))
    said = capfd.readouterr().err
    assert "stopping after this step" in said and f"{tmp_path / '1'}: step 8/8  validation" in said
    for seed in ("0", "1"):
        assert_same_run(tmp_path / seed, both / seed)


def patched(monkeypatch, change):
    """Replaces the step of several runs by `change(state before, (state, metrics) after)`."""
    call = multi_seed.StackedRuns.__call__

    def changed(self, states, batches):
        return change(int(states.step[0]), call(self, states, batches))

    monkeypatch.setattr(multi_seed.StackedRuns, "__call__", changed)


def test_a_device_without_memory_trains_one_after_another(both, tmp_path, monkeypatch, capsys):
    def exhausted(step, after):
        if step == 5:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return after

    patched(monkeypatch, exhausted)
    assert all(outcome.finished for outcome in fit(tmp_path, (0, 1)))
    said = capsys.readouterr().err
    assert (
        "no memory for a step of 2 runs: they are trained one after another" in said
        and said.count("resumed from step 4") == 2
    )
    for seed in ("0", "1"):
        assert_same_run(tmp_path / seed, both / seed)


def test_another_failure_of_the_device_is_raised(tmp_path, monkeypatch):
    def failed(self, states, batches):
        raise jax.errors.JaxRuntimeError("INTERNAL: broken")

    monkeypatch.setattr(multi_seed.StackedRuns, "__call__", failed)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        fit(tmp_path, (0, 1))


def test_a_loss_that_is_not_finite_names_its_run(tmp_path, monkeypatch):
    def poisoned(step, after):
        states, (first, second) = after
        return states, [first, second | ({"nats": np.array([np.nan, 1])} if step == 5 else {})]

    patched(monkeypatch, poisoned)
    with pytest.raises(
        InputError, match=rf"^{tmp_path / '1'}: the loss of step 6 is nan, .*checkpoint is step 4 in {tmp_path / '1'}"
    ):
        fit(tmp_path, (0, 1))


def test_runs_that_one_step_cannot_serve(tmp_path):
    folders = [str(tmp_path / name) for name in ("a", "b")]
    with pytest.raises(ValueError, match="2 experiments in 1 folders"):
        multi_seed.fit_seeds([recipe(0), recipe(1)], folders[:1])
    with pytest.raises(InputError, match=r"found training\.gate_l0: 0\.0 and 0\.5: train these apart"):
        multi_seed.fit_seeds([recipe(0), recipe(1, gate_l0=0.5)], folders)
    with pytest.raises(InputError, match=r"seeds of their own, found .* = \(0, 10\), \(0, 10\)"):
        multi_seed.fit_seeds([recipe(0), recipe(0)], folders)
    with pytest.raises(InputError, match="folders of their own"):
        multi_seed.fit_seeds([recipe(0), recipe(1)], [folders[0], f"{folders[0]}/"])
    with pytest.raises(InputError, match=r"training\.devices=2 is 2 devices here, .*use training\.devices=1"):
        multi_seed.fit_seeds([recipe(0, devices=2), recipe(1, devices=2)], folders)
    assert not list(tmp_path.iterdir())
