"""The relevance of every input step for many numbers of one answer at once: R[o, t], a row for each output.

A row is what `attribution.relevance` says of its number. All rows share one reading of the model: with the rules held,
each is the pullback of a unit of the outputs, many at a time.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from selssm_jax.explain.attribution import Question, gather_call
from selssm_jax.layers.relevance_rules import RULES, explaining
from selssm_jax.layers.variables import parameters
from selssm_jax.model import Inputs, SequenceModel
from selssm_jax.tasks.registry import kind_of

TILE = 16  # rows that are pulled back at a time
FOLLOWED = ("lrp", "gradient_x_input")


def relevance_matrix(
    model: SequenceModel,
    params: PyTree,
    inputs: Inputs,
    places: Sequence[tuple[int, ...]],
    *,
    method: str = "lrp",
    tile: int = TILE,
) -> tuple[Float[Array, "O T"], Float[Array, "O"]]:
    """Returns (R, the numbers that are explained) of one sequence.

    Args:
      model, params: as trained. inputs: (1, T) tokens or (1, T, C) values.
      places: of each number its place in the outputs of the row, such as (step, token), (class,), or (row ahead,
        channel); of forecasts of quantiles in their median.
      method: "lrp" or "gradient_x_input". tile: rows of R at a time.

    Raises:
      ValueError: for another method, more than one row of inputs, no places, and places that are not in the outputs.
    """
    if method not in FOLLOWED:
        raise ValueError(f"method={method!r} has no matrix: use one of {', '.join(FOLLOWED)}")
    inputs = jnp.asarray(inputs)
    if len(inputs) != 1 or not len(places) or tile < 1:
        raise ValueError(
            f"{len(inputs)} rows of inputs, {len(places)} places, tile={tile}: give one row, and at least one of each"
        )
    shape = jax.eval_shape(lambda: _answer(model, parameters(params), inputs)).shape[1:]
    chosen = np.asarray(places, np.int32)
    if chosen.ndim != 2 or chosen.shape[1] != len(shape) or (chosen < 0).any() or (chosen >= shape).any():
        raise ValueError(f"places lie outside the outputs, of shape {shape} a row: give {len(shape)} indices for each")
    active = frozenset(RULES) if method == "lrp" else frozenset()
    return _pull_back(model, active, tile, parameters(params), inputs, jnp.asarray(chosen))


def _answer(model: SequenceModel, params: PyTree, inputs: Array) -> Array:
    return kind_of(model.config.task).point(model.apply({"params": params}, inputs)[0])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _pull_back(
    model: SequenceModel, rules: frozenset[str], tile: int, params: PyTree, inputs: Array, places: Array
) -> tuple[Array, Array]:
    question, given, kind = Question(model, jnp.sum), gather_call(inputs), kind_of(model.config.task)
    with jax.default_matmul_precision("highest"), explaining(rules):
        x = question.features(params, given)
        outputs, pull = jax.vjp(lambda by: kind.point(question.shift(params, given, by)), jnp.zeros_like(x))

        def explain(place: Array) -> tuple[Array, Array]:
            unit = jnp.zeros_like(outputs).at[(0, *place)].set(1)
            return (pull(unit)[0] * x).sum(axis=-1)[0], outputs[(0, *place)]

        return jax.lax.map(explain, places, batch_size=tile)
