"""What a stream was: errors as time went, changes, and what the states hold of rows before and after the last one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from selssm_jax.analysis.results import BITS, Results
from selssm_jax.information import retention
from selssm_jax.information.estimators import Training
from selssm_jax.model import mixer_places
from selssm_jax.observe import observe
from selssm_jax.runs import read_history
from selssm_jax.stream_files import GATE, OpenStream
from selssm_jax.streaming.session import FROZEN, LEARNER, NAMES

FEWEST = 512  # rows on either side of a change, of which bits are said
STRETCH = 32  # rows that are fitted on, or held out, together
LONGEST, LAGS = 64, 9  # lags that are decoded, 0 among them
DECODER = Training(steps=300, batch=256, width=64, rate=2e-3)


def analyse_stream(stream: OpenStream) -> Results:
    """Returns the errors of the learner and its rivals by row, the changes that were seen and those that are known, and
    the bits of single rows in the states, by block.
    """
    records = [record for record in read_history(stream.folder.path / "metrics.jsonl") if record["split"] == "stream"]
    events = stream.read_events()
    options, session = stream.run.experiment.stream, stream.session
    scores = {name: records[-1].get(name) if records else None for name in NAMES}
    gates = sorted({name for record in records for name in record if name.startswith(GATE)})
    error, frozen = scores[LEARNER], scores[FROZEN]
    return {
        "name": stream.run.experiment.name,
        "rows": session.rows,
        "history": session.read,
        "horizon": stream.run.model.config.task.horizon,
        "columns": list(stream.columns),
        "steps": [record["step"] for record in records],
        "errors": {name: [record.get(name) for record in records] for name in NAMES},
        "rate": [record["rate"] for record in records],
        "gates": {name.removeprefix(GATE): [record.get(name) for record in records] for name in gates},
        "scores": scores,
        "error": error,
        "over_frozen": error / frozen if error is not None and frozen else float("nan"),
        "events": events,
        "changes": [row for row in options.changes if row < session.rows],
        "detector": options.detector,
        "memory": measure_worlds(stream, events),
        "config": {"stream": vars(options)},
        "command": stream.run.command("--stream=..."),
    }


def measure_worlds(stream: OpenStream, events: list[dict[str, Any]]) -> Results | None:
    """Returns what the states of each block hold of the row k rows back, in bits, before and after the last change, of
    those that are known, or else of those that were seen; where none lies in the rows that are remembered, of all of
    these; None where they are too few.

    The learner's parameters are those of now in both: what differs is the world. The bits are lower bounds, of decoders
    that are judged on stretches of rows that they were not fitted to, averaged over the channels.
    """
    rows = min(stream.session.rows + stream.session.read, len(stream.session.recent))
    recent, first = stream.session.recent[-rows:], stream.session.rows - rows
    seen = [event["row"] for event in events if event["event"] == "rise"]
    known = stream.run.experiment.stream.changes or seen  # a detector is some rows late
    inside = [row - first for row in known if FEWEST <= row - first <= rows - FEWEST]
    if rows < FEWEST:
        return None
    cut = max(inside, default=None)
    parts = {"all rows": slice(0, rows)} if cut is None else {"before": slice(0, cut), "after": slice(cut, rows)}
    blocks = _read_states(stream, recent)
    return {
        "rows": rows,
        "change": None if cut is None else first + cut,
        "lags": _lags().tolist(),
        "blocks": {
            name: {
                "gate": {part: None if gate is None else float(gate[where].mean()) for part, where in parts.items()},
                "worlds": {part: _decode(states[where], recent[where]) for part, where in parts.items()},
            }
            for name, (states, gate) in blocks.items()
        },
    }


def _lags() -> np.ndarray:
    return np.unique(np.concatenate([[0], np.geomspace(1, LONGEST, LAGS - 1).round().astype(int)]))


def _read_states(stream: OpenStream, rows: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """(States (T, N), gates or None) of every block that shows its states, on rows as one sequence."""
    model, params = stream.run.model, stream.session.params
    batch = {"inputs": rows[None], "valid": np.ones((1, len(rows)), bool)}
    read = jax.jit(lambda params: observe(model, params, batch, rngs={"noise": jax.random.key(0)}).blocks)
    shown, found = jax.device_get(read(params)), {}
    for name in mixer_places(model.config):
        state, gate = shown[name].state, shown[name].gate
        if state is not None:
            flat = np.asarray(state).reshape(-1, len(rows), state.shape[-1])
            flat = np.concatenate([flat.real, flat.imag], -1) if np.iscomplexobj(flat) else flat
            joined = np.moveaxis(flat, 0, 1).reshape(len(rows), -1)
            found[name] = joined, None if gate is None else np.asarray(gate).reshape(-1, len(rows)).T
    return found


def _decode(states: np.ndarray, rows: np.ndarray) -> Results:
    """Bits of the row k rows back by lag, with their half-life."""
    lags = _lags()
    last = int(lags[-1])
    places = np.arange(last, len(states))
    asked = np.stack([rows[places - lag] for lag in lags], axis=1)  # (M, K, C)
    targets = asked.reshape(len(places), -1)
    probe = retention.values(
        jnp.asarray(states[places]), jnp.asarray(targets), groups=jnp.asarray(places // STRETCH), training=DECODER
    )
    nats = probe.nats.reshape(len(lags), -1).mean(axis=1)
    stderr = probe.stderr.reshape(len(lags), -1).max(axis=1)  # channels of one row are not independent
    bits, errors = np.maximum(nats, 0) * BITS, stderr * BITS
    known = bits[0] - 2 * errors[0] > 0
    half = retention.half_life(lags, bits, errors)._asdict() if known else None
    return {"bits": bits.tolist(), "stderr": errors.tolist(), "half_life": half}
