"""The layers of the mixers that a block pattern can name, and how an own one gets among them; what each can be set to
is in `config.mixers`.

Each obeys (x, state=None, *, reset=None) -> (y, state): one call over T steps equals calls over any split of them that
carry the state, and a reset hides all that came before it. `initial_state(batch, steps=None)` is the state before the
first step; where it is a cache, with room for `steps`. A mixer may sow "gate" and "state" among its intermediates, name
the axes of its state in its parameters (`layers.state_axes`), and state what holds of it for all inputs
(`layers.bounds`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from selssm_jax.config.mixers import MIXERS, NONE, Mixer, MixerConfig
from selssm_jax.config.model import Model
from selssm_jax.errors import suggest
from selssm_jax.layers.attention import Attention
from selssm_jax.layers.kalman import KalmanAttention, KalmanSSM
from selssm_jax.layers.linear import LRU, S4D, S5
from selssm_jax.layers.mamba import FalconMamba, Mamba, Mamba2
from selssm_jax.layers.recurrent import GRU, LSTM, RNN, MinGRU
from selssm_jax.layers.rg_lru import RGLRU
from selssm_jax.layers.selective import SelectiveSSM
from selssm_jax.layers.tcn import TCN


def _mamba(d_model: Any, d_state: Any = 16, *, inner_norm_epsilon: Any = 0.0, **rest: Any) -> Mamba:
    return (
        FalconMamba(d_model, d_state, **rest, inner_norm_epsilon=inner_norm_epsilon)
        if inner_norm_epsilon
        else Mamba(d_model, d_state, **rest)
    )


# One for every name of `config.mixers.MIXERS`.
LAYERS: dict[str, Callable[..., nn.Module]] = {
    "selective": SelectiveSSM,
    "kalman": KalmanSSM,
    "kalman_attention": KalmanAttention,
    "s4d": S4D,
    "s5": S5,
    "lru": LRU,
    "rg_lru": RGLRU,
    "min_gru": MinGRU,
    "rnn": RNN,
    "lstm": LSTM,
    "gru": GRU,
    "mamba": _mamba,
    "mamba2": Mamba2,
    "attention": Attention,
    "local_attention": Attention,
    "tcn": TCN,
}


def mixer(name: str, config: Model) -> nn.Module:
    """Returns the mixer that a block pattern calls `name`, of the config of one block."""
    return LAYERS[name](**config.arguments(name), dtype=jnp.dtype(config.dtype))


def register_mixer(
    name: str,
    layer: Callable[..., nn.Module],
    *,
    config: type[MixerConfig] = MixerConfig,
    keys: Sequence[str] = ("d_state",),
    gated: bool = False,
    undecayed: Sequence[str] = (),
    waits: bool = True,
) -> None:
    """Makes an own mixer known: `model.pattern` may name it, and it is trained, measured, compared and compressed by
    the same commands as the others.

    `testing.check_mixer` says whether a layer is one. Commands read the file that registers it by `--extend FILE.py`.

    Args:
      name: what a pattern calls it.
      layer: called as layer(d_model=..., **{key: model.key}, **fields of its config, dtype=...); returns a Linen
        module.
      config: what it can be set to: `model.own.NAME.FIELD` in a config, `--config.model.own.NAME.FIELD=...` on a
        command line.
      keys: which keys of `config.Model` are arguments of it, besides d_model.
      gated: whether it sows "gate" among its intermediates.
      waits: False where all that it carries from step to step goes through `ops` or a layer of the package, so that
        devices can share a sequence (`ops.shards`).
      undecayed: names of its parameters that weight decay spares, such as poles; those of the package and all biases
        are spared anyway.

    Raises:
      ValueError: for a name that is taken, a key that no model has, and a config that is no frozen dataclass of that
        kind.
    """
    if name in (*LAYERS, NONE):
        raise ValueError(f"the mixer {name!r} is there already: give another name")
    for key in keys:
        if key not in Model.__dataclass_fields__:
            raise ValueError(f"the mixer {name!r} asks for model.{key}: {suggest(key, Model.__dataclass_fields__)}")
    if not issubclass(config, MixerConfig) or "__dataclass_fields__" not in vars(config):
        raise ValueError(
            f"the mixer {name!r} has the config {config.__name__}: make it a frozen dataclass that is a "
            "config.MixerConfig"
        )
    LAYERS[name], MIXERS[name] = layer, Mixer(config, tuple(keys), gated, tuple(undecayed), waits)
