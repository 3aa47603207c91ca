"""From a source's name to its data set: public sets, files of one's own, embedded text, synthetic tasks."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from selssm_jax.config import Data
from selssm_jax.data import forecasting, language, signals, synthetic
from selssm_jax.data.pipeline import Dataset
from selssm_jax.errors import InputError

Known = Mapping[str, Any]
VALIDATION_INDEX = 10  # spoken digits: takes 0-4 are the official test, 5-9 are held out of training for validation


def python_reference(config: Data, known: Known) -> Dataset:
    """The language reference that every CPython carries, topic after topic."""
    from pydoc_data import topics

    text = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    return _text(config, known, language.cut(text), {"source": config.source})


def tiny_shakespeare(config: Data, known: Known) -> Dataset:
    """Shakespeare's plays; train + validation is the first 90 % of the characters, test the last 10 %."""
    from selssm_jax.data.builders import public

    return _text(config, known, language.cut(public.shakespeare(config.local_dir, config.cache_dir)), {"source": config.source})


def wikitext2(config: Data, known: Known) -> Dataset:
    """WikiText-2 in its official splits, by words with <eos> at line ends, or by characters, line ends counted."""
    from selssm_jax.data.builders import public

    return _text(config, known, public.wikitext2(config.local_dir, config.cache_dir), {"source": config.source})


def text_file(config: Data, known: Known) -> Dataset:
    """A text file, cut in reading order."""
    raw = _read(config.file)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{config.file} is not UTF-8 (byte {error.start}): convert it, for example with iconv") from error
    if not text.strip():
        raise InputError(f"{config.file} is empty: give a text to model")
    return _text(config, known, language.cut(text), {"source": config.source, "file": config.file})


def table(config: Data, known: Known) -> Dataset:
    """ETTh1, ETTm1 or Jena weather with the splits of the literature."""
    from selssm_jax.data.builders import public

    values = public.table(config.source, config.local_dir, config.cache_dir)
    split = forecasting.share_split(values) if config.source == "weather" else forecasting.etth_split(values)
    names = tuple(f"channel {index + 1}" for index in range(values.shape[1]))
    if config.source != "weather":
        names = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
    return forecasting.dataset(config, values, names, split, known.get("scaling"), {"source": config.source})


def csv_file(config: Data, known: Known) -> Dataset:
    """A CSV of numbers, split 70/10/20 in time."""
    try:
        text = _read(config.file).decode("utf-8", errors="replace")
        values, names = forecasting.read_csv(pathlib.Path(config.file), text)
    except forecasting.csv.Error as error:
        raise InputError(f"{config.file} is no CSV ({error}): give comma-separated numbers") from error
    scaling = known.get("scaling")
    if scaling and len(scaling["mean"]) != values.shape[1]:
        raise InputError(f"{config.file} has {values.shape[1]} channels, the run was trained on {len(scaling['mean'])}: give a table with the same columns")
    return forecasting.dataset(config, values, names, forecasting.share_split(values), scaling, {"source": config.source, "file": config.file})


def spoken_digits(config: Data, known: Known) -> Dataset:
    """Spoken digits: takes 0-4 of every speaker and digit are the test, 5-9 validation, the rest training."""
    from selssm_jax.data.builders import public

    del known
    records = public.spoken_digits(config.local_dir, config.cache_dir)
    index = np.array([record["index"] for record in records])
    offset = np.cumsum([0, *(len(record["wave"]) for record in records)])
    wave = np.concatenate([record["wave"] for record in records]).astype(np.float32)[:, None] / 2**15
    clips = signals.Clips(wave, offset, np.array([record["label"] for record in records]))
    where = {"train": index >= VALIDATION_INDEX, "validation": (index >= 5) & (index < VALIDATION_INDEX), "test": index < 5}
    splits = {split: clips.select(np.flatnonzero(mask)) for split, mask in where.items()}
    return signals.dataset(config, splits, tuple(str(digit) for digit in range(10)), {"source": config.source, "sample_rate": 8000})


def pixels(config: Data, known: Known) -> Dataset:
    """MNIST one pixel at a time; psmnist in one fixed permutation, drawn from data.seed. Validation: last 10 % of training."""
    from selssm_jax.data.builders import public

    del known
    order = np.random.default_rng(config.seed).permutation(784) if config.source == "psmnist" else np.arange(784)
    found = public.mnist(config.local_dir, config.cache_dir)
    images, labels = found["train"]
    cut = len(labels) * 9 // 10
    parts = {"train": (images[:cut], labels[:cut]), "validation": (images[cut:], labels[cut:]), "test": found["test"]}
    splits = {split: _images(pictures, digits, order) for split, (pictures, digits) in parts.items()}
    return signals.dataset(config, splits, tuple(str(digit) for digit in range(10)), {"source": config.source})


def npz_file(config: Data, known: Known) -> Dataset:
    """An NPZ of signals with labels: `signal` (clips, samples[, channels]), or `wave` with `offset`; and `label`.

    `split` (0 training, 1 validation, 2 test for each clip) is optional: without it every tenth clip is validation, the next one test.
    """
    arrays = _npz(config.file)
    clips = _packed_clips(config.file, arrays)
    split = arrays.get("split", np.where(np.arange(len(clips.label)) % 10 == 8, 1, np.where(np.arange(len(clips.label)) % 10 == 9, 2, 0)))
    if len(split) != len(clips.label) or not np.isin(split, (0, 1, 2)).all():
        raise InputError(f"{config.file}: 'split' must hold 0 (training), 1 (validation) or 2 (test) for each of the {len(clips.label)} clips")
    splits = {name: clips.select(np.flatnonzero(split == number)) for number, name in enumerate(("train", "validation", "test"))}
    classes = tuple(known.get("classes") or (str(index) for index in range(int(clips.label.max()) + 1)))
    return signals.dataset(config, splits, classes, {"source": config.source, "file": config.file})


def synthetic_task(config: Data, known: Known) -> Dataset:
    """A task whose answer is known."""
    del known
    return synthetic.dataset(config)


def _text(config: Data, known: Known, texts: Mapping[str, str], info: Mapping[str, object]) -> Dataset:
    return language.dataset(config, texts, tuple(known["vocabulary"]) if known.get("vocabulary") else None, info)


def _read(path: str) -> bytes:
    try:
        return pathlib.Path(path).expanduser().read_bytes()
    except OSError as error:
        raise InputError(f"data.file={path!r} cannot be read ({error.strerror}): set it to an existing file") from error


def _images(pictures: np.ndarray, digits: np.ndarray, order: np.ndarray) -> signals.Clips:
    wave = (pictures.reshape(len(pictures), -1)[:, order] / np.float32(255)).reshape(-1, 1).astype(np.float32)
    return signals.Clips(wave, np.arange(len(pictures) + 1) * len(order), digits.astype(np.int32))


def _npz(path: str) -> dict[str, np.ndarray]:
    _read(path)
    try:
        with np.load(pathlib.Path(path).expanduser(), allow_pickle=False) as found:
            return dict(found)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is no NPZ of plain arrays ({error}): write it with numpy.savez(signal=..., label=...)") from error


def _packed_clips(path: str, arrays: Mapping[str, np.ndarray]) -> signals.Clips:
    if "label" not in arrays or not ({"signal"} <= set(arrays) or {"wave", "offset"} <= set(arrays)):
        raise InputError(f"{path} holds {sorted(arrays)}, expected 'label' and either 'signal' or 'wave' with 'offset'")
    label = np.asarray(arrays["label"])
    if label.ndim != 1 or not np.issubdtype(label.dtype, np.integer):
        raise InputError(f"{path}: 'label' has shape {label.shape} and type {label.dtype}, expected one whole number for each clip")
    wave, offset = _samples(path, arrays)
    if len(offset) != len(label) + 1:
        raise InputError(f"{path} has {len(offset) - 1} signals and {len(label)} labels: give one label for each signal")
    return signals.Clips(wave.astype(np.float32), offset, label.astype(np.int32))


def _samples(path: str, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    signal = arrays["signal"] if "signal" in arrays else arrays["wave"]
    if not np.issubdtype(signal.dtype, np.number) or signal.ndim not in ((2, 3) if "signal" in arrays else (1, 2)):
        raise InputError(f"{path}: the signals have shape {signal.shape} and type {signal.dtype}, expected numbers (clips, samples[, channels])")
    if np.issubdtype(signal.dtype, np.integer):
        signal = signal / np.float32(np.iinfo(signal.dtype).max)
    if "signal" not in arrays:
        return signal.reshape(len(signal), -1), np.asarray(arrays["offset"], np.int64)
    return signal.reshape(signal.shape[0] * signal.shape[1], -1), np.arange(signal.shape[0] + 1) * signal.shape[1]
