"""Predictions for files of one's own, line by line: what follows a table, the class of every clip, the nats of every
token of a text.
"""

import csv
import dataclasses
import io
import itertools
import json
import math
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.io import wavfile
from tqdm import tqdm

from selssm_jax.data import (
    columns,
    files,
    forecasting,
    labelled_texts,
    mapped,
    signals,
    sources,
    tables,
    times,
    vocabulary,
)
from selssm_jax.errors import ArgumentError, InputError, as_input_error
from selssm_jax.intervals import calibrate
from selssm_jax.paths import check_new_file
from selssm_jax.predict import FOLLOWED, Classes, TrainedModel, load
from selssm_jax.runs import open_run
from selssm_jax.tasks.registry import kind_of

MOST_TIMES = 1 << 16  # of a series, the last that tell how its times go on
AMPLITUDES = {np.dtype(np.uint8): 128.0, np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}  # of WAV samples


def predict_files(trained: TrainedModel, names: Sequence[str]) -> Iterator[str]:
    """Yields the lines of a file of predictions, without line ends: CSV, or JSON a line for a text.

    Of a table the `horizon` rows after its last one, in its units, its times continued; of one that holds several
    series those of each, with its name. What is known of these rows is read from the table itself, whose last rows then
    have no value to forecast. Of an NPZ, or of WAV files, the class of every clip and the probability of each class; so
    of the texts that `labelled_texts.read` reads, which need no label, or of every token of them. Of a text the nats of
    every token but the first, and in the last line those of all.

    Raises:
      InputError: for a file that cannot be read, that has other columns, channels or another rate than the run was
        trained on, or too few rows.
    """
    kind = kind_of(trained.dataset.task)
    if not (kind.writes or kind.forecasts or trained.about.get("classes")):
        raise InputError(f"no files of the task {trained.dataset.task.kind!r} are known: use selssm_jax.load in Python")
    if kind.writes or kind.forecasts:
        if len(names) > 1:
            raise ArgumentError(
                "names", f": {len(names)} files, but a run of this task predicts one: name one", "predict"
            )
        return _score_text(trained, names[0]) if kind.writes else _forecast_table(trained, names[0])
    return (_classify_texts if kind.tokens else _classify_files)(trained, names)


def load_calibrated(workdir: str | pathlib.Path, local_dir: str = "") -> TrainedModel:
    """Returns a run ready for use; one that forecasts with its intervals, calibrated on its validation split where they
    were not before. Where its data are not here, it is said that there are none.
    """
    trained = load(workdir)
    if not kind_of(trained.dataset.task).forecasts or trained.intervals is not None:
        return trained
    try:
        run = open_run(workdir, split="validation", local_dir=local_dir)
        return TrainedModel(run, calibrate(run))
    except InputError as error:
        _say(str(workdir), [f"forecasts have no intervals: {error}"])
        return trained


def save_lines(lines: Iterable[str], output: str) -> str:
    """Writes lines into a new file, whole or not at all, and returns a sentence that says so.

    Raises:
      InputError: for a file that is there already, or cannot be written.
    """
    check_new_file(output, "output")
    path, fresh = pathlib.Path(output), pathlib.Path(f"{output}.unfinished")
    count = 0
    try:
        with fresh.open("w", encoding="utf-8", newline="") as stream:
            for line in lines:
                stream.write(f"{line}\n")
                count += 1
        fresh.rename(path)
    except OSError as error:
        raise ArgumentError("output", f"={output} cannot be written ({error.strerror}): name another file") from error
    finally:
        fresh.unlink(missing_ok=True)
    return f"wrote {count:,} lines to {output}"


class _Window(NamedTuple):
    """The last rows of a series, as `TrainedModel.predict` reads them.

    Attributes:
      name: of the file and the series, for messages. series: the name of the series. first: the place of its first row
        in the table. values, moments: what is read. stamps: times of the rows that are forecast, or their numbers.
    """

    name: str
    series: str
    first: int
    values: np.ndarray
    moments: np.ndarray | None
    stamps: list[str]


def _forecast_table(trained: TrainedModel, name: str) -> Iterator[str]:
    history, column = forecasting.History(trained.about, trained.dataset.task), trained.config.data.series_id
    table = _read_table(trained, history, name)
    place, notes = forecasting.phase(table.clock, trained.about, history.period)
    _say(name, [*table.notes, *notes])
    windows = tqdm(_find_windows(trained, history, name, table), unit="series", disable=not sys.stderr.isatty())
    for number, window in enumerate(windows):
        with as_input_error(f"{window.name}: "):
            forecast = trained.follow(window.values, first_row=place + window.first, moments=window.moments)
        ends = {
            f"{channel} {end} {level:.0%}": values[:, index]
            for index, channel in enumerate(forecast.channels)
            for level, pair in forecast.intervals.items()
            for end, values in zip(("from", "to"), pair, strict=True)
        }
        if not number:
            when = (table.when or "time") if _has_times(table) else "row"
            yield _join([when, *([column] if column else []), *forecast.channels, *ends])
        for step, (stamp, row) in enumerate(zip(window.stamps, forecast.values, strict=True)):
            numbers = (*row, *(values[step] for values in ends.values()))
            yield _join([stamp, *([window.series] if column else []), *(f"{value:.9g}" for value in numbers)])


def _read_table(trained: TrainedModel, history: forecasting.History, name: str) -> tables.Table:
    """The columns that the run reads, in its order."""
    file, data = files.open_own(name), trained.config.data
    if history.beside.future:  # the rows to be forecast have no targets
        data = dataclasses.replace(data, missing="mask")
    table = sources.read_table(data, name, file, large=file.size > mapped.LARGE)
    if "channels" in trained.about:
        table = columns.match_columns(name, table, history.columns)
    columns.check_static(name, table, data.static)
    columns.check_calendar(name, table, history.beside.calendar)
    if history.period and len(table.ends) > 1:
        raise InputError(f"{name} holds {len(table.ends)} series, but the run takes the cycle of one off: give one")
    return table


def _has_times(table: tables.Table) -> bool:
    """Whether the times of rows tell those that follow."""
    return table.moments is not None and len(table.moments) > 1


def _find_windows(
    trained: TrainedModel, history: forecasting.History, name: str, table: tables.Table
) -> Iterator[_Window]:
    """The last window of every series; it is said which are too short for one, a table's only one apart, which is
    refused where it is read.
    """
    horizon, short, unread = trained.dataset.task.horizon, [], 0
    fewest = max(trained.lookback, 2 if _has_times(table) else 1)
    for series, start, end in zip(table.series, (0, *table.ends[:-1]), table.ends, strict=True):
        label = f"{name}, series {series!r}" if series else name
        last = _find_last(label, history, table, start, end) if history.beside.future else end
        unread = max(unread, end - last - horizon)
        if series and last - start < fewest:
            short.append(series)
            continue
        first = max(last - fewest - horizon - FOLLOWED, start)
        values = table.values[first : last + horizon if history.beside.future else last]
        moments, stamps = None, [str(last - start + 1 + step) for step in range(horizon)]
        if table.moments is not None and _has_times(table):
            before = table.moments[max(last - MOST_TIMES, start) : last]
            ahead = table.moments[last : last + horizon]  # as the table says, or as its times go on
            if not history.beside.future:
                ahead = times.continue_times(before, horizon, table.unit)
            are_days = times.are_days(np.concatenate([before, ahead]), table.unit, table.offset)
            stamps = [times.format_time(float(moment), table.unit, table.offset, is_day=are_days) for moment in ahead]
            if history.beside.calendar:
                moments = _as_dates(table, np.concatenate([table.moments[first:last], ahead]))
        yield _Window(label, series, first, values, moments, stamps)
    if len(short) == len(table.ends):
        raise InputError(f"{name}: no series has {fewest} rows, which a forecast reads: give longer ones")
    if short:
        _say(name, [f"series left out for fewer than {fewest} rows: {len(short):,}, the first {short[0]!r}"])
    if unread > 0:
        _say(
            name,
            [f"only the {horizon} rows after the last value are forecast: {unread:,} more, known ahead, are not read"],
        )


def _find_last(name: str, history: forecasting.History, table: tables.Table, start: int, end: int) -> int:
    """The row after the last that has a value to forecast; those behind it hold what is known of the rows ahead."""
    last, channels = end, len(history.columns) - len(history.beside.past) - len(history.beside.future)
    while last > start and np.isnan(table.values[last - 1 : last, :channels]).all():
        last -= 1
    if end - last < history.ahead:
        targets, future = (", ".join(map(repr, part)) for part in (history.columns[:channels], history.beside.future))
        raise InputError(
            f"{name}: {end - last} rows follow the last one with a value of {targets}, but a forecast reads {future} "
            f"of {history.ahead}: add rows that hold these, with the cells of {targets} empty"
        )
    return last


def _as_dates(table: tables.Table, moments: np.ndarray) -> np.ndarray:
    stamps = moments if table.unit == "date" else times.to_dates(table.when, moments)
    return np.asarray(stamps).astype(np.int64).astype("datetime64[us]")


def _classify_files(trained: TrainedModel, names: Sequence[str]) -> Iterator[str]:
    waves = [name for name in names if name.lower().endswith(".wav")]
    if waves and len(waves) < len(names):
        raise ArgumentError("names", ": WAV files and others: give WAV files alone, or one NPZ", "predict")
    if not waves and len(names) > 1:
        raise ArgumentError("names", f": {len(names)} files: give one NPZ, or WAV files", "predict")
    clips = _wave_clips(trained, waves) if waves else _npz_clips(trained, names[0])
    yield _join(["clip", "label", *(f"p({label})" for label in trained.about["classes"])])
    size = trained.config.data.eval_batch_size or trained.config.data.batch_size
    shown = tqdm(total=len(waves) or None, unit="clip", disable=not sys.stderr.isatty())
    while part := list(itertools.islice(clips, size)):
        with as_input_error(f"{names[0]}: "):
            answer: Classes = trained.predict([signal for _, signal in part])
        for (clip, _), label, odds in zip(part, answer.label, answer.probabilities, strict=True):
            yield _join([clip, label, *(f"{probability:.6g}" for probability in odds)])
        shown.update(len(part))
    shown.close()


def _classify_texts(trained: TrainedModel, names: Sequence[str]) -> Iterator[str]:
    dataset, tagged = trained.dataset, kind_of(trained.dataset.task).every_step
    texts = []
    for name in names:
        own = labelled_texts.read(name, tagged=tagged, labelled=False)
        texts += own.rows
        _say(name, own.notes)
    yield _join(["text", *["token"] * tagged, "label", *(f"p({label})" for label in trained.about["classes"])])
    size = trained.config.data.eval_batch_size or trained.config.data.batch_size
    for first in tqdm(range(0, len(texts), size), disable=not sys.stderr.isatty()):
        part = texts[first : first + size]
        codes = [labelled_texts.encode(row.text, dataset.vocabulary, dataset.level) for row in part]
        answer = trained.predict(codes)
        if not tagged:
            for row, label, odds in zip(part, answer.label, answer.probabilities, strict=True):
                yield _join([row.place, label, *(f"{probability:.6g}" for probability in odds)])
            continue
        for row, tags in zip(part, answer, strict=True):
            for word, label, odds in zip(row.text, tags.labels, tags.probabilities, strict=False):  # cut to lookback
                yield _join([row.place, word, label, *(f"{probability:.6g}" for probability in odds)])


def _npz_clips(trained: TrainedModel, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """(number, signal) of an NPZ, whose labels are not needed."""
    arrays = signals.read_npz(name, files.open_own(name).open())
    wave, offset = signals.waves(name, arrays)
    signals.sample_rate(name, arrays, trained.about)
    for number, (first, last) in enumerate(itertools.pairwise(offset)):
        yield str(number), wave[first:last]


def _wave_clips(trained: TrainedModel, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """(name, samples) of WAV files, in the units that the run was trained in."""
    for name in names:
        files.open_own(name)  # says what is wrong with the file itself
        try:
            rate, wave = wavfile.read(name)
        except ValueError as error:
            raise InputError(f"{name} is no WAV that can be read ({error}): give PCM or floating-point samples") from (
                error
            )
        signals.sample_rate(name, {"sample_rate": np.array(rate)}, trained.about)
        if not len(wave):
            raise InputError(f"{name} has no samples: leave it out")
        yield name, _as_trained(trained, name, wave)


def _as_trained(trained: TrainedModel, name: str, wave: np.ndarray) -> np.ndarray:
    """Samples of a WAV in the type of the training signals: as they are, or from -1 to 1."""
    trained_type = trained.about.get("dtype", "" if "scaling" in trained.about else "float32")
    if trained_type == str(wave.dtype):
        return wave
    if not trained_type.startswith("float"):
        reason = f"the run was trained on {trained_type}" if trained_type else "the run does not say what it was of"
        raise InputError(f"{name} holds {wave.dtype}, {reason}: give the signals as they were in training, in an NPZ")
    if wave.dtype.kind == "f":
        return wave.astype(np.float32)
    level = AMPLITUDES[wave.dtype]
    return ((wave.astype(np.float64) - (level if wave.dtype.kind == "u" else 0)) / level).astype(np.float32)


def _score_text(trained: TrainedModel, name: str) -> Iterator[str]:
    dataset = trained.dataset
    tokens = vocabulary.tokenise(files.open_own(name).pieces(), dataset.level, dataset.tokenizer)
    codes = vocabulary.encode(tokens, dataset.vocabulary, name)
    codes = np.concatenate([vocabulary.beginning(dataset.level, dataset.tokenizer).astype(codes.dtype), codes])
    total, place = 0.0, 1
    with as_input_error(f"{name}: "), tqdm(total=len(codes) - 1, disable=not sys.stderr.isatty()) as shown:
        for nats in trained.score_tokens(codes):
            for code, value in zip(codes[place : place + len(nats)], nats.tolist(), strict=True):
                yield json.dumps({"token": dataset.vocabulary[code], "nats": round(value, 6)}, ensure_ascii=False)
            total, place = total + float(nats.sum(dtype=np.float64)), place + len(nats)
            shown.update(len(nats))
    count = place - 1
    bits = total / count / math.log(2)
    yield json.dumps({"tokens": count, "nats": total, "nats_per_token": total / count, "bits_per_token": bits})


def _say(name: str, notes: Sequence[str]) -> None:
    if notes:
        print(f"{name}: {'; '.join(notes)}", file=sys.stderr, flush=True)


def _join(cells: Sequence[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()
