"""Many rows of relevance at once are those of each number alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.config import Model, Task
from selssm_jax.explain import explain_output, relevance_matrix
from selssm_jax.model import SequenceModel

SIZES = {"d_model": 6, "d_state": 4, "pattern": ("selective", "min_gru")}
TASKS = {
    "language": (Task("language", vocab=5, length=9), [(3, 1), (8, 4), (8, 0)]),
    "classification": (Task("classification", channels=2, classes=3, length=9), [(0,), (2,)]),
    "forecasting": (Task("forecasting", channels=2, horizon=3, length=9), [(0, 1), (2, 0)]),
}


def build(name):
    task, places = TASKS[name]
    model = SequenceModel(Model(**SIZES, task=task))
    inputs = (
        jax.random.randint(jax.random.key(1), (1, 9), 0, 5)
        if name == "language"
        else jax.random.normal(jax.random.key(1), (1, 9, 2))
    )
    return model, jax.jit(model.init)(jax.random.key(0), inputs)["params"], inputs, places


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("method", ["lrp", "gradient_x_input"])
def test_a_row_is_the_relevance_of_its_number(name, method):
    model, params, inputs, places = build(name)
    R, numbers = relevance_matrix(model, params, inputs, places, method=method, tile=2)
    for row, number, place in zip(R, numbers, places, strict=True):
        alone = explain_output(model, params, inputs, lambda outputs, at=place: outputs[(0, *at)], method=method)
        np.testing.assert_allclose(row, alone.relevance[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(number, alone.output, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "occlusion"}, "has no matrix: use one of lrp"),
        ({"places": [(9, 0)]}, r"lie outside the outputs, of shape \(9, 5\) a row"),
        ({"places": [(0,)]}, "give 2 indices for each"),
        ({"places": []}, "at least one of each"),
        ({"inputs": jnp.zeros((2, 9), jnp.int32)}, "2 rows of inputs"),
    ],
)
def test_what_cannot_be_explained_is_refused(changes, words):
    model, params, inputs, places = build("language")
    given = {"inputs": inputs, "places": places} | changes
    with pytest.raises(ValueError, match=words):
        relevance_matrix(model, params, **given)
