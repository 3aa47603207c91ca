"""States in a few bits a component: how many bits each gets, at which levels, and the bytes they are packed into (theory, section 10).

The state that is carried is the packed one: a step unpacks it, updates it and packs it again, so the error goes through the recurrence.
Everything but `fit` and `allocate` is a pure function of arrays for `jax.jit` and `jax.lax.scan`.
"""

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, UInt8

MOST = 8  # bits of a component
LLOYD, SETTLED = 200, 1e-6  # most iterations of Lloyd and Max, and the share by which the last one lowers the error

Samples = Float[Array | np.ndarray, "M N"]
Bits = Int[Array | np.ndarray, "N"]


@flax.struct.dataclass
class Quantizer:
    """One scalar quantiser a component, built by `fit`: component i has 2^bits_i levels, in rising order; 0 bits are one level.

    Attributes:
      levels: (N, L) reproduction values, L = 2^max(bits); the last is repeated where a component has fewer.
      bits: bits of each component, a tuple of N numbers from 0 to 8.
    """

    levels: Float[Array, "N L"]
    bits: tuple[int, ...] = flax.struct.field(pytree_node=False)

    @property
    def nbytes(self) -> int:
        """Bytes of one packed state: ceil(sum of bits / 8)."""
        return -(-sum(self.bits) // 8)

    def quantize(self, h: Float[Array, "... N"], noise: Float[Array, "... N"] | None = None) -> Int[Array, "... N"]:
        """Returns codes: the nearest level; with `noise`, uniform in [0, 1), a level on either side so that the mean is h (stochastic rounding).

        Rounding to the nearest loses every update that is smaller than half the distance of two levels; stochastic rounding keeps it on average.
        """
        below, above = self._levels(h.ndim, slice(None, -1)), self._levels(h.ndim, slice(1, None))
        if noise is None:
            return ((h[..., None] > (below + above) / 2) & (above > below)).sum(axis=-1, dtype=jnp.int32)
        share = (h[..., None] - below) / jnp.where(above > below, above - below, 1)  # of the way from each level to the next
        return ((share > noise[..., None]) & (above > below)).sum(axis=-1, dtype=jnp.int32)

    def dequantize(self, codes: Int[Array, "... N"]) -> Float[Array, "... N"]:
        """Returns the levels of codes."""
        return jnp.take_along_axis(self._levels(codes.ndim, slice(None)), codes[..., None], axis=-1)[..., 0]

    def pack(self, codes: Int[Array, "... N"]) -> UInt8[Array, "... b"]:
        """Returns codes as `nbytes` bytes, the highest bit of each first."""
        component, shift = self._places()
        return jnp.packbits(((codes[..., component] >> shift.reshape((1,) * (codes.ndim - 1) + shift.shape)) & 1).astype(jnp.uint8), axis=-1)

    def unpack(self, packed: UInt8[Array, "... b"]) -> Int[Array, "... N"]:
        """Returns the codes that were packed."""
        component, shift = self._places()
        bits = jnp.unpackbits(packed, axis=-1, count=len(shift)).astype(jnp.int32)
        place = np.zeros((len(shift), len(self.bits)), np.int32)
        place[np.arange(len(shift)), component] = 1 << shift
        return bits @ place

    def _levels(self, ndim: int, part: slice) -> Array:
        return self.levels[:, part].reshape((1,) * (ndim - 1) + (len(self.bits), -1))

    def _places(self) -> tuple[Integer[np.ndarray, "b"], Integer[np.ndarray, "b"]]:
        """Of every stored bit, its component and its place there."""
        component = np.repeat(np.arange(len(self.bits)), self.bits)
        shift = np.concatenate([np.arange(count)[::-1] for count in self.bits]).astype(np.int32)
        return component, shift


def allocate(variances: Float[Array | np.ndarray, "N"], budget: int, *, weights: Float[Array | np.ndarray, "N"] | None = None) -> tuple[int, ...]:
    """Returns bits of each component, `budget` in all, by reverse water-filling in whole bits (theory, section 10).

    Each bit in turn goes where the error that is left, weight_i variance_i 4^-bits_i, is largest: what water-filling does with real
    numbers, and optimal in whole ones for that error. Components under the water get none.

    Args:
      variances: of the components. budget: bits a state, at most 8 a component.
      weights: what a unit of squared error costs in each component; 1 if None.

    Raises:
      ValueError: for negative variances or weights, or a budget out of range.
    """
    left = np.asarray(variances, np.float64) * (1 if weights is None else np.asarray(weights, np.float64))
    if left.ndim != 1 or not (np.isfinite(left).all() and (left >= 0).all()):
        raise ValueError(f"variances times weights are {left}, expected finite numbers from 0, one a component")
    if not 0 <= budget <= MOST * len(left):
        raise ValueError(f"budget={budget} bits for {len(left)} components: use from 0 to {MOST * len(left)}, {MOST} a component")
    bits = np.zeros(len(left), int)
    for _ in range(budget):
        best = int(np.where(bits < MOST, left, -1).argmax())
        bits[best] += 1
        left[best] /= 4
    return tuple(bits.tolist())


def fit(samples: Samples, bits: tuple[int, ...]) -> Quantizer:
    """Returns the quantiser of least squared error on samples of states, (M, N): Lloyd's and Max's conditions, component by component.

    Levels are the means of what is nearest to them. Component 0 bits: its mean.

    Raises:
      ValueError: for samples that are not finite (M, N), or bits that are not from 0 to 8, one a component.
    """
    values = np.asarray(samples, np.float64)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"samples have shape {values.shape}, expected finite numbers (M, N), at least one sample")
    if len(bits) != values.shape[1] or not all(0 <= count <= MOST for count in bits):
        raise ValueError(f"bits={bits} do not fit {values.shape[1]} components: give each from 0 to {MOST}")
    most = 2 ** max(bits)
    levels = [np.pad(found := _lloyd(column, 2**count), (0, most - len(found)), mode="edge") for column, count in zip(values.T, bits, strict=True)]
    return Quantizer(jnp.asarray(np.stack(levels), jnp.float32), tuple(bits))


def _lloyd(samples: Float[np.ndarray, "M"], count: int) -> Float[np.ndarray, "L"]:
    """Levels from the quantiles on; sums over sorted samples make an iteration as cheap as its thresholds."""
    ordered = np.sort(samples)
    sums, squares = (np.concatenate([[0.0], np.cumsum(power)]) for power in (ordered, ordered**2))
    levels, error = np.quantile(ordered, (np.arange(count) + 0.5) / count), np.finfo(np.float64).max
    for _ in range(LLOYD):
        edges = np.concatenate([[0], np.searchsorted(ordered, (levels[1:] + levels[:-1]) / 2), [len(ordered)]])
        held, total, power = np.diff(edges), np.diff(sums[edges]), np.diff(squares[edges])
        levels = np.where(held > 0, total / np.maximum(held, 1), levels)
        before, error = error, float((power - 2 * levels * total + held * levels**2).sum())
        if before - error <= SETTLED * before:
            break
    return levels
