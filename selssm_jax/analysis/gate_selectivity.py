"""Sparse gates: whether they open for data and stay shut for noise.

A gate penalty (`training.gate_l1`, `gate_l0`, `target_dimension`) makes few components change at a step. Whether the
model then chooses its steps is another question, which labels of the steps answer: how well the mean gate of a step
tells data from noise.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from selssm_jax.information.checks import check_real
from selssm_jax.model import SequenceModel
from selssm_jax.observe import observe
from selssm_jax.shapes import Batch
from selssm_jax.training import pieces


class Separation(NamedTuple):
    """How gates tell data from noise: the AUROC, and the mean gate on either."""

    auroc: float
    data: float
    noise: float


def auroc(positive: Float[Array | np.ndarray, "P"], negative: Float[Array | np.ndarray, "N"]) -> float:
    """Returns P(s+ > s-) + 1/2 P(s+ = s-) for scores drawn from either side: the area under the ROC curve.

    By ranks, ties sharing their mean: (sum of the ranks of the positive - P (P + 1) / 2) / (P N), the statistic of Mann
    and Whitney (1947) over P N. 1/2 is chance, 0 a reversed order. Cost: O((P + N) log(P + N)).

    Raises:
      ValueError: for a side without scores, or scores that are not finite.
    """
    check_real(positive=positive, negative=negative)
    sides = {name: np.asarray(side, np.float64) for name, side in (("positive", positive), ("negative", negative))}
    for name, side in sides.items():
        if not side.size:
            raise ValueError(
                f"{name} holds no scores, expected at least one on either side: without both there is nothing to tell "
                "apart"
            )
        if not np.isfinite(side).all():
            raise ValueError(f"{name} holds {side[~np.isfinite(side)][0]}, expected finite scores")
    P, N = sides["positive"].size, sides["negative"].size
    _, value, count = np.unique(np.concatenate(list(sides.values())), return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    ranks = (last - (count - 1) / 2)[value]
    return float((ranks[:P].sum() - P * (P + 1) / 2) / (P * N))


def separation(
    gate: Float[Array | np.ndarray, "M T"],
    data: Bool[Array | np.ndarray, "M T"],
    noise: Bool[Array | np.ndarray, "M T"],
) -> Separation:
    """Returns how a block's mean gates of all steps tell the steps of data from those of noise; steps that are neither
    do not count.

    Raises:
      ValueError: for shapes that differ, a step that is both, or no step of one kind.
    """
    check_real(gate=gate)
    gate, data, noise = np.asarray(gate), np.asarray(data), np.asarray(noise)
    if not gate.shape == data.shape == noise.shape:
        raise ValueError(
            f"gate has shape {gate.shape}, data {data.shape} and noise {noise.shape}: expected the same, one value a "
            "step"
        )
    if (data & noise).any():
        raise ValueError(
            f"{(data & noise).sum()} steps are data and noise at once: expected masks without a step in common"
        )
    return Separation(auroc(gate[data], gate[noise]), float(gate[data].mean()), float(gate[noise].mean()))


def mean_gates(
    model: SequenceModel, params: PyTree, batches: Iterable[Batch], *, piece: int = pieces.AUTO
) -> tuple[Shaped[np.ndarray, "M ..."], dict[str, Float[np.ndarray, "R T"]]]:
    """Reads sequences, each from an empty memory, and returns (inputs, {block: the mean over components of the gates of
    every step}).

    Gates are those of evaluation: a hard concrete gate draws none. A row a sequence; where channels run apart, a row a
    channel.

    Args:
      model, params: a model whose mixers sow "gate". batches: as a dataset's `evaluate` gives them. piece: as
        training.piece.
    """

    @jax.jit
    def read_gates(state: Any, part: Batch, number: Any) -> tuple[dict[str, Array], Any]:
        key = pieces.key_of(jax.random.key(0), number)
        _, after, blocks = observe(model, params, part, state, rngs={"noise": key})
        return {name: block.gate.mean(axis=-1) for name, block in blocks.items() if block.gate is not None}, after

    inputs, gates = [], []
    for batch in batches:
        parts = [jax.device_get(part) for part, _ in pieces.walk(read_gates, model, params, batch, piece)]
        gates.append(jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *parts))
        inputs.append(np.asarray(batch["inputs"]))
    return np.concatenate(inputs), {name: np.concatenate([part[name] for part in gates]) for name in gates[0]}
