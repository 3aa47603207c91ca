"""Keys of earlier versions, and what each is called now.

Saved runs and records are read by this table; elsewhere an old key is a mistake, and what is said of it names the new
one.
"""

from collections.abc import Mapping
from typing import Any

_GATES = ("gate", "gate_active", "gate_floor", "gate_bias", "gate_state")
_SELECTIVE = (*_GATES, "update", "transition", "process_noise", "observation_noise", "certified", "solver")
RENAMED: dict[str, tuple[str, ...]] = {
    **{f"model.{key}": (f"model.selective.{key}",) for key in _SELECTIVE},
    "model.scan": ("model.selective.method", "model.mamba.method"),
    **{f"model.{key}": (f"model.mamba.{key}",) for key in ("dt_rank", "inner_norm_epsilon")},
    **{
        f"model.{key}": (f"model.mamba.{key}", f"model.mamba2.{key}")
        for key in ("expand", "projection_bias", "conv_bias")
    },
    "model.d_conv": ("model.mamba.d_conv", "model.mamba2.d_conv", "model.rg_lru.d_conv"),
    "model.heads": (
        "model.attention.heads",
        "model.local_attention.heads",
        "model.mamba2.heads",
        "model.rg_lru.blocks",
    ),
    **{f"model.{key}": (f"model.mamba2.{key}",) for key in ("groups", "dt_limit")},
    "model.context": ("model.attention.window",),
    "model.window": ("model.local_attention.window",),
    **{f"model.{key}": (f"model.tcn.{key}",) for key in ("kernel", "dilations")},
    "model.channels_apart": ("model.channel_independent",),
    "model.head_steps": ("model.head_context",),
    "data.cycle": ("data.period",),
    "training.rate": ("training.information_weight",),
    "training.rate_form": ("training.information_bound",),
    "sweep.rates": ("sweep.learning_rates",),
}


def explain(key: str) -> str:
    """Returns what a key of an earlier version is called now, in words; "" for a key that is none."""
    new = RENAMED.get(key, ())
    many = ", the one of the mixer that it is meant for" if len(new) > 1 else ""
    return f"{key} is now {' or '.join(new)}: use that name{many}" if new else ""


def update(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of keys such as "model.gate" under the names that they have now.

    What several mixers read is now a key of each: those of the pattern get it.
    """
    pattern = values.get("model.pattern", ())
    found: dict[str, Any] = {}
    for key, value in values.items():
        new = RENAMED.get(key, (key,))
        found |= {name: value for name in new if len(new) == 1 or name.split(".")[1] in pattern}
    return found
