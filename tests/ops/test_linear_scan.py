"""linear_scan against a float64 loop in plain Python: values and gradients, for every method, type, direction and
split.
"""

import inspect
import re
from functools import cache, partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from selssm_jax.ops import _linear_scan, linear_scan

METHODS = ["sequential", "associative", "chunked"]


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    """Several chunks and one that is not full, at lengths that compile in no time."""
    monkeypatch.setattr(_linear_scan, "CHUNK", 6)


def loop(a, b, h0, reset, *, reverse):
    """The recurrence, step by step in float64. Returns (h, h_last) and what da needs: the state before every step."""
    a = np.where(reset.reshape(*reset.shape, *[1] * (a.ndim - 2)), 0, a)
    h, before, state = np.zeros_like(b), np.zeros_like(b), h0
    for t in range(a.shape[1])[:: -1 if reverse else 1]:
        before[:, t] = state
        state = h[:, t] = a[:, t] * state + b[:, t]
    return h, state, before


def loop_gradient(a, before, reset, dh, dlast, *, reverse):
    """(da, db, dh0) of the loop, step by step in float64."""
    open_ = ~reset.reshape(*reset.shape, *[1] * (a.ndim - 2))
    da, db, carried = np.zeros_like(a), np.zeros_like(a), dlast
    for t in range(a.shape[1])[:: 1 if reverse else -1]:
        u = db[:, t] = dh[:, t] + carried
        da[:, t] = u * before[:, t] * open_[:, t]
        carried = a[:, t] * open_[:, t] * u
    return da, db, carried


def draw(shape, dtype=np.float64, seed=0):
    """a, b, h0, reset, dh, dlast; |a| < 1, and every seventh step or so forgets."""
    rng = np.random.default_rng(seed)

    def normal(*size):
        return rng.normal(size=size) + (1j * rng.normal(size=size) if np.issubdtype(dtype, np.complexfloating) else 0)

    state = (shape[0], *shape[2:])
    a = normal(*shape)
    a = a / np.abs(a) * rng.uniform(0.3, 0.999, shape)
    return a, normal(*shape), normal(*state), rng.random(shape[:2]) < 0.15, normal(*shape), normal(*state)


@cache
def compiled(method, reverse):
    """One function for values and gradients, so that each shape is compiled once."""

    def run(a, b, h0, reset, dh, dlast):
        out, pullback = jax.vjp(partial(linear_scan, reset=reset, reverse=reverse, method=method), a, b, h0)
        return *out, *pullback((dh.astype(out[0].dtype), dlast.astype(out[1].dtype)))

    return jax.jit(run)


def error(found, expected):
    assert found.shape == expected.shape
    scale = np.abs(expected).max()
    return np.abs(np.asarray(found, expected.dtype) - expected).max() / (scale if scale else 1)


def check(method, reverse, drawn, dtype, *, values, gradients):
    a, b, h0, reset, dh, dlast = drawn
    wide = jnp.promote_types(dtype, jnp.float32)
    given = [jnp.asarray(x, t) for x, t in zip(drawn, (dtype, dtype, wide, bool, dtype, wide), strict=True)]
    a, b, h0, reset, dh, dlast = (
        np.asarray(x.astype(jnp.promote_types(x.dtype, wide)) if x.dtype != bool else x) for x in given
    )
    a, b, h0, dh, dlast = (x.astype(np.promote_types(x.dtype, np.float64)) for x in (a, b, h0, dh, dlast))
    h, last, before = loop(a, b, h0, reset, reverse=reverse)
    expected = h, last, *loop_gradient(a, before, reset, dh, dlast, reverse=reverse)
    found = compiled(method, reverse)(*given)
    assert [x.dtype for x in found] == [dtype, wide, dtype, dtype, wide]
    errors = [error(x.astype(wide), y) for x, y in zip(found, expected, strict=True)]
    assert max(errors[:2]) < values and max(errors[2:]) < gradients, errors


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("method", METHODS)
def test_values_and_gradients_equal_a_float64_loop(method, length, reverse):
    check(method, reverse, draw((2, length, 3)), jnp.float32, values=1e-5, gradients=1e-4)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_complex_values_and_gradients_equal_a_float64_loop(method, reverse):
    check(method, reverse, draw((2, 20, 3), np.complex128), jnp.complex64, values=1e-5, gradients=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_is_rounded_once(method, dtype):
    check(method, False, draw((2, 20, 3)), dtype, values=2e-2, gradients=2e-2)


def test_auto_is_sequential_on_a_cpu():
    drawn = [jnp.asarray(x, bool if x.dtype == bool else jnp.float32) for x in draw((2, 64, 3))]
    for found, expected in zip(compiled("auto", False)(*drawn), compiled("sequential", False)(*drawn), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        check("sequential", False, draw((2, 64, 3)), jnp.float64, values=1e-14, gradients=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_accumulates_in_float32_where_bfloat16_would_stand_still(method):
    ones = jnp.ones((1, 300, 1), jnp.bfloat16)
    h, h_last = linear_scan(ones, ones, method=method)
    assert h.dtype == jnp.bfloat16 and h_last.dtype == jnp.float32
    assert h_last.item() == 300  # a bfloat16 sum of ones ends at 256


@pytest.mark.parametrize("trailing", [(), (1,), (2, 3)])
@pytest.mark.parametrize("method", METHODS)
def test_any_trailing_shape(method, trailing):
    check(method, False, draw((2, 7, *trailing)), jnp.float32, values=1e-5, gradients=1e-4)


def test_complex_gradient_follows_jax_without_conjugates():
    def plain(a, b, h0):
        def step(h, ab):
            h = ab[0] * h + ab[1]
            return h, h

        last, h = lax.scan(step, h0, (a.swapaxes(0, 1), b.swapaxes(0, 1)))
        return h.swapaxes(0, 1), last

    a, b, h0, _, dh, dlast = (jnp.asarray(x, jnp.complex64) for x in draw((2, 7, 3), np.complex128))
    expected = jax.vjp(plain, a, b, h0)[1]((dh, dlast))
    found = jax.vjp(linear_scan, a, b, h0)[1]((dh, dlast))
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def test_second_gradients():
    def twice(scan, a, b, h0):
        first = jax.grad(lambda *args: sum(jnp.sum(jnp.sin(x)) for x in scan(*args)), argnums=(0, 1, 2))
        return jax.grad(lambda *args: sum(jnp.sum(x**2) for x in first(*args)), argnums=(0, 1, 2))(a, b, h0)

    def plain(a, b, h0):
        h = [h0]
        for t in range(7):
            h.append(a[:, t] * h[-1] + b[:, t])
        return jnp.stack(h[1:], axis=1), h[-1]

    drawn = [jnp.asarray(x, jnp.float32) for x in draw((2, 7, 3))[:3]]
    expected = jax.jit(partial(twice, plain))(*drawn)
    for method in ("sequential", "associative"):
        for x, y in zip(jax.jit(partial(twice, partial(linear_scan, method=method)))(*drawn), expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4 * jnp.abs(y).max())


def test_types_are_promoted_together():
    a, b = jnp.full((1, 3, 2), 0.5, jnp.bfloat16), jnp.ones((1, 3, 2), jnp.complex64)
    h, _ = linear_scan(a, b)
    assert h.dtype == jnp.complex64
    np.testing.assert_allclose(h[0, :, 0], [1, 1.5, 1.75])
    assert jax.grad(lambda a: linear_scan(a, b)[0].real.sum())(a).dtype == jnp.bfloat16


# What a scan means.


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("reverse", [False, True])
def test_split_anywhere_equals_the_whole(reverse, dtype):
    a, b, h0, reset = (
        jnp.asarray(x, t) for x, t in zip(draw((2, 64, 3))[:4], (dtype, dtype, jnp.float32, bool), strict=True)
    )
    scan = partial(linear_scan, reverse=reverse)
    whole, h_last = scan(a, b, h0, reset=reset)
    for split in (1, 24):
        parts, state = [], h0
        for part in [slice(split, None), slice(split)] if reverse else [slice(split), slice(split, None)]:
            h, state = scan(a[:, part], b[:, part], state, reset=reset[:, part])
            parts.append(h)
        np.testing.assert_allclose(jnp.concatenate(parts[:: -1 if reverse else 1], axis=1), whole, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(state, h_last, rtol=1e-6, atol=1e-6)  # in float32 of bfloat16 too: nothing is lost


def test_gradients_through_a_split_equal_those_of_the_whole():
    a, b, h0, _, dh, dlast = (jnp.asarray(x, jnp.float32) for x in draw((2, 64, 3)))

    def split(a, b, h0):
        first, state = linear_scan(a[:, :20], b[:, :20], h0)
        second, state = linear_scan(a[:, 20:], b[:, 20:], state)
        return jnp.concatenate([first, second], axis=1), state

    for x, y in zip(
        jax.vjp(split, a, b, h0)[1]((dh, dlast)), jax.vjp(linear_scan, a, b, h0)[1]((dh, dlast)), strict=True
    ):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_reset_starts_afresh(method):
    a, b, h0 = (jnp.asarray(x, jnp.float32) for x in draw((2, 64, 3))[:3])
    reset = jnp.zeros((2, 64), bool).at[:, 30].set(True)
    scan = partial(linear_scan, method=method)
    np.testing.assert_allclose(
        scan(a, b, h0, reset=reset)[0][:, 30:], scan(a[:, 30:], b[:, 30:])[0], rtol=1e-5, atol=1e-6
    )
    da, db, dh0 = jax.grad(lambda *args: scan(*args, reset=reset)[1].sum(), argnums=(0, 1, 2))(a, b, h0)
    assert not da[:, :31].any() and not db[:, :30].any() and not dh0.any()
    assert da[:, 31:].any() and db[:, 30:].any()


@pytest.mark.parametrize("method", METHODS)
def test_a_padded_step_keeps_the_state(method):
    a, b = (jnp.asarray(x, jnp.float32) for x in draw((2, 64, 3))[:2])
    valid = (jnp.arange(64) < 40)[None, :, None]
    h, h_last = linear_scan(jnp.where(valid, a, 1), jnp.where(valid, b, 0), method=method)
    np.testing.assert_allclose(
        h[:, 40:], jnp.broadcast_to(h[:, 39:40], (2, 24, 3)), rtol=0 if method == "sequential" else 1e-6
    )
    np.testing.assert_array_equal(h_last, h[:, -1])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_causality(method, reverse):
    a, b = (jnp.asarray(x, jnp.float32) for x in draw((1, 30, 2))[:2])
    da, db = jax.grad(lambda a, b: linear_scan(a, b, reverse=reverse, method=method)[0][:, 15].sum(), argnums=(0, 1))(
        a, b
    )
    past, future = (slice(16, None), slice(15)) if reverse else (slice(15), slice(16, None))
    assert not da[:, future].any() and not db[:, future].any()
    assert db[:, 15].all() and db[:, past].all()


def test_no_state_is_a_zero_state():
    a, b = (jnp.asarray(x, jnp.float32) for x in draw((2, 7, 3))[:2])
    for x, y in zip(linear_scan(a, b), linear_scan(a, b, jnp.zeros((2, 3))), strict=True):
        np.testing.assert_array_equal(x, y)


# Under JAX's transformations.


@pytest.mark.parametrize("method", METHODS)
def test_vmap(method):
    drawn = [jnp.asarray(x, bool if x.dtype == bool else jnp.float32) for x in draw((3, 30, 2))]
    expected = compiled(method, False)(*drawn)
    found = jax.vmap(compiled(method, False))(*(x[:, None] for x in drawn))
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x[:, 0], y, rtol=1e-5, atol=1e-5)


def test_vmap_over_the_state_alone():
    a, b, h0 = (jnp.asarray(x, jnp.float32) for x in draw((2, 30, 3))[:3])
    h, _ = jax.vmap(partial(linear_scan, a, b))(jnp.stack([h0, 2 * h0]))
    np.testing.assert_allclose(h[1], linear_scan(a, b, 2 * h0)[0], rtol=1e-5, atol=1e-5)


def test_gradients_under_remat_and_a_loop_over_layers():
    a, b = (jnp.asarray(x, jnp.float32) for x in draw((2, 30, 3))[:2])

    def layer(x, scale):
        return jnp.tanh(linear_scan(a, x * scale)[0]), None

    def loss(body, scales):
        return lax.scan(body, b, scales)[0].sum()

    scales = jnp.array([0.5, 1.0, 2.0])
    np.testing.assert_allclose(
        jax.grad(partial(loss, jax.checkpoint(layer)))(scales), jax.grad(partial(loss, layer))(scales), rtol=1e-5
    )


def test_pmap():
    drawn = [jnp.asarray(x, bool if x.dtype == bool else jnp.float32) for x in draw((4, 7, 3))]
    found = jax.pmap(compiled("auto", False))(*(x.reshape(2, 2, *x.shape[1:]) for x in drawn))
    for x, y in zip(found, compiled("auto", False)(*drawn), strict=True):
        np.testing.assert_allclose(x.reshape(y.shape), y, rtol=1e-5, atol=1e-5)


# What is compiled.


@pytest.fixture
def safe(monkeypatch):
    """The method alone, without the single steps that it gives way to."""
    monkeypatch.setattr(
        _linear_scan, "composed_or_stepped", lambda safe, composed, stepped, *operands: composed(*operands)
    )


def exported(platforms, shape, method="auto"):
    def gradient(a, b):
        return jax.grad(lambda a, b: linear_scan(a, b, method=method)[0].sum(), argnums=(0, 1))(a, b)

    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32)] * 2
    return jax.export.export(jax.jit(gradient), platforms=platforms)(*arguments).mlir_module()


@pytest.mark.usefixtures("safe")
@pytest.mark.parametrize("platform", ["tpu", "cuda", "rocm"])
def test_auto_picks_the_method_of_the_platform_it_is_lowered_for(platform):
    assert exported(["cpu"], (2, 64, 3)).count("stablehlo.while(") == 2  # a loop over time, forward and backward
    assert exported([platform], (2, 64, 3)).count("stablehlo.while(") == 0  # a tree
    assert exported([platform], (2, _linear_scan.LARGE // 64, 64)).count("stablehlo.while(") == 2  # a loop over chunks


@pytest.mark.usefixtures("safe")
def test_one_export_for_two_platforms_holds_both_methods():
    both = exported(["cpu", "tpu"], (2, 64, 3))
    assert both.count("stablehlo.while(") == 2 and "stablehlo.case" in both


@pytest.mark.usefixtures("safe")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_lowers_for_tpu(method):
    assert exported(["tpu"], (2, 64, 3), method).count("stablehlo.while(") == (0 if method == "associative" else 2)


@pytest.mark.parametrize("transform", [lambda f: f, jax.vmap], ids=["plain", "vmap"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_sequential_never_copies_the_sequence_inside_its_loop(dtype, transform):
    def gradient(a, b, dh):
        def scan(a, b):
            return 2 * linear_scan(jax.nn.tanh(a), b + 1, method="sequential")[0]

        return transform(lambda a, b, dh: jax.vjp(scan, a, b)[1](3 * dh))(a, b, dh)

    shape = (2, 2, 301, 1024) if transform is jax.vmap else (2, 301, 1024)
    text = jax.jit(gradient).lower(*[jax.ShapeDtypeStruct(shape, dtype)] * 3).compile().as_text()
    bodies = re.findall(r" while\(.*body=(%[\w.]+)", text)
    assert len(bodies) == 2
    for body in bodies:
        lines = text.partition(f"\n{body} (")[2].partition("\n}")[0].splitlines()[1:]
        whole = [line for line in lines if re.search(r"= \w+\[[\d,]*\b301\b", line)]
        written = [line for line in whole if "get-tuple-element(" not in line]
        assert len(written) == 1 and "dynamic-update-slice" in written[0].partition("(")[0], written


def test_sequential_needs_no_temporaries():
    shape = jax.ShapeDtypeStruct((2, 512, 64), jnp.float32)
    memory = jax.jit(linear_scan).lower(shape, shape).compile().memory_analysis()
    assert memory.temp_size_in_bytes < memory.argument_size_in_bytes / 100


# Mistakes. The functions below are called as a user's program calls them, without the tests' own type checks.

ONES = np.ones((2, 5, 3), np.float32)
MISTAKES = {
    "method": (
        dict(method="parallel"),
        "method='parallel' is unknown: use one of auto, sequential, associative, chunked",
    ),
    "one axis": (
        dict(a=ONES[0, 0], b=ONES[0, 0]),
        r"a has shape \(3,\) and b \(3,\): expected equal shapes \(B, T, ...\)",
    ),
    "unequal": (
        dict(a=ONES[:, :, :1]),
        r"a has shape \(2, 5, 1\) and b \(2, 5, 3\): expected equal shapes .* use jnp.broadcast_to",
    ),
    "no steps": (dict(a=ONES[:, :0], b=ONES[:, :0]), r"a has shape \(2, 0, 3\), no steps: expected T >= 1"),
    "state": (dict(h0=ONES), r"h0 has shape \(2, 5, 3\), expected \(B, ...\) = \(2, 3\)"),
    "integers": (
        dict(a=np.ones((2, 5, 3), np.int32)),
        r"a has dtype int32, expected real or complex numbers: convert it",
    ),
    "integer state": (dict(h0=np.ones((2, 3), np.int32)), r"h0 has dtype int32, expected real or complex"),
    "complex state": (dict(h0=np.ones((2, 3), np.complex64)), r"h0 has dtype complex64, but a and b are real"),
    "reset's shape": (
        dict(reset=np.ones((2, 4), bool)),
        r"reset has shape \(2, 4\) and dtype bool, expected \(B, T\) = \(2, 5\) and bool",
    ),
    "reset's type": (dict(reset=np.ones((2, 5), np.int32)), r"reset has shape \(2, 5\) and dtype int32"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_with_their_fix(mistake):
    given, words = MISTAKES[mistake]
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(linear_scan)(**{"a": ONES, "b": ONES, **given})


def test_arrays_of_numpy_will_do():
    h, h_last = inspect.unwrap(linear_scan)(ONES, ONES, ONES[:, 0], reset=np.zeros((2, 5), bool))
    np.testing.assert_array_equal(h[0, :, 0], [2, 3, 4, 5, 6])
    np.testing.assert_array_equal(h_last, h[:, -1])
