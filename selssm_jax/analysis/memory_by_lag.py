"""What a state says of single inputs: by lag, and by how open the gates were when they were read (theory, section
4.4).
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from selssm_jax.analysis import memory_by_component
from selssm_jax.analysis.results import BITS, Results
from selssm_jax.analysis.state_samples import Block, Recording
from selssm_jax.config import FEWEST, Measure
from selssm_jax.information import retention
from selssm_jax.information.estimators import Training

LARGEST_VOCABULARY = 256  # tokens that are told apart by a decoder: the most frequent ones, and "other"
CHANNELS = 4  # of values that are decoded
LAGS = 16  # that are decoded, at most
STRETCHES = 40  # of a series whose windows overlap


class Samples(NamedTuple):
    """Moments of sequences: their rows and places in `Recording.moments`, the inputs that decoders are asked for, (N,
    K, C), and what is held out whole.
    """

    rows: np.ndarray
    places: np.ndarray
    asked: np.ndarray
    groups: np.ndarray


def measure_retention(recording: Recording, block: Block, settings: Measure) -> Results:
    """What decoders read of x_{t-k} from h_t, by lag; by component; and by how open the gate was when it was read.

    Lags go to `settings.longest_lag` first, and on from there, to twice as far each time, while the state tells of the
    longest: until it does not, or to the beginning of the sequences, and then the horizon is as long at least.
    """
    lags = _lags(recording, settings)
    samples = _samples(recording, lags)
    probe = _decode(recording, block, samples, settings)
    bounds = _by_lag(probe, lags, samples.asked, tokens=recording.is_tokens)
    while horizon(bounds) == bounds["lags"][-1] and (further := _further(recording, bounds["lags"][-1])):
        late = _samples(recording, further)
        bounds = _join(
            bounds, _by_lag(_decode(recording, block, late, settings), further, late.asked, tokens=recording.is_tokens)
        )
    found: Results = {"retention": bounds, "horizon": horizon(bounds)}
    states, asked = block.states[samples.rows, samples.places], samples.asked[..., 0]
    found["by_component"] = memory_by_component.by_lag(
        states, asked, samples.groups, lags, tokens=recording.is_tokens, seed=settings.seed
    )
    found["by_gate"] = None if block.gate is None else _by_gate(probe, block.gate, samples, recording.moments, lags)
    return found


def horizon(bounds: Results) -> int | None:
    """The largest lag of which the state is known to tell, of `measure_retention`'s "retention"; None where it tells of
    none.
    """
    return retention.horizon(bounds["lags"], np.asarray(bounds["lower"]) / BITS, np.asarray(bounds["stderr"]) / BITS)


def _samples(recording: Recording, lags: list[int]) -> Samples:
    """All moments that lie as far from the beginning as the longest lag asks."""
    rows, index = np.nonzero(recording.live & (recording.moments >= lags[-1]))
    times = recording.moments[index]
    asked = np.stack([_inputs(recording.frames)[rows, times - lag] for lag in lags], axis=1)
    return Samples(rows, index, asked, group_moments(recording, rows, times))


def _further(recording: Recording, lag: int) -> list[int]:
    """Lags beyond `lag`, to twice as far or to the beginning of the sequences; none where they do not reach further."""
    end = int(max(recording.moments[recording.live.sum(axis=0) >= FEWEST], default=0))
    longest = end if end <= 3 * lag else 2 * max(lag, 1)
    return sorted({(lag + longest + 1) // 2, longest} - {lag}) if longest > lag else []


def _join(bounds: Results, more: Results) -> Results:
    """Both, lag by lag; what is about all lags is of the first."""
    return {name: value + more[name] if isinstance(value, list) else value for name, value in bounds.items()}


def group_moments(recording: Recording, rows: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Returns what is held out whole: moments of one sequence, which are alike; of windows that overlap, stretches of
    the series they are of.
    """
    if recording.starts is None:
        return rows
    place = recording.starts[rows] + times
    return ((place - place.min()) * STRETCHES // (np.ptp(place) + 1)).astype(int)


def _decode(recording: Recording, block: Block, samples: Samples, settings: Measure) -> retention.Probe:
    states, training = block.states[samples.rows, samples.places], decoder_training(settings)
    asked, groups = samples.asked, samples.groups
    if recording.is_tokens:
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


def _lags(recording: Recording, settings: Measure) -> list[int]:
    longest = min(settings.longest_lag, int(recording.moments[0]))
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
    return dataclasses.replace(
        retention.PROBE, steps=settings.decoder_steps, width=settings.decoder_width, seed=settings.seed
    )


def _by_gate(
    probe: retention.Probe, gate: np.ndarray, samples: Samples, moments: np.ndarray, lags: list[int]
) -> Results | None:
    """What is known of past inputs, by how open the gates were when they were read: means over tenths of the steps."""
    past = [k for k, lag in enumerate(lags) if lag > 0]
    if not past:
        return None
    held_out = probe.held_out
    rows, times = samples.rows[held_out], moments[samples.places[held_out]]
    opened = np.stack([gate[rows, times - lags[k]] for k in past], axis=1).ravel()
    if np.ptp(opened) < 1e-6:
        return None
    bits = probe.pointwise.reshape(len(held_out), len(lags), -1).mean(axis=2)[:, past].ravel() * BITS
    tenth = np.argsort(np.argsort(opened, kind="stable"), kind="stable") * 10 // len(opened)
    groups = np.repeat(samples.groups[held_out], len(past))
    parts = [(bits[tenth == part], groups[tenth == part]) for part in range(10)]
    return {
        "direction": "lower",
        "gate": [float(opened[tenth == part].mean()) for part in range(10)],
        "bits": [float(values.mean()) for values, _ in parts],
        "stderr": [float(retention.error_of_mean(values[:, None], group)[0]) for values, group in parts],
    }
