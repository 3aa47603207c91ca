"""Forecasting: the next `horizon` values of every channel of a series."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array

from selssm_jax.config import Model, Training
from selssm_jax.layers.encoders import FrameEncoder
from selssm_jax.layers.output_heads import ForecastHead
from selssm_jax.ops import shards
from selssm_jax.shapes import Batch
from selssm_jax.tasks.base import Ends, State, TaskKind
from selssm_jax.tasks.scores import Sums, hide_unweighted, sum_weighted


class Forecasting(TaskKind):
    """Values (B, H, C) after the last step, inside reversible instance normalisation (Kim et al. 2022; of the level
    alone: Zeng et al. 2023).

    With `channel_independent` every channel is a sequence of its own to the encoder, the blocks and the head.
    """

    loss = "mse"
    primary = "mse"
    forecasts = True
    in_parts = True

    def encoder(self, config: Model) -> nn.Module:
        """Returns an encoder of frames, of one channel where they run apart."""
        return FrameEncoder(
            config.d_model, self._width(config), config.frame, config.stride, config.filterbank, jnp.dtype(config.dtype)
        )

    def head(self, config: Model) -> nn.Module | None:
        """Returns a linear map of the last features and inputs."""
        return ForecastHead(
            config.task.horizon, self._width(config), config.d_model, config.head_context, config.linear_skip
        )

    def initial(self, ends: Ends, batch: Any) -> State:
        """Returns what encoder and head carry, and a scale that is none yet: a deviation of 0."""
        scale = {name: jnp.zeros((batch, 1, ends.config.task.channels), jnp.float32) for name in ("mean", "deviation")}
        return super().initial(ends, batch) | {"scale": scale}

    def begin(self, config: Model, inputs: Array, state: State, read: Array | None) -> State:
        """Returns `state` with mean and deviation of the first window, which are kept from then on."""
        if not config.normalize:
            return state
        where = None if read is None else read[..., None]
        mean = shards.mean(inputs, axis=1, where=where)
        fresh = {
            "mean": mean,
            "deviation": jnp.sqrt(shards.mean(jnp.square(inputs - mean), axis=1, where=where) + 1e-5)
            if config.normalize_scale
            else jnp.ones_like(mean),
        }
        carried = state["scale"]
        return state | {
            "scale": jax.tree.map(lambda old, new: jnp.where(carried["deviation"] > 0, old, new), carried, fresh)
        }

    def series(self, config: Model, inputs: Array, state: State, read: Array | None) -> Array:
        """Returns the inputs at the scale of the sequence, channels that run apart as rows."""
        if config.normalize:
            inputs = (inputs - state["scale"]["mean"]) / state["scale"]["deviation"]
            inputs = inputs if read is None else jnp.where(read[..., None], inputs, 0)
        return self.split(config, inputs)

    def answer(
        self, ends: Ends, x: Array, series: Array, state: State, valid: Array, read: Array | None
    ) -> tuple[Array, State]:
        """Returns (the forecast in the units of the inputs, what the head carries and the scale)."""
        del valid
        config, scale = ends.config, state["scale"]
        x = x if read is None else jnp.where(read[..., None], x, 0)
        y, head = ends.head(x, series, state["head"])
        y = y.reshape(-1, config.task.channels, y.shape[1]).swapaxes(1, 2) if config.channel_independent else y
        if config.normalize:
            y = y * scale["deviation"] + scale["mean"]
        return y, {"head": head, "scale": scale}

    def rows(self, config: Model) -> int:
        """Returns the number of channels where they run apart."""
        return config.task.channels if config.channel_independent else 1

    def split(self, config: Model, values: Array) -> Array:
        """Returns channels that run apart as sequences of one channel."""
        return values.swapaxes(1, 2).reshape(-1, values.shape[1], 1) if config.channel_independent else values

    def numbers(self, config: Model, steps: int) -> int:
        """Returns the number of values to forecast."""
        del steps
        return config.task.horizon * max(config.task.channels, 1)

    def weights(self, config: Model) -> float:
        """Returns the numbers of the encoder, the head and its path past the blocks."""
        horizon = config.task.horizon
        return (
            super().weights(config)
            + config.d_model * config.head_context * horizon * max(self._width(config), 1)
            + config.linear_skip * horizon
        )

    def errors(self, outputs: Array, batch: Batch) -> dict[str, Array]:
        """Returns mse and mae of every window, over horizon and channels."""
        error = outputs - batch["targets"]
        return {"mse": (error**2).mean(axis=(1, 2)), "mae": jnp.abs(error).mean(axis=(1, 2))}

    def score(self, outputs: Array, batch: Batch) -> Sums:
        """Returns mse and mae, and with weights of their own r2 and direction.

        r2 is 1 - sum e^2 / sum y^2, out of sample: against the forecast 0, which is the training mean of standardised
        values (Campbell and Thompson 2008). direction is the share of values forecast on the right side of the last
        input, those that equal it left out.
        """
        outputs, targets = (hide_unweighted(values, batch["weights"]) for values in (outputs, batch["targets"]))
        errors = self.errors(outputs, {**batch, "targets": targets})
        return {name: sum_weighted(error, batch["weights"]) for name, error in errors.items()} | _shares(
            outputs, targets, batch
        )

    def trained_on(self, training: Training) -> str:
        """Returns "mse" or "huber"."""
        return training.forecast_loss

    def training_score(self, name: str, outputs: Array, batch: Batch) -> Sums:
        """Returns the metrics, and Huber's loss where that is trained on."""
        return self.score(outputs, batch) | (huber(outputs, batch) if name == "huber" else {})

    def error_sums(self, config: Model, outputs: Array, batch: Batch) -> dict[str, Array]:
        """Returns sums over windows, (H, C): of the forecast's errors, and of those of the last input, with its cycle
        where one was taken off.
        """
        del config
        inputs, targets, weights = (
            jnp.asarray(batch["inputs"]),
            jnp.asarray(batch["targets"]),
            jnp.asarray(batch["weights"]),
        )
        before, ahead = (
            (jnp.split(jnp.asarray(batch["course"]), [inputs.shape[1]], axis=1)) if "course" in batch else (0.0, 0.0)
        )
        error, naive = outputs - targets, (inputs + before)[:, -1:] - (targets + ahead)
        sums = {
            name: jnp.einsum("b,bhc->hc", weights, part)
            for name, part in (("mse", error**2), ("mae", jnp.abs(error)), ("repeat last", naive**2))
        }
        return sums | {"count": weights.sum()}

    def error_parts(self, total: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> dict[str, Any]:
        """Returns errors by step of the horizon and by channel."""
        means = {name: value / total["count"] for name, value in total.items() if name != "count"}
        names = about.get("channels") or [f"channel {index + 1}" for index in range(means["mse"].shape[1])]
        return {
            "by_horizon": {name: value.mean(axis=1).tolist() for name, value in means.items()},
            "by_channel": {
                "names": [str(name) for name in names],
                **{name: value.mean(axis=0).tolist() for name, value in means.items()},
            },
        }

    def title(self, batch: Batch, outputs: np.ndarray, about: Mapping[str, Any]) -> str:
        """Returns that it is a window of a series."""
        del batch, outputs, about
        return "the first window of the test split"

    def example(self, source: Any) -> list[Any]:
        """Returns a window, what followed, and the forecast."""
        return source.forecast()


def huber(outputs: Array, batch: Batch) -> Sums:
    """Returns "huber", twice Huber's loss (1964) of forecasts with delta 1: e^2 where |e| <= 1 deviation of the
    training values, 2|e| - 1 beyond.

    Its gradient is that of mse for small errors and bounded for large ones, which heavy tails would otherwise let
    decide.
    """
    outputs, targets = (hide_unweighted(values, batch["weights"]) for values in (outputs, batch["targets"]))
    return {
        "huber": sum_weighted(2 * optax.huber_loss(outputs, targets, delta=1.0).mean(axis=(1, 2)), batch["weights"])
    }


def _shares(outputs: Array, targets: Array, batch: Batch) -> Sums:
    """R2 and the share of right directions; of the series with its cycle, where that was taken off."""
    weights, last = batch["weights"][:, None, None], shards.last(jnp.asarray(batch["inputs"])[:, -1:])
    last = hide_unweighted(last, batch["weights"])
    if "course" in batch:
        before, ahead = jnp.split(
            hide_unweighted(batch["course"], batch["weights"])[:, -1 - targets.shape[1] :], [1], axis=1
        )
        last, targets, outputs = last + before, targets + ahead, outputs + ahead
    unexplained, total = ((part**2 * weights).sum() for part in (outputs - targets, targets))
    moved = (targets != last) * weights
    right = (jnp.sign(outputs - last) == jnp.sign(targets - last)) * moved
    return {"r2": jnp.stack([total - unexplained, total]), "direction": jnp.stack([right.sum(), moved.sum()])}
