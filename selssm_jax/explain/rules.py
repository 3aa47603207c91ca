"""The rules of relevance, as layers follow them (`layers.relevance_rules`): for functions and layers of one's own.

with explaining():
    jax.grad(f)(x) * x

`detach`, `activate`, `multiply`, `gate_linear_units`, `RMSNorm` and `LayerNorm` are what an own mixer says them by, and
`tap` what it shows its recurrence by.
"""

from selssm_jax.layers.relevance_rules import (
    RULES,
    LayerNorm,
    RMSNorm,
    activate,
    detach,
    explaining,
    follow,
    gate_linear_units,
    is_active,
    multiply,
    tap,
)

__all__ = [
    "RULES",
    "LayerNorm",
    "RMSNorm",
    "activate",
    "detach",
    "explaining",
    "follow",
    "gate_linear_units",
    "is_active",
    "multiply",
    "tap",
]
