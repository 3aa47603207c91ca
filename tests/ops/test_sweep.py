"""Every recurrence equals its float64 loop, in values and gradients: a sweep over shapes, types, states, resets and
splits.

Tolerances, relative to the largest value: float32 rounds at 6e-8 and errors add up over a few hundred steps of
contraction, 1e-5 for values and 1e-4 for gradients; bfloat16 rounds inputs and outputs at 4e-3, 2e-2 for both.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurrences import OPS, error, in_pieces, pullback, reference

TOLERANCE = {"float32": (1e-5, 1e-4), "bfloat16": (2e-2, 2e-2)}


@pytest.mark.parametrize("name", OPS)
@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_equals_a_float64_loop(name, data):
    op = OPS[name]
    batch, size = data.draw(st.integers(1, 3), "batch"), data.draw(st.integers(1, 6), "size")
    steps = data.draw(st.sampled_from([1, 2, 5, 17, 63, 64, 65, 130]), "steps")
    method, dtype = (
        data.draw(st.sampled_from(op.methods), "method"),
        data.draw(st.sampled_from(sorted(TOLERANCE)), "dtype"),
    )
    cuts = tuple(sorted(data.draw(st.sets(st.integers(1, steps - 1), max_size=2), "cuts"))) if steps > 1 else ()
    has_state, rng = (
        op.singular or data.draw(st.booleans(), "h0"),
        np.random.default_rng(data.draw(st.integers(0, 99), "seed")),
    )
    reset = rng.random((batch, steps)) < data.draw(st.sampled_from([0.0, 0.1]), "resets")

    sequences, fixed, h0 = op.draw(rng, batch, steps, size)
    sequences = jax.tree.map(lambda value: jnp.asarray(value, dtype), sequences)
    fixed, h0 = jax.tree.map(lambda value: jnp.asarray(value * 1.0, jnp.float32), (fixed, h0 * has_state))
    shapes = jax.eval_shape(
        lambda *given: op.loop(*given, reset),
        *jax.tree.map(lambda value: value.astype(jnp.float32), (sequences, fixed, h0)),
    )
    cotangents = jax.tree.map(lambda like: jnp.asarray(rng.normal(size=like.shape), dtype), shapes)

    run = partial(in_pieces, op.run, cuts, reset=jnp.asarray(reset), method=method)
    found, expected = (
        pullback(run, sequences, fixed, h0, cotangents),
        reference(op, sequences, fixed, h0, reset, cotangents),
    )
    assert [leaf.dtype for leaf in jax.tree.leaves(found[1])] == [
        leaf.dtype for leaf in jax.tree.leaves((sequences, fixed, h0))
    ]
    for part, tolerance in zip((0, 1), TOLERANCE[dtype], strict=True):
        errors = jax.tree.leaves(jax.tree.map(error, found[part], expected[part]))
        assert max(errors) < tolerance, errors
