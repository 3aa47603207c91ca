"""Heads: what a model says of the steps it has read."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from selssm_jax.config.fields import Count, Positive, check_arguments
from selssm_jax.config.model import Pool
from selssm_jax.layers.parameters import Layer
from selssm_jax.layers.projection import Projection
from selssm_jax.ops import shards
from selssm_jax.shapes import Rows


class ClassHead(Layer):
    """Class logits of a whole signal, from the mean over its valid steps or from the last of them.

    The state is {"sum": (B, D), "count": (B,)} ("last": sum is the last valid step), so that a signal may come in
    pieces.
    """

    classes: int
    features: int
    pool: str

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], state: dict[str, Array], valid: Bool[Array, "B T"]
    ) -> tuple[Float[Array, "B V"], dict[str, Array]]:
        """Returns (logits of all valid steps so far, state)."""
        check_arguments(self, {"classes": Positive, "pool": Pool})
        x = x.astype(jnp.float32)
        count = state["count"] + shards.total(valid.sum(axis=1))
        pooled = (
            state["sum"] + shards.total(jnp.where(valid[..., None], x, 0).sum(axis=1))
            if self.pool == "mean"
            else self._last(x, state["sum"], valid)
        )
        scale = jnp.maximum(count, 1)[:, None] if self.pool == "mean" else 1
        return Projection(self.classes, name="out")(pooled / scale), {"sum": pooled, "count": count}

    def initial_state(self, batch: Rows) -> dict[str, Array]:
        """Returns the state of a signal without a step."""
        return {"sum": jnp.zeros((batch, self.features), jnp.float32), "count": jnp.zeros(batch, jnp.float32)}

    def _last(self, x: Array, before: Array, valid: Array) -> Array:
        steps = jnp.where(valid, jnp.arange(1, x.shape[1] + 1)[None], 0).max(axis=1)
        if shards.count() > 1:  # the one that holds the last of all says it, and the first where none does
            there = jnp.where(shards.number() == 0, True, steps > 0) & ~shards.later(steps > 0)
        padded = jnp.concatenate([before[:, None], x], axis=1)
        value = jnp.take_along_axis(padded, steps[:, None, None], axis=1)[:, 0]
        return value if shards.count() == 1 else shards.total(jnp.where(there[:, None], value, 0))


class ForecastHead(Layer):
    """The next `horizon` values of every channel at once: linear in the last `steps` features and the last `skip`
    inputs.

    The linear path past the mixers is that of LSTNet's autoregressive part (Lai et al. 2018), here one map for all
    channels; it starts at zero. The state is {"features": (B, steps, D), "inputs": (B, skip, C)}.

    Inputs may hold more behind the channels, of which the last `known` numbers tell of the row `horizon` steps ahead.
    The last `horizon` of these, {"known": (B, H, K)} of the state, are so of the rows to be forecast, and each adds a
    linear map of itself, which starts at zero too.

    With `quantiles` it forecasts so many of every value, and sorts them: that never adds to their pinball loss, and
    none crosses another (Chernozhukov, Fernandez-Val and Galichon 2010). The path past the mixers shifts all of them
    alike.
    """

    horizon: int
    channels: int
    features: int
    steps: int = 1
    skip: int = 0
    known: int = 0
    quantiles: int = 0

    @nn.compact
    def __call__(
        self, x: Float[Array, "B F D"], inputs: Float[Array, "B T E"], state: dict[str, Array]
    ) -> tuple[Float[Array, "B H *C"], dict[str, Array]]:
        """Returns (forecast after the last step, (B, H, C) or (B, H, C, quantiles), what the next call still sees of
        features and inputs).
        """
        counts = dict.fromkeys(("skip", "quantiles"), Count)
        check_arguments(self, dict.fromkeys(("horizon", "channels", "steps"), Positive) | counts)

        def after(state: dict[str, Array]) -> dict[str, Array]:
            join = lambda name, new: jnp.concatenate([state[name], new], axis=1)[:, inputs.shape[1] :]  # noqa: E731
            return {
                "features": jnp.concatenate([state["features"], x.astype(jnp.float32)], axis=1)[:, -self.steps :],
                "inputs": join("inputs", inputs[..., : self.channels]),
                **({"known": join("known", inputs[..., -self.known :])} if self.known else {}),
            }

        stride = inputs.shape[1] // x.shape[1]
        seen = max(self.skip, self.horizon if self.known else 0)
        _, state = shards.pass_on(after, state, span=max(self.steps, -(-seen // stride)), steps=x.shape[1])
        each = self.quantiles or 1  # numbers of a value
        y = Projection(self.horizon * self.channels * each, name="out")(state["features"].reshape(x.shape[0], -1))
        y = y.reshape(x.shape[0], self.horizon, self.channels * each)
        if self.skip:
            kernel = self.param("skip_kernel", nn.initializers.zeros, (self.skip, self.horizon))
            y += jnp.repeat(jnp.einsum("bsc,sh->bhc", state["inputs"], kernel), each, axis=-1)
        if self.known:
            kernel = self.param("known_kernel", nn.initializers.zeros, (self.known, self.channels * each))
            y += state["known"] @ kernel
        return (jnp.sort(y.reshape(*y.shape[:2], self.channels, each)) if self.quantiles else y), state

    def initial_state(self, batch: Rows) -> dict[str, Array]:
        """Returns features, inputs and what is known of the rows ahead, all zero."""
        return {
            "features": jnp.zeros((batch, self.steps, self.features), jnp.float32),
            "inputs": jnp.zeros((batch, self.skip, self.channels), jnp.float32),
            **({"known": jnp.zeros((batch, self.horizon, self.known), jnp.float32)} if self.known else {}),
        }
