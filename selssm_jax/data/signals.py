"""Labelled signals of any length: padded to one, augmented in training, masked."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from selssm_jax.config import Data, Task
from selssm_jax.data.pipeline import Batch, Dataset, in_order, shuffled_rows
from selssm_jax.errors import InputError

SHIFT, GAIN, NOISE = 0.1, 0.4, (-9.0, -5.0)  # augmentation: share of the length, deviation of log gain, range of log noise level


@dataclasses.dataclass(frozen=True)
class Clips:
    """Signals one after the other: clip i is wave[offset[i]:offset[i + 1]], (samples, channels), with its label."""

    wave: np.ndarray
    offset: np.ndarray
    label: np.ndarray

    def select(self, rows: np.ndarray) -> "Clips":
        """Returns some of the clips."""
        pieces = [self.wave[self.offset[row] : self.offset[row + 1]] for row in rows]
        lengths = np.array([0, *(len(piece) for piece in pieces)])
        return Clips(np.concatenate(pieces) if pieces else self.wave[:0], np.cumsum(lengths), self.label[rows])


def dataset(config: Data, splits: Mapping[str, Clips], classes: tuple[str, ...], info: Mapping[str, object]) -> Dataset:
    """Returns the task of naming a signal's class. Signals are cut or padded to data.length samples, 0: the longest.

    Raises:
      InputError: for a split without signals, a label out of range, or a value that is not finite.
    """
    for name, clips in splits.items():
        _check(name, clips, len(classes))
    train = splits["train"] if config.train_on == "train" else _concatenate(splits["train"], splits["validation"])
    length = config.length or max(int(np.diff(clips.offset).max()) for clips in splits.values())
    source = _Signals(length, config.augment, train, splits)
    sizes = {f"{name}_clips": len(clips.label) for name, clips in splits.items()}
    return Dataset(
        task=Task("classification", channels=train.wave.shape[1], classes=len(classes), length=length),
        draw=source.draw,
        cover=source.cover,
        info={**info, **sizes, "classes": list(classes)},
        baselines=source.baselines,
    )


@dataclasses.dataclass(frozen=True)
class _Signals:
    length: int
    augment: bool
    train: Clips
    splits: Mapping[str, Clips]

    def draw(self, seed: int, number: int, batch_size: int) -> Batch:
        rows = shuffled_rows(seed, number, batch_size, len(self.train.label))
        rng = np.random.default_rng((seed, number)) if self.augment else None
        return self._take(self.train, rows, rng)

    def cover(self, split: str, batch_size: int) -> Iterator[Batch]:
        clips = self.splits[split]
        return in_order(len(clips.label), batch_size, lambda rows: self._take(clips, rows, None))

    def baselines(self, split: str) -> dict[str, dict[str, float]]:
        """The commonest class of training, and its share of the split."""
        common = np.bincount(self.train.label).argmax()
        return {"majority class": {"accuracy": float((self.splits[split].label == common).mean())}}

    def _take(self, clips: Clips, rows: np.ndarray, rng: np.random.Generator | None) -> Batch:
        inputs = np.zeros((len(rows), self.length, clips.wave.shape[1]), np.float32)
        valid = np.zeros((len(rows), self.length), bool)
        for place, row in enumerate(rows):
            clip = clips.wave[clips.offset[row] : clips.offset[row + 1]]
            clip = (clip if rng is None else _augmented(clip, rng))[: self.length]
            inputs[place, : len(clip)], valid[place, : len(clip)] = clip, True
        return {"inputs": inputs, "targets": clips.label[rows].astype(np.int32), "weights": np.ones(len(rows), np.float32), "valid": valid}


def _augmented(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The clip moved in time, louder or softer, in a little noise."""
    shift = int(rng.uniform(-SHIFT / 2, SHIFT) * len(clip))
    clip = clip[-shift:] if shift < 0 else np.pad(clip, ((shift, 0), (0, 0)))
    noise = np.exp(rng.uniform(*NOISE)) * rng.standard_normal(clip.shape, np.float32)
    return clip * np.exp(GAIN * rng.standard_normal()) + noise


def _concatenate(first: Clips, second: Clips) -> Clips:
    offset = np.concatenate([first.offset, second.offset[1:] + first.offset[-1]])
    return Clips(np.concatenate([first.wave, second.wave]), offset, np.concatenate([first.label, second.label]))


def _check(name: str, clips: Clips, classes: int) -> None:
    if not len(clips.label):
        raise InputError(f"the {name} split has no signals: give every split at least one")
    if clips.label.min() < 0 or clips.label.max() >= classes:
        raise InputError(f"the {name} split has labels from {clips.label.min()} to {clips.label.max()}, expected 0 to {classes - 1}: renumber the classes")
    if (np.diff(clips.offset) <= 0).any():
        raise InputError(f"clip {int(np.diff(clips.offset).argmin())} of the {name} split is empty: drop it")
    if not np.isfinite(clips.wave).all():
        raise InputError(f"the {name} split has values that are not finite numbers, the first at sample {int((~np.isfinite(clips.wave)).any(axis=1).argmax())}: drop or fill them")
