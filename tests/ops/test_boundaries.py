"""What a recurrence may not see never reaches it: factors that grow, and what is not finite before a reset or after a
step, by every method.

The sequential method of the values that are finite is the reference; what is not finite is put where nothing that is
compared may see it.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recurrences import OPS
from selssm_jax.ops import dense_scan, linear_scan

B, T, RESET, LATER = 2, 12, 6, 9
CLOSE = {"rtol": 2e-3, "atol": 1e-4}
BAD = [jnp.nan, jnp.inf]


def of_linear(sequences, fixed, h0, reset, method):
    del fixed
    return linear_scan(*sequences, h0, reset=reset, method=method)


def of_dense(sequences, fixed, h0, reset, method):
    del fixed
    return dense_scan(*sequences, h0, reset=reset, method=method)


def drawn(name):
    rng = np.random.default_rng(0)
    if name == "dense_scan":
        sequences, fixed, h0 = (
            (rng.normal(size=(B, T, 3, 3)) / 3, rng.normal(size=(B, T, 3))),
            (),
            rng.normal(size=(B, 3)),
        )
    else:
        sequences, fixed, h0 = OPS[name].draw(rng, B, T, 3)
    return jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), (sequences, fixed, h0))


RUNS = {
    "gated_attention": OPS["gated_attention"].run,
    "kalman_attention": OPS["kalman_attention"].run,
    "linear_scan": of_linear,
    "dense_scan": of_dense,
    "kalman_scan": OPS["kalman_scan"].run,
    "selective_scan": OPS["selective_scan"].run,
    "ssd": OPS["ssd"].run,
}
METHODS = {
    "gated_attention": ("sequential", "chunked"),
    "kalman_attention": ("sequential", "associative"),
    "linear_scan": ("sequential", "associative", "chunked"),
    "dense_scan": ("sequential", "associative"),
    "kalman_scan": ("sequential", "associative"),
    "selective_scan": ("sequential", "chunked"),
    "ssd": ("auto", 4),
}
SLOW = [("ssd", 4)]
PAIRS = [(name, method) for name, methods in METHODS.items() for method in methods]
EVERY = pytest.mark.parametrize(
    ("name", "method"), [pytest.param(*pair, marks=pytest.mark.exhaustive if pair in SLOW else ()) for pair in PAIRS]
)


@functools.cache
def both(name, method):
    """(outputs, gradients of those after the reset and before `LATER`), by one program."""
    reset = jnp.zeros((B, T), bool).at[:, RESET].set(True)

    def read(sequences, fixed, h0):
        y, _ = RUNS[name](sequences, fixed, h0, reset, method)
        return jnp.square(y[:, RESET:LATER]).sum(), y

    return jax.jit(jax.grad(read, argnums=(0, 1, 2), has_aux=True))


@EVERY
def test_what_is_not_finite_before_a_reset_or_later_reaches_neither_values_nor_gradients(name, method):
    sequences, fixed, h0 = drawn(name)
    expected, y = both(name, method)(sequences, fixed, h0)
    for bad in BAD:
        ill = tuple(value.at[0, number].set(bad).at[:, LATER].set(bad) for number, value in enumerate(sequences))
        found, seen = both(name, method)(ill, fixed, h0.at[1].set(bad))
        np.testing.assert_allclose(seen[:, RESET:LATER], y[:, RESET:LATER], **CLOSE)
        assert not np.isfinite(np.asarray(seen[1, :RESET])).any(), "what it reaches is no number"
        for one, other in zip(
            jax.tree.leaves((found[0], found[1][:1], found[2])),
            jax.tree.leaves((expected[0], expected[1][:1], expected[2])),
            strict=True,
        ):
            np.testing.assert_allclose(one, other, **CLOSE)  # all but D, which meets x alone and no state


@pytest.mark.parametrize("name", ["selective_scan", pytest.param("ssd", marks=pytest.mark.exhaustive)])
def test_a_gradient_that_reads_what_is_not_finite_is_no_number(name):
    sequences, fixed, h0 = drawn(name)
    ill = (sequences[0].at[0, 1].set(jnp.nan), *sequences[1:])
    dA = jax.jit(jax.grad(lambda fixed: RUNS[name](ill, fixed, h0, None, "auto")[0].sum()))(fixed)[0]
    assert np.isnan(np.asarray(dA)).all()


LENGTH = 24
GROWTH = {  # (factors, drives, first state) of one sequence: h_t is a number though products of factors are not
    "no drive until late": (np.full(LENGTH, 1e5), np.eye(LENGTH)[LENGTH - 2], 0.0),
    "far down and up again": ([1e-25, 1e-25, 1e25, 1e25], [], 1e30),
    "up and far down again": ([1e25, 1e25, 1e-25, 1e-25], [], 1e-25),
    "small drives that grow": (np.full(LENGTH, 1e5), np.eye(LENGTH)[LENGTH - 10] * 1e-30, 0.0),
    "large states that decay": ([1e-20, 1e-20], [], 1e30),
}
WAYS = [(False, "associative"), (False, "chunked"), (True, "associative")]


@functools.cache
def way(matrices, method):
    """(states, gradients of what they are by small cotangents), of one scan."""

    def run(a, b, h0, reset):
        given = (a[..., None, None], b[..., None], h0[:, None]) if matrices else (a, b, h0)
        scan = functools.partial(dense_scan if matrices else linear_scan, reset=reset, method=method)
        h, pullback = jax.vjp(lambda *given: scan(*given)[0], *given)
        return jax.tree.map(lambda value: value.reshape(value.shape[0], -1), (h, pullback(jnp.full_like(h, 1e-3))))

    return jax.jit(run)


@pytest.mark.parametrize("case", GROWTH)
@pytest.mark.parametrize(("matrices", "method"), WAYS)
def test_factors_that_grow_beyond_the_range_of_numbers(case, matrices, method, monkeypatch):
    monkeypatch.setattr(sys.modules["selssm_jax.ops._linear_scan"], "CHUNK", 5)
    factors, drives, start = GROWTH[case]
    a, b = (np.full((1, LENGTH), rest, np.float32) for rest in (1, 0))
    a[0, : len(factors)], b[0, : len(drives)] = factors, drives
    for reset in (np.zeros((1, LENGTH), bool), np.arange(LENGTH)[None] == 1):
        given = jnp.asarray(a), jnp.asarray(b), jnp.full(1, start, jnp.float32), jnp.asarray(reset)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5),
            way(matrices, method)(*given),
            way(matrices, "sequential")(*given),
        )


def test_one_bad_sequence_of_many_leaves_the_others_as_they_are():
    a, b, h0 = drawn("linear_scan")[0] + (drawn("linear_scan")[2],)
    run = functools.partial(linear_scan, method="associative")
    expected = jax.jit(run)(a, b, h0)[0][:1]
    for many in (
        run,
        jax.vmap(lambda *given: jax.tree.map(lambda out: out[0], run(*(value[None] for value in given)))),
    ):
        found = jax.jit(many)(a, b.at[1, 3].set(jnp.nan), h0)[0]
        np.testing.assert_allclose(found[:1], expected, rtol=1e-5, atol=1e-6)
        assert np.isnan(np.asarray(found[1, 3:])).all() and np.isfinite(np.asarray(found[1, :3])).all()
