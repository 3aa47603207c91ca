"""Labelled signals of any length: padded to one, augmented in training, masked."""

import dataclasses
import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

from selssm_jax.config import Data, Task
from selssm_jax.data.pipeline import Batch, Dataset, in_order, shuffled_rows
from selssm_jax.errors import InputError

SHIFT, GAIN, NOISE = 0.1, 0.4, (-9.0, -5.0)  # augmentation: share of the length, deviation of log gain, range of log noise level


@dataclasses.dataclass(frozen=True)
class Clips:
    """Signals one after the other: clip i is wave[offset[i]:offset[i + 1]] * scale, (samples, channels), with its label.

    The wave keeps the type that it came in, so that a set of bytes takes no more room than it has to.
    """

    wave: np.ndarray
    offset: np.ndarray
    label: np.ndarray
    scale: float = 1.0

    def __len__(self) -> int:
        return len(self.label)

    def select(self, rows: np.ndarray) -> "Clips":
        """Returns some of the clips."""
        pieces = [self.wave[self.offset[row] : self.offset[row + 1]] for row in rows]
        offset = np.cumsum([0, *map(len, pieces)])
        return dataclasses.replace(self, wave=np.concatenate([self.wave[:0], *pieces]), offset=offset, label=self.label[rows])


def dataset(config: Data, splits: Mapping[str, Clips], classes: tuple[str, ...], info: Mapping[str, object]) -> Dataset:
    """Returns the task of naming a signal's class. Signals are cut or padded at their end to data.length samples, 0: the longest.

    With data.augment, training clips are moved by up to 10 % of their length, made louder or softer, and noise is added;
    which way is a function of the data's seed and the example's number.

    Raises:
      InputError: for a split without signals.
    """
    for name, clips in splits.items():
        if not len(clips):
            raise InputError(f"the {name} split of {info.get('file') or info['source']} has no signals: give every split at least one")
    train = splits["train"] if config.train_on == "train" else _joined(splits["train"], splits["validation"])
    length = config.length or max(int(np.diff(clips.offset).max()) for clips in splits.values())
    source = _Signals(length, config.augment, train, splits)
    return Dataset(
        task=Task("classification", channels=train.wave.shape[1], classes=len(classes), length=length),
        draw=source.draw,
        cover=source.cover,
        info={**info, **{f"{name}_clips": len(clips) for name, clips in splits.items()}, "classes": list(classes), "train_on": config.train_on},
        baselines=source.baselines,
    )


@dataclasses.dataclass(frozen=True)
class _Signals:
    length: int
    augment: bool
    train: Clips
    splits: Mapping[str, Clips]

    def draw(self, seed: int, numbers: np.ndarray) -> Batch:
        batch = self._take(self.train, shuffled_rows(seed, numbers, len(self.train)))
        if self.augment:
            for number, signal, valid in zip(numbers, batch["inputs"], batch["valid"], strict=True):
                _augment(signal, valid, np.random.default_rng((seed, int(number))))
        return batch

    def cover(self, split: str, batch_size: int) -> Iterator[Batch]:
        clips = self.splits[split]
        return in_order(len(clips), batch_size, lambda rows: self._take(clips, rows))

    def baselines(self, split: str) -> dict[str, dict[str, float]]:
        """The commonest class of training, and its share of the split."""
        common = np.bincount(self.train.label).argmax()
        return {"majority class": {"accuracy": float((self.splits[split].label == common).mean())}}

    def _take(self, clips: Clips, rows: np.ndarray) -> Batch:
        inputs = np.zeros((len(rows), self.length, clips.wave.shape[1]), np.float32)
        sizes = np.minimum(clips.offset[rows + 1] - clips.offset[rows], self.length)
        for signal, start, size in zip(inputs, clips.offset[rows], sizes, strict=True):
            np.multiply(clips.wave[start : start + size], np.float32(clips.scale), out=signal[:size], casting="unsafe")
        valid = np.arange(self.length)[None] < sizes[:, None]
        return {"inputs": inputs, "targets": clips.label[rows].astype(np.int32), "weights": np.ones(len(rows), np.float32), "valid": valid}


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


def _joined(first: Clips, second: Clips) -> Clips:
    offset = np.concatenate([first.offset, second.offset[1:] + first.offset[-1]])
    return dataclasses.replace(first, wave=np.concatenate([first.wave, second.wave]), offset=offset, label=np.concatenate([first.label, second.label]))


def read_npz(name: str, raw: bytes) -> dict[str, np.ndarray]:
    """Returns the arrays of an NPZ. Raises InputError where it is none, or holds pickled objects."""
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as found:
            return dict(found)
    except (ValueError, OSError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{name} is no NPZ of plain arrays ({error}): write it with numpy.savez(signal=..., label=...)") from error


def clips(name: str, arrays: Mapping[str, np.ndarray]) -> Clips:
    """Returns the signals and labels of an NPZ; see `sources.npz_file`. Raises InputError that names the array at fault."""
    form = {"signal"} if "signal" in arrays else {"wave", "offset"}
    if not form | {"label"} <= set(arrays):
        raise InputError(f"{name} holds {sorted(arrays)}, expected 'label' and either 'signal' or 'wave' with 'offset'")
    label = arrays["label"]
    if label.ndim != 1 or not label.size or not np.issubdtype(label.dtype, np.integer):
        raise InputError(f"{name}: 'label' has shape {label.shape} and type {label.dtype}, expected one whole number from 0 for each signal")
    wave, offset = _from_signal(name, arrays["signal"]) if "signal" in arrays else _from_wave(name, arrays["wave"], arrays["offset"])
    if len(offset) != len(label) + 1:
        raise InputError(f"{name} has {len(offset) - 1} signals and {len(label)} labels: give one label for each signal")
    return Clips(wave, offset, label.astype(np.int64), 1 / np.iinfo(wave.dtype).max if np.issubdtype(wave.dtype, np.integer) else 1.0)


def split(name: str, arrays: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """Returns 0, 1 or 2 (training, validation, test) for every clip of an NPZ: its `split`, or a fixed shuffle cut 80/10/10."""
    if "split" not in arrays:
        place = np.random.default_rng(0).permutation(count)
        return (place < count // 10 * 2).astype(int) + (place < count // 10)
    found = arrays["split"]
    if found.shape != (count,) or not np.isin(found, (0, 1, 2)).all():
        raise InputError(f"{name}: 'split' has shape {found.shape}, expected 0 (training), 1 (validation) or 2 (test) for each of the {count} signals")
    return found


def _from_signal(name: str, signal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if signal.ndim not in (2, 3) or not signal.size:
        raise InputError(f"{name}: 'signal' has shape {signal.shape}, expected (clips, samples) or (clips, samples, channels)")
    _check_numbers(name, "signal", signal)
    return signal.reshape(signal.shape[0] * signal.shape[1], -1), np.arange(signal.shape[0] + 1) * signal.shape[1]


def _from_wave(name: str, wave: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if wave.ndim not in (1, 2) or not wave.size:
        raise InputError(f"{name}: 'wave' has shape {wave.shape}, expected (samples,) or (samples, channels)")
    if offset.ndim != 1 or not np.issubdtype(offset.dtype, np.integer) or offset[:1] != 0 or offset[-1:] != len(wave) or (np.diff(offset) <= 0).any():
        raise InputError(f"{name}: 'offset' must rise from 0 to the {len(wave)} samples of 'wave', one whole number more than there are signals")
    _check_numbers(name, "wave", wave)
    return wave.reshape(len(wave), -1), offset.astype(np.int64)


def _check_numbers(name: str, key: str, values: np.ndarray) -> None:
    if not np.issubdtype(values.dtype, np.floating) and not np.issubdtype(values.dtype, np.integer):
        raise InputError(f"{name}: {key!r} is of type {values.dtype}, expected real numbers")
    if not np.isfinite(values).all():
        first = np.argwhere(~np.isfinite(values))[0].tolist()
        raise InputError(f"{name}: {key!r} holds {values[tuple(first)]} at {first}, expected finite numbers: fill it in or drop the signal")
