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
    with jax.enable_x64(True):
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


def halves(h):
    return h * 0.5


RULED = jax.custom_jvp(lambda h: (h > 0).astype(h.dtype))
RULED.defjvp(lambda h, t: (RULED(*h), *t))
JUMPS = {
    "where": lambda h: jnp.where(h > 0, h, 1.0),
    "float of a comparison": lambda h: 0.1 * (h > 0).astype(h.dtype),
    "comparison with the state on the right": lambda h: 0.9 * (jnp.zeros(2) < h).astype(h.dtype),
    "state against state": lambda h: 0.1 * (h <= h[::-1]).astype(h.dtype),
    "product of comparisons": lambda h: 0.4 * jnp.ones((2, 2)) @ (h >= 0),
    "largest comparison": lambda h: jnp.maximum(h > 0, h > 0.5) * 0.5,
    "comparisons side by side": lambda h: 0.3 * jnp.concatenate([h[:1] > 0, h[1:] < 0]).astype(h.dtype),
    "reshaped comparisons": lambda h: 0.3 * (h > 0).reshape(1, 2)[0].astype(h.dtype),
    "sum of comparisons": lambda h: 0.5 * jnp.sum(h > 0) * jnp.ones(2),
    "comparison in a call": jax.jit(lambda h: 0.1 * (h > 0).astype(h.dtype)),
    "comparison with a rule of its own": lambda h: 0.1 * RULED(h),
    "comparison that rounding decides": lambda h: 0.1 * (h < 1.000001),
}
REFUSED = {
    "whether it is 0": (lambda h: jnp.where(h.astype(bool), halves(h), 0.9), "bool is not that of real numbers"),
    "floor": (jnp.floor, "floor has no rule"),
    "whole numbers": (lambda h: h.astype(jnp.int32) + h, "jumps"),
    "small floats": (lambda h: halves(h).astype(jnp.bfloat16).astype(h.dtype), "bfloat16 is not that"),
    "complex product": (lambda h: jnp.abs(h * (0.1 + 5j)), "complex64 is not that"),
    "complex result": (lambda h: 0.5j * h, "complex64 is not that"),
    "complex constant": (lambda h: jnp.ones(2) * 1j, "complex64 is not that"),
    "whole result": (lambda h: jnp.zeros(2, int), "int32 is not that"),
    "quotient": (lambda h: 1 / h, "a divisor may be 0"),
    "quotient by what is rounded to 0": (lambda h: 0.5 * h * 1e-39 / (h * 1e-39 + 2e-39), "a divisor may be 0"),
    "logarithm": (jnp.log, "may be taken of -1"),
    "loop": (lambda h: jax.lax.fori_loop(0, 2, lambda _, h: h / 2, h), "no rule"),
    "host": (lambda h: h + jax.pure_callback(np.sin, jax.ShapeDtypeStruct((), h.dtype), 0.5), "return what it likes"),
    "NaN times": (lambda h: h * jnp.nan, "a constant is nan"),
    "NaN product": (lambda h: np.array([[np.nan, 0], [0, 1]]) @ h, "a constant is nan"),
    "NaN beside": (lambda h: halves(h) + jnp.nan, "a constant is nan"),
    "NaN of constants": (lambda h: halves(h) + 0 * jnp.log(-jnp.ones(2)), "a constant is nan"),
    "NaN alone": (lambda h: jnp.full(2, jnp.nan), "a constant is nan"),
    "NaN as a bound": (lambda h: halves(jnp.maximum(h, jnp.nan)), "a constant is nan"),
    "inf beside": (lambda h: halves(h) + jnp.inf, "a constant is inf"),
    "inf of float32": (lambda h: jnp.tanh(h * (jnp.float32(3e38) * 10)), "a constant is inf"),
    "overflow": (lambda h: jnp.exp(100 * h) * 1e-38 * 1e-38, "may overflow float32"),
}


@pytest.mark.parametrize("name", [*JUMPS, *REFUSED])
def test_what_may_jump_or_is_not_known_is_refused(name):
    f, words = REFUSED.get(name, (JUMPS.get(name), "the box leaves open may jump"))
    with pytest.raises(UnknownOperationError, match=words):
        enclose(f, (np.full(2, -1.0), np.full(2, 1.0)))


@pytest.mark.parametrize("f", [lambda h: h * jnp.nan, lambda h: halves(h) + jnp.inf, lambda h: 0 * jnp.exp(h)])
def test_boxes_without_ends_hide_no_nan(f):
    with pytest.raises(UnknownOperationError):
        enclose(f, (np.zeros(2), np.full(2, np.inf)))


@pytest.mark.parametrize(
    ("f", "slope"),
    [
        (lambda h: h * (0.5 if h.dtype == jnp.float64 else 1.5), 1.5),
        (lambda h: h * jnp.finfo(h.dtype).eps * 1e6, float(np.finfo(np.float32).eps) * 1e6),
        (lambda h: h * 3.2 / jax.lax.div(jnp.int32(7), jnp.int32(2)), 3.2 / 3),
        (lambda h: h * 50.0 / (jnp.uint8(200) + jnp.uint8(100)), 50 / 44),
        (lambda h: h * jnp.abs(3 + 4j), 5.0),
        (lambda h: h * jax.lax.fori_loop(0, 3, lambda _, c: 2 * c, jnp.float32(1)), 8.0),
        (lambda h: jnp.where(h > -2, halves(h), 9.0) + 0 * (h < 3), 0.5),
    ],
)
def test_the_program_is_the_one_that_runs(f, slope):
    ranges = enclose(f, (np.full(2, -1.0), np.full(2, 1.0)))
    assert np.diagonal(ranges.slope_low) == pytest.approx(slope) == np.diagonal(ranges.slope_high)
