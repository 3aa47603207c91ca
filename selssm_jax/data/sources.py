"""From a source's name to its data set: public sets, files of one's own, embedded text, synthetic tasks."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from selssm_jax.config import TAGGED, Data
from selssm_jax.data import columns, files, forecasting, labelled_texts, language, mapped, signals, synthetic, tables
from selssm_jax.data.builders.origins import cache_root
from selssm_jax.data.pipeline import SPLITS, WHOLE, Dataset

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

    return _text(
        config, known, *_texts(config, *prepare.read(public.TinyShakespeare, config.local_dir, config.cache_dir))
    )


def wikitext2(config: Data, known: Known) -> Dataset:
    """WikiText-2 in its official splits, by words with <eos> at line ends, or by characters, line ends counted."""
    from selssm_jax.data.builders import prepare, public

    return _text(config, known, *_texts(config, *prepare.read(public.Wikitext2, config.local_dir, config.cache_dir)))


def text_file(config: Data, known: Known) -> Dataset:
    """A text file in UTF-8, cut in reading order."""
    file = files.open_own(config.file)
    return _text(config, known, file.pieces(), _describe_own_file(config, file))


def table(config: Data, known: Known) -> Dataset:
    """ETTh1, ETTm1 or Jena weather with the splits of the literature."""
    from selssm_jax.data.builders import prepare, public

    builder = {"etth1": public.Etth1, "ettm1": public.Ettm1, "weather": public.JenaWeather}[config.source]
    records, hashes = prepare.read(builder, config.local_dir, config.cache_dir)
    values = np.concatenate([record["rows"] for record in records["train"]])
    splits = {
        "etth1": forecasting.ett_split(1),
        "ettm1": forecasting.ett_split(4),
        "weather": forecasting.share_split(len(values)),
    }
    # Some names of the weather's columns are damaged in every copy.
    names = (
        tuple(f"channel {index + 1}" for index in range(values.shape[1]))
        if config.source == "weather"
        else ETT_CHANNELS
    )
    return forecasting.dataset(
        config, values, names, splits[config.source], known, {"source": config.source, "sha256": hashes}
    )


def csv_file(config: Data, known: Known) -> Dataset:
    """A CSV of numbers, split 70/10/20 in time; for a run, its columns by name, in the run's order.

    Several files, and rows of several names in the column data.series_id, are series of their own, each split so.
    """
    own = files.open_each(config.file)
    sha256 = files.identify(own)
    # a run's own file is read as it was trained on it
    gaps = known.get("gaps", "ignore") if sha256 == known.get("sha256") else config.gaps
    cells, roles = _read_tables(dataclasses.replace(config, gaps=gaps), own, known)
    begins = (0, *cells.ends[:-1])
    rows = sorted(last - first for first, last in zip(begins, cells.ends, strict=True))
    beside = _find_covariates(config, cells, roles, known)
    fitting = forecasting.lookback(rows[len(rows) // 2], config.horizon)
    if beside.known_ahead(masked=False):
        fitting = max(fitting, config.horizon)
    length = config.length or known.get("task", {}).get("length") or fitting
    config = dataclasses.replace(config, length=length)
    phase, notes = forecasting.phase(cells.clock, known, config.period)
    info: dict[str, Any] = {"source": config.source, "file": config.file, "sha256": sha256}
    info |= ({"clock": list(cells.clock)} if cells.clock else {}) | ({"gaps": gaps} if gaps == "fill" else {})
    splits = [forecasting.split_series(first, last) for first, last in zip(begins, cells.ends, strict=True)]
    dataset = forecasting.dataset(config, cells.values, roles.targets, splits, known, info, phase=phase, beside=beside)
    if config.period < 0 and not known:
        rows_of = f"a cycle of {dataset.info['period']:,} rows" if dataset.info["period"] else "no cycle"
        notes = [*notes, f"{rows_of} found in the training rows"]
    shown = ", ".join(cells.names[:8]) + (", ..." if len(cells.names) > 8 else "")
    kept = f"{config.file}: read and kept {len(cells.values):,} rows of {len(cells.names):,} columns ({shown})"
    return dataclasses.replace(
        dataset, reading="; ".join([kept, *cells.notes, *notes, *([] if cells.notes else ["nothing left out"])])
    )


def _read_tables(config: Data, own: Sequence[files.OwnFile], known: Known) -> tuple[tables.Table, columns.Roles]:
    """The columns of the roles that the config or the run gives them, of all files one after the other."""
    read: list[tables.Table] = []
    large = sum(file.size for file in own) > mapped.LARGE
    for file in own:
        name = config.file if len(own) == 1 else file.path
        cells = read_table(config, name, file, large=large)
        if not read:
            roles = columns.assign_roles(config, name, cells, known)
        if "channels" in known or read:
            cells = columns.match_columns(name, cells, roles.names)
        else:
            cells = columns.select_columns(cells, roles.names)
        columns.check_static(name, cells, config.static)
        read.append(cells)
    if len(read) == 1:
        return read[0], roles
    joined = _cache_folder(config, f"{config.gaps}-{roles.names}-{files.identify(own)}") if large else None
    return columns.join_tables(config.file, read, joined), roles


def read_table(config: Data, name: str, file: files.OwnFile, *, large: bool) -> tables.Table:
    """Returns all columns of a file, read as a config says; from the cache where it is large. Raises InputError as
    `tables.read` does.
    """
    table = tables.read(
        name,
        file.open_text,
        most_rows=file.newlines + 1,
        gaps=config.gaps,
        missing=config.missing,
        series=config.series_id,
        folder=_cache_folder(config, file.sha256) if large else None,
    )
    return dataclasses.replace(table, notes=(*file.notes, *table.notes))


def _cache_folder(config: Data, content: str) -> pathlib.Path:
    """Where numbers are kept, by what they depend on."""
    how = f"{content}-{mapped.FORMAT}-{config.missing}-{config.series_id}"
    return cache_root(config.cache_dir) / "tables" / hashlib.sha256(how.encode()).hexdigest()


def _find_covariates(config: Data, cells: tables.Table, roles: columns.Roles, known: Known) -> forecasting.Covariates:
    calendar = tuple(known.get("covariates", {}).get("calendar", ())) if "channels" in known else config.calendar
    columns.check_calendar(config.file, cells, calendar)
    return forecasting.Covariates(roles.past, roles.future, calendar, cells.dates if calendar else None)


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
    """MNIST one pixel at a time, from 0 to 1; psmnist in one permutation, drawn from data.seed. Validation: last 10 %
    of training.
    """
    from selssm_jax.data.builders import prepare, public

    del known
    order = np.random.default_rng(config.seed).permutation(784) if config.source == "psmnist" else np.arange(784)
    records, hashes = prepare.read(public.Mnist, config.local_dir, config.cache_dir)
    images = {split: _images(blocks, order) for split, blocks in records.items()}
    rows = np.arange(len(images["train"]))
    cut = len(rows) * 9 // 10
    splits = {
        "train": images["train"].select(rows[:cut]),
        "validation": images["train"].select(rows[cut:]),
        "test": images["test"],
    }
    info = {"source": config.source, "sha256": hashes} | (
        {"permutation_seed": config.seed} if config.source == "psmnist" else {}
    )
    return signals.dataset(config, splits, DIGITS, info)


def npz_file(config: Data, known: Known) -> Dataset:
    """An NPZ of signals with labels, written by numpy.savez.

    `signal` (clips, samples[, channels]), or `wave` (samples[, channels]) with `offset`, clip i being
    wave[offset[i]:offset[i + 1]]; and `label` (clips,) from 0. Every channel is brought to the level and scale of its
    training clips. Optional: `split` (clips,), 0 training, 1 validation, 2 test, without which a fixed shuffle is cut
    80/10/10; `classes`, their names; `sample_rate`, in hertz. For a run, classes that have names are matched by them,
    and the sample rate is to be the same.
    """
    file = files.open_own(config.file)
    arrays = signals.read_npz(config.file, file.open())
    clips, classes = signals.name_classes(config.file, signals.clips(config.file, arrays), arrays, known)
    info = _describe_own_file(config, file) | signals.sample_rate(config.file, arrays, known)
    info["dtype"] = str(clips.wave.dtype)
    split = signals.split(config.file, arrays, len(clips))
    parts = {name: clips.select(np.flatnonzero(split == number)) for number, name in enumerate(SPLITS)}
    parts, scaling = signals.scale_clips(parts | ({WHOLE: clips} if known else {}), known, config.file)
    longest = int(clips.lengths.max())
    # of a run from before signals were kept no longer than they are
    old = "task" in known and "frame" not in known["task"]
    if config.length and not old:
        config = dataclasses.replace(config, length=signals.longest(config, clips))
    frame, stride = (
        (known["task"].get(key, 0) for key in ("frame", "stride"))
        if "task" in known
        else signals.frames(longest, info.get("sample_rate", 0.0))
    )
    dataset = signals.dataset(config, parts, classes, info | scaling, frame=frame, stride=stride)
    return dataclasses.replace(dataset, reading=signals.account(config.file, arrays, clips, parts, dataset.task.length))


def labelled_texts_file(config: Data, known: Known) -> Dataset:
    """Texts with a label each, or one for every token; see `labelled_texts.read`."""
    return labelled_texts.dataset(config, known, tagged=config.source in TAGGED)


def synthetic_task(config: Data, known: Known) -> Dataset:
    """A task whose answer is known."""
    del known
    return synthetic.dataset(config)


def _texts(
    config: Data, records: Mapping[str, list[dict[str, Any]]], hashes: dict[str, str]
) -> tuple[dict[str, str], dict[str, Any]]:
    texts = {
        split: b"".join(record["piece"].tobytes() for record in pieces).decode() for split, pieces in records.items()
    }
    return {split: texts[split] for split in SPLITS}, {"source": config.source, "sha256": hashes}


def _text(config: Data, known: Known, text: language.Text, info: Mapping[str, object]) -> Dataset:
    return language.dataset(
        config, text, tuple(known.get("vocabulary") or ()) or None, info, known.get("tokenizer", "")
    )


def _describe_own_file(config: Data, file: files.OwnFile) -> dict[str, Any]:
    return {"source": config.source, "file": config.file, "sha256": file.sha256}


def _recordings(records: list[dict[str, Any]]) -> signals.Clips:
    waves = [record["wave"] for record in records]
    label = np.array([record["label"] for record in records], np.int32)
    return signals.Clips(np.concatenate(waves)[:, None], np.cumsum([0, *map(len, waves)]), label, scale=1 / 2**15)


def _images(blocks: list[dict[str, Any]], order: np.ndarray) -> signals.Clips:
    pictures, digits = (np.concatenate([block[name] for block in blocks]) for name in ("images", "labels"))
    wave = pictures.reshape(len(pictures), -1)[:, order].reshape(-1, 1)
    return signals.Clips(wave, np.arange(len(pictures) + 1) * len(order), digits.astype(np.int32), scale=1 / 255)
