"""What the gates of a trained model do: how many components a step updates, over time and over a split (theory, section
9).

Only sums and the beginning of the first sequence leave the compiled function, so the split and its sequences, which are
read in pieces, may be of any length. Sums of batches add up to the sums of their union; `Sums.summary` turns them into
means.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from selssm_jax.analysis.results import BITS
from selssm_jax.config import Model
from selssm_jax.model import ModelLike
from selssm_jax.observe import find_data_rows, find_valid_frames, observe
from selssm_jax.shapes import AnyArray, Batch
from selssm_jax.tasks.registry import kind_of
from selssm_jax.training import pieces

BINS = 50  # of the histogram of gate values, over [0, 1]
SHOWN = 4096  # frames of a sequence whose outputs and gates are kept, component by component


class Sums(NamedTuple):
    """Additive statistics of one block's gates g (B, T, n) over valid steps; T is the position in the sequence.

    steps: how many sequences are valid at a position, (T,). effective, hard, participation: sums over sequences of the
    three numbers of `dimensions`, (T,). nats: sums over sequences and components of nats gained and forgotten, (T, 2);
    (T, 0) of gates that know of none. component, square: sums over steps of g_i and g_i^2, (n,). histogram: counts of
    gate values in BINS equal bins of [0, 1].
    """

    steps: AnyArray
    effective: AnyArray
    hard: AnyArray
    participation: AnyArray
    nats: AnyArray
    component: AnyArray
    square: AnyArray
    histogram: AnyArray

    @classmethod
    def join(cls, parts: Iterable["Sums"]) -> "Sums":
        """Returns the sums over sequences, in float64, of those of their pieces, one after another."""
        fields = zip(*jax.tree.map(partial(np.asarray, dtype=np.float64), list(parts)), strict=True)
        steps, effective, hard, participation, nats, *rest = fields
        over_time = map(np.concatenate, (steps, effective, hard, participation, nats))
        return cls(*over_time, *(np.sum(values, axis=0) for values in rest))

    def merge(self, other: "Sums") -> "Sums":
        """Returns the sums over both; a shorter sequence adds nothing to later positions."""
        return Sums(*(_add(mine, theirs) for mine, theirs in zip(self, other, strict=True)))

    def summary(self) -> dict[str, Any]:
        """Returns means over valid steps, as JSON-able values.

        effective_dimension sum_i g_i, hard_count #{g > 1/2} and participation_ratio in components of `components` = n;
        compression_factor n / effective_dimension (None where all gates are closed); selectivity, the standard
        deviation of a gate over steps averaged over components (0: the gates ignore the input); by_component the mean
        gate of every component; over_time the three dimensions by position. Of gates that know their nats also
        bits_gained and bits_forgotten of a step, over all components, over_time too: by the mixer's own model.
        """
        n, steps = len(self.component), float(self.steps.sum())
        effective = float(self.effective.sum()) / steps
        mean, square = self.component / steps, self.square / steps
        return {
            "components": n,
            "steps": int(steps),
            "mean": effective / n,
            "effective_dimension": effective,
            "hard_count": float(self.hard.sum()) / steps,
            "participation_ratio": float(self.participation.sum()) / steps,
            "compression_factor": n / effective if effective > 0 else None,
            "selectivity": float(np.sqrt(np.maximum(square - mean**2, 0)).mean()),
            "histogram": {"edges": np.linspace(0, 1, BINS + 1).tolist(), "counts": self.histogram.astype(int).tolist()},
            "by_component": mean.tolist(),
            **{name: float(total.sum()) / steps for name, total in self._bits().items()},
            "over_time": self._over_time(),
        }

    def _bits(self) -> dict[str, np.ndarray]:
        """Bits by position, summed over sequences; nothing of gates that know of none."""
        return dict(zip(("bits_gained", "bits_forgotten"), BITS * self.nats.T, strict=False))

    def _over_time(self) -> dict[str, list[float]]:
        seen = self.steps > 0
        means = {
            "effective_dimension": self.effective,
            "hard_count": self.hard,
            "participation_ratio": self.participation,
            **self._bits(),
        }
        return {"position": np.flatnonzero(seen).tolist()} | {
            name: (total[seen] / self.steps[seen]).tolist() for name, total in means.items()
        }


class Sequence(NamedTuple):
    """One sequence that a model read: its arrays of the batch, and of its first `SHOWN` frames the gates (F, n) of all
    blocks, and the model's outputs, where each step has one.
    """

    batch: Batch
    outputs: AnyArray
    gates: dict[str, AnyArray]

    def shown_steps(self, stride: int) -> int:
        """Returns how many valid steps the frames have that are kept; the encoder takes `stride` steps a frame."""
        return min(int(self.batch["valid"].sum()), SHOWN * stride)

    def live_gates(self, stride: int) -> dict[str, AnyArray]:
        """Returns the gates of the valid frames alone."""
        frames = -(-self.shown_steps(stride) // stride)
        return {name: gate[:frames] for name, gate in self.gates.items()}


def dimensions(gate: Float[Array, "*t n"]) -> dict[str, Float[Array, "*t"]]:
    """Returns how many of n components a gate updates, in three readings (theory, section 9): equal for 0/1 gates.

    effective: sum_i g_i. hard: #{g_i > 1/2}. participation: (sum g)^2 / sum g^2, and 0 where all gates are 0.
    """
    total, squares = gate.sum(-1), (gate**2).sum(-1)
    return {
        "effective": total,
        "hard": (gate > 0.5).sum(-1).astype(gate.dtype),
        "participation": jnp.where(squares > 0, total**2 / jnp.where(squares > 0, squares, 1), 0),
    }


def sums(gate: Float[Array, "B T n"], valid: Bool[Array, "B T"], nats: Iterable[Float[Array, "B T n"]] = ()) -> Sums:
    """Returns the sums of one batch; steps that are not valid do not count. `nats`: gained and forgotten."""
    weight = valid.astype(gate.dtype)
    by_time = {name: (value * weight).sum(0) for name, value in dimensions(gate).items()}
    live = gate * weight[..., None]
    bins = jnp.clip((gate * BINS).astype(jnp.int32), 0, BINS - 1)
    counts = jnp.bincount(
        bins.ravel(), jnp.broadcast_to(valid[..., None], gate.shape).astype(jnp.int32).ravel(), length=BINS
    )
    totals = [(value * weight[..., None]).sum((0, 2)) for value in nats]
    return Sums(
        weight.sum(0),
        **by_time,
        nats=jnp.stack(totals, axis=-1) if totals else jnp.zeros((gate.shape[1], 0)),
        component=live.sum((0, 1)),
        square=(live * gate).sum((0, 1)),
        histogram=counts,
    )


def observe_gates(
    model: ModelLike, params: PyTree, batches: Iterable[Batch], *, is_stream: bool, piece: int = pieces.AUTO
) -> tuple[dict[str, Sums], list[Sequence]]:
    """Reads batches and returns ({block: sums over them all}, the first sequence of every batch).

    Args:
      model: with gates that are sown. params: its parameters.
      batches: as a dataset's `evaluate` gives them.
      is_stream: row b of a batch continues row b of the batch before it.
      piece: as training.piece.
    """
    observer, state = compile_observer(model), None
    found: dict[str, Sums] = {}
    first = []
    for batch in batches:
        if state is None or not is_stream:
            state = model.apply({"params": params}, len(batch["inputs"]), method="initial_state")
        read, parts, rows = partial(observer, params, find_data_rows(batch)), list[dict[str, Sums]](), list[Sequence]()
        for (blocks, row), after in pieces.walk(read, model, params, batch, piece, state):
            parts.append(jax.device_get(blocks))
            _keep_row(model.config, rows, row)
            state = after
        for name in parts[0]:
            wide = Sums.join([part[name] for part in parts])
            found[name] = found[name].merge(wide) if name in found else wide
        first.append(_join_rows(model.config, batch, rows))
    return found, first


def compile_observer(model: ModelLike) -> Callable[..., tuple[tuple[dict[str, Sums], Sequence], PyTree]]:
    """Returns the compiled (params, which rows are data, state, batch, its number) -> (({block: sums}, the first
    sequence), state), of a piece.
    """

    @jax.jit
    def read(
        params: PyTree, data: Array, state: PyTree, batch: Batch, number: Any
    ) -> tuple[tuple[dict[str, Sums], Sequence], PyTree]:
        noise = {"noise": pieces.key_of(jax.random.key(0), number)}
        outputs, after, shown = observe(model, params, batch, state, rngs=noise)
        gates = {name: block.gate for name, block in shown.items() if block.gate is not None}
        frames = find_valid_frames(model.config, batch["valid"] & data[:, None])
        row = Sequence(
            {name: value[0] for name, value in batch.items()},
            outputs[0],
            {name: gate[0] for name, gate in gates.items()},
        )
        return ({name: sums(gate, frames, shown[name].nats()) for name, gate in gates.items()}, row), after

    return read


def _keep_row(config: Model, rows: list[Sequence], row: Sequence) -> None:
    """Adds what is kept of a piece of a sequence: beyond `SHOWN` frames nothing but an answer to all of it."""
    kind = kind_of(config.task)
    if sum(len(before.batch["valid"]) for before in rows) >= SHOWN * kind.stride(config):
        if kind.every_step:
            return
        row = row._replace(gates={})
    rows.append(jax.device_get(row))


def _join_rows(config: Model, batch: Batch, rows: list[Sequence]) -> Sequence:
    """The first sequence of a batch, of which these are the pieces."""

    def join(parts: list[AnyArray]) -> AnyArray:
        return np.concatenate(parts)[:SHOWN]

    outputs = join([row.outputs for row in rows]) if kind_of(config.task).every_step else rows[-1].outputs
    gates = {name: join([row.gates[name] for row in rows if row.gates]) for name in rows[0].gates}
    return Sequence({name: np.asarray(value[0]) for name, value in batch.items()}, outputs, gates)


def _add(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    size = max(len(mine), len(theirs))
    mine, theirs = (np.pad(total, ((0, size - len(total)), *[(0, 0)] * (total.ndim - 1))) for total in (mine, theirs))
    return mine + theirs
