"""The mixers that a block pattern can name: a table from a name to the layer that a config describes.

Each obeys (x, state=None, *, reset=None) -> (y, state): one call over T steps equals calls over any split of them that carry the state, and a reset hides
all that came before it. `initial_state(batch, steps=None)` is the state before the first step; where it is a cache, with room for `steps`. A mixer may
sow "gate" and "state" among its intermediates, name the axes of its state in its parameters (`layers.axes`), and state what holds of it for all inputs
(`layers.bounds`).
"""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
from flax import linen as nn

from selssm_jax.config import Model
from selssm_jax.layers.attention import Attention
from selssm_jax.layers.griffin import RGLRU
from selssm_jax.layers.linear import LRU, S4D, S5
from selssm_jax.layers.mamba import Mamba, Mamba2
from selssm_jax.layers.recurrent import GRU, LSTM, RNN, MinGRU
from selssm_jax.layers.selective import SelectiveSSM
from selssm_jax.layers.tcn import TCN


def mixer(name: str, config: Model) -> nn.Module:
    """Returns the mixer that a block pattern calls `name`."""
    return MIXERS[name](config)


def _selective(config: Model) -> SelectiveSSM:
    return SelectiveSSM(
        config.d_model,
        config.d_state,
        gate=config.gate,
        gate_floor=config.gate_floor,
        gate_active=config.gate_active,
        gate_bias=config.gate_bias,
        gate_state=config.gate_state,
        update=config.update,
        transition=config.transition,
        process_noise=config.process_noise,
        observation_noise=config.observation_noise,
        certified=config.certified,
        method=config.scan,
        solver=config.solver,
        dtype=jnp.dtype(config.dtype),
    )


def _sized(layer: Callable[..., nn.Module], config: Model) -> nn.Module:
    """A layer that is its sizes alone."""
    return layer(config.d_model, config.d_state, dtype=jnp.dtype(config.dtype))


def _mamba(config: Model) -> Mamba:
    return Mamba(
        config.d_model,
        config.d_state,
        expand=config.expand,
        dt_rank=config.dt_rank,
        d_conv=config.d_conv,
        method=config.scan,
        dtype=jnp.dtype(config.dtype),
    )


def _mamba2(config: Model) -> Mamba2:
    return Mamba2(
        config.d_model,
        config.d_state,
        heads=config.heads,
        groups=config.groups,
        expand=config.expand,
        d_conv=config.d_conv,
        norm_epsilon=config.norm_epsilon,
        dtype=jnp.dtype(config.dtype),
    )


def _attention(config: Model) -> Attention:
    return Attention(config.d_model, config.heads, config.context, jnp.dtype(config.dtype))


def _local_attention(config: Model) -> Attention:
    return Attention(config.d_model, config.heads, config.window, jnp.dtype(config.dtype))


def _tcn(config: Model) -> TCN:
    return TCN(config.d_model, config.kernel, config.dilations[0], jnp.dtype(config.dtype))


def _rg_lru(config: Model) -> RGLRU:
    return RGLRU(config.d_model, config.d_state, config.heads, config.d_conv, jnp.dtype(config.dtype))


MIXERS: dict[str, Callable[[Model], nn.Module]] = {
    "selective": _selective,
    "s4d": partial(_sized, S4D),
    "s5": partial(_sized, S5),
    "lru": partial(_sized, LRU),
    "rg_lru": _rg_lru,
    "min_gru": partial(_sized, MinGRU),
    "rnn": partial(_sized, RNN),
    "lstm": partial(_sized, LSTM),
    "gru": partial(_sized, GRU),
    "mamba": _mamba,
    "mamba2": _mamba2,
    "attention": _attention,
    "local_attention": _local_attention,
    "tcn": _tcn,
}
