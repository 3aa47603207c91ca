"""Curves of a model whose truth is known, and the steps that decide the answers of synthetic tasks."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from selssm_jax import data, explain
from selssm_jax.config import Data, Task
from selssm_jax.explain.faithfulness import average
from selssm_jax.model import SequenceModel

B, T = 6, 10


@functools.cache
def subject():
    """A linear model of a series: a forecast is a sum over the inputs, each times a weight of its step."""
    task = Task("forecasting", channels=1, length=T, horizon=2)
    config = runs.model(pattern=("lru",), d_model=8, d_state=4, mlp_ratio=0.0, norm="none", normalize=False, task=task)
    model = SequenceModel(config)
    return model, jax.jit(model.init)(jax.random.key(0), series())["params"]


def series():
    return jax.random.normal(jax.random.key(1), (B, T, 1)) + 2


def score(outputs):
    return outputs[:, 0, 0]


def test_curves_are_those_of_a_loop_and_relevance_of_a_linear_model_is_the_best_order():
    model, params = subject()
    shares = np.asarray(explain.relevance(model, params, series(), lambda outputs: score(outputs).sum()))
    curves = explain.perturbation_curves(model, params, series(), score, shares)
    assert curves.deletion.shape == curves.insertion.shape == (B, 11)
    falling = -np.sort(-shares, axis=1)
    sums = np.concatenate([np.zeros((B, 1)), np.cumsum(falling, axis=1)], axis=1)
    np.testing.assert_allclose(curves.insertion, sums, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(curves.deletion, sums[:, -1:] - sums, rtol=1e-4, atol=1e-5)
    rng = np.random.default_rng(0)
    for _ in range(5):
        other = explain.perturbation_curves(model, params, series(), score, rng.normal(size=(B, T)))
        assert np.all(other.difference < curves.difference)
    reverse = explain.perturbation_curves(model, params, series(), score, -shares)
    np.testing.assert_allclose(reverse.difference, -curves.difference, rtol=1e-4, atol=1e-5)


def test_padding_is_neither_replaced_nor_counted():
    model, params = subject()
    short, valid = series()[:, :4], jnp.arange(T)[None] < jnp.full((B, 1), 4)
    padded = jnp.where(valid[..., None], series(), 0)
    relevance = np.random.default_rng(0).normal(size=(B, T))
    found = explain.perturbation_curves(model, params, padded, score, relevance, valid=valid, points=5)
    assert len(np.unique(np.asarray(found.deletion[0]))) == 5
    shapes = found.deletion.shape, found.insertion.shape
    assert shapes == ((B, 5), (B, 5)) and short.shape == (B, 4, 1)
    np.testing.assert_allclose(found.deletion[:, -1], 0, atol=1e-6)


def test_methods_are_compared_on_the_same_examples():
    model, params = subject()
    ask = functools.partial(explain.compare_methods, model, params, series(), score)
    found = ask(methods=("lrp", "gradient_x_input", "occlusion"), others={"none": np.zeros((B, T))})
    assert set(found.differences) == {"lrp", "gradient_x_input", "occlusion", "none", "random"}
    np.testing.assert_allclose(found.differences["lrp"], found.differences["gradient_x_input"], rtol=1e-3)
    gain = found.advantage("lrp", "random")
    assert gain.low > 0 and gain.low < gain.value < gain.high
    np.testing.assert_allclose(found.advantage("random", "lrp").value, -gain.value)
    np.testing.assert_array_equal(ask().differences["random"], found.differences["random"])
    assert np.any(ask(seed=1).differences["random"] != found.differences["random"])


def test_an_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [average(rng.normal(3, 2, size=8), level=0.8) for _ in range(2000)]
    held = np.mean([interval.low < 3 < interval.high for interval in intervals])
    assert abs(held - 0.8) < 4 * np.sqrt(0.8 * 0.2 / 2000)
    assert average(np.array([1.0, 3.0, np.nan])).value == 2
    with pytest.raises(ValueError, match="1 values have no interval"):
        average(np.array([1.0, np.nan]))


def test_auroc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    relevance, relevant = rng.integers(0, 5, (4, 30)).astype(float), rng.random((4, 30)) < 0.3
    among = rng.random((4, 30)) < 0.8
    found = explain.auroc(relevance, relevant, among)
    for row in range(4):
        pairs = itertools.product(
            relevance[row][relevant[row] & among[row]], relevance[row][~relevant[row] & among[row]]
        )
        np.testing.assert_allclose(found[row], np.mean([(a > b) + 0.5 * (a == b) for a, b in pairs]))
    assert np.isnan(explain.auroc(relevance[:1], np.zeros((1, 30), bool))).all()


SOURCES = {
    "selective_copying": ({"length": 12, "tokens": 3, "vocab": 5}, (12, 13, 14), 1),
    "induction_heads": ({"length": 12, "vocab": 5}, (11,), 2),
    "associative_recall": ({"length": 20, "tokens": 3, "vocab": 5}, (), 2),
    "delayed_recall": ({"length": 12, "lag": 4, "vocab": 5}, (4, 7, 11), 1),
}


@pytest.mark.parametrize("source", SOURCES)
def test_relevant_steps_are_those_that_hold_the_answer(source):
    """What is said is what was read at the last of them; and where another symbol stands there, that is to be said."""
    keys, steps, count = SOURCES[source]
    config = Data(source=source, train_examples=16, eval_examples=8, **keys)
    batch = next(data.load(config).evaluate("test", 8))
    inputs, targets, weights = (np.asarray(batch[name]) for name in ("inputs", "targets", "weights"))
    cases = [(slice(None), at) for at in steps] or [
        (slice(row, row + 1), int(at)) for row in range(8) for at in np.flatnonzero(weights[row])
    ]
    for rows, at in cases:
        assert np.all(weights[rows, at] == 1)
        relevant = explain.relevant_steps(config, inputs[rows], at)
        assert np.all(relevant.sum(axis=1) == count)
        last = relevant.shape[1] - 1 - relevant[:, ::-1].argmax(axis=1)
        np.testing.assert_array_equal(np.take_along_axis(inputs[rows], last[:, None], axis=1)[:, 0], targets[rows, at])
        assert np.all(last < at)


def test_what_is_not_known_is_refused():
    config = Data(source="selective_copying", length=12, tokens=3, vocab=5, train_examples=16, eval_examples=8)
    inputs = next(data.load(config).evaluate("test", 8))["inputs"]
    for at in (3, 15, -1):
        with pytest.raises(ValueError, match=f"at={at} is no step"):
            explain.relevant_steps(config, inputs, at)
    with pytest.raises(ValueError, match="are not known: use selective_copying"):
        explain.relevant_steps(Data(source="linear_gaussian"), inputs, 3)
    model, params = subject()
    ask = functools.partial(explain.perturbation_curves, model, params, series())
    with pytest.raises(ValueError, match="relevance has shape"):
        ask(score, np.zeros((B, T + 1)))
    with pytest.raises(ValueError, match="points=1"):
        ask(score, np.zeros((B, T)), points=1)
    with pytest.raises(ValueError, match="score gives shape"):
        ask(lambda outputs: outputs.sum(), np.zeros((B, T)))
    with pytest.raises(ValueError, match="method='lpr' is unknown"):
        explain.compare_methods(model, params, series(), score, methods=("lpr",))
