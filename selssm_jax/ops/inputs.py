"""What the recurrences say of inputs that do not fit."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array


def check_inputs(inputs: dict[str, Array | None], shapes: dict[str, tuple[Any, ...]], origin: str) -> None:
    """Checks the shapes that `shapes` names and the types of all: "reset" is of truth values, the others are real.

    Raises:
      ValueError: naming the input, what was found, what was expected and, by `origin`, whence that follows.
    """
    for name, value in inputs.items():
        if value is None:
            continue
        if value.shape != shapes.get(name, value.shape):
            raise ValueError(f"{name} has shape {value.shape}, expected {shapes[name]} from {origin}")
        if name == "reset" and value.dtype != jnp.bool_:
            raise ValueError(f"reset has dtype {value.dtype}, expected bool")
        if name != "reset" and not jnp.issubdtype(value.dtype, jnp.floating):
            raise ValueError(
                f"{name} has dtype {value.dtype}, expected real numbers: convert it with .astype(jnp.float32)"
            )
