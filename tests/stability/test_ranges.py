"""Ranges that are proved hold whatever is tried, are exact where nothing appears twice, and refused where f jumps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.stability.ranges import UnknownOperationError, enclose

W = np.random.default_rng(0).normal(size=(3, 3))
FUNCTIONS = {
    "network": lambda h, x: 0.9 * h + jnp.tanh(W @ h + x[0]) - jax.nn.sigmoid(h[::-1]) * jax.nn.softplus(h),
    "polynomial": lambda h, x: jnp.stack([1 - 1.4 * h[0] ** 2 + h[1], h[2] * x[0] - h[0] * h[0], h[1] ** 3 - h[0]]),
    "waves": lambda h, x: jnp.sin(3 * h) * jnp.cos(h - x[0]) + jnp.abs(h) + jnp.arctan(jnp.exp(h)) - jnp.square(x[0]),
    "quotients": lambda h, x: h / (3 + x[0] ** 2) + (4 + h) ** -2 + jnp.log(4 + h) + jnp.sqrt(h * h + 1) + h**3,
    "layout": lambda h, x: (
        jnp.concatenate(jnp.split(h, 3)[::-1])
        + jnp.einsum("ij,j,k->i", W, h, x)
        + jnp.outer(h, h).T.sum(0)
        + jnp.where(x[0] > -9, 1, h)
        + jnp.clip(h, -0.3, 0.2)
        + (h.reshape(3, 1) @ h[None])[:, 1]
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_point_of_the_box_is_outside_of_what_is_proved(name):
    f, rng = FUNCTIONS[name], np.random.default_rng(1)
    with jax.enable_x64(True):
        at_points = jax.jit(
            lambda z: (jax.vmap(lambda z: f(z[:3], z[3:]))(z), jax.vmap(jax.jacfwd(lambda z: f(z[:3], z[3:])))(z))
        )
        for _ in range(5):
            middle, reach = rng.normal(size=4), rng.uniform(0, 0.7, size=4)
            low, high = middle - reach, middle + reach
            ranges = enclose(f, (low[:3], high[:3]), (low[3:], high[3:]))
            z = np.where(rng.random((2000, 4)) < 0.2, np.where(rng.random((2000, 4)) < 0.5, low, high), 0)
            z = np.where(z == 0, rng.uniform(low, high, (2000, 4)), z)
            values, slopes = (np.asarray(part) for part in at_points(z))
            assert (values >= ranges.low - 1e-13).all() and (values <= ranges.high + 1e-13).all()
            assert (slopes >= ranges.slope_low - 1e-12).all() and (slopes <= ranges.slope_high + 1e-12).all()


def test_ranges_are_exact_where_nothing_appears_twice():
    box = np.full(3, -2.0), np.full(3, 1.0)
    ranges = enclose(lambda h: jnp.tanh(jnp.asarray(W) @ h), box)
    reach = np.maximum(W, 0) @ np.stack(box).T[:, ::-1] + np.minimum(W, 0) @ np.stack(box).T
    reach = np.stack([reach[:, 1], reach[:, 0]])
    np.testing.assert_allclose([ranges.low, ranges.high], np.tanh(reach), rtol=1e-12)
    assert (ranges.slope_high[W > 0] == pytest.approx(W[W > 0])) and (
        ranges.slope_low[W < 0] == pytest.approx(W[W < 0])
    )


def test_boxes_may_have_no_ends():
    ranges = enclose(lambda h: 0.5 * h + jnp.tanh(h) * 0.25, (np.full(2, -np.inf), np.full(2, np.inf)))
    np.testing.assert_allclose(np.diagonal(ranges.slope_high), 0.75)
    np.testing.assert_allclose(np.diagonal(ranges.slope_low), 0.5)
    assert enclose(jax.nn.softplus, (np.full(1, -np.inf), np.full(1, np.inf))).slope_high < 2.1
    assert (ranges.low == -np.inf).all() and (ranges.high == np.inf).all()


@pytest.mark.parametrize(
    ("f", "words"),
    [
        (lambda h: jnp.where(h > 0, h, 1.0), "may jump"),
        (lambda h: jnp.floor(h), "floor has no rule"),
        (lambda h: h.astype(jnp.int32) + h, "jumps"),
        (lambda h: 1 / h, "a divisor may be 0"),
        (lambda h: jnp.log(h), "may be taken of -1"),
        (lambda h: jax.lax.fori_loop(0, 2, lambda _, h: h / 2, h), "no rule"),
    ],
)
def test_what_may_jump_or_is_not_known_is_refused(f, words):
    with pytest.raises(UnknownOperationError, match=words):
        enclose(f, (np.full(2, -1.0), np.full(2, 1.0)))
