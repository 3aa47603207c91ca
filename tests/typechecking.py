"""The run-time type checker that conftest.py puts around every function of the package."""

from collections.abc import Callable

from beartype import BeartypeConf, beartype

CHECK = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as PEP 484 has it


def check(function: Callable) -> Callable:
    """Checks a function's arguments and result at every call.

    Constructors are left alone: JAX rebuilds a dataclass of arrays around shapes, shardings and placeholders.
    """
    return function if function.__name__ == "__init__" else CHECK(function)
