"""kalman_attention is the Kalman filter of rows that are read one at a time, and says what it cannot do.

That it and gated_attention equal their loops at random shapes, types, splits and resets, test_sweep says; what resets
hide, test_boundaries; shards of a sequence, test_shards.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.ops import gated_attention, kalman_attention

B, T, H, N, P = 1, 14, 2, 3, 2


def draw(seed=0):
    """(a, q, precision, k, v, query) with one row read at each step."""
    rng = np.random.default_rng(seed)
    rows = (B, T, H, N)
    k = np.eye(N)[rng.integers(0, N, rows[:3])] * rng.normal(size=(B, T, H, 1))
    a, q = rng.uniform(-1, 1, rows), rng.uniform(0.1, 2, rows)
    return a, q, np.exp(rng.normal(size=rows[:3])), k, rng.normal(size=(B, T, H, P)), rng.normal(size=rows)


def condition(a, q, precision, k, v):
    """(means, covariance, prior covariance) of the N rows of one head after all steps, by the joint Gaussian law of all
    that drives them and all readings.
    """
    steps = len(a)
    maps = np.zeros((N, N * (steps + 1)))  # of the rows by what drives them: N of the start, N a step
    maps[:, :N] = np.eye(N)
    drives, readings = np.concatenate([np.ones(N), q.ravel()]), []
    for t in range(steps):
        maps = a[t][:, None] * maps
        maps[:, N * (t + 1) : N * (t + 2)] = np.eye(N)
        readings.append(k[t] @ maps)
    read = np.stack(readings)
    cov = (read * drives) @ read.T + np.diag(1 / precision)
    cross = (maps * drives) @ read.T
    prior = (maps * drives) @ maps.T
    gain = np.linalg.solve(cov, cross.T).T
    return gain @ v, prior - gain @ cross.T, prior


def test_where_a_step_reads_one_row_it_is_the_filter_of_the_joint_law_and_its_nats_are_the_information():
    given = draw()
    with jax.enable_x64(True):
        start = jnp.ones((B, H, N))
        memory = jax.jit(kalman_attention)(*map(jnp.asarray, given), P0=start, prior0=start)
        held = np.cumsum(memory.gained - memory.forgotten, axis=1)[0, -1]
    for head in range(H):
        a, q, precision, k, v, query = (value[0, :, head] for value in given)
        means, cov, prior = condition(a, q, precision, k, v)
        np.testing.assert_allclose(memory.last.m[0, head], means, atol=1e-9)
        np.testing.assert_allclose(memory.last.P[0, head], np.diag(cov), rtol=1e-9)
        np.testing.assert_allclose(memory.y[0, -1, head], query[-1] @ means, atol=1e-9)
        np.testing.assert_allclose(held[head], np.log(np.diag(prior) / np.diag(cov)) / 2, atol=1e-9)
        assert np.abs(cov - np.diag(np.diag(cov))).max() < 1e-12, "rows stay independent: the filter is exact"


def test_a_key_of_0_and_a_precision_of_0_read_nothing_and_have_gradients():
    a, q, precision, k, v, query = map(jnp.float32, draw())
    precision, k = precision.at[:, 3].set(0), k.at[:, 5:7].set(0)

    @jax.jit
    def slopes(precision, k, v):
        def loss(precision, k, v):
            memory = kalman_attention(a, q, precision, k, v, query)
            return memory.y.sum() + memory.gained.sum(), memory

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(precision, k, v)

    gradients, memory = slopes(precision, k, v)
    assert (np.asarray(memory.gained)[:, [3, 5, 6]] == 0).all()
    assert all(np.isfinite(value).all() for value in gradients)
    assert (np.asarray(gradients[2])[:, [3, 5, 6]] == 0).all()
    other = kalman_attention(a, q, precision, k, v.at[:, 3].set(9), query)
    np.testing.assert_array_equal(other.y, kalman_attention(a, q, precision, k, v, query).y)


@pytest.mark.parametrize("size", [1e15, 1e20, 1e30, 3e38])
def test_readings_as_sharp_as_can_be_are_what_is_read_and_have_gradients(size):
    """One row and a key of 1 or -1: the memory is the reading itself, times the key."""
    one = jnp.ones((1, 4, 1, 1))
    k, v = jnp.array([1.0, -1.0, 1.0, -1.0]).reshape(one.shape), jnp.array([2.0, 3.0, -1.0, 5.0]).reshape(one.shape)

    def read(k, precision):
        memory = kalman_attention(0.5 * one, one, precision, k, v, one)
        return memory.y.sum() + memory.gained.sum(), memory

    (_, memory), slopes = jax.value_and_grad(read, argnums=(0, 1), has_aux=True)(k, jnp.full((1, 4, 1), size))
    np.testing.assert_allclose(memory.y, k * v, rtol=1e-5)
    assert np.isfinite(memory.gained).all() and all(np.isfinite(slope).all() for slope in slopes)
    large = kalman_attention(0.5 * one, one, jnp.full((1, 4, 1), size), 1e25 * k, v, one)
    np.testing.assert_allclose(large.y, k * v / 1e25, rtol=1e-5)
    assert np.isfinite(large.gained).all()


def test_precisions_over_sixty_decades_stay_numbers():
    a, q, _, k, v, query = map(jnp.float32, draw())
    for size in (1e-30, 1e30):
        precision = jnp.full((B, T, H), size)
        value, slope = jax.value_and_grad(
            lambda k, precision=precision: kalman_attention(a, q, precision, k, v, query).y.sum()
        )(k)
        assert np.isfinite(value) and np.isfinite(slope).all()


def test_second_derivatives_are_those_of_the_loop():
    rng = np.random.default_rng(0)
    shapes = [(1, 3, 1, 2)] * 2 + [(1, 3, 1, 1), (1, 3, 1, 2)]
    sizes = np.cumsum([int(np.prod(shape)) for shape in shapes])
    flat = rng.normal(size=sizes[-1])

    def loop(a, k, v, q):
        M, out = jnp.zeros((1, 2, 1)), []
        for t in range(3):
            M = a[:, t, 0, :, None] * M + k[:, t, 0, :, None] * v[:, t, 0, None]
            out.append((M * q[:, t, 0, :, None]).sum(axis=1))
        return jnp.stack(out, axis=1)[:, :, None]

    def loss(run, flat):
        parts = jnp.split(flat, sizes[:-1])
        return jnp.square(run(*(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)))).sum()

    with jax.enable_x64(True):
        flat = jnp.asarray(flat)
        run = lambda *given: gated_attention(*given)[0]  # noqa: E731
        curvature = jax.jit(jax.jacrev(jax.grad(lambda flat: loss(run, flat))))(flat)
        np.testing.assert_allclose(curvature, jax.hessian(lambda flat: loss(loop, flat))(flat), atol=1e-9)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("method", "chunked", "use one of auto, sequential, associative"),
        ("k", np.ones((B, T, N)), r"k has shape \(1, 14, 3\), expected \(B, T, H, N\)"),
        ("v", np.ones((B, T, H)), r"v has shape .*expected \(B, T, H, P\)"),
        ("precision", np.ones((B, T, H, 1)), r"precision has shape .*expected \(1, 14, 2\) from k"),
        ("query", np.ones((B, T, H, N + 1)), r"query has shape .*expected \(1, 14, 2, 3\)"),
        ("m0", np.ones((B, H, N)), r"m0 has shape .*expected \(1, 2, 3, 2\)"),
        ("P0", np.ones((B, H)), r"P0 has shape"),
        ("v", np.ones((B, T, H, P), int), "v has dtype int"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(name, wrong, message):
    given = dict(zip(("a", "q", "precision", "k", "v", "query"), map(jnp.float32, draw()), strict=True))
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(kalman_attention)(**given | {name: wrong if isinstance(wrong, str) else jnp.asarray(wrong)})


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("method", "associative", "use one of auto, sequential, chunked"),
        ("k", jnp.ones((B, 0, H, N)), "T >= 1"),
        ("a", jnp.ones((B, T, H)), r"a has shape \(1, 14, 2\), expected \(1, 14, 2, 3\)"),
        ("reset", jnp.ones((B, T)), "reset has dtype float32, expected bool"),
    ],
)
def test_attention_refuses_inputs_that_do_not_fit(name, wrong, message):
    rows = jnp.ones((B, T, H, N))
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(gated_attention)(
            **{"a": rows, "k": rows, "v": jnp.ones((B, T, H, P)), "q": rows} | {name: wrong}
        )
