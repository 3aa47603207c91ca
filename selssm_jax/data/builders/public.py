"""TFDS builders of the public data sets, prepared as array_record: TensorFlow is never needed.

Records carry their place, since TFDS orders them by hashed key.
"""

import contextlib
import csv
import gzip
import hashlib
import io
import logging
import os
import pathlib
import re
import shutil
import warnings
import wave
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a third party's deprecations are not this user's concern
    import tensorflow_datasets as tfds

tfds.disable_progress_bar()

from selssm_jax.data.builders import origins
from selssm_jax.errors import InputError

Source = dict[str, Any]
Examples = Iterator[tuple[str, dict[str, Any]]]
PIECE = 1 << 16  # bytes of text in a record


class _Builder(tfds.core.GeneratorBasedBuilder):
    """What the builders share: the splits come in as plain values, already fetched and checked."""

    VERSION = tfds.core.Version("1.0.0")
    FEATURES: Mapping[str, Any]
    DESCRIPTION: str
    URL: str

    def __init__(self, source: Source | None = None, **options: Any) -> None:
        self._source = source or {}
        super().__init__(file_format="array_record", **options)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(dict(self.FEATURES))
        return tfds.core.DatasetInfo(builder=self, features=features, description=self.DESCRIPTION, homepage=self.URL)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        del dl_manager
        return {split: self._generate_examples(value) for split, value in self._source.items()}


class _Text(_Builder):
    FEATURES = {"place": np.int32, "piece": tfds.features.Tensor(shape=(None,), dtype=np.uint8)}

    def _generate_examples(self, text: bytes) -> Examples:
        for place in range(0, max(len(text), 1), PIECE):
            yield str(place), {"place": place, "piece": np.frombuffer(text[place : place + PIECE], np.uint8)}


class TinyShakespeare(_Text):
    """All of Shakespeare's plays in one text of 1,115,394 characters, whole, as the split "train"."""

    DESCRIPTION, URL = "40,000 lines of Shakespeare (Karpathy 2015)", origins.SHAKESPEARE.url


class Wikitext2(_Text):
    """Verified articles of Wikipedia in the splits of Merity et al. (2016)."""

    DESCRIPTION, URL = "WikiText-2, word level (Merity et al. 2016)", origins.WIKITEXT2["train"].url


class _Table(_Builder):
    FEATURES = {"place": np.int32, "row": tfds.features.Tensor(shape=(None,), dtype=np.float32)}

    def _generate_examples(self, rows: np.ndarray) -> Examples:
        for place, row in enumerate(rows):
            yield str(place), {"place": place, "row": row}


class Etth1(_Table):
    """Electricity transformer temperature, hourly, 17,420 x 7."""

    DESCRIPTION, URL = "ETT-small, hourly (Zhou et al. 2021)", origins.TABLES["etth1"].url


class Ettm1(_Table):
    """Electricity transformer temperature, every 15 minutes, 69,680 x 7."""

    DESCRIPTION, URL = "ETT-small, every 15 minutes (Zhou et al. 2021)", origins.TABLES["ettm1"].url


class JenaWeather(_Table):
    """The weather station of Jena in 2020, every 10 minutes, 52,696 x 21."""

    DESCRIPTION, URL = "Jena weather 2020, as in Wu et al. (2021)", "https://www.bgc-jena.mpg.de/wetter/"


class SpokenDigits(_Builder):
    """Free Spoken Digit Dataset: 3,000 clips of six speakers at 8 kHz."""

    DESCRIPTION, URL = "Free Spoken Digit Dataset, CC BY-SA 4.0", "https://github.com/Jakobovski/free-spoken-digit-dataset"
    FEATURES = {"place": np.int32, "wave": tfds.features.Tensor(shape=(None,), dtype=np.int16), "label": np.int32, "index": np.int32}

    def _generate_examples(self, clips: list[dict[str, Any]]) -> Examples:
        for place, clip in enumerate(clips):
            yield str(place), {"place": place, **clip}


class Mnist(_Builder):
    """Handwritten digits, 28 x 28: 60,000 for training and 10,000 for test."""

    DESCRIPTION, URL = "MNIST (LeCun et al. 1998)", "https://storage.googleapis.com/cvdf-datasets/mnist/"
    FEATURES = {"place": np.int32, "image": tfds.features.Tensor(shape=(28, 28), dtype=np.uint8), "label": np.int32}

    def _generate_examples(self, arrays: tuple[np.ndarray, np.ndarray]) -> Examples:
        for place, (image, label) in enumerate(zip(*arrays, strict=True)):
            yield str(place), {"place": place, "image": image, "label": label}


def shakespeare(local_dir: str, cache_dir: str) -> str:
    """Returns the whole text."""
    text = origins.content(origins.SHAKESPEARE, local_dir, cache_dir)
    return _texts(TinyShakespeare, {"train": text}, cache_dir)["train"]


def wikitext2(local_dir: str, cache_dir: str) -> dict[str, str]:
    """Returns the official splits."""
    return _texts(Wikitext2, {split: origins.content(origin, local_dir, cache_dir) for split, origin in origins.WIKITEXT2.items()}, cache_dir)


def table(name: str, local_dir: str, cache_dir: str) -> np.ndarray:
    """Returns the values (rows, channels) of "etth1", "ettm1" or "weather"; the first column, dates, is left out."""
    raw = origins.content(origins.TABLES[name], local_dir, cache_dir)
    lines = csv.reader(io.StringIO(raw.decode("utf-8", errors="replace")))
    next(lines)
    rows = np.array([line[1:] for line in lines], np.float32)
    builder = {"etth1": Etth1, "ettm1": Ettm1, "weather": JenaWeather}[name]
    return np.stack([record["row"] for record in _records(builder, {"train": rows}, raw, cache_dir)["train"]])


def spoken_digits(local_dir: str, cache_dir: str) -> list[dict[str, Any]]:
    """Returns the clips as {"wave", "label", "index"}, from fsdd.npz or the repository's wav files."""
    if local_dir and origins.find(origins.PACKED_DIGITS, local_dir):
        clips = _unpacked(origins.content(origins.PACKED_DIGITS, local_dir, cache_dir))
    else:
        clips = _waves(origins.content(origins.SPOKEN_DIGITS, local_dir, cache_dir))
    return _records(SpokenDigits, {"train": clips}, _fingerprint(clips), cache_dir)["train"]


def mnist(local_dir: str, cache_dir: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns {"train": (images, labels), "test": ...}."""
    raw = {name: origins.content(origin, local_dir, cache_dir) for name, origin in origins.MNIST.items()}
    prefix = {"train": "train", "test": "t10k"}
    arrays = {split: (_idx(raw[f"{name}-images-idx3-ubyte"]), _idx(raw[f"{name}-labels-idx1-ubyte"])) for split, name in prefix.items()}
    records = _records(Mnist, arrays, b"".join(raw.values()), cache_dir)
    return {split: (np.stack([r["image"] for r in found]), np.array([r["label"] for r in found])) for split, found in records.items()}


def _texts(builder: type[_Builder], texts: Mapping[str, bytes], cache_dir: str) -> dict[str, str]:
    records = _records(builder, texts, b"".join(texts.values()), cache_dir)
    return {split: b"".join(record["piece"].tobytes() for record in found).decode() for split, found in records.items()}


def _records(builder: type[_Builder], source: Source, raw: bytes, cache_dir: str) -> dict[str, list[dict[str, Any]]]:
    """Prepares a source once and returns its records in order, split by split."""
    folder = origins.cache_root(cache_dir) / builder.__name__.lower() / hashlib.sha256(raw).hexdigest()[:16]
    if not folder.is_dir():
        _prepare(builder, source, folder)
    with _quiet():
        data = builder(data_dir=str(folder)).as_data_source()
    return {split: sorted(found.__getitems__(range(len(found))), key=lambda record: record["place"]) for split, found in data.items()}


def _prepare(builder: type[_Builder], source: Source, folder: pathlib.Path) -> None:
    """Prepares beside `folder` and moves into place: a killed or a second preparation leaves no half data set."""
    fresh = folder.with_name(f"{folder.name}.{os.getpid()}")
    try:
        fresh.mkdir(parents=True)
        with _quiet():
            builder(source=source, data_dir=str(fresh)).download_and_prepare()
        fresh.rename(folder)
    except OSError as error:
        if not folder.is_dir():
            raise InputError(f"{folder.parent} cannot hold prepared data ({error}): set data.cache_dir to a folder with space that can be written") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS from telling how it works."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _unpacked(raw: bytes) -> list[dict[str, Any]]:
    packed = np.load(io.BytesIO(raw), allow_pickle=False)
    wave_, offset, label, index = (packed[name] for name in ("wave", "offset", "label", "index"))
    pieces = np.split(wave_, offset[1:-1])
    return [{"wave": piece, "label": int(digit), "index": int(number)} for piece, digit, number in zip(pieces, label, index, strict=True)]


def _waves(raw: bytes) -> list[dict[str, Any]]:
    """Reads recordings/DIGIT_SPEAKER_INDEX.wav of the repository's archive, by digit, speaker and index."""
    name = re.compile(r".*/recordings/(\d)_(\w+)_(\d+)\.wav$")
    clips = []
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        found = sorted((int(m[1]), m[2], int(m[3]), m[0]) for m in map(name.match, archive.namelist()) if m)
        for digit, _, number, path in found:
            with wave.open(io.BytesIO(archive.read(path))) as clip:
                clips.append({"wave": np.frombuffer(clip.readframes(clip.getnframes()), np.int16), "label": digit, "index": number})
    if len(clips) != 3000:
        raise InputError(f"the archive of spoken digits holds {len(clips)} recordings, expected 3000: fetch it again, or put fsdd.npz into data.local_dir")
    return clips


def _fingerprint(clips: list[dict[str, Any]]) -> bytes:
    return b"".join(clip["wave"].tobytes() for clip in clips)


def _idx(raw: bytes) -> np.ndarray:
    """Reads the idx format of the MNIST files."""
    data = gzip.decompress(raw)
    rank = data[3]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(np.frombuffer(data, ">i4", rank, 4))
