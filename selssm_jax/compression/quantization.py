"""Quantisation of states: the bits and levels of each component, and their packed bytes (theory, section 10).

The state that is carried is the packed one: a step unpacks it, updates it and packs it again, so the error goes through
the recurrence. Everything but `fit` and `allocate` is a pure function of arrays for `jax.jit` and `jax.lax.scan`.
"""

import heapq
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, Int, Integer, UInt8

from selssm_jax.compression.levels import least_error_levels
from selssm_jax.information.checks import check_real

MOST = 8  # bits of a component
# samples that levels of a channel are fitted to; fewer, down to FEWEST, where all of them together would be more than
# LARGEST
POOLED = 50_000
FEWEST, LARGEST = 512, 2**25

JOIN = "give real and imaginary parts as components of their own (compression.carried.components)"

Samples = Inexact[Array | np.ndarray, "M N"]
Bits = Int[Array | np.ndarray, "N"]


@flax.struct.dataclass
class Quantizer:
    """One scalar quantiser a component, built by `fit`: component i has 2^bits_i levels, in rising order; 0 bits are
    one level.

    Attributes:
      levels: (N, L) reproduction values, L = 2^max(bits); the last is repeated where a component has fewer.
      bits: bits of each component, a tuple of N numbers from 0 to 8.
    """

    levels: Float[Array, "N L"]
    bits: tuple[int, ...] = flax.struct.field(pytree_node=False)

    def sort_levels(self) -> "Quantizer":
        """Returns the same quantiser with every component's levels in rising order again, which training may have
        left.
        """
        bits = np.asarray(self.bits)[:, None]
        used = np.arange(self.levels.shape[1])[None] < 2**bits
        rising = jnp.sort(jnp.where(used, self.levels, jnp.inf), axis=1)
        return self.replace(levels=jnp.where(used, rising, jnp.take_along_axis(rising, 2**bits - 1, axis=1)))  # type: ignore[attr-defined]

    @property
    def nbytes(self) -> int:
        """Bytes of one packed state: ceil(sum of bits / 8)."""
        return -(-sum(self.bits) // 8)

    def quantize(
        self, h: Inexact[Array | np.ndarray, "... N"], noise: Float[Array, "... N"] | None = None
    ) -> Int[Array, "... N"]:
        """Returns codes: the nearest level; with `noise`, uniform in [0, 1), a level on either side so that the mean is
        h (stochastic rounding).

        Rounding to the nearest loses every update that is smaller than half the distance of two levels; stochastic
        rounding keeps it on average.

        Raises ValueError for complex numbers, for numbers that are not finite, which have no nearest level, and for
        another number of components. Inside `jax.jit` nothing can be raised for values: NaN then gets the lowest
        level's code, while `snap` returns NaN for it.
        """
        return self._by_bits(_codes, *(self._real(jnp.asarray(value)) for value in (h, noise) if value is not None))

    def dequantize(self, codes: Int[Array, "... N"]) -> Float[Array, "... N"]:
        """Returns the levels of codes. Raises ValueError, outside `jax.jit`, for a code that no level has."""
        return self._by_bits(_select_levels, self._encode(codes))

    def snap(self, h: Float[Array, "... N"], noise: Float[Array, "... N"] | None = None) -> Float[Array, "... N"]:
        """Returns `dequantize(quantize(h, noise))`, for training: exact forward, straight through backward.

        The gradient of h passes where h lies between the outermost cells and is 0 beyond them; that of a level sums
        over what was rounded to it (Bengio et al. 2013; Esser et al. 2020).
        """
        return self._by_bits(_snap, *(value for value in (h, noise) if value is not None))

    def pack(self, codes: Int[Array, "... N"]) -> UInt8[Array, "... b"]:
        """Returns codes as `nbytes` bytes, the highest bit of each first. Raises ValueError, outside `jax.jit`, for a
        code that no level has.
        """
        component, shift = self._places()
        codes = self._encode(codes)
        return jnp.packbits(
            ((codes[..., component] >> shift.reshape((1,) * (codes.ndim - 1) + shift.shape)) & 1).astype(jnp.uint8),
            axis=-1,
        )

    def unpack(self, packed: UInt8[Array, "... b"]) -> Int[Array, "... N"]:
        """Returns the codes that were packed. Raises ValueError for another number of bytes."""
        count = np.asarray(self.bits)
        if packed.shape[-1] != self.nbytes:
            raise ValueError(
                f"packed states of {packed.shape[-1]} bytes, expected {self.nbytes}: they were packed by another "
                "quantiser"
            )
        bits = jnp.unpackbits(packed, axis=-1, count=int(count.sum())).astype(jnp.int32)
        bits = jnp.pad(bits, [(0, 0)] * (bits.ndim - 1) + [(0, 1)])  # there is a bit to read where a component has none
        place = np.arange(count.max(initial=0))[:, None]
        at = np.where(place < count, np.cumsum(count) - count + place, bits.shape[-1] - 1)
        worth = np.where(place < count, 1 << np.maximum(count - 1 - place, 0), 0)
        values = (
            bits[..., row] * one.reshape((1,) * (bits.ndim - 1) + one.shape) for row, one in zip(at, worth, strict=True)
        )
        return sum(values, jnp.zeros((*bits.shape[:-1], len(count)), jnp.int32))

    def _real(self, h: Array) -> Array:
        if jnp.iscomplexobj(h):
            raise ValueError(f"states of dtype {h.dtype}, expected real numbers: {JOIN}")
        if not h.ndim or h.shape[-1] != len(self.bits):
            raise ValueError(f"states of shape {h.shape}, expected (..., {len(self.bits)}), one number a component")
        if not isinstance(h, jax.core.Tracer) and not bool(jnp.isfinite(h).all()):
            raise ValueError(
                "states hold numbers that are not finite, which no level is near to: find where they come from before "
                "packing them"
            )
        return h

    def _encode(self, codes: Array) -> Array:
        if not jnp.issubdtype(codes.dtype, jnp.integer):
            raise ValueError(f"codes of dtype {codes.dtype}, expected whole numbers, as `quantize` gives them")
        if codes.shape[-1] != len(self.bits):
            raise ValueError(f"codes of shape {codes.shape}, expected (..., {len(self.bits)}), one a component")
        if not isinstance(codes, jax.core.Tracer) and bool(
            ((codes < 0) | (codes >= 2 ** np.asarray(self.bits).reshape((1,) * (codes.ndim - 1) + (-1,)))).any()
        ):
            raise ValueError(
                "codes are not all from 0 to 2^bits - 1 of their components: they were made by another quantiser"
            )
        return codes

    def _by_bits(self, function: Callable[..., Array], *values: Array) -> Array:
        """Applies a function of (levels (1, ..., n, L), values (..., n)) to the components of each number of bits by
        themselves: 1 bit needs 2 levels.
        """
        bits = np.asarray(self.bits)
        groups = [np.flatnonzero(bits == count) for count in np.unique(bits)]
        values_of_groups = []
        for index in groups:
            levels = self.levels[index, : 2 ** bits[index[0]]]
            levels = levels.reshape((1,) * (values[0].ndim - 1) + levels.shape)
            values_of_groups.append(function(levels, *(value[..., index] for value in values)))
        return jnp.concatenate(values_of_groups, axis=-1)[..., np.argsort(np.concatenate(groups))]

    def _places(self) -> tuple[Integer[np.ndarray, "b"], Integer[np.ndarray, "b"]]:
        """Of every stored bit, its component and its place there."""
        component = np.repeat(np.arange(len(self.bits)), self.bits)
        shift = np.concatenate([np.arange(count)[::-1] for count in self.bits]).astype(np.int32)
        return component, shift


def _codes(levels: Array, h: Array, noise: Array | None = None) -> Array:
    """How many thresholds lie below h; equal levels, where a component has few values, are passed together."""
    below, above = levels[..., :-1], levels[..., 1:]
    if noise is None:
        return (h[..., None] > (below + above) / 2).sum(axis=-1, dtype=jnp.int32)
    # of the way from each level to the next
    share = (h[..., None] - below) / jnp.where(above > below, above - below, 1)
    return jnp.where(above > below, share > noise[..., None], h[..., None] > below).sum(axis=-1, dtype=jnp.int32)


def _select_levels(levels: Array, codes: Array) -> Array:
    """Sums of one term each, which have a gradient that needs no scatter."""
    places = jnp.arange(levels.shape[-1]).reshape((1,) * codes.ndim + (-1,))
    return jnp.where(codes[..., None] == places, levels, 0).sum(axis=-1)


def _snap(levels: Array, h: Array, *noise: Array) -> Array:
    rounded = _select_levels(levels, _codes(*jax.lax.stop_gradient((levels, h, *noise))))
    low, high = jax.lax.stop_gradient((levels[..., 0], levels[..., -1]))
    margin = (high - low) / (2 * max(levels.shape[-1] - 1, 1))
    through = jnp.where((h >= low - margin) & (h <= high + margin), h, jax.lax.stop_gradient(h))
    return rounded + (through - jax.lax.stop_gradient(through))


def allocate(
    variances: Float[Array | np.ndarray, "N"],
    budget: int,
    *,
    weights: Float[Array | np.ndarray, "N"] | None = None,
    most: int = MOST,
) -> tuple[int, ...]:
    """Returns bits of each component, `budget` in all, by reverse water-filling in whole bits (theory, section 10).

    Each bit in turn goes where the error that is left, weight_i variance_i 4^-bits_i, is largest: what water-filling
    does with real numbers, and optimal in whole ones for that error. Components under the water get none.

    Args:
      variances: of the components. budget: bits a state.
      weights: what a unit of squared error costs in each component; 1 if None. most: bits that one component can get.

    Raises:
      ValueError: for negative variances or weights, or a budget out of range.
    """
    check_real(variances=variances, **({} if weights is None else {"weights": weights}))
    left = np.asarray(variances, np.float64) * (1 if weights is None else np.asarray(weights, np.float64))
    if left.ndim != 1 or not (np.isfinite(left).all() and (left >= 0).all()):
        raise ValueError(f"variances times weights are {left}, expected finite numbers from 0, one a component")
    if not 0 <= most <= MOST:
        raise ValueError(f"most={most} bits of a component: use from 0 to {MOST}")
    if not 0 <= budget <= most * len(left):
        raise ValueError(
            f"budget={budget} bits for {len(left)} components: use from 0 to {most * len(left)}, {most} a component"
        )
    bids = [(-error, index) for index, error in enumerate(left)] if most else []
    heapq.heapify(bids)
    bits = np.zeros(len(left), int)
    for _ in range(budget):
        error, best = heapq.heappop(bids)
        bits[best] += 1
        if bits[best] < most:
            heapq.heappush(bids, (error / 4, best))
    return tuple(bits.tolist())


def fit(samples: Samples, bits: tuple[int, ...], *, channels: Bits | None = None) -> Quantizer:
    """Returns the quantiser of least squared error on samples of states, (M, N), component by component: see
    `levels.least_error_levels`.

    Levels are the means of what is nearest to them (Lloyd 1957, Max 1960). Component of 0 bits: its mean.

    Args:
      channels: a number for each component; those of one number are taken to hold the same quantity, as the slots of a
        window do, and are fitted on all their samples together: what moves from one slot to the next of as many bits is
        then not rounded again. None: all apart.

    Raises:
      ValueError: for samples that are not real and finite, (M, N), within the range of float32, or bits that are not
        whole numbers from 0 to 8, one a component.
    """
    values = np.asarray(samples)
    if np.iscomplexobj(values):
        raise ValueError(f"samples of dtype {values.dtype}, expected real numbers: {JOIN}")
    if (
        values.ndim != 2
        or not values.size
        or not np.isfinite(values).all()
        or np.abs(values).max() > np.finfo(np.float32).max
    ):
        raise ValueError(
            f"samples have shape {values.shape}, expected finite numbers (M, N) that float32 can hold, at least one "
            "sample"
        )
    if len(bits) != values.shape[1] or not all(0 <= count <= MOST and count == int(count) for count in bits):
        raise ValueError(f"bits={bits} do not fit {values.shape[1]} components: give each from 0 to {MOST}")
    bits = tuple(int(count) for count in bits)
    channels = np.arange(len(bits)) if channels is None else np.asarray(channels)
    if channels.shape != (len(bits),):
        raise ValueError(f"channels of shape {channels.shape} for {len(bits)} components: give each a number")
    order = np.argsort(channels, kind="stable")
    starts = np.flatnonzero(np.diff(channels[order], prepend=channels[order[0]] - 1))
    members = {int(channels[part[0]]): part for part in np.split(order, starts[1:])}
    pooled = max(FEWEST, min(POOLED, LARGEST // len(members)))
    levels = np.zeros((len(bits), 2 ** max(bits)), np.float32)
    for count in sorted(set(bits)):
        own = sorted({channel for channel, most in zip(channels.tolist(), bits, strict=True) if most == count})
        for channel, one in zip(
            own,
            least_error_levels([_thin(values[:, members[channel]], pooled) for channel in own], 2**count),
            strict=True,
        ):
            of_channel = members[channel][np.asarray(bits)[members[channel]] == count]
            levels[of_channel] = np.pad(one, (0, levels.shape[1] - len(one)), mode="edge")[None]
    return Quantizer(jnp.asarray(levels), tuple(bits))


def _thin(samples: Float[np.ndarray, "M n"], most: int) -> Float[np.ndarray, "S"]:
    """At most about `most` of the numbers: whole rows, evenly spaced, so that no slot of a window is left out."""
    return samples[:: -(-samples.size // most)].ravel()
