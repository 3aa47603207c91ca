"""Types for the shapes of arrays, and the meaning of their letters.

B batch, T time, D model width, N state components, H heads or horizon, K lag, C channels of a signal, V vocabulary.
The aliases are read by people and checked in tests (jaxtyping's import hook); at run time they cost nothing.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Bool, Float, Int

Activations = Float[Array, "B T D"]
Reset = Bool[Array, "B T"]
Tokens = Int[Array, "B T"]
Signal = Float[Array, "B T C"]
AnyArray = Any  # of JAX inside a compiled step, of NumPy outside
Batch = Mapping[str, AnyArray]  # the arrays of `Dataset.train` and `Dataset.evaluate` by name
Rows = Any  # how many sequences: a whole number, or a dimension of `jax.export`, which may be any
