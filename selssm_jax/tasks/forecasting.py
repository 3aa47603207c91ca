"""Forecasting: the next `horizon` values of every channel of a series."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, PRNGKeyArray

from selssm_jax.config import Model, Task, Training
from selssm_jax.layers import relevance_rules as rules
from selssm_jax.layers.encoders import FrameEncoder, LearnedCycle
from selssm_jax.layers.output_heads import ForecastHead
from selssm_jax.ops import shards
from selssm_jax.shapes import Batch
from selssm_jax.tasks.base import Ends, State, TaskKind
from selssm_jax.tasks.scores import Sums, hide_unweighted, sum_weighted


class Forecasting(TaskKind):
    """Values (B, H, C) after the last step, inside reversible instance normalisation (Kim et al. 2022; of the level
    alone: Zeng et al. 2023).

    With `channel_independent` every channel is a sequence of its own to the encoder, the blocks and the head.

    Inputs hold the channels; behind them, where values may be missing, a 1 for each that is there, the others being 0;
    and behind those the covariates, which every channel reads. The last of these tell of the row `horizon` steps ahead.

    Of a task with a period the last number of a row is its place in the cycle. What the model has learned of the cycle
    is taken off inside the normalisation, and added to the forecast there.

    A task with quantiles is a `QuantileForecasting`, with a further axis of outputs.
    """

    loss = "mse"
    primary = "mse"
    forecasts = True
    in_parts = True

    def of_task(self, task: Task) -> TaskKind:
        """Returns the kind that forecasts the task's quantiles, where it has any."""
        return QuantileForecasting(task.quantiles) if task.quantiles else self

    def encoder(self, config: Model) -> nn.Module:
        """Returns an encoder of frames, of one channel where they run apart."""
        return FrameEncoder(
            config.d_model,
            self._width(config),
            config.frame,
            config.stride,
            config.filterbank,
            jnp.dtype(config.dtype),
            config.task.channels if config.channel_embedding else 0,
            config.task.channels if config.channel_mixing else 0,
            config.norm_epsilon,
        )

    def head(self, config: Model) -> nn.Module | None:
        """Returns a linear map of the last features and inputs."""
        channels = 1 if config.channel_independent else config.task.channels
        return ForecastHead(
            config.task.horizon,
            channels,
            config.d_model,
            config.head_context,
            config.linear_skip,
            config.task.known_ahead,
            len(config.task.quantiles),
        )

    def cycle(self, config: Model) -> nn.Module | None:
        """Returns what learns the cycle of a task that has a period."""
        return LearnedCycle(config.task.period, config.task.channels) if config.task.period else None

    def initial(self, ends: Ends, batch: Any) -> State:
        """Returns what encoder and head carry, and a scale that is none yet: a deviation of 0."""
        scale = {name: jnp.zeros((batch, 1, ends.config.task.channels), jnp.float32) for name in ("mean", "deviation")}
        return super().initial(ends, batch) | {"scale": scale}

    def begin(self, config: Model, inputs: Array, state: State, read: Array | None) -> State:
        """Returns `state` with mean and deviation of the first window, which are kept from then on."""
        if not config.normalize:
            return state
        where, channels = None if read is None else read[..., None], inputs[..., : config.task.channels]
        if config.task.masked:
            there = find_present(inputs, config.task.channels)
            where = there if where is None else there & where
        average = partial(_mean_of_some if config.task.masked else shards.mean, axis=1, where=where)
        mean = average(channels)
        fresh = {
            "mean": mean,
            "deviation": jnp.sqrt(average(jnp.square(channels - mean)) + 1e-5)
            if config.normalize_scale
            else jnp.ones_like(mean),
        }
        carried = state["scale"]
        return state | {
            "scale": jax.tree.map(lambda old, new: jnp.where(carried["deviation"] > 0, old, new), carried, fresh)
        }

    def series(self, config: Model, inputs: Array, state: State, read: Array | None) -> Array:
        """Returns the inputs, their channels at the scale of the sequence, those that run apart as rows; the place in a
        cycle is -1 in rows that are not read.
        """
        if config.task.period and read is not None:
            inputs = inputs.at[..., -1].set(jnp.where(read, inputs[..., -1], -1))
        if config.normalize:
            channels = inputs[..., : config.task.channels]
            deviation = rules.detach(state["scale"]["deviation"], "norm")
            channels = (channels - state["scale"]["mean"]) / deviation
            channels = channels if read is None else jnp.where(read[..., None], channels, 0)
            channels = (
                jnp.where(find_present(inputs, config.task.channels), channels, 0) if config.task.masked else channels
            )
            beside = inputs[..., config.task.channels :]
            inputs = jnp.concatenate([channels, beside], axis=-1) if beside.shape[-1] else channels
        return self.split(config, inputs)

    def encode(self, ends: Ends, series: Array, state: Any) -> tuple[Array, Any]:
        """Returns (features of the series less its cycle, what the encoder carries)."""
        return ends.encoder(self._remove_cycle(ends, series), state)

    def answer(
        self, ends: Ends, x: Array, series: Array, state: State, valid: Array, read: Array | None
    ) -> tuple[Array, State]:
        """Returns (the forecast in the units of the inputs, what the head carries and the scale)."""
        del valid
        config, scale = ends.config, state["scale"]
        x = x if read is None else jnp.where(read[..., None], x, 0)
        y, head = ends.head(x, self._remove_cycle(ends, series), state["head"])
        if config.channel_independent:
            y = y.reshape(-1, config.task.channels, y.shape[1], *y.shape[3:]).swapaxes(1, 2)
        if ends.cycle is not None:
            ahead = self._phase(config, shards.last(series[:, -1:])) + 1 + jnp.arange(y.shape[1])[None]
            y += jnp.expand_dims(ends.cycle(ahead), range(3, y.ndim))
        if config.normalize:
            deviation, mean = (jnp.expand_dims(scale[name], range(3, y.ndim)) for name in ("deviation", "mean"))
            y = y * rules.detach(deviation, "norm") + mean
        return y, {"head": head, "scale": scale}

    def _remove_cycle(self, ends: Ends, series: Array) -> Array:
        """The series as `series` gives it, less what was learned of its cycle, and without the place in it; what is
        missing stays 0.
        """
        if ends.cycle is None:
            return series
        config, channels = ends.config, 1 if ends.config.channel_independent else ends.config.task.channels
        course = self.split(config, ends.cycle(self._phase(config, series)))
        if config.task.masked:
            course = jnp.where(find_present(series, channels), course, 0)
        return jnp.concatenate([series[..., :channels] - course, series[..., channels:-1]], axis=-1)

    def _phase(self, config: Model, series: Array) -> Array:
        """The place of every row in the cycle, (B, T), which channels that run apart share."""
        return series[:: self.rows(config), :, -1]

    def rows(self, config: Model) -> int:
        """Returns the number of channels where they run apart."""
        return config.task.channels if config.channel_independent else 1

    def split(self, config: Model, values: Array) -> Array:
        """Returns channels that run apart as sequences of one channel, each with what inputs say of it and of all."""
        if not config.channel_independent:
            return values
        channels, steps = config.task.channels, values.shape[1]
        apart = lambda values: values.swapaxes(1, 2).reshape(-1, steps, 1)  # noqa: E731
        if values.shape[-1] == channels:
            return apart(values)
        own = channels * (1 + config.task.masked)
        parts = [apart(values[..., first : first + channels]) for first in range(0, own, channels)]
        return jnp.concatenate([*parts, jnp.repeat(values[..., own:], channels, axis=0)], axis=-1)

    def _width(self, config: Model) -> int:
        """Numbers of a step that the blocks read."""
        task = config.task
        return (1 if config.channel_independent else task.channels) * (1 + task.masked) + task.covariates

    def inputs(self, config: Model, rows: int, steps: int) -> jax.ShapeDtypeStruct:
        """Returns shape and type of inputs."""
        return jax.ShapeDtypeStruct((rows, steps, config.task.width), jnp.float32)

    def numbers(self, config: Model, steps: int) -> int:
        """Returns the number of values to forecast, each quantile of one by itself."""
        del steps
        return config.task.horizon * max(config.task.channels, 1) * max(len(config.task.quantiles), 1)

    def weights(self, config: Model) -> float:
        """Returns the numbers of the encoder, the head and its path past the blocks."""
        horizon, channels = config.task.horizon, config.task.channels
        return (
            super().weights(config)
            + channels * (config.task.period + config.d_model * config.channel_embedding)
            + config.channel_mixing * (channels**2 + config.d_model * (3 * config.d_model + 1))
            + config.d_model
            * config.head_context
            * horizon
            * (1 if config.channel_independent else channels)
            * max(len(config.task.quantiles), 1)
            + config.linear_skip * horizon
        )

    def errors(self, outputs: Array, batch: Batch) -> dict[str, Array]:
        """Returns mse and mae of every window, over horizon and channels; of every value, where some may be missing."""
        error = self.point(outputs) - batch["targets"]
        return _by_window({"mse": error**2, "mae": jnp.abs(error)}, batch)

    def score(self, outputs: Array, batch: Batch) -> Sums:
        """Returns mse and mae, and with weights of their own r2 and direction.

        r2 is 1 - sum e^2 / sum y^2, out of sample: against the forecast 0, which is the training mean of standardised
        values (Campbell and Thompson 2008). direction is the share of values forecast on the right side of the last
        input, those that equal it left out.
        """
        outputs, targets = (hide_unweighted(values, batch["weights"]) for values in (outputs, batch["targets"]))
        errors = self.errors(outputs, {**batch, "targets": targets})
        return {name: sum_weighted(error, batch["weights"]) for name, error in errors.items()} | _shares(
            self.point(outputs), targets, batch
        )

    def trained_on(self, training: Training) -> str:
        """Returns "mse", "huber" or "mae"."""
        return training.forecast_loss

    def training_score(self, name: str, outputs: Array, batch: Batch) -> Sums:
        """Returns the metrics, and Huber's loss where that is trained on."""
        return self.score(outputs, batch) | (huber(outputs, batch) if name == "huber" else {})

    def error_sums(self, config: Model, outputs: Array, batch: Batch) -> dict[str, Array]:
        """Returns sums over windows, (H, C): of the forecast's errors, and of those of the last input, with its cycle
        where one was taken off.
        """
        del config
        inputs, targets, weights = (jnp.asarray(batch[name]) for name in ("inputs", "targets", "weights"))
        before, ahead = (
            (jnp.split(jnp.asarray(batch["course"]), [inputs.shape[1]], axis=1)) if "course" in batch else (0.0, 0.0)
        )
        channels = inputs[..., : targets.shape[2]]
        last = _last_of_some(channels + before, inputs) if _is_masked(batch) else (channels + before)[:, -1:]
        error, naive = self.point(outputs) - targets, last - (targets + ahead)
        parts = {"mse": error**2, "mae": jnp.abs(error), "repeat last": naive**2}
        if _is_masked(batch):
            count = (weights > 0).astype(jnp.float32)
            return {name: (part * count).sum(axis=0) for name, part in parts.items()} | {"count": count.sum(axis=0)}
        sums = {name: jnp.einsum("b,bhc->hc", weights, part) for name, part in parts.items()}
        return sums | {"count": weights.sum()}

    def error_parts(self, total: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> dict[str, Any]:
        """Returns errors by step of the horizon and by channel, of the latter also in the units of the data where their
        scale is known; of where no value was, not-a-number.
        """
        sums = {name: value for name, value in total.items() if name != "count"}
        names = about.get("channels") or [f"channel {index + 1}" for index in range(sums["mse"].shape[1])]

        def average(axis: int) -> dict[str, list[float]]:
            if total["count"].ndim:
                count = total["count"].sum(axis=axis)
                return {
                    name: np.where(count > 0, value.sum(axis=axis) / np.maximum(count, 1), np.nan).tolist()
                    for name, value in sums.items()
                }
            return {name: (value / total["count"]).mean(axis=axis).tolist() for name, value in sums.items()}

        channels = average(0)
        parts = {"by_horizon": average(1), "by_channel": {"names": [str(name) for name in names], **channels}}
        if "scaling" in about:
            deviation = np.array(about["scaling"]["deviation"])
            unit = np.where(deviation > 0, deviation, 1)  # of a channel that stands still, its own
            powers = {"mse": 2, "mae": 1}
            parts["own_units"] = {
                key: (np.array(channels[key]) * unit**power).tolist() for key, power in powers.items()
            }
        return parts

    def title(self, batch: Batch, outputs: np.ndarray, about: Mapping[str, Any]) -> str:
        """Returns that it is a window of a series."""
        del batch, outputs, about
        return "the first window of the test split"

    def example(self, source: Any) -> list[Any]:
        """Returns a window, what followed, and the forecast."""
        return source.forecast()


class QuantileForecasting(Forecasting):
    """Quantiles of the values after the last step, (B, H, C, levels), trained by their pinball loss (Koenker and
    Bassett 1978). The forecast is the median.

    With e = y - q the loss of a quantile q of level p is 2 max(p e, (p - 1) e), and "pinball" its mean over the levels:
    of the median alone |e|, of many levels that lie evenly the continuous ranked probability score.
    """

    loss = "pinball"
    primary = "pinball"

    def __init__(self, levels: tuple[float, ...]) -> None:
        self.levels = levels

    def point(self, outputs: Any) -> Any:
        """Returns the median."""
        return outputs[..., len(self.levels) // 2]

    def quantiles(self, outputs: Any) -> dict[float, Any]:
        """Returns the quantiles, (B, H, C), by their levels, rising."""
        return {level: outputs[..., place] for place, level in enumerate(self.levels)}

    def errors(self, outputs: Array, batch: Batch) -> dict[str, Array]:
        """Returns mse and mae of the median, and pinball, as `Forecasting` does."""
        error, levels = batch["targets"][..., None] - outputs, np.asarray(self.levels, outputs.dtype)
        levels = levels.reshape(*[1] * (error.ndim - 1), -1)
        loss = 2 * jnp.maximum(levels * error, (levels - 1) * error).mean(axis=-1)
        return super().errors(outputs, batch) | _by_window({"pinball": loss}, batch)

    def trained_on(self, training: Training) -> str:
        """Returns "pinball"."""
        del training
        return self.loss

    def drawn_targets(self, outputs: Array, draws: int, key: PRNGKeyArray) -> tuple[Array, Array]:
        """Returns targets drawn from the law of the quantiles, each between two of them with the difference of their
        levels, and factors (M / draws)^(1/2) for M values.

        The pinball loss has kinks for a curvature, and no Gauss-Newton matrix: the sum of (c u)(c u)' is, on average, M
        times the covariance of the gradient u, which for the median of a Laplace law of scale 1 is the Hessian of the
        expected loss.
        """
        ends = jnp.concatenate([outputs[..., :1] - 1, outputs, outputs[..., -1:] + 1], axis=-1)
        middles = (ends[..., 1:] + ends[..., :-1]) / 2
        drawn = jax.random.uniform(key, (draws, *outputs.shape[:-1]))
        place = jnp.searchsorted(jnp.asarray(self.levels), drawn)
        targets = jnp.take_along_axis(middles[None], place[..., None], axis=-1)[..., 0]
        return targets, jnp.full(draws, np.sqrt(outputs[..., 0].size / draws))


def huber(outputs: Array, batch: Batch) -> Sums:
    """Returns "huber", twice Huber's loss (1964) of forecasts with delta 1: e^2 where |e| <= 1 deviation of the
    training values, 2|e| - 1 beyond.

    Its gradient is that of mse for small errors and bounded for large ones, which heavy tails would otherwise let
    decide.
    """
    outputs, targets = (hide_unweighted(values, batch["weights"]) for values in (outputs, batch["targets"]))
    errors = _by_window({"huber": 2 * optax.huber_loss(outputs, targets, delta=1.0)}, batch)
    return {"huber": sum_weighted(errors["huber"], batch["weights"])}


def _is_masked(batch: Batch) -> bool:
    """Whether every value of the targets has a weight of its own, 0 where it is missing."""
    return batch["weights"].ndim == 3


def _by_window(errors: dict[str, Array], batch: Batch) -> dict[str, Array]:
    """Errors (B, H, C) in the shape of the weights."""
    return errors if _is_masked(batch) else {name: error.mean(axis=(1, 2)) for name, error in errors.items()}


def find_present(inputs: Any, channels: int) -> Any:
    """Returns which values of the channels are there, of inputs that say so behind them."""
    return inputs[..., channels : 2 * channels] > 0


def show_missing(inputs: np.ndarray, channels: int, *, masked: bool) -> np.ndarray:
    """Returns the channels of inputs, of which values that are missing are not-a-number."""
    values = inputs[..., :channels]
    return np.where(find_present(inputs, channels), values, np.nan) if masked else values


def mark_missing(inputs: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the channels of windows (..., T, C) and their targets (..., H, C), of which values that are missing are
    not-a-number, where every target has a weight of its own.
    """
    masked = np.ndim(weights) == np.ndim(targets)
    shown = np.where(weights > 0, targets, np.nan) if masked else targets
    return show_missing(inputs, targets.shape[-1], masked=masked), shown


def _mean_of_some(values: Array, *, axis: int, where: Array | None) -> Array:
    """The mean over the steps of all shards, an axis that is kept, of those that `where` chooses; 0 where there are
    none.
    """
    where = jnp.ones_like(values, bool) if where is None else where
    there = shards.total(where.sum(axis=axis, keepdims=True))
    return shards.total(jnp.where(where, values, 0).sum(axis=axis, keepdims=True)) / jnp.maximum(there, 1)


def _last_of_some(values: Array, inputs: Array) -> Array:
    """The last values (B, 1, C) that are there, 0 where none is."""
    channels = values.shape[2]
    there = find_present(inputs, channels)
    place = jnp.where(there, jnp.arange(1, values.shape[1] + 1)[None, :, None], 0).max(axis=1, keepdims=True)
    return jnp.take_along_axis(jnp.pad(values, ((0, 0), (1, 0), (0, 0))), place, axis=1)


def _shares(outputs: Array, targets: Array, batch: Batch) -> Sums:
    """R2 and the share of right directions; of the series with its cycle, where that was taken off."""
    channels, ended = targets.shape[2], shards.last(jnp.asarray(batch["inputs"])[:, -1:])
    last = hide_unweighted(ended[..., :channels], batch["weights"]) if not _is_masked(batch) else ended[..., :channels]
    weights = batch["weights"] if _is_masked(batch) else batch["weights"][:, None, None]
    if "course" in batch:
        before, ahead = jnp.split(batch["course"][:, -1 - targets.shape[1] :], [1], axis=1)
        if not _is_masked(batch):
            before, ahead = (hide_unweighted(part, batch["weights"]) for part in (before, ahead))
        last, targets, outputs = last + before, targets + ahead, outputs + ahead
    unexplained, total = ((part**2 * weights).sum() for part in (outputs - targets, targets))
    moved = (targets != last) * weights
    if _is_masked(batch):
        moved = moved * find_present(ended, channels)  # a last value that is missing has no sides
    right = (jnp.sign(outputs - last) == jnp.sign(targets - last)) * moved
    return {"r2": jnp.stack([total - unexplained, total]), "direction": jnp.stack([right.sum(), moved.sum()])}
