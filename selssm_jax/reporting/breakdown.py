"""Where a model errs: by step of the horizon and by channel of a forecast, by class of a signal."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from selssm_jax.reporting.run import Run

Results = dict[str, Any]
Batch = dict[str, Array | np.ndarray]


def errors(run: Run, split: str) -> Results | None:
    """Returns the errors of a whole split in parts, as JSON-able values; None for language, whose errors the examples show.

    "forecasting": by_horizon, {"mse", "mae", "repeat last"} by step, the last the mean squared error of the last input repeated; by_channel, {"names",
    "mse", "mae"}. "classification": classes, and confusion, counts with a row for every true class and a column for every predicted one.
    """
    kind = run.model.config.task.kind
    if kind == "language":
        return None
    total = _summed(run, split)
    return _of_forecasts(total, run) if kind == "forecasting" else _of_classes(total, run)


def _summed(run: Run, split: str) -> dict[str, np.ndarray]:
    data, classes = run.experiment.data, run.model.config.task.classes

    @jax.jit
    def read(params: PyTree, batch: Batch, number: Array) -> dict[str, Array]:
        noise = {"noise": jax.random.fold_in(jax.random.key(0), number)}
        state = run.model.apply({"params": params}, len(batch["inputs"]), method="initial_state")
        outputs, _ = run.model.apply({"params": params}, batch["inputs"], state, valid=batch["valid"], rngs=noise)
        return _forecast_sums(outputs, batch) if classes == 0 else _confusion(outputs, batch, classes)

    total: dict[str, np.ndarray] = {}
    for number, batch in enumerate(run.dataset.evaluate(split, data.eval_batch_size or data.batch_size)):
        for name, value in jax.device_get(read(run.params, batch, number)).items():
            total[name] = np.asarray(total.get(name, 0.0) + np.asarray(value, np.float64))
    return total


def _forecast_sums(outputs: Array, batch: Batch) -> dict[str, Array]:
    """Sums over windows, (H, C): squared and absolute errors of the forecast, and squared errors of the last input, with its cycle where one was taken off."""
    inputs, targets, weights = jnp.asarray(batch["inputs"]), jnp.asarray(batch["targets"]), jnp.asarray(batch["weights"])
    before, ahead = (jnp.split(jnp.asarray(batch["course"]), [inputs.shape[1]], axis=1)) if "course" in batch else (0.0, 0.0)
    error, naive = outputs - targets, (inputs + before)[:, -1:] - (targets + ahead)
    sums = {name: jnp.einsum("b,bhc->hc", weights, part) for name, part in (("mse", error**2), ("mae", jnp.abs(error)), ("repeat last", naive**2))}
    return sums | {"count": weights.sum()}


def _confusion(outputs: Array, batch: Batch, classes: int) -> dict[str, Array]:
    truth, guess = (jax.nn.one_hot(labels, classes) for labels in (batch["targets"], outputs.argmax(axis=-1)))
    return {"confusion": jnp.einsum("b,bi,bj->ij", jnp.asarray(batch["weights"]), truth, guess)}


def _of_forecasts(total: dict[str, np.ndarray], run: Run) -> Results:
    means = {name: value / total["count"] for name, value in total.items() if name != "count"}
    channels = means["mse"].shape[1]
    names = [str(name) for name in run.dataset.metadata().get("channels") or [f"channel {index + 1}" for index in range(channels)]]
    return {
        "by_horizon": {name: value.mean(axis=1).tolist() for name, value in means.items()},
        "by_channel": {"names": names, **{name: value.mean(axis=0).tolist() for name, value in means.items()}},
    }


def _of_classes(total: dict[str, np.ndarray], run: Run) -> Results:
    table = total["confusion"].round().astype(int)
    names = [str(name) for name in run.dataset.metadata().get("classes") or range(len(table))]
    return {"classes": names, "confusion": table.tolist()}
