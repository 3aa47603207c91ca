"""The mixers that a block pattern can name: `LAYERS` has their layers, whose arguments `settings.MIXERS` says, and `MIXERS` builds them from a config.

Each obeys (x, state=None, *, reset=None) -> (y, state): one call over T steps equals calls over any split of them that carry the state, and a reset hides
all that came before it. `initial_state(batch, steps=None)` is the state before the first step; where it is a cache, with room for `steps`. A mixer may
sow "gate" and "state" among its intermediates, name the axes of its state in its parameters (`layers.state_axes`), and state what holds of it for all inputs
(`layers.bounds`).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from selssm_jax import settings
from selssm_jax.config import Model
from selssm_jax.errors import suggest
from selssm_jax.layers.attention import Attention
from selssm_jax.layers.linear import LRU, S4D, S5
from selssm_jax.layers.mamba import FalconMamba, Mamba, Mamba2
from selssm_jax.layers.recurrent import GRU, LSTM, RNN, MinGRU
from selssm_jax.layers.rg_lru import RGLRU
from selssm_jax.layers.selective import SelectiveSSM
from selssm_jax.layers.tcn import TCN


def _mamba(d_model: Any, d_state: Any = 16, *, inner_norm_epsilon: Any = 0.0, **rest: Any) -> Mamba:
    return FalconMamba(d_model, d_state, **rest, inner_norm_epsilon=inner_norm_epsilon) if inner_norm_epsilon else Mamba(d_model, d_state, **rest)


LAYERS: dict[str, Callable[..., nn.Module]] = {
    "selective": SelectiveSSM,
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


MIXERS: dict[str, Callable[[Model], nn.Module]] = {name: partial(mixer, name) for name in LAYERS}


def register_mixer(
    name: str, layer: Callable[..., nn.Module], *, keys: Sequence[str] = ("d_state",), gated: bool = False, undecayed: Sequence[str] = ()
) -> None:
    """Makes an own mixer known: `model.pattern` may name it, and it is trained, measured, compared and compressed by the same commands as the others.

    `testing.check_mixer` says whether a layer is one. Commands read the file that registers it by `--extend FILE.py`.

    Args:
      name: what a pattern calls it.
      layer: called as layer(d_model=..., **{key: model.key}, dtype=...); returns a Linen module.
      keys: which keys of `config.Model` are arguments of it, besides d_model.
      gated: whether it sows "gate" among its intermediates.
      undecayed: names of its parameters that weight decay spares, such as poles; those of the package and all biases are spared anyway.

    Raises:
      ValueError: for a name that is taken, and a key that no model has.
    """
    if name in LAYERS:
        raise ValueError(f"the mixer {name!r} is there already: give another name")
    for key in keys:
        if key not in Model.__dataclass_fields__:
            raise ValueError(f"the mixer {name!r} asks for model.{key}: {suggest(key, Model.__dataclass_fields__)}")
    settings.MIXERS[name] = settings.Mixer(settings.sizes, {key: key for key in ("d_model", *keys)}, gated, tuple(undecayed))
    LAYERS[name], MIXERS[name] = layer, partial(mixer, name)
