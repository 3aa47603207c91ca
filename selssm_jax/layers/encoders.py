"""Encoders: tokens, vectors and raw signals to the model's width, and the cycle that a series goes through."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from selssm_jax.config.fields import Count, Positive, Spread, check_arguments
from selssm_jax.config.model import check_frames
from selssm_jax.layers import relevance_rules as rules
from selssm_jax.layers.parameters import Layer
from selssm_jax.layers.projection import Projection, project
from selssm_jax.ops import shards
from selssm_jax.shapes import Rows

FAINT = 1e-6  # power that is added before its logarithm is taken


class FrameEncoder(Layer):
    """Cuts a signal into frames that end every `stride` samples and maps each to the model's width, causally.

    A frame holds the last `frame` samples of all channels (zeros before the first). With `filterbank` = F it first goes
    through F complex filters, started as a bank of windowed sinusoids, and their log magnitudes, learned with the rest.
    frame = stride = 1 is the plain vector encoder. The state holds the last frame - stride samples.

    With `embedded` = C rows are, C after C, the channels of one series after the other, and each channel adds a vector
    of its own to all of its frames: what tells channels apart to weights that they share. With `mixed` = C they read
    one another then (`ChannelMixing`).
    """

    features: int
    channels: int
    frame: int = 1
    stride: int = 1
    filterbank: int = 0
    dtype: DTypeLike = jnp.float32
    embedded: int = 0
    mixed: int = 0
    norm_epsilon: float = 1e-6

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T C"], state: Float[Array, "B W C"] | None = None
    ) -> tuple[Float[Array, "B F D"], Float[Array, "B W C"]]:
        """Returns (ceil(T / stride) encoded frames, the samples that the next frames still see).

        T is padded with zeros to a multiple of `stride`; only the last piece of a signal may need it.
        """
        counts = {"filterbank": Count, "embedded": Count, "mixed": Count}
        check_arguments(self, {"features": Positive, "channels": Positive} | counts)
        check_frames(self.frame, self.stride, str)
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % self.stride), (0, 0)))
        state = self.initial_state(x.shape[0]) if state is None else state
        join = lambda before: jnp.concatenate([before, x], axis=1)  # noqa: E731
        before, after = shards.pass_on(
            lambda before: join(before)[:, x.shape[1] :], state, span=state.shape[1], steps=x.shape[1]
        )
        y = self._frames(join(before), x.shape[1] // self.stride)
        if self.filterbank:
            y = self._log_magnitudes(y)
        y = Projection(self.features, dtype=self.dtype, name="in")(y)
        y = self._embed(y) if self.embedded else y
        return (ChannelMixing(self.mixed, self.norm_epsilon, self.dtype, name="mix")(y) if self.mixed else y), after

    def initial_state(self, batch: Rows) -> Float[Array, "B W C"]:
        """Returns silence before the first sample."""
        return jnp.zeros((batch, self.frame - self.stride, self.channels), jnp.float32)

    def _embed(self, y: Array) -> Array:
        table = self.param("channel_embedding", nn.initializers.normal(0.02), (self.embedded, self.features))
        apart = y.reshape(-1, self.embedded, *y.shape[1:]) + table[None, :, None].astype(y.dtype)
        return apart.reshape(y.shape)

    def _frames(self, samples: Array, count: int) -> Array:
        index = np.arange(count)[:, None] * self.stride + np.arange(self.frame)[None]
        return samples[:, index].reshape(samples.shape[0], count, self.frame * self.channels)

    def _log_magnitudes(self, frames: Array) -> Array:
        kernel = self.param("filters", sinusoids, (self.frame * self.channels, 2 * self.filterbank))
        real, imaginary = jnp.split(frames @ kernel, 2, axis=-1)
        y = rules.follow("activation", jnp.log(real**2 + imaginary**2 + FAINT), lambda: _explain_log(real, imaginary))
        return rules.LayerNorm(dtype=self.dtype, name="norm")(y)


class ChannelMixing(Layer):
    """y_c + W_o (silu(W_g n_c) * sum_e s_ce W_v n_e), n = RMSNorm(y): each of C channels reads the others at its own
    step, as much of each as it has learned, s = softmax(S) over e, and as it decides by what it reads itself.

    S = 0 and W_o = 0 at the start: all alike, and the channels as they are.
    """

    channels: int
    norm_epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, y: Float[Array, "R F D"]) -> Float[Array, "R F D"]:
        """Returns the rows, which are, C after C, the channels of one series after the other."""
        check_arguments(self, {"channels": Positive, "norm_epsilon": Spread})
        normal, shape = nn.initializers.lecun_normal(), (y.shape[-1],) * 2
        gate, value = (self.param(name, normal, shape) for name in ("gate", "value"))
        out = self.param("out", nn.initializers.zeros, shape)
        weights = jax.nn.softmax(self.param("weights", nn.initializers.zeros, (self.channels,) * 2), axis=-1)
        n = rules.RMSNorm(self.norm_epsilon, dtype=self.dtype, name="norm")(y)
        apart = project(n, value).reshape(-1, self.channels, y.shape[1] * y.shape[2])
        mixed = jnp.einsum("ce,bex->bcx", weights.astype(apart.dtype), apart).reshape(y.shape)
        return y + project(rules.multiply(rules.activate(nn.silu, project(n, gate)), mixed), out)


class LearnedCycle(Layer):
    """What every channel does over a cycle of `period` rows, q of shape (period, channels), learned from 0 on: the
    residual forecasting of CycleNet (Lin et al. 2024).

    A forecast y = f(x - q[phase of its rows]) + q[phase of the rows ahead].
    """

    period: int
    channels: int

    @nn.compact
    def __call__(self, phase: Float[Array, "*b"]) -> Float[Array, "*b C"]:
        """Returns q at places in the cycle, 0, 1, ..., which wrap round; 0 at a negative one, of a row that is not
        there.
        """
        check_arguments(self, {"period": Positive, "channels": Positive})
        cycle = self.param("cycle", nn.initializers.zeros, (self.period, self.channels))
        place = jnp.round(phase).astype(jnp.int32)
        return jnp.where(place[..., None] >= 0, cycle[place % self.period], 0)


def _explain_log(real: Array, imaginary: Array) -> Array:
    """log(1 + power / FAINT), which is 0 where nothing is heard, as a constant times the power of each part."""
    power = jax.lax.stop_gradient(jnp.maximum(real**2 + imaginary**2, FAINT**2))
    scale = jnp.log1p(power / FAINT) / power
    return scale * (real * jax.lax.stop_gradient(real) + imaginary * jax.lax.stop_gradient(imaginary))


def sinusoids(key: PRNGKeyArray, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32) -> Float[Array, "L F"]:
    """Windowed cosines (first half of the columns) and sines, at frequencies evenly spaced on the mel scale.

    Normalised so that a unit sinusoid of a filter's own frequency has magnitude about 1. `key` is unused: the bank is
    fixed.
    """
    del key
    length, filters = shape[0], shape[1] // 2
    mel = np.linspace(0.02, 1.0, filters + 1)[:-1]
    # radians a sample; mel of an 8 kHz signal
    frequency = np.pi * (10.0 ** (mel * np.log10(1 + 4000 / 700)) - 1) * 700 / 4000
    phase = np.arange(length)[:, None] * frequency[None]
    window = np.hanning(length + 2)[1:-1, None] * 4 / length
    return jnp.asarray(np.concatenate([np.cos(phase) * window, np.sin(phase) * window], axis=1), dtype)


def frame_valid(valid: jax.Array, stride: int) -> jax.Array:
    """A frame is valid where the first of its `stride` new samples is: (B, T) to (B, ceil(T / stride))."""
    return valid[:, ::stride]
