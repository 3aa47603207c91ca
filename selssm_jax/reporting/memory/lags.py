"""What a state says of single inputs: by lag, by component, and by how open the gates were when they were read (theory, section 4.4)."""

import dataclasses
import math
from typing import Any

import numpy as np

from selssm_jax.config import Measure
from selssm_jax.information import discrete, retention
from selssm_jax.information.estimators import Training
from selssm_jax.reporting.memory.recording import Block, Recording

Results = dict[str, Any]
BITS = 1 / math.log(2)
LARGEST_VOCABULARY = 256  # tokens that are told apart by a decoder: the most frequent ones, and "other"
CHANNELS = 4  # of values that are decoded
BINS = 8  # of a component's values, and of an input's, in the table of components
LAGS = 16  # that are decoded, at most
STRETCHES = 40  # of a series whose windows overlap


def retained(seen: Recording, block: Block, settings: Measure) -> Results:
    """What decoders read of x_{t-k} from h_t, by lag; by component; and by how open the gate was when it was read."""
    lags = _lags(seen, settings)
    rows, index = np.nonzero(seen.live)
    states, times = block.states[rows, index], seen.moments[index]
    asked = np.stack([_inputs(seen.frames)[rows, times - lag] for lag in lags], axis=1)  # (N, K, C)
    tokens = seen.frames.ndim == 2
    probe = _decoded(states, asked, _groups(seen, rows, times), settings, tokens=tokens)
    kept = _by_lag(probe, lags, asked, tokens=tokens)
    found: Results = {"retention": kept, "by_component": _by_component(states, asked[..., 0], tokens=tokens)}
    found["horizon"] = retention.horizon(lags, np.asarray(kept["lower"]) / BITS, np.asarray(kept["stderr"]) / BITS)
    found["by_gate"] = None if block.gate is None else _by_gate(probe, block.gate, rows, times, lags)
    return found


def _groups(seen: Recording, rows: np.ndarray, times: np.ndarray) -> np.ndarray:
    """What is held out whole: moments of one sequence, which are alike; of windows that overlap, stretches of the series they are of."""
    if seen.starts is None:
        return rows
    place = seen.starts[rows] + times
    return ((place - place.min()) * STRETCHES // (np.ptp(place) + 1)).astype(int)


def _decoded(states: np.ndarray, asked: np.ndarray, groups: np.ndarray, settings: Measure, *, tokens: bool) -> retention.Probe:
    training = decoder_training(settings)
    if tokens:
        return retention.tokens(states, asked[..., 0], classes=int(asked.max()) + 1, groups=groups, training=training)
    return retention.values(states, asked.reshape(len(asked), -1), groups=groups, training=training)


def _by_lag(probe: retention.Probe, lags: list[int], asked: np.ndarray, *, tokens: bool) -> Results:
    def mean(values: np.ndarray) -> np.ndarray:
        """Over channels; the error of a mean is at most the mean error, however they move together."""
        return np.asarray(values).reshape(len(lags), -1).mean(axis=1)

    entropy = mean(probe.entropy)
    return {
        "lags": lags,
        "direction": "lower",
        "of": "tokens" if tokens else "values, one channel each",
        "lower": (mean(probe.nats) * BITS).tolist(),
        "stderr": (mean(probe.stderr) * BITS).tolist(),
        "entropy": (entropy * BITS).tolist() if tokens else None,
        "error": mean(probe.error).tolist(),
        "symbols": int(asked.max()) + 1 if tokens else None,
    }


def _lags(seen: Recording, settings: Measure) -> list[int]:
    longest = min(settings.longest_lag, int(seen.moments[0]))
    return sorted({0, *np.geomspace(1, max(longest, 1), LAGS - 1).round().astype(int).tolist()} if longest else {0})


def _inputs(frames: np.ndarray) -> np.ndarray:
    """(M, F, C): values of the first channels, or tokens with the rare ones taken together, as labels from 0."""
    if frames.ndim == 3:
        return frames[..., :CHANNELS]
    counts = np.bincount(frames.ravel())
    frequent = np.argsort(-counts, kind="stable")[: min(LARGEST_VOCABULARY - 1, np.count_nonzero(counts))]
    label = np.full(len(counts), len(frequent))
    label[frequent] = np.arange(len(frequent))
    return label[frames][..., None]


def decoder_training(settings: Measure) -> Training:
    """How the run's configuration has decoders fitted."""
    return dataclasses.replace(retention.PROBE, steps=settings.decoder_steps, width=settings.decoder_width, seed=settings.seed)


def _by_component(states: np.ndarray, asked: np.ndarray, *, tokens: bool) -> Results:
    """An estimate of I(h_{t,i}; x_{t-k}), (n, K): counts over bins of equal shares, less their bias to first order (Miller and Madow)."""
    levels = [_binned(component) for component in states.T]
    labels = [column.astype(int) if tokens else _binned(column) for column in asked.T]
    bits = [[_counted(level, label) for label in labels] for level in levels]
    return {"direction": "estimate", "bits": bits}


def _binned(values: np.ndarray) -> np.ndarray:
    edges = np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1])
    return np.searchsorted(edges, values, side="right")


def _counted(level: np.ndarray, label: np.ndarray) -> float:
    return discrete.mutual_information(discrete.count(level, label), correction="miller-madow").bits


def _by_gate(probe: retention.Probe, gate: np.ndarray, rows: np.ndarray, times: np.ndarray, lags: list[int]) -> Results | None:
    """What is known of past inputs, by how open the gates were when they were read: means over tenths of the steps."""
    past = [k for k, lag in enumerate(lags) if lag > 0]
    if not past:
        return None
    held_out = probe.held_out
    opened = np.stack([gate[rows[held_out], times[held_out] - lags[k]] for k in past], axis=1).ravel()
    if np.ptp(opened) < 1e-6:
        return None
    known = probe.pointwise.reshape(len(held_out), len(lags), -1).mean(axis=2)[:, past].ravel() * BITS
    tenth = np.argsort(np.argsort(opened, kind="stable"), kind="stable") * 10 // len(opened)
    parts = [known[tenth == part] for part in range(10)]
    return {
        "direction": "lower",
        "gate": [float(opened[tenth == part].mean()) for part in range(10)],
        "bits": [float(part.mean()) for part in parts],
        "stderr": [float(part.std() / len(part) ** 0.5) for part in parts],
    }
