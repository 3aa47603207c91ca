"""The gathered step against the dense one: equal values, closed components to the last bit, right beyond its
capacity.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.ops import GatheredMemory, dense_step, gather_rows, gathered_step, refresh_memory

N, D = 200, 6


def system(*, dense, n=N, seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    A = jax.random.normal(keys[0], (n, n)) / n if dense else jax.random.uniform(keys[0], (n,), minval=-1)
    return gather_rows(A, jax.random.normal(keys[1], (D, n)), jax.random.normal(keys[2], (n, D))), jax.random.normal(
        keys[3], (n,)
    )


def gates(share, seed=0, n=N):
    """Some at 0, some at 1, the others between."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(np.where(rng.random(n) < share, np.clip(rng.uniform(0.1, 1.5, n), 0, 1), 0), jnp.float32)


def loop(h, gate, x, weights):
    """One component at a time, in float64."""
    A, BC, h, gate, x = (np.asarray(value, np.float64) for value in (weights.A, weights.BC, h, gate, x))
    A = np.diag(A) if A.ndim == 1 else A
    after = [h[i] + gate[i] * (A[i] @ h - h[i] + BC[i, :D] @ x) for i in range(len(h))]
    return np.array(after), np.array(after) @ BC[:, D:]


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("n", [1, 33, N])
def test_both_steps_equal_the_loop_and_closed_components_keep_every_bit(dense, n):
    weights, h = system(dense=dense, n=n)
    x, before = jax.random.normal(jax.random.key(1), (D,)), refresh_memory(h, weights)
    for step in (dense_step, *(jax.jit(partial(gathered_step, capacity=capacity)) for capacity in {max(1, n // 3), n})):
        for share in (0.0, 0.1, 1.0):
            gate = gates(share, n=n)
            found, expected = step(before, gate, x, weights), loop(h, gate, x, weights)
            np.testing.assert_allclose(found.h, expected[0], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(found.read, expected[1], rtol=1e-4, atol=1e-4)  # sums of 200 float32 products
            closed = np.asarray(gate) == 0
            assert (np.asarray(found.h)[closed] == np.asarray(h)[closed]).all()


@pytest.mark.parametrize("dense", [False, True])
def test_steps_whose_gates_change_follow_the_dense_ones_across_the_capacity(dense):
    weights, h = system(dense=dense)
    x = jax.random.normal(jax.random.key(1), (40, D))
    opened = jnp.stack(
        [gates(share, seed) for seed, share in enumerate(np.random.default_rng(0).choice([0.05, 0.2, 0.6], 40))]
    )
    beyond = ((opened > 0).sum(axis=1) > 50).mean()
    assert 0 < beyond < 1

    def run(step):
        return jax.lax.scan(
            lambda memory, now: (step(memory, *now, weights),) * 2, refresh_memory(h, weights), (opened, x)
        )[1]

    found, expected = run(partial(gathered_step, capacity=50)), run(dense_step)
    np.testing.assert_allclose(found.h, expected.h, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.read, expected.read, rtol=1e-4, atol=1e-4)


def test_rows_of_closed_components_are_not_read():
    """They may hold anything: not-a-number would come through a product with 0."""
    weights, h = system(dense=True)
    gate, x = gates(0.1), jnp.ones(D)
    spoilt = weights._replace(
        A=jnp.where(gate[:, None] > 0, weights.A, jnp.nan), BC=jnp.where(gate[:, None] > 0, weights.BC, jnp.nan)
    )
    # read to fill a chunk, times 0
    spoilt = spoilt._replace(A=spoilt.A.at[-1].set(weights.A[-1]), BC=spoilt.BC.at[-1].set(weights.BC[-1]))
    memory = GatheredMemory(h, jnp.zeros(D))
    found, expected = (gathered_step(memory, gate, x, given, capacity=100) for given in (spoilt, weights))
    assert (found.h == expected.h).all() and (found.read == expected.read).all()
    assert jnp.isnan(dense_step(memory, gate, x, spoilt).h).any()


def test_what_is_read_drifts_by_rounding_and_is_set_back():
    weights, h = system(dense=False)
    memory = refresh_memory(h, weights)

    def body(memory, key):
        opened = (jax.random.uniform(key, (N,)) < 0.1).astype(jnp.float32)
        return gathered_step(memory, opened, jax.random.normal(key, (D,)), weights, capacity=N), None

    memory = jax.jit(lambda memory: jax.lax.scan(body, memory, jax.random.split(jax.random.key(0), 10_000))[0])(memory)
    exact = np.asarray(memory.h, np.float64) @ np.asarray(weights.BC[:, D:], np.float64)
    drift = np.abs(np.asarray(memory.read) - exact).max() / np.abs(exact).max()
    assert 0 < drift < 1e-7 * np.sqrt(10_000) * 10
    assert np.abs(np.asarray(refresh_memory(memory.h, weights).read) - exact).max() / np.abs(exact).max() < 1e-6


def test_no_program_copies_the_weights():
    """Temporaries of a gathered step are those of a chunk and of index lists, far below the weights."""
    n, width = 16_384, 128
    weights = gather_rows(jnp.ones(n), jnp.ones((width, n)), jnp.ones((n, width)))
    memory = refresh_memory(jnp.ones(n), weights)
    program = (
        jax.jit(partial(gathered_step, capacity=n // 8), donate_argnums=0)
        .lower(memory, jnp.ones(n), jnp.ones(width), weights)
        .compile()
    )
    assert program.memory_analysis().temp_size_in_bytes < weights.BC.nbytes / 8


@pytest.mark.parametrize("capacity", [0, N + 1])
def test_impossible_capacities_are_refused(capacity):
    weights, h = system(dense=False)
    with pytest.raises(ValueError, match=f"capacity={capacity} is no number of components: use one from 1 to {N}"):
        gathered_step(refresh_memory(h, weights), gates(0.1), jnp.ones(D), weights, capacity=capacity)


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\), \(2, 3\) and \(2, 3\), expected"):
        gather_rows(jnp.ones(3), jnp.ones((2, 3)), jnp.ones((2, 3)))
