"""From a source's name to its data set: public sets, files of one's own, embedded text, synthetic tasks."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from selssm_jax.config import Data
from selssm_jax.data import forecasting, language, signals, synthetic
from selssm_jax.data.pipeline import SPLITS, Dataset
from selssm_jax.errors import InputError

Known = Mapping[str, Any]  # metadata of a training run
VALIDATION_TAKES = range(5, 10)  # spoken digits: takes 0-4 are the official test, these are held out of training
ETT_CHANNELS = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
DIGITS = tuple(str(digit) for digit in range(10))


def python_reference(config: Data, known: Known) -> Dataset:
    """The language reference that every CPython carries, topic after topic by name."""
    from pydoc_data import topics

    text = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    return _text(config, known, text, {"source": config.source, "sha256": hashlib.sha256(text.encode()).hexdigest()})


def tiny_shakespeare(config: Data, known: Known) -> Dataset:
    """Shakespeare's plays; train + validation is the first 90 % of the characters, test the last 10 %."""
    from selssm_jax.data.builders import prepare, public

    return _text(config, known, *_texts(config, *prepare.read(public.TinyShakespeare, config.local_dir, config.cache_dir)))


def wikitext2(config: Data, known: Known) -> Dataset:
    """WikiText-2 in its official splits, by words with <eos> at line ends, or by characters, line ends counted."""
    from selssm_jax.data.builders import prepare, public

    return _text(config, known, *_texts(config, *prepare.read(public.Wikitext2, config.local_dir, config.cache_dir)))


def text_file(config: Data, known: Known) -> Dataset:
    """A text file in UTF-8, cut in reading order."""
    raw = _read(config.file)
    try:
        text = raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise InputError(f"{config.file} is not UTF-8 (byte {error.start}, line {line}): convert it, for example with iconv") from error
    if not text.strip():
        raise InputError(f"{config.file} is empty: give a text to model")
    return _text(config, known, text, _own(config, raw))


def table(config: Data, known: Known) -> Dataset:
    """ETTh1, ETTm1 or Jena weather with the splits of the literature."""
    from selssm_jax.data.builders import prepare, public

    builder = {"etth1": public.Etth1, "ettm1": public.Ettm1, "weather": public.JenaWeather}[config.source]
    records, hashes = prepare.read(builder, config.local_dir, config.cache_dir)
    values = np.concatenate([record["rows"] for record in records["train"]])
    splits = {"etth1": forecasting.ett_split(1), "ettm1": forecasting.ett_split(4), "weather": forecasting.share_split(len(values))}
    # Some names of the weather's columns are damaged in every copy.
    names = tuple(f"channel {index + 1}" for index in range(values.shape[1])) if config.source == "weather" else ETT_CHANNELS
    return forecasting.dataset(config, values, names, splits[config.source], known, {"source": config.source, "sha256": hashes})


def csv_file(config: Data, known: Known) -> Dataset:
    """A CSV of numbers, split 70/10/20 in time."""
    raw = _read(config.file)
    values, names = forecasting.read_csv(config.file, raw.decode("utf-8-sig", errors="replace"))
    if known.get("scaling") and len(known["scaling"]["mean"]) != values.shape[1]:
        raise InputError(
            f"{config.file} has {values.shape[1]} channels, the run was trained on {len(known['scaling']['mean'])}: give a table with the same columns"
        )
    return forecasting.dataset(config, values, names, forecasting.share_split(len(values)), known, _own(config, raw))


def spoken_digits(config: Data, known: Known) -> Dataset:
    """Spoken digits: takes 0-4 of every speaker and digit are the test, 5-9 validation, 10-49 training."""
    from selssm_jax.data.builders import prepare, public

    del known
    records, hashes = prepare.read(public.SpokenDigits, config.local_dir, config.cache_dir)
    held_out = [record["index"] in VALIDATION_TAKES for record in records["train"]]
    splits = {
        "train": _recordings([record for record, held in zip(records["train"], held_out, strict=True) if not held]),
        "validation": _recordings([record for record, held in zip(records["train"], held_out, strict=True) if held]),
        "test": _recordings(records["test"]),
    }
    return signals.dataset(config, splits, DIGITS, {"source": config.source, "sha256": hashes, "sample_rate": 8000})


def pixels(config: Data, known: Known) -> Dataset:
    """MNIST one pixel at a time, from 0 to 1; psmnist in one permutation, drawn from data.seed. Validation: last 10 % of training."""
    from selssm_jax.data.builders import prepare, public

    del known
    order = np.random.default_rng(config.seed).permutation(784) if config.source == "psmnist" else np.arange(784)
    records, hashes = prepare.read(public.Mnist, config.local_dir, config.cache_dir)
    found = {split: _images(blocks, order) for split, blocks in records.items()}
    rows = np.arange(len(found["train"]))
    cut = len(rows) * 9 // 10
    splits = {"train": found["train"].select(rows[:cut]), "validation": found["train"].select(rows[cut:]), "test": found["test"]}
    info = {"source": config.source, "sha256": hashes} | ({"permutation_seed": config.seed} if config.source == "psmnist" else {})
    return signals.dataset(config, splits, DIGITS, info)


def npz_file(config: Data, known: Known) -> Dataset:
    """An NPZ of signals with labels, written by numpy.savez.

    `signal` (clips, samples[, channels]), or `wave` (samples[, channels]) with `offset`, clip i being wave[offset[i]:offset[i + 1]];
    and `label` (clips,) from 0. Whole numbers are scaled by the range of their type, others by the largest of training.
    Optional: `split` (clips,), 0 training, 1 validation, 2 test, without which a fixed shuffle is cut 80/10/10; `classes`,
    their names; `sample_rate`.
    """
    raw = _read(config.file)
    arrays = signals.read_npz(config.file, raw)
    clips = signals.clips(config.file, arrays)
    names = known.get("classes") or [str(name) for name in arrays.get("classes", range(int(clips.label.max()) + 1))]
    if not 0 <= clips.label.min() <= clips.label.max() < len(names):
        raise InputError(
            f"{config.file} has labels from {clips.label.min()} to {clips.label.max()}, expected 0 to {len(names) - 1}: renumber them, or name every class"
        )
    split = signals.split(config.file, arrays, len(clips))
    splits = {name: clips.select(np.flatnonzero(split == number)) for number, name in enumerate(SPLITS)}
    info = _own(config, raw) | ({"sample_rate": float(arrays["sample_rate"])} if "sample_rate" in arrays else {})
    if not np.issubdtype(clips.wave.dtype, np.integer):
        scale = known.get("scale", 1.0) if known else 1 / (float(np.abs(splits["train"].wave).max(initial=0)) or 1.0)
        splits = {name: dataclasses.replace(part, scale=scale) for name, part in splits.items()}
        info["scale"] = scale
    return signals.dataset(config, splits, tuple(names), info)


def synthetic_task(config: Data, known: Known) -> Dataset:
    """A task whose answer is known."""
    del known
    return synthetic.dataset(config)


def _texts(config: Data, records: Mapping[str, list[dict[str, Any]]], hashes: dict[str, str]) -> tuple[dict[str, str], dict[str, Any]]:
    texts = {split: b"".join(record["piece"].tobytes() for record in found).decode() for split, found in records.items()}
    return {split: texts[split] for split in SPLITS}, {"source": config.source, "sha256": hashes}


def _text(config: Data, known: Known, text: str | Mapping[str, str], info: Mapping[str, object]) -> Dataset:
    return language.dataset(config, text, tuple(known.get("vocabulary") or ()) or None, info, known.get("tokenizer", ""))


def _read(path: str) -> bytes:
    try:
        return pathlib.Path(path).expanduser().read_bytes()
    except OSError as error:
        raise InputError(f"data.file={path!r} cannot be read ({error.strerror}): set it to an existing file") from error


def _own(config: Data, raw: bytes) -> dict[str, Any]:
    return {"source": config.source, "file": config.file, "sha256": hashlib.sha256(raw).hexdigest()}


def _recordings(records: list[dict[str, Any]]) -> signals.Clips:
    waves = [record["wave"] for record in records]
    label = np.array([record["label"] for record in records], np.int32)
    return signals.Clips(np.concatenate(waves)[:, None], np.cumsum([0, *map(len, waves)]), label, scale=1 / 2**15)


def _images(blocks: list[dict[str, Any]], order: np.ndarray) -> signals.Clips:
    pictures, digits = (np.concatenate([block[name] for block in blocks]) for name in ("images", "labels"))
    wave = pictures.reshape(len(pictures), -1)[:, order].reshape(-1, 1)
    return signals.Clips(wave, np.arange(len(pictures) + 1) * len(order), digits.astype(np.int32), scale=1 / 255)
