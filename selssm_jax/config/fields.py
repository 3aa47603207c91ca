"""Fields of the configuration: an annotation says what a value must be, and a group is read from dictionaries. A
layer's arguments are checked by the same.
"""

import dataclasses
import functools
import json
import math
import typing
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from selssm_jax.config import renames
from selssm_jax.errors import InputError, suggest

# what the caller calls a field: "gate_floor" for a layer, "model.selective.gate_floor" for the config
Say = Callable[[str], str]
LARGEST_FLOAT = 3.4e38
EXTEND = "if a file of yours registers it, name that file by --extend"  # of what is not there
LARGEST_SEED = 2**32 - 1  # JAX's keys are made of 32 bits: 2**32 would be 0 again, in silence
TUPLES = {
    str: "names, for example ('selective', 'selective')",
    int: "whole numbers, for example (64, 32)",
    float: "numbers, for example (0.001, 0.004)",
}


@dataclasses.dataclass(frozen=True)  # no tuples: early 3.11 takes equal ones of two classes for one annotation
class Least:
    """A number of at least `low`, and at most `most`."""

    low: float
    most: float = math.inf

    def check(self, value: Any, name: str) -> None:
        """Raises InputError for any other; not-a-number is one."""
        if not self.low <= value <= self.most or value == math.inf:
            limit = "" if self.most == math.inf else f" and at most {self.most}"
            raise InputError(f"{name}={value} is out of range: use at least {self.low}{limit}")


@dataclasses.dataclass(frozen=True)
class Within:
    """A finite number from `low` to `high`."""

    low: float
    high: float = math.inf

    def check(self, value: Any, name: str) -> None:
        """Raises InputError for any other; not-a-number is one."""
        if not (self.low <= value <= self.high and math.isfinite(value)):
            raise InputError(f"{name}={value} is out of range: use a value from {self.low} to {self.high}")


class OneOf(NamedTuple):
    """A name of a table that may grow; `hint` is added to what is said of another."""

    names: Mapping[str, Any]
    hint: str = ""

    def check(self, value: Any, name: str) -> None:
        """Raises InputError for any other."""
        if value not in self.names:
            raise InputError(f"{name}={value!r} is not a choice: {suggest(value, self.names)}{self.hint}")


Positive = Annotated[int, Least(1)]
Count = Annotated[int, Least(0)]
Seed = Annotated[int, Least(0, LARGEST_SEED)]
NonNegative = Annotated[float, Within(0.0)]
Share = Annotated[float, Within(0.0, 0.999)]
# of a convolution, which are written out one by one: more would take a day to compile
Taps = Annotated[int, Least(1, 4096)]
Spread = Annotated[float, Within(0.0, 1e38)]  # of float32


def list_fields(kind: Any) -> dict[str, Any]:
    """Returns the annotations of a dataclass's fields."""
    return _read_annotations(kind)


@functools.cache
def _read_annotations(kind: Hashable) -> dict[str, Any]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return {name: hint for name, hint in hints.items() if typing.get_origin(hint) is not ClassVar}


def check_fields(value: Any, say: Say) -> None:
    """Raises InputError where a field of a dataclass is not what its annotation says."""
    for name, hint in list_fields(type(value)).items():
        check_value(hint, getattr(value, name), say(name))


def check_value(hint: Any, value: Any, name: str) -> None:
    """Raises InputError where a value called `name` is not what an annotation says."""
    if typing.get_origin(hint) is Annotated:
        hint, *limits = typing.get_args(hint)
        _check_type(hint, value, name)
        for limit in limits:
            limit.check(value, name)
    else:
        _check_type(hint, value, name)


def check_arguments(owner: Any, kinds: Mapping[str, Any]) -> None:
    """Raises InputError where arguments of a layer are not what their annotations say; a number of NumPy's is as good
    as Python's own.
    """
    for name, kind in kinds.items():
        check_value(kind, to_python(getattr(owner, name)), name)


def to_python(value: Any) -> Any:
    """Returns a number of NumPy's as Python's own, and any other value as it is."""
    return value.item() if hasattr(value, "item") else value


def check_multiple(name: str, size: int, divisor: str, part: int, who: str) -> None:
    """Raises InputError where `size`, called `name`, is no multiple of `part`, called `divisor`; `who` are the layers
    that need it.
    """
    if size % part:
        raise InputError(f"{name}={size} is no multiple of {divisor}={part}, which {who} need: change one of them")


def _check_type(hint: Any, value: Any, name: str) -> None:
    if typing.get_origin(hint) is Literal:
        if value not in typing.get_args(hint):
            raise InputError(f"{name}={value!r} is not a choice: {suggest(str(value), typing.get_args(hint))}")
    elif typing.get_origin(hint) is tuple:
        kind = typing.get_args(hint)[0]
        if not isinstance(value, tuple) or not all(
            type(item) in (kind, *([int] if kind is float else [])) for item in value
        ):
            raise InputError(f"{name}={value!r} must be a tuple of {TUPLES[kind]}")
        _check_float32(value if kind is float else (), name)
    elif hint is float and type(value) in (int, float):
        _check_float32((value,), name)
    elif type(value) is str and "\0" in value:
        raise InputError(f"{name}={value!r} holds the character NUL, which no file's name can: take it out")
    elif not isinstance(value, typing.get_origin(hint) or hint) or (isinstance(value, bool) and hint is not bool):
        raise InputError(f"{name}={value!r} is of type {type(value).__name__}, expected {hint.__name__}")


def _check_float32(values: Sequence[float], name: str) -> None:
    """Raises InputError for a finite number that float32, in which all is computed, does not have."""
    for value in values:
        if LARGEST_FLOAT < abs(value) < math.inf:
            raise InputError(
                f"{name}={value} is out of range: use at most {LARGEST_FLOAT:g}, about the largest number of float32"
            )


def build(kind: type, values: Any, path: str) -> Any:
    """Returns the dataclass `kind` from a dictionary, recursively. Raises InputError for what is not one of its fields,
    and says what an old key is now.
    """
    if not isinstance(values, dict):
        raise InputError(f"{path} must be a group of keys, found {values!r}")
    hints = list_fields(kind)
    for key in values:
        if key not in hints:
            raise InputError(explain_unknown(path, str(key), hints))
    return kind(**{key: _cast(hints[key], value, f"{path}.{key}") for key, value in values.items()})


def explain_unknown(path: str, key: str, known: Iterable[str]) -> str:
    """Returns the message for a key that the group at `path` lacks, and may have had in an earlier version."""
    names = sorted(known)
    fix = suggest(key, names) if names else EXTEND
    return renames.explain(f"{path}.{key}".removeprefix("config.")) or f"{path} has no key {key!r}: {fix}"


def _cast(hint: Any, value: Any, path: str) -> Any:
    if typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build(hint, value, path)
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_cast(typing.get_args(hint)[0], item, path) for item in value)
    if hint is float and type(value) is int:
        return float(value) if abs(value) <= LARGEST_FLOAT else value  # which is refused by name
    return value


def parse(text: str) -> Any:
    """Returns a number or truth value as JSON has it, else the text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every value of nested dictionaries with its keys joined by points, such as "data.length"."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def assign(values: dict[str, Any], path: str, value: Any) -> None:
    """Sets the key at a path such as "data.length" in nested dictionaries, which are made where they lack."""
    *groups, key = path.split(".")
    for group in groups:
        values = values.setdefault(group, {})
    values[key] = value
