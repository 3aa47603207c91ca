"""Attention against a plain loop in float64, whole, over windows and across resets, and how much its cache holds."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.layers import attention
from selssm_jax.layers.attention import Attention, rotate_pairs

B, D, HEADS = 2, 8, 2


def drawn(steps, window):
    layer = Attention(D, HEADS, window)
    x = jax.random.normal(jax.random.key(0), (B, steps, D))
    return layer, x, jax.jit(layer.init)(jax.random.key(1), x)


def turned(x, position):
    """One head's vector turned by its position, pair by pair, as complex numbers."""
    half = len(x) // 2
    pairs = (x[:half] + 1j * x[half:]) * np.exp(1j * position * 10_000.0 ** (-np.arange(half) / half))
    return np.concatenate([pairs.real, pairs.imag])


def plain(params, x, window, reset):
    """Step by step, head by head, at absolute positions."""
    x, inward, outward = (
        np.asarray(value, np.float64) for value in (x, params["params"]["in"], params["params"]["out"])
    )
    q, k, v = np.split(x @ inward, 3, axis=-1)
    y, P = np.zeros_like(q), D // HEADS
    for b, t, head in np.ndindex(len(x), x.shape[1], HEADS):
        at = slice(head * P, (head + 1) * P)
        since = max([s for s in range(t + 1) if reset[b, s]], default=0)
        steps = range(max(since, t - window + 1), t + 1)
        scores = np.array([turned(q[b, t, at], t) @ turned(k[b, s, at], s) for s in steps]) / np.sqrt(P)
        weights = np.exp(scores - scores.max())
        y[b, t, at] = weights / weights.sum() @ v[b, list(steps), at]
    return y @ outward


@pytest.mark.parametrize(("steps", "window"), [(1, 4), (7, 16), (11, 4), (8, 4), (5, 1)])
def test_it_is_the_plain_loop(steps, window):
    layer, x, params = drawn(steps, window)
    reset = np.zeros((B, steps), bool)
    reset[0, steps // 2] = reset[1, steps - 1] = True
    y, _ = jax.jit(layer.apply)(params, x, None, reset=jnp.asarray(reset))
    np.testing.assert_allclose(y, plain(params, x, window, reset), atol=1e-5)


def test_long_calls_after_a_cache_are_the_plain_loop_too():
    layer, x, params = drawn(14, 4)
    apply = jax.jit(layer.apply)
    _, state = apply(params, x[:, :3])
    y, _ = apply(params, x[:, 3:], state)
    np.testing.assert_allclose(y, plain(params, x, 4, np.zeros((B, 14), bool))[:, 3:], atol=1e-5)


@pytest.mark.parametrize(
    ("T", "S", "window"), [(1, 40, 100), (31, 31, 100), (70, 70, 9), (200, 230, 100), (130, 131, 200)]
)
def test_by_pieces_it_is_what_it_is_at_once_and_so_are_its_gradients(T, S, window):
    keys = jax.random.split(jax.random.key(2), 4)
    q, k, v, weight = (jax.random.normal(key, (HEADS, steps, 4)) for key, steps in zip(keys, (T, S, S, T), strict=True))
    begin = jnp.where(jnp.arange(T) > T // 2, S - T + T // 2, 0)  # a document ends in the middle
    at = jnp.arange(S)

    def loss(q, k, v, *, pieces):
        y = (
            attention._read_by_pieces((q, k, v, begin), window)
            if pieces
            else attention._read(q, k, v, begin, at[S - T :], at, window)
        )
        return (weight * y).sum(), y

    (whole, y), at_once = jax.jit(jax.value_and_grad(partial(loss, pieces=False), (0, 1, 2), has_aux=True))(q, k, v)
    (_, z), by_pieces = jax.jit(jax.value_and_grad(partial(loss, pieces=True), (0, 1, 2), has_aux=True))(q, k, v)
    assert abs(float(whole)) > 1e-2
    # sums of up to 230 terms of order 1 in float32
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), (z, by_pieces), (y, at_once))


def test_memory_of_training_grows_with_the_length_and_not_with_its_square():
    def peak(T):
        q = jax.ShapeDtypeStruct((1, T, HEADS, 4), jnp.float32)
        loss = lambda q, k, v: (attention.attend(q, k, v, jnp.zeros((1, T), jnp.int32), T) ** 2).sum()  # noqa: E731
        return jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, q, q).compile().memory_analysis().temp_size_in_bytes

    assert peak(4096) < 4096**2 * HEADS * 4 / 8  # less than an eighth of the scores
    assert peak(4096) < 2.2 * peak(2048)


def test_a_cache_has_room_for_what_will_be_read():
    layer, x, params = drawn(6, 16)
    sizes = [layer.initial_state(B, steps)["keys"].shape[1] for steps in (None, 6, 100)]
    assert sizes == [16, 6, 16]
    apply = jax.jit(layer.apply)
    small, full = (apply(params, x, layer.initial_state(B, steps)) for steps in (6, None))
    np.testing.assert_allclose(small[0], full[0], atol=1e-6)
    np.testing.assert_array_equal(small[1]["count"], [6, 6])


def test_a_cache_that_overflows_looks_back_as_far_in_one_call_as_in_many():
    layer, x, params = drawn(9, 16)
    apply = jax.jit(layer.apply)
    whole, _ = apply(params, x, layer.initial_state(B, 4))
    state, parts = layer.initial_state(B, 4), []
    for start, stop in ((0, 3), (3, 8), (8, 9)):
        y, state = apply(params, x[:, start:stop], state)
        parts.append(y)
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=1e-5)


def test_a_reset_empties_the_cache():
    layer, x, params = drawn(6, 8)
    _, state = jax.jit(layer.apply)(params, x, None, reset=jnp.zeros((B, 6), bool).at[:, 4].set(True))
    np.testing.assert_array_equal(state["count"], [2, 2])
    assert not np.any(np.asarray(state["keys"][:, :-2])) and np.all(np.any(np.asarray(state["keys"][:, -2:]), axis=-1))


def test_only_differences_of_positions_count():
    x, z = jax.random.normal(jax.random.key(0), (2, 1, 5, 1, 8))
    near, far = (
        jnp.einsum("bthp,bthp->bth", rotate_pairs(x, at + 3), rotate_pairs(z, at))
        for at in (jnp.arange(5), jnp.arange(5) + 40)
    )
    np.testing.assert_allclose(near, far, atol=1e-4)


@pytest.mark.parametrize(("options", "message"), [({"heads": 3}, "no multiple"), ({"window": 0}, "at least 1")])
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Attention(D, **options).init(jax.random.key(0), jnp.zeros((1, 1, D)))
