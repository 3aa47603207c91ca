"""Flax modules with one contract: (x, state=None, *, reset=None) -> (y, state).

`SelectiveSSM` is imported when it is asked for: the config reads the layers' rules before JAX is there.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from selssm_jax.layers.selective import SelectiveSSM

__all__ = ["SelectiveSSM"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from selssm_jax.layers import selective

    return getattr(selective, name)
