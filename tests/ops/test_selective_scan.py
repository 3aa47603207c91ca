"""selective_scan: what it stores, what it compiles to, gradients of any order, resets and mistakes. Its values:
test_sweep.py.
"""

import inspect
import re
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from recurrences import OPS
from selssm_jax.ops import selective_scan

METHODS = ["sequential", "chunked"]
OP = OPS["selective_scan"]


def draw(batch=2, steps=70, size=3, dtype=jnp.float32):
    return jax.tree.map(lambda value: jnp.asarray(value, dtype), OP.draw(np.random.default_rng(0), batch, steps, size))


def total(run, given, reset=None):
    y, last = run(*given, reset)
    return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(last))


@pytest.mark.parametrize("method", METHODS)
def test_second_gradients(method):
    given, reset = draw(steps=9), jnp.zeros((2, 9), bool).at[0, 4].set(True)

    def twice(run):
        first = jax.grad(lambda given: total(run, given, reset))
        return jax.jit(jax.grad(lambda given: sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(first(given)))))(given)

    for found, expected in zip(
        jax.tree.leaves(twice(partial(OP.run, method=method))), jax.tree.leaves(twice(OP.loop)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * jnp.abs(expected).max())


def test_float64_stays_float64():
    with jax.enable_x64(True):
        given = draw(dtype=jnp.float64)
        reset = jnp.zeros((2, 70), bool)
        found, expected = jax.jit(partial(OP.run, method="sequential"))(*given, reset), OP.loop(*given, reset)
        assert found[0].dtype == jnp.float64
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_accumulates_in_float32_where_bfloat16_would_stand_still(method):
    ones = jnp.ones((1, 300, 1), jnp.bfloat16)
    _, last = selective_scan(ones, ones, jnp.zeros((1, 1)), ones, ones, method=method)
    assert last.dtype == jnp.float32 and last.item() == 300  # a bfloat16 sum of ones ends at 256


@pytest.mark.parametrize("method", METHODS)
def test_no_gradient_crosses_a_reset(method):
    (sequences, fixed, h0), reset = draw(), jnp.zeros((2, 70), bool).at[:, 30].set(True)
    after, dh0 = jax.grad(lambda s, h0: jnp.sum(OP.run(s, fixed, h0, reset, method)[0][:, 30:]), argnums=(0, 1))(
        sequences, h0
    )
    assert not dh0.any()
    for leaf in after:
        assert not leaf[:, :30].any() and leaf[:, 31:].any()


def test_no_skip_is_a_skip_of_zero():
    (x, dt, B, C), (A, _), _ = draw()
    y, last = selective_scan(x, dt, A, B, C)
    again, same = selective_scan(x, dt, A, B, C, jnp.zeros(3), jnp.zeros((2, 3, 4)))
    np.testing.assert_array_equal(y, again)
    np.testing.assert_array_equal(last, same)


@pytest.mark.parametrize("method", METHODS)
def test_vmap(method):
    given, reset = draw(), jnp.zeros((2, 70), bool)
    run = partial(OP.run, reset=reset, method=method)
    (sequences, fixed, h0), stacked = given, jax.tree.map(lambda value: jnp.stack([value, 0.5 * value]), given)
    y, last = jax.vmap(run)(*stacked)
    for index, scale in enumerate((1, 0.5)):
        expected = run(*jax.tree.map(lambda value, scale=scale: scale * value, (sequences, fixed, h0)))
        np.testing.assert_allclose(y[index], expected[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(last[index], expected[1], rtol=1e-5, atol=1e-5)


# What is stored and compiled.


def gradient(method, *given):
    return jax.value_and_grad(lambda given: total(partial(OP.run, method=method), given))(given)


def shapes(steps=2048, width=64, states=16):
    sequence, poles = (
        jax.ShapeDtypeStruct((1, steps, width), jnp.float32),
        jax.ShapeDtypeStruct((width, states), jnp.float32),
    )
    map_, state = (
        jax.ShapeDtypeStruct((1, steps, states), jnp.float32),
        jax.ShapeDtypeStruct((1, width, states), jnp.float32),
    )
    return (sequence, sequence, map_, map_), (poles, jax.ShapeDtypeStruct((width,), jnp.float32)), state


@pytest.mark.parametrize("method", METHODS)
def test_states_are_never_stored_forward_or_backward(method):
    compiled = jax.jit(partial(gradient, method)).lower(*shapes()).compile()
    largest = max(
        np.prod([int(n) for n in found.split(",")]) for found in re.findall(r"f32\[([\d,]+)\]", compiled.as_text())
    )
    assert largest <= 2048 * 64, "nothing is larger than x: all states would be 16 times as large"


def test_memory_grows_with_steps_and_not_with_their_states():
    bytes_of = lambda steps: (  # noqa: E731
        jax.jit(partial(gradient, "sequential")).lower(*shapes(steps)).compile().memory_analysis().temp_size_in_bytes
    )
    more = bytes_of(4096) - bytes_of(2048)
    # of 2048 more steps: a few arrays like x, and the states before 32 chunks; all states would be 16 arrays like x
    assert more < 4 * 2048 * 64 * 4


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_auto_picks_the_method_of_the_platform_it_is_lowered_for(platform):
    def lowered(method, platform):
        return jax.export.export(jax.jit(partial(gradient, method)), platforms=[platform])(*shapes(128)).mlir_module()

    def loops(method, platform):
        return lowered(method, platform).count("stablehlo.while(")

    assert loops("auto", "cpu") == loops("sequential", "cpu") != loops("chunked", "cpu")
    assert loops("auto", platform) == loops("chunked", platform) == loops("chunked", "cpu")


# Mistakes. The function is called as a user's program calls it, without the tests' own type checks.

X, A, B = np.ones((2, 5, 3), np.float32), -np.ones((3, 4), np.float32), np.ones((2, 5, 4), np.float32)
MISTAKES = {
    "method": (dict(method="associative"), "method='associative' is unknown: use one of auto, sequential, chunked"),
    "axes of x": (dict(x=X[0]), r"x has shape \(5, 3\), expected \(B, T, D\) with T >= 1"),
    "no steps": (dict(x=X[:, :0]), r"x has shape \(2, 0, 3\), expected"),
    "poles": (dict(A=A.T), r"A has shape \(4, 3\), expected \(D, N\) with D = 3 from x"),
    "steps of dt": (dict(dt=X[:, :4]), r"dt has shape \(2, 4, 3\), expected \(2, 5, 3\) from x"),
    "input map": (dict(B=B[..., :1]), r"B has shape \(2, 5, 1\), expected \(2, 5, 4\)"),
    "skip": (dict(D=np.ones(4, np.float32)), r"D has shape \(4,\), expected \(3,\)"),
    "state": (dict(h0=np.ones((2, 4, 3), np.float32)), r"h0 has shape \(2, 4, 3\), expected \(2, 3, 4\)"),
    "integers": (dict(dt=np.ones((2, 5, 3), np.int32)), r"dt has dtype int32, expected real numbers: convert it"),
    "complex": (dict(A=A.astype(np.complex64)), r"A has dtype complex64, expected real numbers"),
    "reset's shape": (dict(reset=np.ones((2, 4), bool)), r"reset has shape \(2, 4\), expected \(2, 5\)"),
    "reset's type": (dict(reset=np.ones((2, 5), np.int32)), "reset has dtype int32, expected bool"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_with_their_fix(mistake):
    given, words = MISTAKES[mistake]
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(selective_scan)(**{"x": X, "dt": X, "A": A, "B": B, "C": B, **given})
