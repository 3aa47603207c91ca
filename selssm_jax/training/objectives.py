"""What training minimises and evaluation reports, as sums that merge over batches and devices."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

Sums = dict[str, Float[Array, "2"]]  # name -> (weighted sum, weight)
LOSS = {"language": "nats", "classification": "nats", "forecasting": "mse"}
PRIMARY = {"language": "nats", "classification": "accuracy", "forecasting": "mse"}
HIGHER_IS_BETTER = frozenset({"accuracy"})


def score(kind: str, outputs: Array, batch: Mapping[str, Array]) -> Sums:
    """Returns the metrics of a batch as (weighted sum, weight): their ratio over any number of batches is exact.

    "language" and "classification": nats, -log p(target), and accuracy. "forecasting": mse and mae over horizon and channels.
    """
    errors = _regression(outputs, batch["targets"]) if kind == "forecasting" else _categorical(outputs, batch["targets"])
    weights = batch["weights"]
    return {name: jnp.stack([(error * weights).sum(), weights.sum()]) for name, error in errors.items()}


def _categorical(logits: Array, targets: Array) -> dict[str, Array]:
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return {"nats": nats, "accuracy": (logits.argmax(axis=-1) == targets).astype(jnp.float32)}


def _regression(outputs: Array, targets: Array) -> dict[str, Array]:
    error = outputs - targets
    return {"mse": (error**2).mean(axis=(1, 2)), "mae": jnp.abs(error).mean(axis=(1, 2))}


def means(sums: Mapping[str, Any]) -> dict[str, float]:
    """Returns the weighted means; a weight of zero gives not-a-number, for there is nothing to report."""
    return {name: float(total) / float(weight) if weight else float("nan") for name, (total, weight) in sums.items()}


def is_better(metric: str, new: float, old: float) -> bool:
    """Whether `new` improves on `old`; anything improves on not-a-number."""
    if old != old:
        return new == new
    return new > old if metric in HIGHER_IS_BETTER else new < old


def gate_penalties(intermediates: Mapping[str, Any], valid: Array) -> dict[str, Array]:
    """Returns {"l1": mean gate over valid steps, "l0": expected share of open gates}, each the mean over blocks.

    `valid` may be finer than the gates where an encoder takes strides.
    """
    blocks = [block["mixer"] for name, block in sorted(intermediates.items()) if name.startswith("block")]
    penalties = {"l1": jnp.mean(jnp.stack([_mean_gate(block["gate"][0], valid) for block in blocks]))}
    open_shares = [leaf for block in blocks for leaf in jax.tree.leaves(block["G"]["penalty_l0"])] if "G" in blocks[0] else []
    if open_shares:
        penalties["l0"] = jnp.mean(jnp.stack(open_shares))
    return penalties


def _mean_gate(gate: Array, valid: Array) -> Array:
    if gate.shape[0] != valid.shape[0]:  # channels apart: every channel is a row of its own
        return gate.mean()
    stride = -(-valid.shape[1] // gate.shape[1])
    mask = valid[:, ::stride].astype(gate.dtype)
    return (gate.mean(axis=-1) * mask).sum() / jnp.maximum(mask.sum(), 1)
