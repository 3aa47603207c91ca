"""training.skip_nonfinite: a run with a step that is not finite is the run without its update, on any devices. Such
steps are counted, and too many in a row end training.
"""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

import runs
from selssm_jax import data
from selssm_jax.errors import Diverged
from selssm_jax.model import SequenceModel
from selssm_jax.training import loop, multi_seed, optimizer, parallel
from selssm_jax.training.step import initial, train_step

STEPS, MOST = 10, 2
OPTIONS = {
    "training__skip_nonfinite": MOST,
    "training__average": 0.8,
    "training__target_dimension": 0.1,  # whose multiplier has to stay too
    "training__steps": STEPS,
    "training__log_every": 1,
    "training__eval_every": 4,
    "training__checkpoint_every": 3,
}
GOOD = [runs.ragged(runs.TASKS["language"], seed=seed) for seed in (1, 2)]


def spoil(batch: dict, rows: slice = slice(0, 1)) -> dict:
    """A batch in which some rows weigh not-a-number."""
    weights = batch["weights"].copy()
    weights[rows] = np.nan
    return batch | {"weights": weights}


def begin(**keys: object) -> tuple:
    """A step on the devices that the keys say, and its first state."""
    experiment = runs.experiment(**OPTIONS | keys)
    model = SequenceModel(runs.model(experiment.model, task=runs.TASKS["language"]))
    tx, devices = optimizer.build(experiment), loop.choose_devices(experiment)
    step = partial(train_step, model=model, optimizer=tx, experiment=experiment)
    meshed = experiment.training.mesh[1] > 1
    run = loop.MeshRun(step, devices, experiment, model.config) if meshed else loop.SingleRun(step, devices)
    first = jax.device_get(initial(experiment, model, tx, GOOD[0]))
    return step, run, lambda: parallel.place(first, loop.choose_layout(experiment, devices))


def take(run: loop.StepRunner, state: object, batches: list) -> tuple:
    skipped = []
    for batch in batches:
        state, sums = run(state, [batch])
        skipped.append([float(np.divide(*jax.device_get(each["skipped"]))) for each in sums])
    return jax.device_get(jax.tree.map(parallel.one_copy, state)), skipped


def assert_same_but_for_the_step(state: object, other: object) -> None:
    jax.tree.map(np.testing.assert_array_equal, dataclasses.replace(state, step=other.step), other)


@pytest.mark.parametrize(
    "keys",
    [
        {"training__devices": 2, "optimizer__accumulate": 2},
        pytest.param(
            {"training__devices": 4, "training__mesh": (2, 2), "training__shard_parameters": True},
            marks=pytest.mark.exhaustive,
        ),
    ],
    ids=str,
)
def test_a_skipped_step_leaves_all_but_its_number(keys):
    """What is not finite is on one device, and the others skip the step with it."""
    _, run, start = begin(**keys)
    state, skipped = take(run, start(), [GOOD[0], spoil(GOOD[0]), GOOD[1]])
    other, _ = take(run, start(), GOOD)
    assert skipped == [[0.0], [1.0], [0.0]] and (state.step, other.step) == (3, 2)
    assert_same_but_for_the_step(state, other)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_of_runs_that_share_a_step_each_skips_its_own():
    step, _, start = begin()
    run = multi_seed.StackedRuns(step, 2)
    states, skipped = run.stack([start(), start()]), []
    for batches in ([GOOD[0]] * 2, [spoil(GOOD[1]), GOOD[1]], [GOOD[1]] * 2):
        states, sums = run(states, batches)
        skipped.append([float(jax.device_get(each["skipped"])[0]) for each in sums])
    assert skipped == [[0, 0], [1, 0], [0, 0]]
    one, other = (jax.device_get(state) for state in run.unstack(states))
    again = run.stack([start(), start()])
    for batch in GOOD:
        again, _ = run(again, [batch, batch])
    assert_same_but_for_the_step(one, jax.device_get(run.unstack(again)[0]))
    assert any(
        np.any(left != right) for left, right in zip(*map(jax.tree.leaves, (one.params, other.params)), strict=True)
    )


@pytest.fixture
def poison(monkeypatch):
    """Spoils the batches of these steps in all runs from then on; of none where none are given."""
    load, size = data.load_for_resume, runs.experiment().data.batch_size

    def spoiled(steps: tuple[int, ...]) -> None:
        def load_spoiled(*arguments: object) -> data.Dataset:
            dataset = load(*arguments)

            def draw(seed: int, numbers: np.ndarray) -> dict:
                return spoil(dataset.draw(seed, numbers), np.isin(numbers // size + 1, steps))

            return dataclasses.replace(dataset, draw=draw)

        monkeypatch.setattr(data, "load_for_resume", load_spoiled)

    return spoiled


def test_skipped_steps_are_counted_said_and_too_many_in_a_row_end_a_run_that_goes_on_bit_equal(
    poison, tmp_path, capsys
):
    poison((3, 5, 6, 7))
    options = OPTIONS | runs.SMALL | {"training__target_dimension": 0.0}
    patient, most = runs.experiment(**options | {"training__skip_nonfinite": MOST + 1}), runs.experiment(**options)
    assert loop.fit(patient, str(tmp_path / "whole")).finished
    said = capsys.readouterr().err
    assert "step 3 is skipped, for its loss is nan, the gradient's norm nan: 1 in a row, of at most 3" in said
    assert "step 7 is skipped, for its loss is nan, the gradient's norm nan: 3 in a row, of at most 3" in said
    train = {record["step"]: record for record in runs.history(tmp_path / "whole") if record["split"] == "train"}
    assert [train[step]["skipped"] for step in range(1, STEPS + 1)] == [0, 0, 1, 1, 2, 3, 4, 4, 4, 4]
    assert [step for step in train if "nats" not in train[step]] == [3, 5, 6, 7]
    assert all(np.isfinite(value) for record in train.values() for name, value in record.items() if name != "split")
    message = r"the loss of step 7 is nan, the gradient's norm nan, after 2 in a row that were skipped: lower optimizer"
    with pytest.raises(Diverged, match=message + r".*; the last good checkpoint is step 6"):
        loop.fit(most, str(tmp_path / "run"))
    assert runs.progress(tmp_path / "run", 6)["skipped"] == {"steps": 3, "in_a_row": 2}
    assert loop.fit(patient, str(tmp_path / "run")).finished
    assert runs.history(tmp_path / "run") == runs.history(tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, *(runs.state(tmp_path / run, STEPS) for run in ("run", "whole")))
