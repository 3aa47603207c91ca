"""Predictions for files of one's own, line by line: what follows a table, the class of every clip, the nats of every
token of a text.
"""

import csv
import io
import itertools
import json
import math
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy.io import wavfile
from tqdm import tqdm

from selssm_jax.data import columns, files, forecasting, labelled_texts, signals, tables, times, vocabulary
from selssm_jax.errors import InputError, as_input_error
from selssm_jax.intervals import calibrate
from selssm_jax.predict import Classes, TrainedModel, load
from selssm_jax.runs import open_run
from selssm_jax.tasks.registry import kind_of

AMPLITUDES = {np.dtype(np.uint8): 128.0, np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}  # of WAV samples


def predict_files(trained: TrainedModel, names: Sequence[str]) -> Iterator[str]:
    """Yields the lines of a file of predictions, without line ends: CSV, or JSON a line for a text.

    Of a table the `horizon` rows after its last one, in its units, its times continued. Of an NPZ, or of WAV files, the
    class of every clip and the probability of each class; so of the texts that `labelled_texts.read` reads, which need
    no label, or of every token of them. Of a text the nats of every token but the first, and in the last line those of
    all.

    Raises:
      InputError: for a file that cannot be read, that has other columns, channels or another rate than the run was
        trained on, or too few rows.
    """
    kind = kind_of(trained.dataset.task)
    if not (kind.writes or kind.forecasts or trained.about.get("classes")):
        raise InputError(f"--predict knows no files of the task {trained.dataset.task.kind!r}: use selssm_jax.load")
    if kind.writes or kind.forecasts:
        if len(names) > 1:
            raise InputError(f"--predict names {len(names)} files, but a run of this task predicts one: name one")
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
    path, fresh = pathlib.Path(output), pathlib.Path(f"{output}.unfinished")
    if path.exists():
        raise InputError(f"--output={output} exists already: move or remove it, or name another file")
    count = 0
    try:
        with fresh.open("w", encoding="utf-8", newline="") as stream:
            for line in lines:
                stream.write(f"{line}\n")
                count += 1
        fresh.rename(path)
    except OSError as error:
        raise InputError(f"--output={output} cannot be written ({error.strerror}): name another file") from error
    finally:
        fresh.unlink(missing_ok=True)
    return f"wrote {count:,} lines to {output}"


def _forecast_table(trained: TrainedModel, name: str) -> Iterator[str]:
    file = files.open_own(name)
    data = trained.config.data
    table = tables.read(name, file.open_text, most_rows=file.newlines + 1, gaps=data.gaps, missing=data.missing)
    if "channels" in trained.about:
        table = columns.match_columns(name, table, trained.channels)
    period = forecasting.History(trained.about).period
    place, notes = forecasting.phase(table.clock, trained.about, period)
    _say(name, [*table.notes, *notes])
    with as_input_error(f"{name}: "):
        forecast = trained.follow(table.values, first_row=place)
    horizon = len(forecast.values)
    if table.moments is not None and len(table.moments) > 1:
        moments = times.continue_times(table.moments[:], horizon, table.unit)
        column, stamps = table.when or "time", [times.format_time(float(moment), table.unit) for moment in moments]
    else:
        column, stamps = "row", [str(len(table.values) + 1 + step) for step in range(horizon)]
    ends = {
        f"{channel} {end} {level:.0%}": values[:, index]
        for index, channel in enumerate(forecast.channels)
        for level, pair in forecast.intervals.items()
        for end, values in zip(("from", "to"), pair, strict=True)
    }
    yield _join([column, *forecast.channels, *ends])
    for step, (stamp, row) in enumerate(zip(stamps, forecast.values, strict=True)):
        yield _join([stamp, *(f"{value:.9g}" for value in (*row, *(values[step] for values in ends.values())))])


def _classify_files(trained: TrainedModel, names: Sequence[str]) -> Iterator[str]:
    waves = [name for name in names if name.lower().endswith(".wav")]
    if waves and len(waves) < len(names):
        raise InputError("--predict names WAV files and others: give WAV files alone, or one NPZ")
    if not waves and len(names) > 1:
        raise InputError(f"--predict names {len(names)} files: give one NPZ, or WAV files")
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
    texts = [
        (row.place if row.place == name or len(names) == 1 else f"{name}: {row.place}", row.text)
        for name in names
        for row in labelled_texts.read(name, tagged=tagged, labelled=False)[0]
    ]
    yield _join(["text", *["token"] * tagged, "label", *(f"p({label})" for label in trained.about["classes"])])
    size = trained.config.data.eval_batch_size or trained.config.data.batch_size
    for first in tqdm(range(0, len(texts), size), disable=not sys.stderr.isatty()):
        part = texts[first : first + size]
        codes = [labelled_texts.encode(text, dataset.vocabulary, dataset.level) for _, text in part]
        answer = trained.predict(codes)
        if not tagged:
            for (place, _), label, odds in zip(part, answer.label, answer.probabilities, strict=True):
                yield _join([place, label, *(f"{probability:.6g}" for probability in odds)])
            continue
        for (place, words), tags in zip(part, answer, strict=True):
            for word, label, odds in zip(words, tags.labels, tags.probabilities, strict=False):  # cut to lookback
                yield _join([place, word, label, *(f"{probability:.6g}" for probability in odds)])


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
