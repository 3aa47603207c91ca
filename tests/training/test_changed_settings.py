"""What a run may change on its way and is decided by: another batch size goes on with the next example, more steps with
the rate of as many; both are said, recorded and gone on from bit for bit.
"""

import contextlib
import dataclasses
import io
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from selssm_jax import data
from selssm_jax.analysis import scores
from selssm_jax.config import Experiment
from selssm_jax.errors import InputError
from selssm_jax.runs import open_run
from selssm_jax.training import loop, optimizer

HALF, STEPS, BEFORE, AFTER = 4, 8, 8, 6


def recipe(steps: int, **keys: object) -> Experiment:
    often = {"log_every": 1, "checkpoint_every": 2, "eval_every": HALF, "keep_checkpoints": 9}
    return runs.experiment(
        **{f"training__{key}": value for key, value in ({"steps": steps} | often).items()}
        | {"optimizer__warmup_steps": 1}
        | runs.SMALL
        | keys
    )


@pytest.fixture
def drawn(monkeypatch):
    """The numbers of the examples that each batch was made of, by its size and place."""
    numbers, load = {}, data.load_for_resume

    def load_noted(*arguments: object) -> data.Dataset:
        dataset = load(*arguments)

        def draw(seed: int, asked: np.ndarray) -> dict:
            numbers[len(asked), int(asked[0])] = asked
            return dataset.draw(seed, asked)

        return dataclasses.replace(dataset, draw=draw)

    monkeypatch.setattr(data, "load_for_resume", load_noted)
    return numbers


def stop_at(workdir, step: int) -> None:
    """Takes a run back to a checkpoint, as one that was killed after it."""
    for place in (workdir / "checkpoints").iterdir():
        if int(place.name) > step:
            shutil.rmtree(place)


@pytest.fixture(scope="module")
def raised(tmp_path_factory):
    """A run of HALF steps that went on to STEPS, and what was said when it did."""
    folder = tmp_path_factory.mktemp("raised") / "run"
    assert loop.fit(recipe(HALF), str(folder)).finished
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert loop.fit(recipe(STEPS), str(folder)).finished
    return folder, said.getvalue()


def test_another_batch_size_goes_on_with_the_next_example_said_recorded_and_bit_equal(raised, drawn, tmp_path, capsys):
    """Beside more steps: a checkpoint knows the settings that it was saved with, whatever config.json says by now."""
    run, other = shutil.copytree(raised[0], tmp_path / "run"), recipe(STEPS, data__batch_size=AFTER)
    stop_at(run, HALF)
    assert loop.fit(other, str(run)).finished
    said = capsys.readouterr().err
    assert (
        f"data.batch_size={AFTER} from here on, until now {BEFORE}: the data go on after the 32 examples seen" in said
    )
    assert f"training.steps={STEPS} from here on, until now {HALF}" in said
    place, rest = divmod(HALF * BEFORE, AFTER)
    assert runs.progress(run, STEPS)["data"] == {"next_index": place + STEPS - HALF, "first": rest}
    for batch in range(STEPS - HALF):
        first = HALF * BEFORE + batch * AFTER
        np.testing.assert_array_equal(drawn[AFTER, first], np.arange(first, first + AFTER))
    change = {"data.batch_size": AFTER, "training.steps": STEPS}
    changes = [record for record in runs.history(run) if record["split"] == "settings"]
    assert changes == [{"step": HALF, "split": "settings", **change}]
    assert scores.describe_course(open_run(run))["changes"] == [{"step": HALF, **change}]
    killed = shutil.copytree(run, tmp_path / "killed")
    stop_at(killed, HALF + 2)
    assert loop.fit(other, str(killed)).finished
    assert runs.history(killed) == runs.history(run)
    jax.tree.map(np.testing.assert_array_equal, runs.state(killed, STEPS), runs.state(run, STEPS))
    assert "from here on" not in capsys.readouterr().err, "it is said once"


def test_more_steps_go_on_with_the_rate_of_as_many_said_recorded_and_bit_equal(raised, tmp_path, monkeypatch):
    """As one run whose rate changes its course after HALF of its steps; fewer steps than were taken are refused."""
    folder, whole, schedule = raised[0], tmp_path / "whole", optimizer.schedule
    short, long = (schedule(recipe(steps)) for steps in (HALF, STEPS))
    said = re.search(
        rf"training\.steps={STEPS} from here on, until now {HALF}: the learning rate is from here on that of a run of "
        r"so many steps, next (\S+) after (\S+)",
        raised[1],
    )
    assert [float(rate) for rate in said.groups()] == pytest.approx(
        [float(long(HALF + 1)), float(short(HALF))], rel=0.01
    )
    monkeypatch.setattr(optimizer, "schedule", lambda _: lambda step: jnp.where(step <= HALF, short(step), long(step)))
    loop.fit(recipe(STEPS), str(whole))
    jax.tree.map(np.testing.assert_array_equal, *(runs.state(run, STEPS) for run in (folder, whole)))
    records = runs.history(folder)
    assert {"step": HALF, "split": "settings", "training.steps": STEPS} in records
    assert [record for record in records if record["split"] != "settings"] == runs.history(whole)
    with pytest.raises(InputError, match=rf"training\.steps={STEPS - 1}, but the run in .* has already taken {STEPS}"):
        loop.fit(recipe(STEPS - 1), str(folder))
