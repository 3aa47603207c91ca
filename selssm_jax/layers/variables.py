"""What `init` of a module returns, and what of it functions of this package take."""

from collections.abc import Mapping
from typing import Any


def parameters(variables: Any) -> Any:
    """Returns the parameters of {"params": parameters, ...}, what `init` returns; parameters themselves are returned as
    they are.
    """
    return variables["params"] if isinstance(variables, Mapping) and "params" in variables else variables
