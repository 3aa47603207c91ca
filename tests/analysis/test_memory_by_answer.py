"""What a state knows of several answers: closed forms of Gaussian laws, chance, and what is said of a mixture."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import two_answers
from selssm_jax import data
from selssm_jax.analysis import memory, memory_by_answer
from selssm_jax.analysis.memory_by_answer import Answers
from selssm_jax.analysis.results import BITS
from selssm_jax.analysis.state_samples import Block, Recording
from selssm_jax.config import Data, Experiment, Measure
from selssm_jax.information.conditional import of_covariance
from selssm_jax.information.estimators import Training
from selssm_jax.information.retention import LEAST
from selssm_jax.model import SequenceModel
from selssm_jax.report import memory_section
from selssm_jax.runs import open_run
from selssm_jax.training.checkpoint import Workdir
from small_runs import built

QUICK = Training(steps=5, width=8, folds=2)
ROWS = 1000
# Rows are three components, then two values of the first answer and two of the second: what they are made of, the
# columns, are three parts and noises.
PARTS = np.array(
    [
        [1, 0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0],
        [1, 0.8, 0, 0.7, 0, 0, 0],
        [0.6, 0.3, 0, 0, 0.7, 0, 0],
        [1, 0, 0.9, 0, 0, 0.7, 0],
        [0.6, 0, 0.2, 0, 0, 0, 0.7],
    ]
)
COMPONENTS, FIRST, SECOND = [0, 1, 2], [3, 4], [5, 6]


def recording(targets, starts=None):
    """Of sequences of one moment."""
    live = np.ones((len(targets), 1), bool)
    return Recording(np.zeros((len(targets), 4, 1)), np.array([3]), live, starts, {}, None, targets)


def as_answers(first, second, groups=None):
    groups = np.arange(len(first)) if groups is None else groups
    return Answers({"first": first, "second": second}, groups, None, first.shape[1])


def draw_law():
    """(covariance, the components, the two answers) of a Gaussian law of one shared and two private parts."""
    drawn = np.random.default_rng(0).normal(size=(ROWS, 7)) @ PARTS.T
    return PARTS @ PARTS.T, drawn[:, COMPONENTS], as_answers(drawn[:, FIRST], drawn[:, SECOND])


def test_bits_of_each_component_are_those_of_the_law():
    cov, states, asked = draw_law()
    found = memory_by_answer.by_component(states, asked)
    exact = [[of_covariance(cov, [part], columns) * BITS for columns in (FIRST, SECOND)] for part in COMPONENTS]
    assert (np.abs(np.array(found["bits"]) - exact) < 4 * np.array(found["stderr"])).all()
    assert found["tells"] == [["first", "second"], ["first"], ["second"]]
    assert (found["shared"], found["private"], found["silent"]) == (1, [1, 1], 0)


@pytest.mark.exhaustive
def test_bits_of_each_answer_are_those_of_the_law():
    cov, states, asked = draw_law()
    exact = [of_covariance(cov, COMPONENTS, columns) * BITS for columns in (FIRST, SECOND, FIRST + SECOND)]
    together = {"future": exact[2], "stderr": 0.01}
    found = memory_by_answer.by_answer(Block(states[:, None], None, None), asked, together, QUICK)
    for bits, stderr, truth in zip(found["bits"], found["stderr"], exact[:2], strict=True):
        assert -0.05 < bits - truth < 3 * stderr
    assert abs(found["overlap"]["bits"] - (exact[0] + exact[1] - exact[2])) < found["overlap"]["stderr"]
    assert found["overlap"]["stderr"] == pytest.approx(sum(found["stderr"]) + 0.01)


@pytest.mark.exhaustive
def test_a_mixture_of_what_is_private_serves_both_answers_and_shares_nothing():
    """h = u + v, A = u, B = v and noise: h tells of both, and more of both together than the sum: A and B are
    independent, and are not where h is known.
    """
    maps = np.array([[1, 1, 0, 0], [1, 0, 0.5, 0], [0, 1, 0, 0.5]])
    cov = maps @ maps.T
    drawn = np.random.default_rng(1).normal(size=(ROWS, 4)) @ maps.T
    asked = as_answers(drawn[:, [1]], drawn[:, [2]])
    together = {"future": of_covariance(cov, [0], [1, 2]) * BITS, "stderr": 0.0}
    found = memory_by_answer.by_answer(Block(drawn[:, None, :1], None, None), asked, together, QUICK)
    assert found["components"]["shared"] == 1
    exact = sum(of_covariance(cov, [0], [column]) for column in (1, 2)) * BITS - together["future"]
    assert exact < -0.4
    assert found["overlap"]["bits"] + 3 * found["overlap"]["stderr"] < 0
    assert found["overlap"]["bits"] == pytest.approx(exact, abs=0.1)


def test_windows_of_series_that_have_nothing_to_do_with_one_another_tell_nothing():
    """Neighbouring windows are alike, so that a few hundred of them seem to tell more than independent ones would."""
    naive = 0
    for seed in range(6):
        steps = np.random.default_rng(seed).normal(size=(400, 8))
        series = np.stack(list(itertools.accumulate(steps, lambda before, step: 0.9 * before + step)))
        asked = memory_by_answer.find_answers(recording(series[:, 4:].reshape(400, 2, 2), np.arange(400.0)), {})
        assert asked is not None and len(np.unique(asked.groups)) == 40
        found = memory_by_answer.by_component(series[:, :4], asked)
        naive += (np.array(found["bits"]) - 2 * np.array(found["stderr"]) > LEAST * BITS).sum()
        assert found["silent"] == 4 and found["least"] > LEAST * BITS
    assert naive > 2, "taken for independent some would tell"


def test_a_component_that_stands_still_tells_nothing():
    drawn = np.random.default_rng(4).normal(size=(500, 3))
    states = np.stack([np.zeros(500), drawn[:, 0]], axis=1)
    found = memory_by_answer.by_component(states, as_answers(drawn[:, [0]] + drawn[:, [1]], drawn[:, [2]]))
    assert found["tells"] == [[], ["first"]] and np.isfinite(found["bits"]).all()


def test_which_forecasts_have_several_answers():
    rng = np.random.default_rng(0)
    for channels, expected in ((1, False), (2, True), (8, True), (9, False)):
        assert (
            memory_by_answer.find_answers(recording(rng.normal(size=(50, 3, channels))), {}) is not None
        ) == expected
    still = rng.normal(size=(50, 12, 3))
    assert memory_by_answer.find_answers(recording(still)._replace(targets=None), {}) is None
    still[..., 1] = 5
    about = {"channels": ["a", "b", "c"], "answers_known": {"nats": [1.0, 2.0], "nats_of_all": 2.5}}
    found = memory_by_answer.find_answers(recording(still), about)
    assert list(found.values) == ["a", "c"] and found.steps == 8 and found.values["a"].shape == (50, 8)
    assert found.known is None, "what is known is of twelve steps"
    assert memory_by_answer.find_answers(recording(still[..., 1:]), {}) is None, "one answer alone changes"
    short = memory_by_answer.find_answers(recording(still[:, :4, [0, 2]]), about | {"channels": ["a", "c"]})
    assert short.known == ([1.0, 2.0], 2.5) and short.steps == 4


def test_every_answer_is_a_linear_map_of_one_state():
    experiment = Experiment.from_config_dict(two_answers.get_config())
    dataset = data.load(experiment.data)
    model = SequenceModel(experiment.model.of_task(dataset.task))
    inputs = jnp.asarray(next(iter(dataset.evaluate("test", 1)))["inputs"])
    keys = {"params": jax.random.key(0), "noise": jax.random.key(2)}
    params = jax.jit(model.init)(keys, inputs[:, :1])
    begun = model.apply(params, 1, method="initial_state")

    @jax.jit
    def say(h):
        """The answers after an input of zeros, (H, C), of a memory that held h."""
        state = jax.tree.map(lambda leaf: h[None] if leaf.shape == (1, len(h)) else leaf, begun["blocks"])
        return model.apply(params, jnp.zeros_like(inputs[:, :1]), begun | {"blocks": state}, rngs=keys)[0][0]

    n = experiment.model.d_state
    one, other = jax.random.normal(jax.random.key(1), (2, n))
    np.testing.assert_allclose(say(2 * one - 3 * other), 2 * say(one) - 3 * say(other) + 2 * say(0 * one), atol=1e-5)
    maps = jax.jit(jax.jacobian(say))(one)
    assert maps.shape == (4, 2, n) and (jnp.abs(maps).max(axis=0) > 1e-3).all(), "both answers read every component"


FOUND = {
    "answers": ["a|b", "a channel of a name that is longer than any figure has room for, and goes on"],
    "steps": 4,
    "direction": "lower",
    "bits": [0.9, 0.6],
    "stderr": [0.01, 0.02],
    "together": {"bits": 1.4, "stderr": 0.02, "direction": "lower"},
    "overlap": {"bits": 0.1, "stderr": 0.05, "direction": "estimate"},
    "known": None,
    "notes": ["saturated: as an example"],
    "components": {
        "direction": "estimate",
        "bits": [[0.5, 0.4], [0.3, 0.0], [0.0, 0.0]],
        "stderr": [[0.01, 0.01]] * 3,
        "least": 0.03,
        "tells": [["a|b", "c"], ["a|b"], []],
        "shared": 1,
        "private": [1, 0],
        "silent": 1,
    },
}


def test_the_report_says_what_each_answer_and_each_component_has(tmp_path):
    many = FOUND | {"components": FOUND["components"] | {"bits": [[0.1, 0.2]] * 40}}
    known = FOUND | {"known": {"bits": [0.95, 0.66], "together": 1.405, "overlap": 0.205}}
    blocks = {"block_0": {"by_answer": known}, "block_1": {"by_answer": many}}
    words = str(memory_section._by_answer({"blocks": blocks}, tmp_path))
    assert "0.205" in words and "no measure of what is shared alone" in words and "Block 0: saturated" in words
    assert "of 3 components 1 tell of several answers, 1 of one, 1 of none by itself" in words
    assert "Block 0: what each component tells" in words and "Block 1: what each component tells" not in words
    assert (tmp_path / "answers.png").stat().st_size > 2000
    assert memory_section._by_answer({"blocks": {"block_0": {"by_answer": None}}}, tmp_path) == []


@pytest.mark.exhaustive
def test_a_run_of_two_answers_is_measured_beside_what_the_past_tells(tmp_path):
    config = Data(source="two_answers", length=24, horizon=4, noise=0.5, eval_batch_size=250, eval_examples=500)
    linear = {"pattern": ("selective",), "d_state": 3, "norm": "none", "conv": 0, "normalize": False}
    small, dataset, _, params = built(
        config, selective__gate="constant", selective__process_noise=0.3, mlp_ratio=0.0, **linear
    )
    settings = Measure(samples=500, positions=2, longest_lag=4, decoder_steps=20, decoder_width=8)
    workdir = Workdir(str(tmp_path / "run"), dataclasses.replace(small, measure=settings))
    workdir.describe(dataset.metadata())
    workdir.save_best(1, params, {})
    workdir.close()
    found = memory.measure(open_run(tmp_path / "run"), "test")
    one = found["blocks"]["block_0"]["by_answer"]
    assert one["together"]["bits"] == found["blocks"]["block_0"]["future"]["future"]
    assert one["known"]["together"] == pytest.approx(dataset.info["answers_known"]["nats_of_all"] * BITS)
    for bits, stderr, truth in zip(one["bits"], one["stderr"], one["known"]["bits"], strict=True):
        assert 0 <= bits < truth + 3 * stderr
    for moment in found["blocks"]["block_0"]["information"]:  # of three inputs at once
        assert moment["lower"] - 3 * moment["stderr"] <= moment["exact"] <= moment["upper"] + 3 * moment["stderr"]
    words = str(memory_section.describe_memory({"memory": json.loads(json.dumps(found)), "split": "test"}, tmp_path))
    assert "What the state knows of each answer" in words
