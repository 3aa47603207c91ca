"""What is held constant while a function is traced to be explained: the rules of MambaLRP (Jafari et al. 2024, arXiv
2406.07592), and what a model then shows and lets be shifted.

Relevance is gradient x input of a function whose values are those of the model, and whose gradient takes as constants
g(z) / z of an activation, what a gate, a step size or a map of a recurrence is, the weights of attention, 1 / rms of a
norm, and of a product of two branches half. So each layer gives on what it got: sum_i x_i dy/dx_i = y, where nothing is
added that no input has a part in (theory, section 14).

A layer says so by the functions of this module. In ordinary tracing each of them is what its name says and no more, and
the program is the same as without them. Inside `explaining` they follow the rules. What `jax.jit` has traced without
the rules is not used with them, nor the reverse, for they are in the key of its cache.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Inexact

RULES = ("activation", "gate", "product", "norm", "attention")
SMALLEST = 1e-6  # |z| below which g(z) / z is taken there: it has a limit at 0
# collections of what a model shows while it is explained, and of what is added to it
RECORDED, SHIFTED = "recorded", "shifted"

_active = jax.make_user_context(default_value=None)  # of the rules; None: of no rule


def explaining(rules: Iterable[str] = RULES) -> AbstractContextManager[Any]:
    """Returns a context in which functions are traced by these rules: values as ever, gradients those of relevance.

    Args:
      rules: of `RULES`: "activation", g(z) / z constant; "gate", gates, step sizes, and what else a recurrence does to
        its drive; "product", half for each of two branches; "norm", 1 / rms; "attention", weights of a softmax.

    Raises:
      ValueError: for a rule that is none.
    """
    rules = frozenset(rules)
    if not rules <= set(RULES):
        raise ValueError(f"rules={sorted(rules - set(RULES))} are unknown: use some of {', '.join(RULES)}")
    context: AbstractContextManager[Any] = _active(rules or None)
    return context


def is_active(rule: str) -> bool:
    """Returns whether what is traced now follows a rule."""
    return rule in (_active.value or ())


def detach(values: Any, rule: str = "gate") -> Any:
    """Returns an array, or a tree of them, as it is: a constant to the gradient where the rule is followed."""
    return lax.stop_gradient(values) if is_active(rule) else values


def follow(rule: str, value: Array, proxy: Callable[[], Array]) -> Array:
    """Returns `value`, whose gradient is that of proxy() where the rule is followed; nothing calls it elsewhere."""
    return _take_gradient(value, proxy().astype(value.dtype)) if is_active(rule) else value


@jax.custom_vjp
def _take_gradient(value: Array, proxy: Array) -> Array:
    del proxy
    return value


_take_gradient.defvjp(lambda value, proxy: (_take_gradient(value, proxy), None), lambda _, cotangent: (None, cotangent))


def activate(function: Callable[[Array], Array], z: Inexact[Array, "*s"]) -> Inexact[Array, "*s"]:
    """Returns g(z) of an elementwise g with g(0) = 0; explained, (g(z) / z) z with a constant quotient."""

    def scale() -> Array:
        apart = lax.stop_gradient(jnp.where(jnp.abs(z) < SMALLEST, SMALLEST, z))
        return lax.stop_gradient(function(apart) / apart) * z

    return follow("activation", function(z), scale)


def multiply(a: Inexact[Array, "*s"], b: Inexact[Array, "*s"]) -> Inexact[Array, "*s"]:
    """Returns a * b of two branches; explained, each gets half of what the product is owed."""
    return follow("product", a * b, lambda: (a * lax.stop_gradient(b) + lax.stop_gradient(a) * b) / 2)


def gate_linear_units(x: Inexact[Array, "*b D"]) -> Inexact[Array, "*b E"]:
    """Returns a sigmoid(b) of x = (a, b) (Dauphin et al. 2017); explained, the sigmoid is constant."""

    def gate() -> Array:
        value, logits = jnp.split(x, 2, axis=-1)
        return value * lax.stop_gradient(jax.nn.sigmoid(logits))

    return follow("gate", nn.glu(x), gate)


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean x^2 + epsilon) * scale (Zhang and Sennrich 2019), as Flax's; explained, the root is constant."""

    def __call__(self, x: Array) -> Array:  # type: ignore[override]  # no mask
        """Returns x normalised."""

        def divide() -> Array:
            wide = x.astype(jnp.float32)
            square = jnp.square(wide).mean(axis=self.reduction_axes, keepdims=True)
            return _scale_features(self, wide * lax.stop_gradient(lax.rsqrt(square + self.epsilon)))

        return follow("norm", super().__call__(x), divide)


class LayerNorm(nn.LayerNorm):
    """(x - mean x) / sqrt(var x + epsilon) * scale + bias (Ba et al. 2016), as Flax's; explained, the root is
    constant.
    """

    def __call__(self, x: Array) -> Array:  # type: ignore[override]  # no mask
        """Returns x normalised."""

        def divide() -> Array:
            centred = x.astype(jnp.float32)
            centred = centred - centred.mean(axis=self.reduction_axes, keepdims=True)
            square = jnp.square(centred).mean(axis=self.reduction_axes, keepdims=True)
            return _scale_features(self, centred * lax.stop_gradient(lax.rsqrt(square + self.epsilon)))

        return follow("norm", super().__call__(x), divide)


def _scale_features(norm: nn.Module, x: Array) -> Array:
    """x times the norm's scale, whose axes are the last ones."""
    scale = norm.variables["params"]["scale"]
    return x * scale.reshape((1,) * (x.ndim - scale.ndim) + scale.shape)


def tap(module: nn.Module, name: str, value: Array) -> Array:
    """Returns the value, plus what the collection `SHIFTED` holds of that name in the module; the sum is sown as
    `RECORDED`. Neither is there in an ordinary call.
    """
    if module.is_initializing():  # or `init` would return it among the variables
        return value
    if module.has_variable(SHIFTED, name):
        value = value + module.get_variable(SHIFTED, name)
    module.sow(RECORDED, name, value)
    return value
