"""Labelled signals of any length: brought to one scale, padded to one length, augmented in training, masked."""

import dataclasses
import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from selssm_jax.config import Data, Task
from selssm_jax.data import capacity
from selssm_jax.data.pipeline import SPLITS, WHOLE, Batch, Dataset, in_order, shuffled_rows
from selssm_jax.data.scaling import blocks, describe_bad_number, find_bad_number, robust_moments
from selssm_jax.errors import InputError

READ = {"signal", "label", "split", "classes", "sample_rate", "wave", "offset"}  # arrays of an NPZ
FEW = 1000  # classes that there may be whatever the number of signals
MOST_CHANNELS = 64  # beyond it, more channels than samples are taken for a slip
FRAME_SECONDS, SOUND, FRAMES = (0.025, 0.01), 4000.0, 100
# augmentation: share of the length, deviation of log gain, range of log noise level
SHIFT, GAIN, NOISE = 0.1, 0.4, (-9.0, -5.0)


@dataclasses.dataclass(frozen=True)
class Clips:
    """Signals one after the other: clip i is (wave[offset[i]:offset[i + 1]] - level) * scale, (samples, channels), with
    its label.

    The wave keeps the type that it came in, so that a set of bytes takes no more room than it has to. Level and scale
    are of every channel; without a level the scale is one number.
    """

    wave: np.ndarray
    offset: np.ndarray
    label: np.ndarray
    scale: float | np.ndarray = 1.0
    level: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.label)

    @property
    def lengths(self) -> np.ndarray:
        """Samples of every clip."""
        return np.diff(self.offset)

    def select(self, rows: np.ndarray) -> "Clips":
        """Returns some of the clips."""
        offset = np.concatenate([[0], np.cumsum(self.lengths[rows])])
        wave = np.empty((offset[-1], self.wave.shape[1]), self.wave.dtype)
        for row, start, stop in zip(rows, offset[:-1], offset[1:], strict=True):
            wave[start:stop] = self.wave[self.offset[row] : self.offset[row + 1]]
        return dataclasses.replace(self, wave=wave, offset=offset, label=self.label[rows])


def dataset(
    config: Data,
    splits: Mapping[str, Clips],
    classes: tuple[str, ...],
    info: Mapping[str, object],
    *,
    frame: int = 0,
    stride: int = 0,
) -> Dataset:
    """Returns the task of naming a signal's class. Signals are cut or padded at their end to data.length samples, 0:
    the longest.

    Splits may have "whole" among them, all clips of a file that is evaluated; the others may then be empty. `frame` and
    `stride` are what the data ask of an encoder, where a model leaves it to them.

    With data.augment, training clips are moved by up to 10 % of their length, made louder or softer, and noise is
    added; which way is a function of the data's seed and the example's number.

    Raises:
      InputError: for a split without signals.
    """
    for name, clips in splits.items():
        if not len(clips) and WHOLE not in splits:
            raise InputError(
                f"the {name} split of {info.get('file') or info['source']} has no signals: give every split at least "
                "one"
            )
    train = splits["train"] if config.train_on == "train" else _join(splits["train"], splits["validation"])
    length = config.length or max(int(clips.lengths.max(initial=0)) for clips in splits.values())
    source = _Signals(length, config.augment, train, splits)
    return Dataset(
        task=Task(
            "classification",
            channels=train.wave.shape[1],
            classes=len(classes),
            length=length,
            frame=frame,
            stride=stride,
        ),
        draw=source.draw,
        cover=source.cover,
        info={
            **info,
            **{f"{name}_clips": len(splits[name]) for name in SPLITS},
            "classes": list(classes),
            "train_on": config.train_on,
        },
        baselines=source.baselines,
        sizes={name: len(clips) for name, clips in splits.items()},
    )


@dataclasses.dataclass(frozen=True)
class _Signals:
    length: int
    augment: bool
    train: Clips
    splits: Mapping[str, Clips]

    def draw(self, seed: int, numbers: np.ndarray) -> Batch:
        batch = take(self.train, shuffled_rows(seed, numbers, len(self.train)), self.length)
        if self.augment:
            for number, signal, valid in zip(numbers, batch["inputs"], batch["valid"], strict=True):
                _augment(signal, valid, np.random.default_rng((seed, int(number))))
        return batch

    def cover(self, split: str, batch_size: int) -> Iterator[Batch]:
        clips = self.splits[split]
        return in_order(len(clips), batch_size, lambda rows: take(clips, rows, self.length))

    def baselines(self, split: str) -> dict[str, dict[str, float]]:
        """The commonest class of training, and its share of the split; of a file as a whole, which has no training, its
        own commonest.
        """
        common = np.bincount((self.splits[WHOLE] if split == WHOLE else self.train).label).argmax()
        return {"majority class": {"accuracy": float((self.splits[split].label == common).mean())}}


def take(clips: Clips, rows: np.ndarray, length: int) -> Batch:
    """Returns a batch of clips, cut or padded at their end to `length` samples."""
    inputs = np.zeros((len(rows), length, clips.wave.shape[1]), np.float32)
    sizes = np.minimum(clips.offset[rows + 1] - clips.offset[rows], length)
    for signal, start, size in zip(inputs, clips.offset[rows], sizes, strict=True):
        if clips.level is None:
            np.multiply(clips.wave[start : start + size], np.float32(clips.scale), out=signal[:size], casting="unsafe")
        else:
            signal[:size] = (clips.wave[start : start + size].astype(np.float64) - clips.level) * clips.scale
    valid = np.arange(length)[None] < sizes[:, None]
    return {
        "inputs": inputs,
        "targets": clips.label[rows].astype(np.int32),
        "weights": np.ones(len(rows), np.float32),
        "valid": valid,
    }


def _augment(signal: np.ndarray, valid: np.ndarray, rng: np.random.Generator) -> None:
    """Moves a padded signal in time, makes it louder or softer, and adds a little noise, in place."""
    size = int(valid.sum())
    shift = int(rng.uniform(-SHIFT / 2, SHIFT) * size)
    moved = np.zeros((min(size + shift, len(signal)), signal.shape[1]), np.float32)
    kept = signal[max(-shift, 0) : size][: len(moved) - max(shift, 0)]
    moved[max(shift, 0) :] = kept * np.float32(np.exp(GAIN * rng.standard_normal()))
    moved += np.float32(np.exp(rng.uniform(*NOISE))) * rng.standard_normal(moved.shape, np.float32)
    signal[:], valid[:] = 0, False
    signal[: len(moved)], valid[: len(moved)] = moved, True


def _join(first: Clips, second: Clips) -> Clips:
    offset = np.concatenate([first.offset, second.offset[1:] + first.offset[-1]])
    return dataclasses.replace(
        first,
        wave=np.concatenate([first.wave, second.wave]),
        offset=offset,
        label=np.concatenate([first.label, second.label]),
    )


def join_clips(signals: Sequence[np.ndarray], label: np.ndarray | None = None) -> Clips:
    """Returns signals (samples, channels) of one type as clips; without labels all are of class 0."""
    label = np.zeros(len(signals), np.int64) if label is None else label
    return Clips(np.concatenate(signals), np.cumsum([0, *map(len, signals)]), label)


def read_npz(name: str, stream: io.BufferedIOBase) -> dict[str, np.ndarray]:
    """Returns the arrays of an NPZ, those that nothing reads without what is in them. Raises InputError where it is
    none, or holds pickled objects.
    """
    try:
        with stream:
            capacity.check_archive(name, stream)
            with np.load(stream, allow_pickle=False) as archive:
                return {key: _read_array(name, key, archive[key]) for key in archive.files}
    except InputError:
        raise
    except (ValueError, OSError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{name} is no NPZ of plain arrays ({error}): write it with numpy.savez(signal=..., label=...)"
        ) from error


def _read_array(name: str, key: str, value: Any) -> np.ndarray:
    """An array of an NPZ, without what is in it where nothing reads it."""
    if not isinstance(value, np.ndarray):  # NumPy returns the bytes of what is no array
        raise InputError(
            f"{name}: {key!r} is no array of NumPy: write the file with numpy.savez(signal=..., label=...)"
        )
    return value if key in READ else value.ravel()[:0].copy()


def clips(name: str, arrays: Mapping[str, np.ndarray]) -> Clips:
    """Returns the signals and labels of an NPZ; see `sources.npz_file`. Raises InputError that names the array at
    fault.
    """
    _check_holds(name, arrays, "label")
    label = arrays["label"]
    if label.ndim != 1 or not label.size or not np.issubdtype(label.dtype, np.integer):
        raise InputError(
            f"{name}: 'label' has shape {label.shape} and type {label.dtype}, expected one whole number from 0 for "
            "each signal"
        )
    wave, offset = waves(name, arrays)
    if len(offset) != len(label) + 1:
        raise InputError(
            f"{name} has {len(offset) - 1} signals and {len(label)} labels: give one label for each signal"
        )
    return Clips(wave, offset, label.astype(np.int64))


def waves(name: str, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Returns (samples of all signals (N, channels), where each begins and the last ends) of an NPZ. Raises InputError
    that names the array at fault.
    """
    _check_holds(name, arrays)
    if "signal" in arrays:
        return _from_signal(name, arrays["signal"])
    return _from_wave(name, arrays["wave"], arrays["offset"])


def _check_holds(name: str, arrays: Mapping[str, np.ndarray], *beside: str) -> None:
    form = {"signal"} if "signal" in arrays else {"wave", "offset"}
    if not form | set(beside) <= set(arrays):
        needed = "".join(f"{key!r} and " for key in beside)
        raise InputError(f"{name} holds {sorted(arrays)}, expected {needed}either 'signal' or 'wave' with 'offset'")


def name_classes(
    name: str, every: Clips, arrays: Mapping[str, np.ndarray], known: Mapping[str, Any]
) -> tuple[Clips, tuple[str, ...]]:
    """Returns the clips with labels as a run numbers its classes, and the classes' names.

    Raises InputError for a label that has no class, and for a class that the run never saw.
    """
    own, largest = [str(label) for label in arrays["classes"]] if "classes" in arrays else [], int(every.label.max())
    if not own and not known.get("classes") and largest >= max(FEW, 10 * len(every)):
        raise InputError(
            f"{name} has labels up to {largest} for {len(every)} signals: renumber them from 0 on, or name every class "
            "in 'classes'"
        )
    classes = list(known.get("classes") or own or map(str, range(largest + 1)))
    count = len(own) or len(classes)
    if not 0 <= every.label.min() <= every.label.max() < count:
        raise InputError(
            f"{name} has labels from {every.label.min()} to {every.label.max()}, expected 0 to {count - 1}: renumber "
            "them, or name every class"
        )
    if not own or own == classes or classes == [str(number) for number in range(len(classes))]:
        return every, tuple(classes)
    strange = sorted({own[label] for label in np.unique(every.label)} - set(classes))
    if strange:
        raise InputError(
            f"{name} has the class {strange[0]!r}, which the run never saw; it knows {', '.join(classes)}: rename it, "
            "or leave its signals out"
        )
    number = np.array([classes.index(label) if label in classes else -1 for label in own])
    return dataclasses.replace(every, label=number[every.label]), tuple(classes)


def sample_rate(name: str, arrays: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, float]:
    """Returns {"sample_rate": hertz} where an NPZ states it. Raises InputError where it is no positive number, or not
    that of the run.
    """
    if "sample_rate" not in arrays:
        return {}
    rate = (
        float(arrays["sample_rate"])
        if arrays["sample_rate"].size == 1 and arrays["sample_rate"].dtype.kind in "iuf"
        else float("nan")
    )
    if not 0 < rate < float("inf"):
        raise InputError(f"{name}: 'sample_rate' is {arrays['sample_rate']}, expected one positive number, in hertz")
    if known.get("sample_rate", rate) != rate:
        raise InputError(
            f"{name} is sampled at {rate:g} hertz, the run was trained at {known['sample_rate']:g}: resample the "
            "signals"
        )
    return {"sample_rate": rate}


def scale_clips(
    parts: Mapping[str, Clips], known: Mapping[str, Any], name: str
) -> tuple[dict[str, Clips], dict[str, Any]]:
    """Returns the clips of every split less the level and over the scale of each channel in training, whatever their
    type, and both as metadata.

    Level and deviation are `scaling.robust_moments`. A training run's hold for its evaluation; one from before they
    were remembered knew one number, "scale", for real numbers, and took whole numbers over the largest of their type.
    """
    train = parts["train"].wave
    if "scaling" not in known and "task" in known:
        old = 1 / np.iinfo(train.dtype).max if np.issubdtype(train.dtype, np.integer) else known.get("scale", 1.0)
        return {name: dataclasses.replace(part, scale=old) for name, part in parts.items()}, {
            key: known[key] for key in ("scale",) if key in known
        }
    if "scaling" in known:
        level, deviation = (np.array(known["scaling"][key]) for key in ("mean", "deviation"))
        if len(level) != train.shape[1]:
            raise InputError(
                f"{name} has {train.shape[1]} channels, the run was trained with {len(level)}: give signals of the "
                "same channels"
            )
    else:
        level, deviation = robust_moments(train)
    scale = 1 / np.where(deviation > 0, deviation, 1)
    scaled = {name: dataclasses.replace(part, level=level, scale=scale) for name, part in parts.items()}
    return scaled, {"scaling": {"mean": level.tolist(), "deviation": deviation.tolist()}}


def frames(longest: int, sample_rate: float) -> tuple[int, int]:
    """Returns the samples of a frame and from one to the next: 25 and 10 milliseconds of what is sampled as sound is,
    else some hundred in a clip.
    """
    stride = round(FRAME_SECONDS[1] * sample_rate) if sample_rate >= SOUND else -(-longest // FRAMES)
    return max(round(stride * FRAME_SECONDS[0] / FRAME_SECONDS[1]), 1), max(stride, 1)


def account(name: str, arrays: Mapping[str, np.ndarray], every: Clips, parts: Mapping[str, Clips], length: int) -> str:
    """Returns what was read, kept, cut, padded and left out of an NPZ, in one line."""
    lengths = every.lengths
    cut, padded = int((lengths > length).sum()), int((lengths < length).sum())
    unread = sorted(set(arrays) - READ)
    samples = f"{lengths.min():,}" if lengths.min() == lengths.max() else f"{lengths.min():,} to {lengths.max():,}"
    return "; ".join(
        [
            f"{name}: read {len(every):,} clips of {samples} samples and {every.wave.shape[1]} "
            f"channel{'s' * (every.wave.shape[1] > 1)} ({every.wave.dtype})",
            f"kept {', '.join(f'{len(parts[split]):,} {split}' for split in SPLITS)}, the first {length:,} samples of "
            f"each: {cut:,} cut, {padded:,} padded",
            f"left out {', '.join(map(repr, unread))}" if unread else "nothing left out",
        ]
    )


def longest(config: Data, every: Clips) -> int:
    """Returns data.length, or less where no clip needs it: the longest one, with room to be moved by augmentation."""
    return min(config.length, int(every.lengths.max() * (1 + SHIFT * config.augment)))


def split(name: str, arrays: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """Returns 0, 1 or 2 (training, validation, test) for every clip of an NPZ: its `split`, or a fixed shuffle cut
    80/10/10.
    """
    if "split" not in arrays:
        place = np.random.default_rng(0).permutation(count)
        return (place < count // 10 * 2).astype(int) + (place < count // 10)
    split = arrays["split"]
    if split.shape != (count,) or not np.isin(split, (0, 1, 2)).all():
        raise InputError(
            f"{name}: 'split' has shape {split.shape}, expected 0 (training), 1 (validation) or 2 (test) for each of "
            f"the {count} signals"
        )
    return split


def _from_signal(name: str, signal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if signal.ndim == 3 and signal.shape[2] > max(signal.shape[1], MOST_CHANNELS):
        raise InputError(
            f"{name}: 'signal' has shape {signal.shape}, which would be {signal.shape[2]} channels of "
            f"{signal.shape[1]} samples each: the order is (clips, samples, channels); swap its last two axes"
        )
    if signal.ndim not in (2, 3) or not signal.size:
        raise InputError(
            f"{name}: 'signal' has shape {signal.shape}, expected (clips, samples) or (clips, samples, channels)"
        )
    _check_numbers(name, "signal", signal)
    return signal.reshape(signal.shape[0] * signal.shape[1], -1), np.arange(signal.shape[0] + 1) * signal.shape[1]


def _from_wave(name: str, wave: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if wave.ndim not in (1, 2) or not wave.size:
        raise InputError(f"{name}: 'wave' has shape {wave.shape}, expected (samples,) or (samples, channels)")
    if (
        offset.ndim != 1
        or not np.issubdtype(offset.dtype, np.integer)
        or not offset.size
        or offset[0]
        or offset[-1] != len(wave)
        or (np.diff(offset) <= 0).any()
    ):
        raise InputError(
            f"{name}: 'offset' must rise from 0 to the {len(wave)} samples of 'wave', one whole number more than there "
            "are signals"
        )
    _check_numbers(name, "wave", wave)
    return wave.reshape(len(wave), -1), offset.astype(np.int64)


def _check_numbers(name: str, key: str, values: np.ndarray) -> None:
    if not np.issubdtype(values.dtype, np.floating) and not np.issubdtype(values.dtype, np.integer):
        raise InputError(f"{name}: {key!r} is of type {values.dtype}, expected real numbers")
    flat = values.reshape(-1, *values.shape[-1:] * (values.ndim > 1))
    for rows in blocks(len(flat), flat[:1].size) if values.dtype.kind == "f" else ():
        bad = find_bad_number(flat[rows])
        if bad is not None:
            place = np.unravel_index(np.ravel_multi_index((bad[0] + rows.start, *bad[1:]), flat.shape), values.shape)
            raise InputError(
                f"{name}: {key!r} holds {values[place]} at {list(map(int, place))}, "
                f"{describe_bad_number(float(values[place]))}"
            )
