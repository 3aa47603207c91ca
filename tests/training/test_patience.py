"""training.patience: training stops at the validation where it is at its end, saved and finished, alone and among other
runs; more patience goes on.
"""

import shutil

import pytest

import runs
from selssm_jax.analysis import scores
from selssm_jax.config import Experiment
from selssm_jax.runs import open_run
from selssm_jax.tasks.scores import count_since_best
from selssm_jax.training import loop, multi_seed
from selssm_jax.training.evaluation import Evaluator

STEPS, EVERY, PATIENCE = 24, 2, 3
# since the best after each: 0, 0, 1, 2, 0, 1, 2 (a tie is no better), 3
NATS = (3.0, 2.0, 2.5, 2.1, 1.9, 2.0, 1.9, 2.2)


def recipe(patience: int = PATIENCE, **keys: object) -> Experiment:
    return runs.experiment(
        **{
            "training__patience": patience,
            "training__steps": STEPS,
            "training__log_every": 1,
            "training__eval_every": EVERY,
            "training__checkpoint_every": 5,
        }
        | runs.SMALL
        | keys
    )


@pytest.fixture
def validations(monkeypatch):
    """Says what the next validations find."""

    def find(*values: float) -> None:
        following = iter(values)
        monkeypatch.setattr(Evaluator, "__call__", lambda *_, **__: {"nats": next(following)})

    return find


def test_what_came_since_the_best_is_counted():
    nan = float("nan")
    counts = [count_since_best("nats", NATS[:number]) for number in range(1, len(NATS) + 1)]
    assert counts == [0, 0, 1, 2, 0, 1, 2, 3]
    assert count_since_best("accuracy", NATS) == len(NATS) - 1, "of which more is better"
    assert count_since_best("nats", []) == 0
    assert count_since_best("nats", [nan, nan, 1.0, nan]) == 1, "any number is better than none"


def test_training_stops_where_patience_ends_and_stays_finished_killed_or_not(validations, tmp_path, capsys):
    validations(*NATS)  # the ninth is never asked for
    folder, last = tmp_path / "run", EVERY * len(NATS)
    outcome = loop.fit(recipe(), str(folder))
    assert (outcome.step, outcome.finished, outcome.early) == (last, True, True)
    assert outcome.validation == {"nats": NATS[-1]} and outcome.kept == {"nats": min(NATS)}
    assert f"stopped early at step {last} of {STEPS}: no better validation in the last 3" in capsys.readouterr().err
    assert (folder / "checkpoints" / str(last)).is_dir() and runs.history(folder)[-1]["step"] == last
    course = scores.describe_course(open_run(folder))
    assert course == {"ended_early": last, "skipped": 0, "changes": []}
    killed = shutil.copytree(folder, tmp_path / "killed")
    before = runs.content(folder / "checkpoints"), runs.history(folder)
    validations()
    assert loop.fit(recipe(), str(folder)) == outcome
    assert (runs.content(folder / "checkpoints"), runs.history(folder)) == before
    validations(5.0, 5.0)
    more = loop.fit(recipe(PATIENCE + 2), str(folder))
    assert (more.step, more.finished, more.early) == (last + 2 * EVERY, True, True)
    shutil.rmtree(killed / "checkpoints" / str(last))
    validations(NATS[-1])
    assert loop.fit(recipe(), str(killed)) == outcome and runs.history(killed) == before[1]


@pytest.mark.exhaustive
def test_of_runs_that_share_a_step_one_ends_and_the_other_goes_on(validations, tmp_path):
    validations(5.0, 9.0, 5.0, 8.0, 7.0, 6.0)  # of both by turns, then of the other
    experiments = [recipe(1, training__seed=seed, training__steps=4 * EVERY) for seed in (0, 1)]
    outcomes = multi_seed.fit_seeds(experiments, [str(tmp_path / str(seed)) for seed in (0, 1)])
    assert [(outcome.step, outcome.finished, outcome.early) for outcome in outcomes] == [
        (2 * EVERY, True, True),
        (4 * EVERY, True, False),
    ]
