"""Recurrences whose gradient saves their inputs alone and runs them once more, and can itself be differentiated.

What runs forward and what is differentiated may be two forms of one recurrence, form(given, reset) -> (y, last state);
`given` is a named tuple of what the steps read, and of the state before them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Bool, PyTree

from selssm_jax.ops.boundaries import (
    all_finite,
    composed_or_stepped,
    find_lost_sequences,
    finite,
    name_residuals,
    poison,
    vary_alike,
)

Form = Callable[[Any, Array], tuple[Array, Array]]


def recompute_gradient(
    run: Callable[..., tuple[Array, Array]], gradient: Callable[..., Any], again: Callable[..., tuple[Array, Array]]
) -> Callable[..., tuple[Array, Array]]:
    """Returns run(how, given, reset) -> (y, last state) with the gradient that `gradient` computes; `how` is no array.

    The gradient is a function of its own, so that it runs by the platform's form and can still be differentiated.

    Args:
      run: what runs forward. gradient: (how, given, reset, cotangents) -> cotangents of `given`. again: what is
        differentiated for higher derivatives, as `run`.
    """

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def outputs(how: Any, given: Any, reset: Array) -> tuple[Array, Array]:
        return run(how, given, reset)

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def slopes(how: Any, given: Any, reset: Array, cotangents: PyTree) -> Any:
        return gradient(how, given, reset, cotangents)

    def outputs_forward(how: Any, given: Any, reset: Array) -> tuple[tuple[Array, Array], PyTree]:
        return outputs(how, given, reset), name_residuals((given, reset))

    def outputs_backward(how: Any, saved: PyTree, cotangents: PyTree) -> tuple[Any, None]:
        return slopes(how, *vary_alike((*saved, cotangents))), None

    def slopes_forward(how: Any, *given: PyTree) -> tuple[Any, PyTree]:
        return slopes(how, *given), name_residuals(given)

    def slopes_backward(how: Any, saved: PyTree, cotangents: Any) -> tuple[Any, None, PyTree]:
        given, reset, before = saved
        back = jax.vjp(lambda given, before: pull_back(partial(again, how), given, reset, before), given, before)[1]
        dgiven, dbefore = back(cotangents)
        return dgiven, None, dbefore

    outputs.defvjp(outputs_forward, outputs_backward)
    slopes.defvjp(slopes_forward, slopes_backward)
    return outputs


def pull_back(form: Form, given: Any, reset: Bool[Array, "B T"], cotangents: PyTree) -> Any:
    """Returns the cotangents of `given` by one more run of a form."""
    return jax.vjp(lambda given: form(given, reset), given)[1](cotangents)[0]


def pull_back_numbers(form: Form, start: str, shared: tuple[str, ...] = ()) -> Callable[..., Any]:
    """Returns (given, reset, cotangents) -> cotangents of `given` that are right where not all is finite: those of the
    finite numbers, NaN for a sequence where a step is read that sees others.

    Args:
      start: which of `given` is the state before all steps. shared: which are the same for all sequences.
    """

    def careful(given: Any, reset: Array, cotangents: PyTree) -> Any:
        own = {name: value for name, value in given._asdict().items() if name not in shared}
        clean = given._replace(**{name: finite(value) for name, value in own.items()})
        gradient = pull_back(form, clean, reset, cotangents)
        steps = [value for name, value in own.items() if name != start]
        rows = find_lost_sequences(steps, own[start], reset, *cotangents)
        return gradient._replace(
            **{
                name: poison(value, rows.any() if name in shared else rows.reshape(-1, *[1] * (value.ndim - 1)))
                for name, value in gradient._asdict().items()
            }
        )

    plain = partial(pull_back, form)
    return lambda *given: composed_or_stepped(all_finite(given[0]), plain, careful, *given)
