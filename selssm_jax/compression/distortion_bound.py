"""What no quantiser can do better, squared error against bits (theory, section 6), and how far apart rounding can keep
two states.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from selssm_jax.compression.quantization import MOST, Quantizer
from selssm_jax.information import rate_distortion
from selssm_jax.information.checks import check_finite, check_real

POINTS = 64  # values that stand for a component's law
SLOPES = np.geomspace(0.3, 3e4, 12)  # of R(D), in nats for a squared error of one variance
_curve = jax.jit(rate_distortion.curve)


def floors(values: Float[np.ndarray, "X"], levels: Float[np.ndarray, "L"]) -> Float[np.ndarray, "b"]:
    """Returns lower bounds on the mean squared error of every code of 0, 1, ... 8 bits, of a source with these equally
    likely values.

    D(R) of the source from below: Blahut and Arimoto's certified points (R_s, D_s) of slope -s give R(D) >= R_s - gap -
    s (D - D_s), lines that no code crosses whose reproductions are values of the source, midpoints of two neighbours,
    or of `levels`, and so no quantiser with these levels.

    Raises:
      ValueError: for values or levels that are not real and finite, and no values.
    """
    check_real(values=values, levels=levels)
    check_finite(values=values, levels=levels)
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"values have shape {values.shape}, expected (X,) with X >= 1 values of one component")
    spread = values.var()
    if spread <= 0:
        return np.zeros(MOST + 1)
    ordered = np.sort(values)
    alphabet = np.unique(np.concatenate([ordered, (ordered[1:] + ordered[:-1]) / 2, levels]))
    # so that few shapes are compiled; never of use
    far = alphabet.max() + 10 * np.sqrt(spread) * np.arange(1, 1 + -len(alphabet) % POINTS)
    distances = (values[:, None] - np.concatenate([alphabet, far])[None]) ** 2 / spread
    law = jnp.full(len(values), 1 / len(values))
    points = jax.device_get(_curve(law, jnp.asarray(distances, jnp.float32), jnp.asarray(SLOPES, jnp.float32)))
    rates = np.log(2) * np.arange(MOST + 1)
    lines = (
        points.distortion[:, None]
        + (points.rate - points.gap)[:, None] / SLOPES[:, None]
        - rates[None] / SLOPES[:, None]
    )
    return spread * np.maximum(lines.max(axis=0), 0)


def squared_error(
    quantizer: Quantizer, samples: Float[np.ndarray, "S M"], components: Sequence[int]
) -> tuple[float, float]:
    """Returns (measured, bound): the mean squared error of some components in units of their variance, and the least of
    any code of as many bits each.

    Both of the empirical law of POINTS samples, spread over all of them: the bound is then of the very numbers that are
    measured.
    """
    chosen = samples[np.linspace(0, len(samples) - 1, POINTS).astype(int)].astype(np.float32)
    snapped = np.asarray(quantizer.dequantize(quantizer.quantize(jnp.asarray(chosen))))
    levels, pairs = np.asarray(quantizer.levels), []
    for index in components:
        source, bits = chosen[:, index].astype(np.float64), quantizer.bits[index]
        variance = source.var() or 1.0
        pairs.append(
            (
                ((snapped[:, index] - source) ** 2).mean() / variance,
                floors(source, levels[index, : 2**bits])[bits] / variance,
            )
        )
    measured, bound = np.mean(pairs, axis=0)
    return float(measured), float(bound)


def rounding_errors(quantizer: Quantizer, rounding: Literal["nearest", "stochastic"]) -> Float[np.ndarray, "M"]:
    """Returns the most by which rounding moves each component of a state between its outermost levels.

    To the nearest: half the largest distance of two neighbouring levels; stochastic: the whole of it, for either
    neighbour may be drawn.
    """
    levels, used = np.asarray(quantizer.levels, np.float64), 2 ** np.asarray(quantizer.bits)[:, None]
    gaps = np.where(np.arange(1, levels.shape[1])[None] < used, np.diff(levels, axis=1), 0).max(axis=1, initial=0)
    return gaps / 2 if rounding == "nearest" else gaps


def rounding_radius(errors: Float[np.ndarray, "n"], rate: float, weights: Float[np.ndarray, "n"]) -> float:
    """Returns 2 max_i(delta_i / v_i) / (1 - rate): how near two packed states come to each other for certain, |h - k|_v
    = max_i |h_i - k_i| / v_i.

    Both read the same inputs; the step shrinks |.|_v by `rate` < 1. What lies beyond the outermost levels is first cut
    off there, which moves no two states apart; then each is moved by at most delta, so a distance d becomes at most
    rate d + 2 max_i(delta_i / v_i), whatever noise either rounding draws.

    Args:
      errors: delta, as of `rounding_errors`; of a complex component hypot of those of its two parts.
    """
    return 2 * float((errors / weights).max(initial=0.0)) / (1 - rate)
