"""Quantised states: codes and bytes are what they are said to be, errors those of the theory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.compression import quantization
from selssm_jax.compression.quantization import Quantizer, allocate, fit
from selssm_jax.information import rate_distortion

HALF = Quantizer(jnp.array([[0.0, 1.0], [0.0, 1.0]]), (1, 1))


def gaussians(count=20_000, scales=(4.0, 2.0, 1.0, 0.5, 0.1), seed=0):
    return np.random.default_rng(seed).standard_normal((count, len(scales))) * np.array(scales)


# Least mean squared errors of a standard normal at 1 to 4 bits (Max 1960, table I).
@pytest.mark.parametrize(("bits", "error"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_levels_are_those_of_lloyd_and_max(bits, error):
    found = fit(gaussians(200_000, (1.0,)), (bits,))
    h = jnp.asarray(gaussians(200_000, (1.0,), seed=1), jnp.float32)
    seen = float(((found.dequantize(found.quantize(h)) - h) ** 2).mean())
    assert seen == pytest.approx(error, rel=0.02)  # 2e5 samples of fit and of test


def test_codes_are_the_nearest_levels():
    found = fit(gaussians(), (3, 2, 1, 0, 4))
    h = jnp.asarray(gaussians(500, seed=1), jnp.float32)
    codes = np.asarray(found.quantize(h))
    levels = np.asarray(found.levels)
    for i, count in enumerate(found.bits):
        np.testing.assert_array_equal(
            codes[:, i], np.abs(np.asarray(h)[:, i, None] - levels[i, : 2**count]).argmin(axis=1)
        )
        assert (np.diff(levels[i, : 2**count]) > 0).all()


@pytest.mark.parametrize("bits", [(8, 8, 8), (3, 0, 5, 1), (1,), (2, 2, 2, 2, 2, 2, 2), (0, 0, 4)])
def test_packed_states_are_of_the_claimed_bytes_and_come_back(bits):
    found = fit(gaussians(4000, (1.0,) * len(bits)), bits)
    codes = found.quantize(
        jnp.asarray(gaussians(30, (1.5,) * len(bits), seed=1), jnp.float32).reshape(2, 15, len(bits))
    )
    packed = jax.jit(found.pack)(codes)
    assert packed.dtype == jnp.uint8 and packed.shape == (2, 15, found.nbytes) and found.nbytes == -(-sum(bits) // 8)
    np.testing.assert_array_equal(jax.jit(found.unpack)(packed), codes)


def test_stochastic_rounding_keeps_the_mean():
    found = fit(gaussians(), (2, 3, 2, 1, 2))
    inside = jnp.asarray([0.5, -0.7, 0.3, 0.1, -0.02])
    noise = jax.random.uniform(jax.random.key(0), (50_000, 5))
    values = found.dequantize(found.quantize(jnp.broadcast_to(inside, noise.shape), noise))
    spread = np.asarray(found.levels).max(axis=1) - np.asarray(found.levels).min(axis=1)
    # 5 standard errors at most
    np.testing.assert_array_less(np.abs(np.asarray(values.mean(axis=0) - inside)), 5 * spread / 2 / np.sqrt(50_000))
    assert all(len(np.unique(np.asarray(values)[:, i])) == 2 for i in range(5))  # the two levels around it
    outside = found.dequantize(found.quantize(jnp.full((100, 5), 100.0), noise[:100]))
    assert (np.asarray(outside) == np.asarray(found.levels).max(axis=1)).all()


def test_small_updates_are_lost_by_rounding_to_the_nearest_only():
    """h <- h + (1 - h) / 100 towards 1, in 3 bits: dead at the nearest level, alive on average."""
    found = fit(np.linspace(-1, 1, 1000)[:, None], (3,))

    def run(noise):
        def step(packed, noise):
            h = found.dequantize(found.unpack(packed))
            return found.pack(found.quantize(h + (1 - h) / 100, noise)), h

        start = jnp.broadcast_to(found.pack(found.quantize(jnp.zeros((1,)))), (200, 1))
        return jax.lax.scan(step, start, noise, length=600)[1]

    nearest = jax.vmap(lambda _: run(None)[-1, 0, 0])(jnp.arange(1))
    kept = run(jax.random.uniform(jax.random.key(0), (600, 200, 1)))[-1].mean()
    assert abs(float(nearest[0])) < 0.2 and float(kept) > 0.8


def test_bits_go_where_water_filling_has_them():
    variances = np.array([64.0, 16.0, 4.0, 1.0, 1e-4])
    assert allocate(variances, 6) == (3, 2, 1, 0, 0)
    rates = rate_distortion.water_filling(jnp.asarray(variances, jnp.float32), 4.0 + 1e-4).rates  # the water is at 1
    np.testing.assert_allclose(np.asarray(rates) / np.log(2), [3, 2, 1, 0, 0], atol=1e-3)
    assert allocate(variances, 6, weights=np.array([0.0, 0, 0, 0, 1])) == (0, 0, 0, 0, 6)
    assert allocate(variances, 40) == (8,) * 5 and allocate(variances, 0) == (0,) * 5


def test_whole_bits_are_best_by_enumeration():
    rng = np.random.default_rng(0)
    for _ in range(50):
        variances = 10 ** rng.uniform(-2, 2, 3)
        budget = int(rng.integers(0, 9))
        best = min(
            (sum(v / 4**b for v, b in zip(variances, split, strict=True)), split)
            for split in np.ndindex(9, 9, 9)
            if sum(split) == budget
        )
        assert sum(v / 4**b for v, b in zip(variances, allocate(variances, budget), strict=True)) == pytest.approx(
            best[0]
        )


@pytest.mark.parametrize("budget", [3, 6, 10, 20])
def test_no_quantised_state_lies_below_the_rate_distortion_function(budget):
    samples, unseen = gaussians(), gaussians(seed=1)
    found = fit(samples, allocate(samples.var(axis=0), budget))
    h = jnp.asarray(unseen, jnp.float32)
    errors = np.asarray(((found.dequantize(found.quantize(h)) - h) ** 2).sum(axis=1))
    least = float(rate_distortion.converse(jnp.asarray(unseen.var(axis=0), jnp.float32), budget * np.log(2)))
    assert errors.mean() + 5 * errors.std() / np.sqrt(len(errors)) >= least
    # a scalar quantiser is within a factor of pi sqrt(3) / 2 at high rate, and whole bits cost the rest
    assert errors.mean() < 4 * least


def test_what_is_not_a_number_stays_so_where_nothing_can_be_raised():
    snapped = np.asarray(jax.jit(HALF.snap)(jnp.array([[np.nan, 0.2]])))
    assert np.isnan(snapped[0, 0]) and np.isfinite(snapped[0, 1])


def test_every_slot_of_a_window_is_among_the_samples_that_its_levels_are_fitted_to(monkeypatch):
    """Two slots of one channel, whose samples are thinned by two: every second number would be one slot alone."""
    monkeypatch.setattr(quantization, "POOLED", 1000)
    monkeypatch.setattr(quantization, "FEWEST", 1000)
    samples = np.stack([np.full(1000, -1.0), np.full(1000, 1.0)], axis=1)
    np.testing.assert_array_equal(fit(samples, (1, 1), channels=np.zeros(2, int)).levels, [[-1, 1], [-1, 1]])


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: allocate(np.array([-1.0, 1.0]), 2), "expected finite numbers from 0"),
        (lambda: allocate(np.ones(2), 17), "budget=17 bits for 2 components: use from 0 to 16"),
        (lambda: fit(np.full((3, 2), np.nan), (1, 1)), "expected finite numbers"),
        (lambda: fit(np.ones((3, 2)), (1, 9)), r"bits=\(1, 9\) do not fit 2 components"),
        (lambda: fit(np.ones((3, 2)), (1,)), "do not fit 2 components"),
        (lambda: fit(np.full((3, 1), 1e39), (1,)), "that float32 can hold"),
        (lambda: fit(np.ones((3, 2)) * 1j, (1, 1)), "dtype complex128, expected real numbers"),
        (lambda: HALF.quantize(jnp.array([np.nan, 0])), "not finite"),
        (lambda: HALF.quantize(jnp.array([0, np.inf])), "not finite"),
        (lambda: HALF.quantize(jnp.array([0j, 1])), "dtype complex64, expected real numbers"),
        (lambda: HALF.quantize(jnp.zeros(3)), r"states of shape \(3,\), expected \(..., 2\)"),
        (lambda: HALF.dequantize(jnp.array([0, 2])), "not all from 0 to 2\\^bits - 1"),
        (lambda: HALF.pack(jnp.array([-1, 0])), "not all from 0 to 2\\^bits - 1"),
        (lambda: HALF.unpack(jnp.zeros(2, jnp.uint8)), "packed states of 2 bytes, expected 1"),
    ],
)
def test_mistakes_are_named(call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call()
