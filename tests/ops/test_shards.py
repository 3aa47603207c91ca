"""Sequences that devices share: values, states and gradients of the whole, by every recurrence."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from selssm_jax.ops import (
    dense_scan,
    gated_attention,
    kalman_attention,
    kalman_scan,
    linear_scan,
    nonlinear_scan,
    selective_scan,
    shards,
    ssd,
)

B, T, N = 3, 24, 3
SHARDS = 4
SPLIT, WHOLE = PartitionSpec(None, shards.AXIS), PartitionSpec()
PACKED = pytest.mark.parametrize("packed", [True, False], ids=["packed", "one document"])


def in_shards(function, **specs):
    mesh = Mesh(np.array(jax.devices()[:SHARDS]), (shards.AXIS,))
    return jax.jit(jax.shard_map(function, mesh=mesh, check_vma=False, **specs))


def slopes(run, over_time, whole):
    """(outputs, last state, gradients by what has steps, by what has none), of one device or of shards together."""

    def loss(over_time, whole):
        y, last = run(over_time, whole)
        weights = 1.0 + jnp.arange(last.size, dtype=jnp.float32).reshape(last.shape)
        return jnp.sum(jnp.abs(y) ** 2) + jnp.sum(weights * jnp.abs(last) ** 2) / shards.count(), (y, last)

    (by_time, by_whole), (y, last) = jax.grad(loss, argnums=(0, 1), has_aux=True)(over_time, whole)
    return y, last, by_time, shards.total(by_whole)


def compare(run, over_time, whole, rtol=2e-5, time=1):
    """On one device and on several; `time` is the axis of outputs."""
    outputs = PartitionSpec(*[None] * time, shards.AXIS)
    expected = jax.jit(partial(slopes, run))(over_time, whole)
    found = in_shards(partial(slopes, run), in_specs=(SPLIT, WHOLE), out_specs=(outputs, WHOLE, SPLIT, WHOLE))(
        over_time, whole
    )
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, one, rtol=rtol, atol=rtol * max(1e-3, float(np.abs(one).max())))


def draw(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal(shape, np.float32)) for shape in shapes]


def resets(packed):
    """On this device, where a step forgets: at both ends of shards, at every step of one shard, at the first of all."""
    if not packed:
        return None
    size, flags = T // SHARDS, np.zeros((B, T), bool)
    flags[0, [size, 3 * size]] = flags[0, 2 * size - 1] = True
    flags[1, size : 2 * size] = flags[2, 0] = True
    own = T // shards.count()
    return jax.lax.dynamic_slice_in_dim(jnp.asarray(flags), shards.number() * own, own, axis=1)


@PACKED
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("dtype", ["real", "complex"])
def test_linear_scan(packed, reverse, dtype):
    a, b, h0, turn = draw((B, T, N), (B, T, N), (B, N), (B, T, N))

    def run(over_time, h0):
        a, b, turn = over_time
        a = jax.nn.sigmoid(a)
        if dtype == "complex":
            a, b, h0 = a * jnp.exp(1j * turn), b + 1j * turn, h0 + 0j
        return linear_scan(a, b, h0, reset=resets(packed), reverse=reverse)

    compare(run, (a, b, turn), h0)


def test_factors_of_zero_pass_their_gradients():
    """A gate that is shut is no reset: its factor is 0, and what it would let through has a gradient."""
    a, b, h0 = draw((B, T, N), (B, T, N), (B, N))
    a = jnp.where(jnp.arange(T)[None, :, None] == 8, 0, a / 2)
    compare(lambda over_time, h0: linear_scan(*over_time, h0), (a, b), h0)


@PACKED
def test_kalman_scan(packed):
    def run(over_time, start):
        a, q, r, z = over_time
        m0, *variances = start
        P0, prior0 = jnp.exp(variances[0]), jnp.exp(variances[0]) + jnp.exp(variances[1])
        found = kalman_scan(jnp.tanh(a), jnp.exp(q), jnp.exp(r), z, m0, P0, prior0=prior0, reset=resets(packed))
        return jnp.stack(found[:4]), jnp.stack(found.last)

    compare(run, draw(*[(B, T, N)] * 4), draw(*[(B, N)] * 3), time=2)


@PACKED
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_dense_scan(packed, reverse):
    a, b, h0 = draw((B, T, N, N), (B, T, N), (B, N))
    compare(lambda x, h0: dense_scan(*x, h0, reset=resets(packed), reverse=reverse), (a / 3, b), h0)


@PACKED
def test_selective_scan(packed):
    x, dt, b, c, a, h0 = draw((B, T, 4), (B, T, 4), (B, T, N), (B, T, N), (4, N), (B, 4, N))

    def run(over_time, whole):
        x, dt, b, c = over_time
        return selective_scan(x, jax.nn.softplus(dt), -jnp.exp(whole[0]), b, c, None, whole[1], reset=resets(packed))

    compare(run, (x, dt, b, c), (a, h0))


@PACKED
def test_ssd(packed):
    x, dt, b, c, a, h0 = draw((B, T, 4, 5), (B, T, 4), (B, T, 2, N), (B, T, 2, N), (4,), (B, 4, 5, N))

    def run(over_time, whole):
        x, dt, b, c = over_time
        return ssd(x, jax.nn.softplus(dt), -jnp.exp(whole[0]), b, c, None, whole[1], reset=resets(packed))

    compare(run, (x, dt, b, c), (a, h0))


@PACKED
def test_gated_attention(packed):
    def run(over_time, M0):
        a, *rest = over_time
        return gated_attention(jax.nn.sigmoid(a), *rest, M0, reset=resets(packed))

    compare(run, draw(*[(B, T, 2, N)] * 2, (B, T, 2, 5), (B, T, 2, N)), *draw((B, 2, N, 5)))


@PACKED
def test_kalman_attention(packed):
    def run(over_time, start):
        a, q, precision, *rest = over_time
        m0, *variances = start
        P0, prior0 = jnp.exp(variances[0]), jnp.exp(variances[0]) + jnp.exp(variances[1])
        read = kalman_attention(
            jnp.tanh(a), jnp.exp(q), jnp.exp(precision), *rest, m0, P0, prior0=prior0, reset=resets(packed)
        )
        m, *variances = read.last
        last = jnp.concatenate([m, *(value[..., None] for value in variances)], axis=-1)
        return jnp.concatenate(read[:4], axis=-1), last

    rows = (B, T, 2, N)
    compare(run, draw(rows, rows, (B, T, 2), rows, (B, T, 2, 5), rows), draw((B, 2, N, 5), *[(B, 2, N)] * 2))


@pytest.mark.parametrize("solver", ["newton", "sequential"])
@pytest.mark.parametrize("jacobian", ["diagonal", "dense"])
def test_nonlinear_scan(solver, jacobian):
    x, w, h0 = draw((B, T, N), (N, N) if jacobian == "dense" else (N,), (B, N))

    def run(x, whole):
        w, h0 = whole

        def step(h, now):
            x, forget = now
            h = jnp.where(forget, 0, h)
            return jnp.tanh(0.3 * (w @ h if w.ndim == 2 else w * h) + x)

        h, fell_back = nonlinear_scan(step, h0, (x, resets(True)), jacobian=jacobian, solver=solver)
        return jnp.where(fell_back[:, None, None], jnp.nan, h), shards.last(h[:, -1])

    compare(run, x, (w, h0), rtol=1e-4)


def test_newton_gives_way_on_all_devices_together():
    """A step that expands in one shard of one row: the verdict is that of all, and so are the states."""
    x, h0 = draw((B, T, N), (B, N))
    steep = jnp.ones((B, T, 1)).at[0, 7:9].set(60.0)

    def run(over_time, h0):
        h, fell_back = nonlinear_scan(lambda h, now: jnp.sin(now[1] * h + now[0]), h0, over_time, solver="newton")
        return h, fell_back

    expected = jax.jit(run)((x, steep), h0)
    found = in_shards(run, in_specs=(SPLIT, WHOLE), out_specs=(SPLIT, WHOLE))((x, steep), h0)
    assert expected[1].tolist() == found[1].tolist() and bool(expected[1].any())
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-5)


def test_what_a_reset_hides_may_be_no_number():
    a, b, h0 = draw((B, T, N), (B, T, N), (B, N))
    b, a = b.at[:, 2].set(jnp.nan), a.at[:, 3].set(jnp.nan) / 4
    forget = jnp.zeros((B, T // SHARDS), bool).at[:, -1].set(True)

    def run(over_time, h0):
        h, last = linear_scan(*over_time, h0, reset=forget & (shards.number() == 0))
        return h[:, -1:], last

    ends, last = in_shards(run, in_specs=(SPLIT, WHOLE), out_specs=(SPLIT, WHOLE))((a, b), h0)
    assert np.isfinite(ends).all() and np.isfinite(last).all()


def test_two_gathers_carry_a_recurrence_and_nothing_is_exchanged_by_all():
    def count(operation):
        return text.count(f" {operation}(") + text.count(f" {operation}-start(")

    a, b = draw((B, T, N), (B, T, N))
    specs = {"in_specs": (SPLIT, SPLIT), "out_specs": SPLIT}
    text = in_shards(lambda a, b: linear_scan(a, b)[0], **specs).lower(a, b).compile().as_text()
    assert (count("all-gather"), count("all-to-all"), count("all-reduce")) == (2, 0, 0)
    slope = in_shards(jax.grad(lambda a, b: jnp.square(linear_scan(a, b)[0]).sum(), argnums=(0, 1)), **specs)
    text = slope.lower(a, b).compile().as_text()
    assert count("all-gather") == 2 and count("all-to-all") == 0


def test_nothing_changes_where_no_axis_is_named():
    mesh, seen = Mesh(np.array(jax.devices()[:2]), ("data",)), []
    once = jax.shard_map(lambda x: seen.append(shards.count()) or x, mesh=mesh, in_specs=WHOLE, out_specs=WHOLE)
    jax.jit(once).lower(jnp.zeros(2))
    assert seen == [1] and shards.count() == 1
