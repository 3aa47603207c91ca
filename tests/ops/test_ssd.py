"""ssd: equal to selective_scan where both apply, precise over long chunks, gradients, resets and mistakes. Its values:
test_sweep.py.
"""

import inspect
import sys
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from recurrences import OPS, error, reference
from selssm_jax.ops import selective_scan, ssd

OP = OPS["ssd"]


def draw(batch=2, steps=70, size=2, dtype=jnp.float32):
    return jax.tree.map(lambda value: jnp.asarray(value, dtype), OP.draw(np.random.default_rng(0), batch, steps, size))


def test_is_a_selective_scan_with_one_decay_a_head():
    rng = np.random.default_rng(0)
    batch, steps, heads, width, states = 2, 70, 3, 4, 5
    x, dt = rng.normal(size=(batch, steps, heads, width)), rng.uniform(0.01, 1, (batch, steps, heads))
    A, B, C = -rng.uniform(0.1, 2, heads), *rng.normal(size=(2, batch, steps, 1, states))
    x, dt, A, B, C = (jnp.asarray(value, jnp.float32) for value in (x, dt, A, B, C))
    y, last = ssd(x, dt, A, B, C)
    wide = selective_scan(
        x.reshape(batch, steps, -1),
        jnp.repeat(dt, width, axis=2),
        jnp.broadcast_to(jnp.repeat(A, width)[:, None], (heads * width, states)),
        B[:, :, 0],
        C[:, :, 0],
    )
    np.testing.assert_allclose(y.reshape(batch, steps, -1), wide[0], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(last.reshape(batch, -1, states), wide[1], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_long_chunks_are_as_precise_as_short_ones_whatever_the_decay(scale):
    """Decays are differences of sums over the chunk: sums in float32 alone would err by their own size, 1e-7 * T *
    scale.
    """
    sequences, fixed, h0 = draw(batch=1, steps=512)
    fixed = scale * fixed[0], fixed[1]
    reset, cotangents = jnp.zeros((1, 512), bool), (jnp.ones_like(sequences[0]), jnp.ones_like(h0))
    expected, _ = reference(OP, sequences, fixed, h0, reset, cotangents)
    for chunk in (16, 512):
        assert error(OP.run(sequences, fixed, h0, reset, chunk)[0], expected[0]) < 1e-5


def test_second_gradients():
    given, reset = draw(steps=9), jnp.zeros((2, 9), bool).at[0, 4].set(True)

    def twice(run):
        first = jax.grad(lambda given: sum(jnp.sum(jnp.sin(out)) for out in run(*given, reset)))
        return jax.jit(jax.grad(lambda given: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(first(given)))))(given)

    for found, expected in zip(
        jax.tree.leaves(twice(partial(OP.run, method=4))), jax.tree.leaves(twice(OP.loop)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * jnp.abs(expected).max())


def test_steps_that_forget_everything_have_finite_gradients():
    sequences, fixed, h0 = draw()
    fixed = jnp.full_like(fixed[0], -1e6), fixed[1]
    gradients = jax.grad(lambda *given: jnp.sum(OP.run(*given, None, "auto")[0]), argnums=(0, 1, 2))(
        sequences, fixed, h0
    )
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_no_gradient_crosses_a_reset():
    (sequences, fixed, h0), reset = draw(), jnp.zeros((2, 70), bool).at[:, 30].set(True)
    after, dh0 = jax.grad(lambda s, h0: jnp.sum(OP.run(s, fixed, h0, reset, "auto")[0][:, 30:]), argnums=(0, 1))(
        sequences, h0
    )
    assert not dh0.any()
    for leaf in after:
        assert not leaf[:, :30].any() and leaf[:, 31:].any()


def test_accumulates_in_float32_where_bfloat16_would_stand_still():
    ones = jnp.ones((1, 300, 1), jnp.bfloat16)
    _, last = ssd(ones[..., None], ones, jnp.zeros(1), ones[..., None], ones[..., None])
    assert last.dtype == jnp.float32 and last.item() == 300


def test_float64_stays_float64():
    with jax.enable_x64(True):
        given, reset = draw(dtype=jnp.float64), jnp.zeros((2, 70), bool)
        np.testing.assert_allclose(OP.run(*given, reset, "auto")[0], OP.loop(*given, reset)[0], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_lowers_for_accelerators_without_a_loop(platform, monkeypatch):
    # the chunks alone, without the single steps that they give way to
    for module in ("_ssd", "_linear_scan", "recomputation"):
        monkeypatch.setattr(
            sys.modules[f"selssm_jax.ops.{module}"],
            "composed_or_stepped",
            lambda safe, composed, stepped, *operands: composed(*operands),
        )

    def gradient(*given):
        return jax.grad(lambda given: jnp.sum(OP.run(*given, None, "auto")[0]))(given)

    text = jax.export.export(jax.jit(gradient), platforms=[platform])(*draw()).mlir_module()
    assert "stablehlo.while" not in text and "stablehlo.dot_general" in text


X, DT, A, B = (np.ones(shape, np.float32) for shape in ((2, 5, 4, 3), (2, 5, 4), (4,), (2, 5, 2, 6)))
MISTAKES = {
    "chunk": (dict(chunk=0), "chunk=0 is no number of steps: use 'auto' or a whole number from 1"),
    "axes of x": (dict(x=X[0]), r"x has shape \(5, 4, 3\), expected \(B, T, H, P\) with T >= 1"),
    "groups": (
        dict(B=np.ones((2, 5, 3, 6), np.float32)),
        r"B has shape \(2, 5, 3, 6\), expected \(B, T, G, N\) with G a divisor of the 4 heads",
    ),
    "readout": (dict(C=B[..., :1]), r"C has shape \(2, 5, 2, 1\), expected \(2, 5, 2, 6\)"),
    "poles": (dict(A=A[:1]), r"A has shape \(1,\), expected \(4,\)"),
    "state": (dict(h0=np.ones((2, 4, 6, 3), np.float32)), r"h0 has shape \(2, 4, 6, 3\), expected \(2, 4, 3, 6\)"),
    "integers": (dict(dt=DT.astype(np.int32)), "dt has dtype int32, expected real numbers"),
    "reset": (dict(reset=np.ones((2, 5), np.int32)), "reset has dtype int32, expected bool"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_with_their_fix(mistake):
    given, words = MISTAKES[mistake]
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(ssd)(**{"x": X, "dt": DT, "A": A, "B": B, "C": B, **given})
