"""A row draws the same in whatever share of the batch it is read, and no two rows draw alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.training import draws

ROWS = 8
DRAWN = {
    "normal": jax.random.normal,
    "uniform": jax.random.uniform,
    "bernoulli": lambda key, shape: jax.random.bernoulli(key, 0.3, shape),
    "half": lambda key, shape: jax.random.normal(key, shape, jnp.bfloat16),
    "bytes": lambda key, shape: jax.random.bits(key, shape, jnp.uint8),
}


@pytest.mark.parametrize("name", DRAWN)
def test_shares_of_a_batch_draw_what_the_whole_does(name):
    key = jax.random.fold_in(jax.random.key(3), 7)

    def drawn(share, rows):
        keys = jax.random.split(jax.random.fold_in(draws.by_row(key, share), 5), 3)
        return DRAWN[name](keys[1], (rows, 3))

    whole = drawn(0, ROWS)
    for count in (2, 4, 8):
        shares = jax.vmap(lambda share, rows=ROWS // count: drawn(share, rows))(jnp.arange(count))
        np.testing.assert_array_equal(np.concatenate(np.asarray(shares)), whole)
    if name in ("normal", "uniform"):
        assert len(np.unique(whole)) == whole.size


def test_what_is_drawn_follows_its_law():
    values = np.asarray(jax.random.normal(draws.by_row(jax.random.key(0), 2), (500, 200)))
    assert abs(values.mean()) < 4 / values.size**0.5 and values.var() == pytest.approx(
        1, abs=4 * (2 / values.size) ** 0.5
    )
    between = np.corrcoef(values[:40])[np.triu_indices(40, 1)]
    assert np.abs(between).max() < 5 / 200**0.5


def test_a_key_of_a_share_and_those_made_of_it_differ():
    key = draws.by_row(jax.random.key(0), 1)
    keys = [
        key,
        jax.random.fold_in(key, 7),
        jax.random.fold_in(key, 8),
        *jax.random.split(key, 2),
        draws.by_row(jax.random.key(1), 1),
        draws.by_row(jax.random.key(0), 2),
    ]
    assert len({float(jax.random.normal(key, (2, 1))[0, 0]) for key in keys}) == len(keys)
    assert jax.random.uniform(key).shape == ()
    np.testing.assert_array_equal(
        jax.random.key_data(jax.random.key(5, impl=draws.BY_ROW)), [*jax.random.key_data(jax.random.key(5)), 0]
    )
