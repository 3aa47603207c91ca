"""Recurrences inside a loop over pieces of a sequence: second derivatives are those of the pieces one by one.

JAX hoists what is constant out of the loop, and then looks for the residuals of a custom gradient among the wrong
inputs (see `boundaries.name_residuals`).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recurrences import OPS

FAST = ("linear_scan",)
# JAX refuses second derivatives of `lax.custom_root` inside a loop
DIFFERENTIABLE = [name for name in OPS if name != "newton_scan"]


@pytest.mark.always
@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.exhaustive) for name in DIFFERENTIABLE]
)
def test_second_derivatives_inside_a_loop_are_those_of_its_turns_one_by_one(name):
    op, rng = OPS[name], np.random.default_rng(0)
    sequences, fixed, h0 = jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), op.draw(rng, 1, 6, 2))
    pieces = jax.tree.map(lambda value: jnp.stack([value[:, :3], value[:, 3:]]), sequences)

    def turn(h, piece):
        y, h = op.run(piece, fixed, h, jnp.zeros((1, 3), bool), op.methods[0])
        return h, y

    def unrolled(h, pieces):
        first, y = turn(h, jax.tree.map(lambda value: value[0], pieces))
        last, z = turn(first, jax.tree.map(lambda value: value[1], pieces))
        return last, jnp.stack([y, z])

    def curvature(loop):
        def slope(pieces):
            slopes = jax.grad(lambda pieces: (loop(h0, pieces)[1] ** 3).sum())(pieces)
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(slopes))

        return jax.jit(jax.grad(slope))(pieces)

    looped, expected = curvature(lambda h, pieces: jax.lax.scan(turn, h, pieces)), curvature(unrolled)
    for one, other in zip(jax.tree.leaves(looped), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * float(jnp.abs(other).max()))
