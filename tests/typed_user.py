"""Ten lines of a user, whose types are real where the package is installed: `mypy --strict` passes on it, and each
ignored error is one.
"""

import jax

from selssm_jax.information import Estimate, estimate
from selssm_jax.layers import Mamba
from selssm_jax.ops import linear_scan


def remembered(x: jax.Array, h: jax.Array) -> Estimate:
    """Returns what states know of inputs."""
    return estimate(x, h)


layer = Mamba(8, 4)
method: int = layer.d_conv
wrong: str = layer.d_conv  # type: ignore[assignment]
linear_scan(method=method)  # type: ignore[call-arg, arg-type]
