"""Residual blocks: a mixer over time, then a gated MLP over width, each after its own norm."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from selssm_jax.config import Model
from selssm_jax.config.mixers import NONE
from selssm_jax.layers import relevance_rules as rules
from selssm_jax.layers.bidirectional import Bidirectional
from selssm_jax.layers.bounds import Ball, Bounds, Box, Inputs
from selssm_jax.layers.convolution import ShortConv
from selssm_jax.layers.mixers import mixer
from selssm_jax.layers.projection import Projection
from selssm_jax.shapes import Activations, Reset, Rows

ROUNDINGS = 8  # units of the activations' precision that a normalised input may be too long by


def normalisation(config: Model) -> Callable[[Activations], Activations]:
    """Returns what normalises activations before a branch, or leaves them as they are."""
    return rules.RMSNorm(config.norm_epsilon, dtype=jnp.dtype(config.dtype)) if config.norm == "rms" else lambda x: x


def mixing(kind: str, config: Model) -> nn.Module:
    """Returns what a block mixes time by: the mixer `kind`, or two of them where the config is bidirectional."""
    return Bidirectional(mixer(kind, config), mixer(kind, config)) if config.bidirectional else mixer(kind, config)


class GatedMLP(nn.Module):
    """y = W_o (silu(W_g x) * W_u x) (Shazeer 2020, SwiGLU); `width` is the hidden width."""

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Activations) -> Activations:
        gate, up = jnp.split(Projection(2 * self.width, use_bias=False, dtype=self.dtype, name="in")(x), 2, axis=-1)
        hidden = rules.multiply(rules.activate(jax.nn.silu, gate), up)
        return Projection(x.shape[-1], use_bias=False, dtype=self.dtype, name="out")(hidden)


class Block(nn.Module):
    """x + mixer(conv(norm(x))), then x + MLP(norm(x)); mixer, convolution and MLP only where the config has them.

    The state is {"conv": inputs that the convolution still sees, "mixer": the mixer's state}; without a mixer, whose
    convolution goes with it, both are None.
    """

    kind: str
    config: Model

    def setup(self) -> None:
        config = self.config
        dtype = jnp.dtype(config.dtype)
        mixes = self.kind != NONE
        self.norm = normalisation(config)
        self.mixer: Any = mixing(self.kind, config) if mixes else None
        self.conv = ShortConv(config.conv, config.d_model) if config.conv and mixes else None
        self.dropout = nn.Dropout(config.dropout)
        hidden = round(config.mlp_ratio * config.d_model)
        self.mlp_norm = normalisation(config)
        self.mlp = GatedMLP(hidden, dtype) if hidden else None

    def __call__(
        self,
        x: Activations,
        state: dict[str, Any] | None,
        reset: Reset | None,
        valid: Bool[Array, "B T"] | None,
        deterministic: bool,
    ) -> tuple[Activations, dict[str, Any]]:
        """Returns (x after both branches, the state after the last step).

        Args:
          state: of an earlier call, or None before the first step. valid: False at padding, which the backward
            direction of `bidirectional` skips.
        """
        past, h = (None, None) if state is None else (state["conv"], state["mixer"])
        if self.mixer is not None:
            y = self.norm(x)
            if self.conv is not None:
                y, past = self.conv(y, past, reset=reset)
                y = rules.activate(jax.nn.silu, y)
            options = {"valid": valid} if self.config.bidirectional else {}
            y, h = self.mixer(y, h, reset=reset, **options)
            x = x + self.dropout(y, deterministic=deterministic)
        if self.mlp is not None:
            x = x + self.dropout(self.mlp(self.mlp_norm(x)), deterministic=deterministic)
        return x, {"conv": past, "mixer": h}

    def measure_gains(self, x: Activations, state: dict[str, Any] | None, reset: Reset | None) -> Float[Array, "B T"]:
        """Returns the nats that each step gains, of a mixer whose gates know them; the state is as in a call."""
        past, h = (None, None) if state is None else (state["conv"], state["mixer"])
        y = self.norm(x)
        if self.conv is not None:
            y = rules.activate(jax.nn.silu, self.conv(y, past, reset=reset)[0])
        nats: Array = self.mixer.measure_gains(y, h, reset=reset)
        return nats

    def bounds(self) -> Bounds:
        """Returns what the mixer states of itself for all that can reach it, through the norm and the convolution,
        whatever the model reads.
        """
        if not callable(getattr(self.mixer, "bounds", None)):
            return Bounds(unknown=f"the mixer {self.kind!r} states no bounds")
        bounds = self.mixer.bounds(self._reaching())
        return bounds if self.conv is None else dataclasses.replace(bounds, delay=bounds.delay + self.config.conv - 1)

    def _reaching(self) -> Inputs:
        """The set of the mixer's inputs: |x / scale|_2 <= sqrt(D) after an RMS norm, anything without one."""
        config = self.config
        if config.norm != "rms":
            return Box(math.inf)
        rounding = 1 + ROUNDINGS * float(jnp.finfo(jnp.dtype(config.dtype)).eps)
        inputs: Inputs = Ball(self.variables["params"]["norm"]["scale"], rounding * math.sqrt(config.d_model))
        return inputs if self.conv is None else self.conv.after(inputs)

    def initial_state(self, batch: Rows, steps: int | None = None) -> dict[str, Any]:
        """Returns the state before the first step; a cache has room for `steps` of them, and for all that it looks back
        on if None.
        """
        past = self.conv.initial_state(batch, jnp.dtype(self.config.dtype)) if self.conv is not None else None
        return {"conv": past, "mixer": None if self.mixer is None else self.mixer.initial_state(batch, steps)}
