"""training.average: the average is the recurrence that its formula says, on any devices, and it is what is evaluated,
and kept as the best; parameters do not feel it.
"""

import shutil
from functools import partial

import jax
import numpy as np
import pytest

import runs
from selssm_jax.errors import InputError
from selssm_jax.model import SequenceModel
from selssm_jax.runs import open_run
from selssm_jax.training import checkpoint, loop, optimizer, parallel
from selssm_jax.training.evaluation import Evaluator
from selssm_jax.training.step import initial, train_step

DECAY, STEPS = 0.8, 8
OPTIONS = {
    "training__average": DECAY,
    "training__steps": STEPS,
    "training__log_every": 1,
    "training__eval_every": 4,
    "training__checkpoint_every": 4,
} | runs.SMALL
BATCH = runs.ragged(runs.TASKS["language"])


def compute_average(history: list) -> object:
    """(1 - d) sum_k d^(t-k) params_k / (1 - d^t), in float64."""
    ages = np.arange(len(history))[::-1]
    weights = DECAY**ages * (1 - DECAY) / (1 - DECAY ** len(history))
    return jax.tree.map(lambda *leaves: np.tensordot(weights, np.stack(leaves).astype(np.float64), 1), *history)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        pytest.param({"devices": 2, "accumulate": 2}, marks=pytest.mark.exhaustive),
        {"devices": 4, "mesh": (2, 2), "shard_parameters": True},
    ],
    ids=str,
)
def test_the_average_is_its_recurrence_run_by_hand(keys):
    accumulate = {"optimizer__accumulate": keys.get("accumulate", 1), "training__average": DECAY}
    training = {f"training__{key}": value for key, value in keys.items() if key != "accumulate"}
    experiment = runs.experiment(**accumulate | training)
    model = SequenceModel(runs.model(experiment.model, task=runs.TASKS["language"]))
    tx, devices = optimizer.build(experiment), loop.choose_devices(experiment)
    step = partial(train_step, model=model, optimizer=tx, experiment=experiment)
    meshed = "mesh" in keys
    run = loop.MeshRun(step, devices, experiment, model.config) if meshed else loop.SingleRun(step, devices)
    state = parallel.place(initial(experiment, model, tx, BATCH), loop.choose_layout(experiment, devices))
    history = []
    for _ in range(5):
        state, _ = run(state, [BATCH])
        history.append(jax.device_get(parallel.one_copy(state.params)))
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
            jax.device_get(parallel.one_copy(state.evaluated)),
            compute_average(history),
        )
    moved = jax.tree.map(lambda one, other: np.abs(one - other).max(), history[0], history[-1])
    assert max(jax.tree.leaves(moved)) > 1e-2, "an average of what stands still would say nothing"


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("average") / "run"
    outcome = loop.fit(runs.experiment(**OPTIONS), str(folder))
    return folder, outcome


def test_parameters_do_not_feel_their_average(averaged, tmp_path):
    loop.fit(runs.experiment(**OPTIONS | {"training__average": 0.0}), str(tmp_path / "plain"))
    state, plain = (runs.state(folder, STEPS)["state"] for folder in (averaged[0], tmp_path / "plain"))
    assert set(state) == set(plain) | {"average", "average_weight"}
    jax.tree.map(np.testing.assert_array_equal, {name: state[name] for name in plain}, plain)
    train = [
        [record for record in runs.history(folder) if record["split"] == "train"]
        for folder in (averaged[0], tmp_path / "plain")
    ]
    assert train[0] == train[1]
    assert runs.history(averaged[0]) != runs.history(tmp_path / "plain"), "validation is that of the average"


def test_the_average_is_what_is_validated_kept_and_evaluated(averaged):
    folder, outcome = averaged
    state = runs.state(folder, STEPS)["state"]
    experiment, params, step = checkpoint.restore_for_eval(str(folder))
    assert step == STEPS
    jax.tree.map(np.testing.assert_array_equal, params, state["average"])
    run = open_run(folder)
    scores = Evaluator(experiment, run.model)
    assert scores(params, run.dataset, "validation") == outcome.kept
    assert scores(state["params"], run.dataset, "validation") != outcome.kept


def test_the_last_parameters_and_lost_best_ones_are_averages_too(averaged, tmp_path):
    run = shutil.copytree(averaged[0], tmp_path / "run")
    shutil.rmtree(run / "best")
    last = runs.experiment(**OPTIONS, training__select="last")
    assert loop.fit(last, str(run)).finished
    for lost in ("nothing", "best"):
        shutil.rmtree(run / lost, ignore_errors=True)
        _, params, _ = checkpoint.restore_for_eval(str(run))
        jax.tree.map(np.testing.assert_array_equal, params, runs.state(run, STEPS)["state"]["average"])


def test_a_run_without_an_average_cannot_go_on_with_one(averaged):
    with pytest.raises(InputError, match=r"training\.average: 0\.8 there, 0\.0 now"):
        loop.fit(runs.experiment(**OPTIONS | {"training__average": 0.0}), str(averaged[0]))
