"""Ranges of a function and of its derivatives over a box, proved from the operations that it is made of.

Interval arithmetic (Moore 1966) runs through the program that JAX traces, forward with the derivatives: every value
carries an interval, and one for each of its derivatives. Elementary functions have the exact range of their slope;
what appears twice, as h in h (1 - h), is counted as if both were apart, which widens and never lies. All is done in
float64 and widened by what that rounds, numbers below 1e-300 aside. The program is the one that runs, traced in the
type that states have in this session; what it makes of constants alone JAX computes, in the type of each, whole numbers
included. What it makes of the arguments is real arithmetic of float32 or float64 numbers: their rounding is not
counted, and all else, whole numbers, complex ones, smaller floats, comparisons that the box leaves open, is refused.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from scipy import special

ROUNDING = 8 * np.finfo(np.float64).eps  # of one operation or elementary function, more than there can be
CALLS = {"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"}  # functions inside functions
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))  # types whose numbers are taken for real ones
TINY = np.finfo(np.float32).tiny  # smaller numbers may be 0 where the program runs
LARGE = 1e6  # states and inputs up to here may not overflow, in boxes without ends too
ROOM = 1024  # units of rounding by which numbers have to be apart for a comparison to be settled
Numbers = Any  # arrays of NumPy, and its scalars, which operations on arrays without axes return
Interval = tuple[Numbers, Numbers]


class UnknownOperationError(ValueError):
    """An operation whose range over a box is not known."""


class Ranges(NamedTuple):
    """Of a value, of shape S, in [low, high], and of its derivatives by k variables, (*S, k), likewise."""

    low: Numbers
    high: Numbers
    slope_low: Numbers
    slope_high: Numbers

    @property
    def value(self) -> Interval:
        """The range of the value."""
        return self.low, self.high

    @property
    def slope(self) -> Interval:
        """The ranges of the derivatives."""
        return self.slope_low, self.slope_high


def enclose(f: Callable[..., Any], *boxes: Interval) -> Ranges:
    """Returns the ranges of f and of its derivatives by all arguments, vectors in boxes (low, high), one after another.

    Raises:
      UnknownOperationError: for an operation without a rule: a loop, a rounding, a comparison that the box leaves open,
        where f may jump; for values that are no real numbers, constants that are NaN or inf, and what may overflow.
    """
    sizes = [len(low) for low, _ in boxes]
    program = jax.make_jaxpr(f)(*(jnp.zeros(size) for size in sizes))
    slopes = np.split(np.eye(sum(sizes)), np.cumsum(sizes)[:-1])

    def run(boxes: Sequence[Interval]) -> Ranges:
        arguments = [Ranges(low, high, slope, slope) for (low, high), slope in zip(boxes, slopes, strict=True)]
        with np.errstate(all="ignore"):
            return _lift(_run(program.jaxpr, program.consts, arguments, sum(sizes))[0], sum(sizes))

    ranges = run(boxes)
    if all(np.isfinite(part).all() for part in ranges.slope):
        run([_cut(*box) for box in boxes])  # where an overflow shows that an endless box hides
    return ranges


def _cut(low: Numbers, high: Numbers) -> Interval:
    far = LARGE * (1 + np.where(np.isfinite(low), np.abs(low), 0) + np.where(np.isfinite(high), np.abs(high), 0))
    return np.where(np.isinf(low), -far, low), np.where(np.isinf(high), far, high)


def _run(program: core.Jaxpr, constants: list[Any], arguments: list[Any], k: int) -> list[Any]:
    """Ranges of what depends on the arguments, arrays of what does not."""
    values = dict(zip(program.invars, arguments, strict=True))
    values |= dict(zip(program.constvars, constants, strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for equation in program.eqns:
        given = [read(variable) for variable in equation.invars]
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if equation.primitive.name in CALLS and isinstance(inner, core.ClosedJaxpr):
            results = _run(inner.jaxpr, inner.consts, given, k)
        elif any(isinstance(value, Ranges) for value in given):
            results = _apply(equation, given, k)
        else:
            results = _evaluate(program, equation, given)
        values |= dict(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in program.outvars]


def _evaluate(program: core.Jaxpr, equation: core.JaxprEqn, given: list[Any]) -> list[Any]:
    """What JAX makes of constants."""
    if equation.effects or "callback" in equation.primitive.name:
        raise UnknownOperationError(f"the operation {equation.primitive.name} may return what it likes")
    variables = {v: value for v, value in zip(equation.invars, given, strict=True) if not isinstance(v, core.Literal)}
    alone = core.Jaxpr([], [*variables], equation.outvars, [equation], debug_info=program.debug_info)
    return core.jaxpr_as_fun(core.ClosedJaxpr(alone, []))(*variables.values())


def _lift(value: Any, k: int) -> Ranges:
    """A value as ranges; those of a constant are a point."""
    if isinstance(value, Ranges):
        return value
    value = np.asarray(value)
    _check_type(value.dtype)
    if not np.isfinite(value).all():
        raise UnknownOperationError(f"a constant is {value[~np.isfinite(value)].flat[0]}")
    zeros = np.zeros((*value.shape, k))
    return Ranges(value.astype(np.float64), value.astype(np.float64), zeros, zeros)


def _check_type(dtype: Any) -> None:
    if dtype not in FLOATS:
        raise UnknownOperationError(f"arithmetic of {dtype} is not that of real numbers: it jumps or wraps")


def _apply(equation: core.JaxprEqn, given: list[Any], k: int) -> list[Any]:
    name = equation.primitive.name
    types: list[Any] = [variable.aval for variable in equation.outvars]
    if name == "ne" and equation.invars[0] is equation.invars[1]:  # a test for NaN
        return [np.zeros(types[0].shape, bool)]
    if name in COMPARISONS:
        return [np.broadcast_to(COMPARISONS[name](*(_lift(value, k) for value in given)), types[0].shape)]
    if name not in KNOWN:
        raise UnknownOperationError(f"the operation {name} has no rule of its range")
    which, cases = (given[:1], given[1:]) if name == "select_n" else ([], given)
    ranges = [_lift(value, k) for value in cases]
    results = _enclose_results(equation, [*which, *ranges])
    for of_result, result in zip(types, results, strict=True):
        _check_type(of_result.dtype)
        _check_finite(name, of_result.dtype, ranges, result)
    return results


def _check_finite(name: str, dtype: Any, given: list[Ranges], result: Ranges) -> None:
    """What is beyond all numbers of its type is inf where the program runs, and soon NaN."""
    ends, limit = np.abs([*result.value]), np.finfo(dtype).max
    endless = any(np.isinf(end).any() for ranges in given for end in ranges.value)
    beyond = (ends > limit) & ~(np.isinf(ends) & endless) | (result.low > limit) | (result.high < -limit)
    if beyond.any() or any(np.isnan(part).any() for part in result):
        raise UnknownOperationError(f"the operation {name} may overflow {dtype} in the box")


def _enclose_results(equation: core.JaxprEqn, given: list[Any]) -> list[Ranges]:
    name, options = equation.primitive.name, equation.params
    if name == "split":
        return _split(given[0], options)
    if name in LAYOUT:
        parts = (LAYOUT[name](list(parts), options) for parts in zip(*given, strict=True))
        return [Ranges(*parts)]
    if name == "mul" and equation.invars[0] is equation.invars[1]:
        return [_chain(given[0], partial(_power_and_slope, y=2))]
    if name in ELEMENTARY:
        return [_chain(given[0], ELEMENTARY[name])]
    if name in RULES:
        return [RULES[name](*given)]
    return [RULES_WITH_OPTIONS[name](*given, options=options)]


# What moves numbers and leaves them as they are. Derivatives have one axis more, the last, which stays.
def _broadcast(values: list[Numbers], options: dict[str, Any]) -> Numbers:
    value, shape, places = values[0], options["shape"], options["broadcast_dimensions"]
    rest = value.shape[len(places) :]
    axes = [1] * len(shape)
    for size, place in zip(value.shape, places, strict=False):
        axes[place] = size
    return np.broadcast_to(value.reshape(*axes, *rest), (*shape, *rest))


def _slice(values: list[Numbers], options: dict[str, Any]) -> Numbers:
    steps = options["strides"] or [1] * len(options["start_indices"])
    ranges = zip(options["start_indices"], options["limit_indices"], steps, strict=True)
    return values[0][tuple(slice(*one) for one in ranges)]


def _transpose(values: list[Numbers], options: dict[str, Any]) -> Numbers:
    axes = options["permutation"]
    return values[0].transpose(*axes, *range(len(axes), values[0].ndim))


LAYOUT: dict[str, Callable[[list[Numbers], dict[str, Any]], Numbers]] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda values, options: np.concatenate(values, axis=options["dimension"]),
    "convert_element_type": lambda values, options: values[0],  # its type is checked
    "copy": lambda values, options: values[0],
    "copy_p": lambda values, options: values[0],
    "rev": lambda values, options: np.flip(values[0], options["dimensions"]),
    "slice": _slice,
    "squeeze": lambda values, options: np.squeeze(values[0], tuple(options["dimensions"])),
    "stack": lambda values, options: np.stack(values, axis=options["axis"]),
    "transpose": _transpose,
}


def _split(given: Ranges, options: dict[str, Any]) -> list[Ranges]:
    places = np.cumsum(options["sizes"])[:-1]
    return [Ranges(*parts) for parts in zip(*(np.split(part, places, options["axis"]) for part in given), strict=True)]


def _reshape(given: Ranges, options: dict[str, Any]) -> Ranges:
    sizes, k = options["new_sizes"], given.slope_low.shape[-1]
    value = (part.reshape(sizes) for part in given.value)
    return Ranges(*value, *(part.reshape(*sizes, k) for part in given.slope))


# Arithmetic of intervals.
def _widen(low: Numbers, high: Numbers) -> Interval:
    """By what one operation rounds; an exact 0 stays. What is no number, as inf - inf, may be any."""
    low, high = low - ROUNDING * np.abs(low), high + ROUNDING * np.abs(high)
    return np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)


def _sum(a: Interval, b: Interval) -> Interval:
    return _widen(a[0] + b[0], a[1] + b[1])


def _product(a: Interval, b: Interval) -> Interval:
    """0 times inf is 0: the bound is not attained."""
    corners = [np.nan_to_num(left * right, nan=0.0, posinf=np.inf, neginf=-np.inf) for left in a for right in b]
    return _widen(np.minimum.reduce(corners), np.maximum.reduce(corners))


def _total(terms: Interval, axis: int | tuple[int, ...]) -> Interval:
    """The sum over axes, widened by what it rounds however much cancels."""
    count = math.prod(np.asarray(terms[0].shape)[np.atleast_1d(axis)].tolist())
    error = [count * ROUNDING * np.abs(part).sum(axis) for part in terms]
    return _widen(terms[0].sum(axis) - error[0], terms[1].sum(axis) + error[1])


def _column(interval: Interval) -> Interval:
    """A value beside derivatives."""
    return interval[0][..., None], interval[1][..., None]


Rule = Callable[[Numbers, Numbers], tuple[Interval, Interval]]


def _chain(given: Ranges, rule: Rule) -> Ranges:
    """An elementary function of `given`; the rule returns the ranges of its value and of its slope."""
    value, slope = rule(*given.value)
    return Ranges(*_widen(*value), *_product(_column(_widen(*slope)), given.slope))


def _bell(low: Numbers, high: Numbers, *, f: Callable[..., Any], slope: Callable[..., Any]) -> Any:
    """Of a function that grows, with a slope that is even and falls with |x|."""
    nearest = np.where((low < 0) & (high > 0), 0, np.minimum(np.abs(low), np.abs(high)))
    return (f(low), f(high)), (slope(np.maximum(np.abs(low), np.abs(high))), slope(nearest))


def _bent(low: Numbers, high: Numbers, *, f: Callable[..., Any], slope: Callable[..., Any], least: float) -> Any:
    """Of a function that grows, with a slope that grows or falls all the way, on numbers above a finite `least`."""
    room = TINY + ROOM * np.finfo(np.float32).eps * abs(least)
    if math.isfinite(least) and not (low > least + room).all():
        raise UnknownOperationError(f"a logarithm or root may be taken of {low.min():.4g}")
    slopes = slope(low), slope(high)
    return (f(low), f(high)), (np.minimum(*slopes), np.maximum(*slopes))


def _cosine(low: Numbers, high: Numbers) -> Interval:
    def holds(phase: float) -> Numbers:
        """Whether the interval holds a phase + 2 pi k, or is so near to it that float64 cannot tell."""
        room = ROUNDING * (1 + np.maximum(np.abs(low), np.abs(high)))
        return np.floor((high - phase + room) / (2 * np.pi)) >= np.ceil((low - phase - room) / (2 * np.pi))

    room = ROUNDING * (1 + np.maximum(np.abs(low), np.abs(high)))
    ends = np.cos(low), np.cos(high)
    bottom, top = np.minimum(*ends) - room, np.maximum(*ends) + room
    return np.where(holds(np.pi), -1, np.maximum(bottom, -1)), np.where(holds(0.0), 1, np.minimum(top, 1))


def _sine(low: Numbers, high: Numbers) -> Interval:
    return _cosine(low - np.pi / 2, high - np.pi / 2)


def _negative(interval: Interval) -> Interval:
    return -interval[1], -interval[0]


def _power(low: Numbers, high: Numbers, y: int) -> Interval:
    if y < 0:
        least, most = _power(low, high, -y)
        if ((least < TINY) & (most > -TINY)).any():
            raise UnknownOperationError("a divisor may be 0")
        return 1 / most, 1 / least
    if y % 2:
        return low**y, high**y
    sizes = np.abs(low), np.abs(high)
    return np.where((low <= 0) & (high >= 0), 0.0 if y else 1.0, np.minimum(*sizes) ** y), np.maximum(*sizes) ** y


def _power_and_slope(low: Numbers, high: Numbers, *, y: int) -> tuple[Interval, Interval]:
    slope = _product((np.full_like(low, y), np.full_like(low, y)), _power(low, high, y - 1))
    return _power(low, high, y), slope


def _size(low: Numbers, high: Numbers) -> tuple[Interval, Interval]:
    least = np.where((low <= 0) & (high >= 0), 0, np.minimum(np.abs(low), np.abs(high)))
    slope = np.where(low >= 0, 1.0, -1.0), np.where(high <= 0, -1.0, 1.0)
    return (least, np.maximum(np.abs(low), np.abs(high))), slope


ELEMENTARY: dict[str, Rule] = {
    "tanh": partial(_bell, f=np.tanh, slope=lambda x: 4 * np.exp(-2 * x) / (1 + np.exp(-2 * x)) ** 2),
    "logistic": partial(_bell, f=special.expit, slope=lambda x: np.exp(-x) / (1 + np.exp(-x)) ** 2),
    "erf": partial(_bell, f=special.erf, slope=lambda x: 2 / np.sqrt(np.pi) * np.exp(-(x**2))),
    "atan": partial(_bell, f=np.arctan, slope=lambda x: 1 / (1 + x**2)),
    "exp": partial(_bent, f=np.exp, slope=np.exp, least=-np.inf),
    "expm1": partial(_bent, f=np.expm1, slope=np.exp, least=-np.inf),
    "log": partial(_bent, f=np.log, slope=lambda x: 1 / x, least=0.0),
    "log1p": partial(_bent, f=np.log1p, slope=lambda x: 1 / (1 + x), least=-1.0),
    "sqrt": partial(_bent, f=np.sqrt, slope=lambda x: 0.5 / np.sqrt(x), least=0.0),
    "sin": lambda low, high: (_sine(low, high), _cosine(low, high)),
    "cos": lambda low, high: (_cosine(low, high), _negative(_sine(low, high))),
    "square": partial(_power_and_slope, y=2),
    "abs": _size,
}


def _add(a: Ranges, b: Ranges) -> Ranges:
    return Ranges(*_sum(a.value, b.value), *_sum(a.slope, b.slope))


def _negate(a: Ranges) -> Ranges:
    return Ranges(*_negative(a.value), *_negative(a.slope))


def _multiply(a: Ranges, b: Ranges) -> Ranges:
    slope = _sum(_product(a.slope, _column(b.value)), _product(_column(a.value), b.slope))
    return Ranges(*_product(a.value, b.value), *slope)


def _divide(a: Ranges, b: Ranges) -> Ranges:
    return _multiply(a, _chain(b, partial(_power_and_slope, y=-1)))


def _maximum(a: Ranges, b: Ranges) -> Ranges:
    first, second = (a.low >= b.high)[..., None], (b.low >= a.high)[..., None]
    slope_low = np.where(first, a.slope_low, np.where(second, b.slope_low, np.minimum(a.slope_low, b.slope_low)))
    slope_high = np.where(first, a.slope_high, np.where(second, b.slope_high, np.maximum(a.slope_high, b.slope_high)))
    return Ranges(np.maximum(a.low, b.low), np.maximum(a.high, b.high), slope_low, slope_high)


def _minimum(a: Ranges, b: Ranges) -> Ranges:
    return _negate(_maximum(_negate(a), _negate(b)))


def _select(which: Any, *cases: Ranges) -> Ranges:
    """A choice that the box does not leave open: by a constant, or a comparison that was settled."""
    which = np.asarray(which)
    if which.dtype != bool:
        raise UnknownOperationError("a choice by a whole number is not known")
    chosen = np.broadcast_to(which, cases[0].low.shape)
    parts = zip(*cases, strict=True)
    return Ranges(*(np.where(chosen if no.ndim == chosen.ndim else chosen[..., None], yes, no) for no, yes in parts))


def _less(a: Ranges, b: Ranges) -> Numbers:
    """Whether a < b, and a <= b, where the box settles it, with room for what the program rounds."""

    def below(low: Numbers, high: Numbers) -> Numbers:
        room = ROOM * np.finfo(np.float32).eps * np.maximum(np.abs(low), np.abs(high))
        return high - low > room

    less = below(a.high, b.low)
    if not (less | below(b.high, a.low)).all():
        raise UnknownOperationError("a comparison that the box leaves open may jump")
    return less


COMPARISONS: dict[str, Callable[[Ranges, Ranges], Numbers]] = {
    "lt": _less,
    "le": _less,
    "gt": lambda a, b: _less(b, a),
    "ge": lambda a, b: _less(b, a),
}
RULES: dict[str, Callable[..., Ranges]] = {
    "add": _add,
    "add_any": _add,
    "sub": lambda a, b: _add(a, _negate(b)),
    "neg": _negate,
    "mul": _multiply,
    "div": _divide,
    "max": _maximum,
    "min": _minimum,
    "select_n": _select,
}


def _reduce(given: Ranges, options: dict[str, Any]) -> Ranges:
    axes = tuple(options["axes"])
    return Ranges(*_total(given.value, axes), *_total(given.slope, axes))


def _dot(a: Ranges, b: Ranges, options: dict[str, Any]) -> Ranges:
    (of_a, of_b), (batch_a, batch_b) = options["dimension_numbers"]
    shape = [a.low.shape[axis] for axis in batch_a]
    shape += [size for axis, size in enumerate(a.low.shape) if axis not in (*of_a, *batch_a)]
    shape += [size for axis, size in enumerate(b.low.shape) if axis not in (*of_b, *batch_b)]
    # batch, free axes of a, those of b, and the axis that is summed over
    left = Ranges(*(_arrange(part, batch_a, of_a, a.low.ndim)[:, :, None] for part in a))
    right = Ranges(*(_arrange(part, batch_b, of_b, b.low.ndim)[:, None] for part in b))
    slopes = _product(left.slope, _column(right.value)), _product(_column(left.value), right.slope)
    slope = _sum(_total(slopes[0], 3), _total(slopes[1], 3))
    value = _total(_product(left.value, right.value), 3)
    return Ranges(*(part.reshape(shape) for part in value), *(part.reshape(*shape, -1) for part in slope))


def _arrange(part: Numbers, batch: tuple[int, ...], summed: tuple[int, ...], ndim: int) -> Numbers:
    free = [axis for axis in range(ndim) if axis not in (*batch, *summed)]
    sizes = (math.prod(part.shape[axis] for axis in axes) for axes in (batch, free, summed))
    return part.transpose(*batch, *free, *summed, *range(ndim, part.ndim)).reshape(*sizes, *part.shape[ndim:])


RULES_WITH_OPTIONS: dict[str, Callable[..., Ranges]] = {
    "dot_general": _dot,
    "integer_pow": lambda given, options: _chain(given, partial(_power_and_slope, y=options["y"])),
    "reduce_sum": _reduce,
    "reshape": _reshape,
}
KNOWN = {"split", *LAYOUT, *ELEMENTARY, *RULES, *RULES_WITH_OPTIONS}
