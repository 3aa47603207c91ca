"""TFDS builders of the public data sets, prepared as array_record: TensorFlow is never needed.

Small examples are kept in blocks, since reading a record costs tens of microseconds whatever its size. A record carries
its place, since TFDS orders records by hashed key.
"""

import abc
import csv
import dataclasses
import gzip
import hashlib
import io
import re
import warnings
import wave
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from selssm_jax.data import language
from selssm_jax.data.builders import origins
from selssm_jax.errors import InputError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a third party's deprecations are not this user's concern
    import tensorflow_datasets as tfds

tfds.disable_progress_bar()

Files = dict[str, bytes]
Record = dict[str, Any]
Tensor = tfds.features.Tensor


class Public(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[misc, call-arg]  # a class without types, whose argument TFDS reads
    """What the builders share: records made from files of a local folder or of their public origin.

    Args:
      local_dir: a folder that holds the files; empty: they are downloaded.
      cache_dir: where downloads are kept; empty: $SELSSM_DATA_DIR, else ~/.cache/selssm_jax.
      **options: of TFDS, such as data_dir.
    """

    VERSION = tfds.core.Version("1.0.0")
    ORIGINS: ClassVar[Mapping[str, origins.Origin]]
    FEATURES: ClassVar[Mapping[str, Any]]
    URL: ClassVar[str]

    def __init_subclass__(cls, **options: Any) -> None:
        # Names such as mnist belong to TFDS's own builders.
        super().__init_subclass__(**{**options, "skip_registration": True})

    def __init__(self, *, local_dir: str = "", cache_dir: str = "", **options: Any) -> None:
        self._local_dir, self._cache_dir = local_dir, cache_dir
        super().__init__(file_format="array_record", **options)

    @classmethod
    def files(cls, local_dir: str, cache_dir: str) -> Files:
        """Returns the content of the data set's files. Raises InputError where one is missing or not the published
        one.
        """
        return {name: origins.content(origin, local_dir, cache_dir) for name, origin in cls.ORIGINS.items()}

    @classmethod
    def hashes(cls, local_dir: str, cache_dir: str) -> dict[str, str]:
        """Returns the sha256 of every file's content, by which one source is told from another; local files are
        checked.
        """
        if local_dir:
            cls.files(local_dir, cache_dir)
        return {name: origin.sha256 for name, origin in cls.ORIGINS.items()}

    @abc.abstractmethod
    def _records(self, files: Files) -> Mapping[str, list[Record]]:
        """Returns the records of every split."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"place": np.int32, **self.FEATURES})
        return tfds.core.DatasetInfo(builder=self, features=features, description=type(self).__doc__, homepage=self.URL)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[str, Record]]]:
        del dl_manager
        records = self._records(self.files(self._local_dir, self._cache_dir))
        return {split: self._generate_examples(examples) for split, examples in records.items()}

    def _generate_examples(self, records: list[Record]) -> Iterator[tuple[str, Record]]:
        for place, record in enumerate(records):
            yield str(place), {"place": place, **record}


class _Text(Public):
    FEATURES: ClassVar[Mapping[str, Any]] = {"piece": Tensor(shape=(None,), dtype=np.uint8)}

    def _records(self, files: Files) -> dict[str, list[Record]]:
        return {split: _blocks(1 << 16, piece=np.frombuffer(text, np.uint8)) for split, text in files.items()}


class TinyShakespeare(_Text):
    """1,115,394 characters of Shakespeare's plays (Karpathy 2015), cut in reading order: 85 % training, 5 % validation,
    10 % test.

    Training and validation together are the first 90 %, which is nanoGPT's training text.
    """

    ORIGINS: ClassVar[Mapping[str, origins.Origin]] = {"text": origins.SHAKESPEARE}
    URL = origins.SHAKESPEARE.url

    def _records(self, files: Files) -> dict[str, list[Record]]:
        return super()._records(language.cut(files["text"]))


class Wikitext2(_Text):
    """WikiText-2, verified articles of Wikipedia (Merity et al. 2016), in its official splits."""

    ORIGINS: ClassVar[Mapping[str, origins.Origin]] = origins.WIKITEXT2
    URL = origins.WIKITEXT2["train"].url


class _Table(Public):
    def _records(self, files: Files) -> dict[str, list[Record]]:
        (raw,) = files.values()
        lines = csv.reader(io.StringIO(raw.decode("utf-8", errors="replace"), newline=""))
        next(lines)
        return {"train": _blocks(1024, rows=np.array([line[1:] for line in lines], np.float64))}


class Etth1(_Table):
    """Electricity transformer temperature, hourly, 17,420 x 7 (Zhou et al. 2021); "train" holds all rows, readers cut
    them.
    """

    ORIGINS: ClassVar[Mapping[str, origins.Origin]] = {"table": origins.ETTH1}
    FEATURES: ClassVar[Mapping[str, Any]] = {"rows": Tensor(shape=(None, 7), dtype=np.float64)}
    URL = origins.ETTH1.url


class Ettm1(_Table):
    """Electricity transformer temperature, every 15 minutes, 69,680 x 7 (Zhou et al. 2021); "train" holds all rows,
    readers cut them.
    """

    ORIGINS: ClassVar[Mapping[str, origins.Origin]] = {"table": origins.ETTM1}
    FEATURES: ClassVar[Mapping[str, Any]] = {"rows": Tensor(shape=(None, 7), dtype=np.float64)}
    URL = origins.ETTM1.url


class JenaWeather(_Table):
    """The weather station of Jena in 2020, every 10 minutes, 52,696 x 21 (Wu et al. 2021); "train" holds all rows,
    readers cut them.
    """

    ORIGINS: ClassVar[Mapping[str, origins.Origin]] = {"table": origins.WEATHER}
    FEATURES: ClassVar[Mapping[str, Any]] = {"rows": Tensor(shape=(None, 21), dtype=np.float64)}
    URL = "https://www.bgc-jena.mpg.de/wetter/"


def _recordings(raw: bytes) -> list[Record]:
    """Reads recordings/DIGIT_SPEAKER_TAKE.wav of the repository's archive, by digit, speaker and take."""
    pattern = re.compile(r"(?:.*/)?recordings/(\d)_(\w+)_(\d+)\.wav$")
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            recordings = sorted(
                (int(name[1]), name[2], int(name[3]), name[0])
                for name in map(pattern.match, archive.namelist())
                if name
            )
            clips = [
                {"wave": _samples(archive.read(path)), "label": digit, "index": take}
                for digit, _, take, path in recordings
            ]
    except (zipfile.BadZipFile, wave.Error, EOFError, ValueError) as error:
        raise InputError(
            f"the archive of spoken digits is damaged ({error}): fetch it again, or put fsdd.npz into data.local_dir"
        ) from error
    if len({recording[:3] for recording in recordings}) != 3000:
        raise InputError(
            f"the archive of spoken digits holds {len(clips)} recordings, expected 3000: fetch it again, or put "
            "fsdd.npz into data.local_dir"
        )
    return clips


def _samples(raw: bytes) -> np.ndarray:
    with wave.open(io.BytesIO(raw)) as clip:
        if (form := (clip.getnchannels(), clip.getsampwidth(), clip.getframerate())) != (1, 2, 8000):
            raise ValueError(f"channels, bytes a sample and rate are {form}, expected (1, 2, 8000)")
        return np.frombuffer(clip.readframes(clip.getnframes()), np.int16)


class SpokenDigits(Public):
    """Free Spoken Digit Dataset, CC BY-SA 4.0: 3,000 recordings of six speakers at 8 kHz; takes 0-4 of each are the
    official test.
    """

    ORIGINS: ClassVar[Mapping[str, origins.Origin]] = {
        "archive": dataclasses.replace(origins.SPOKEN_DIGITS, check=_recordings)
    }
    FEATURES: ClassVar[Mapping[str, Any]] = {
        "wave": Tensor(shape=(None,), dtype=np.int16),
        "label": np.int32,
        "index": np.int32,
    }
    URL = "https://github.com/Jakobovski/free-spoken-digit-dataset"

    @classmethod
    def files(cls, local_dir: str, cache_dir: str) -> Files:
        """Returns the packed clips of a local folder, else the repository's archive."""
        if not local_dir:
            return super().files(local_dir, cache_dir)
        for name, origin in (("packed", origins.PACKED_DIGITS), ("archive", origins.SPOKEN_DIGITS)):
            if origins.find(origin, local_dir):
                return {name: origins.content(origin, local_dir, cache_dir)}
        raise InputError(origins.missing(local_dir, origins.PACKED_DIGITS, origins.SPOKEN_DIGITS))

    @classmethod
    def hashes(cls, local_dir: str, cache_dir: str) -> dict[str, str]:
        """Returns the sha256 of the file that is there, since that of the archive is not lasting."""
        return {name: hashlib.sha256(raw).hexdigest() for name, raw in cls.files(local_dir, cache_dir).items()}

    def _records(self, files: Files) -> dict[str, list[Record]]:
        clips = _unpack(files["packed"]) if "packed" in files else _recordings(files["archive"])
        return {
            "train": [clip for clip in clips if clip["index"] >= 5],
            "test": [clip for clip in clips if clip["index"] < 5],
        }


class Mnist(Public):
    """Handwritten digits, 28 x 28: 60,000 for training and 10,000 for test (LeCun et al. 1998)."""

    ORIGINS: ClassVar[Mapping[str, origins.Origin]] = origins.MNIST
    FEATURES: ClassVar[Mapping[str, Any]] = {
        "images": Tensor(shape=(None, 28, 28), dtype=np.uint8),
        "labels": Tensor(shape=(None,), dtype=np.uint8),
    }
    URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"

    def _records(self, files: Files) -> dict[str, list[Record]]:
        arrays = {name: _idx(raw) for name, raw in files.items()}
        names = {"train": "train", "test": "t10k"}
        return {
            split: _blocks(1000, images=arrays[f"{name}-images-idx3-ubyte"], labels=arrays[f"{name}-labels-idx1-ubyte"])
            for split, name in names.items()
        }


def _blocks(size: int, **arrays: np.ndarray) -> list[Record]:
    """Records of `size` consecutive examples each; the first axis of every array counts them."""
    count = len(next(iter(arrays.values())))
    return [{name: array[first : first + size] for name, array in arrays.items()} for first in range(0, count, size)]


def _unpack(raw: bytes) -> list[Record]:
    packed = np.load(io.BytesIO(raw), allow_pickle=False)
    wave_, offset, label, index = (packed[name] for name in ("wave", "offset", "label", "index"))
    pieces = np.split(wave_, offset[1:-1])
    return [
        {"wave": piece, "label": int(digit), "index": int(take)}
        for piece, digit, take in zip(pieces, label, index, strict=True)
    ]


def _idx(raw: bytes) -> np.ndarray:
    """Reads the idx format of the MNIST files."""
    data = gzip.decompress(raw)
    rank = data[3]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(np.frombuffer(data, ">i4", rank, 4))
