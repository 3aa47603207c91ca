"""Arrays in files of the cache, read where they are needed: they need not fit into memory.

What is read of a mapped file stays in memory until the system takes it back, and counts as this process's; here it is
given back after every few megabytes.
"""

import json
import math
import mmap
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from selssm_jax.errors import InputError

LARGE = 1 << 26  # bytes of a text from which its numbers are kept in a file
HELD = 1 << 25  # bytes of a file that may stay in memory
PAGE = 1 << 12  # bytes that are read for one number at least
BLOCK = 1 << 20  # numbers that are read at a time
FORMAT = 3  # of what a folder holds
ABOUT = "about.json"  # what a folder says of itself

Rows = slice | np.ndarray


class Mapped:
    """Numbers (rows,) or (rows, columns) of a file, read by indices as those of an array are; of row -1 there are none.

    It is a view: `view` and `select` choose rows and columns without reading any.
    """

    def __init__(self, path: pathlib.Path, columns: int, dtype: Any) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        numbers = np.frombuffer(self._map, dtype)
        self._width = max(columns, 1) * numbers.itemsize  # bytes of a row
        self._numbers = numbers.reshape(-1, columns) if columns else numbers
        self._rows: range | np.ndarray = range(len(self._numbers))
        self._columns: np.ndarray | None = np.arange(columns) if columns else None
        self._read, self._factor = 0, 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array that this is read like."""
        return (len(self._rows), *([] if self._columns is None else self._columns.shape))

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return int(np.prod(self.shape))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the numbers."""
        return self._numbers.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: Any) -> np.ndarray:
        key, column = key if isinstance(key, tuple) else (key, slice(None))
        rows = self._locate(key)
        count = rows.stop - rows.start if isinstance(rows, slice) else np.size(rows)
        most = max(HELD // self._width, 1)
        if count <= most or np.ndim(rows) > 1:
            return self._fetch(rows, column)
        begin, whole = (rows.start, None) if isinstance(rows, slice) else (0, rows)
        parts = [slice(begin + first, begin + min(first + most, count)) for first in range(0, count, most)]
        return np.concatenate([self._fetch(part if whole is None else whole[part], column) for part in parts])

    def _fetch(self, rows: Any, column: Any) -> np.ndarray:
        block = self._numbers[rows]
        if self._columns is not None:
            block = block[..., self._columns if self._columns.ndim == 0 else self._columns[column]]
        block = np.array(block, order="C")  # sums over rows go on as in memory
        if self._factor != 1.0:
            block = block * self._factor
        if isinstance(rows, np.ndarray) and (rows < 0).any():
            block[rows < 0] = np.nan
        count, random = math.prod(np.shape(block)[:1]), isinstance(rows, np.ndarray)
        self._read += self._width * np.size(rows) + PAGE * count if random else self._width * count
        if self._read >= HELD and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
            self._read = 0
        return block

    def view(self, rows: Rows) -> "Mapped":
        """Returns these rows."""
        return self._derive(_rows=self._rows[rows] if isinstance(rows, slice) else self._choose(rows))

    def select(self, places: Any) -> "Mapped":
        """Returns these columns, or the one of a number as (rows,)."""
        assert self._columns is not None
        return self._derive(_columns=np.asarray(self._columns[places]))

    def multiply(self, factor: float) -> "Mapped":
        """Returns all numbers times a factor."""
        return self._derive(_factor=self._factor * factor)

    def _derive(self, **changes: Any) -> "Mapped":
        other = object.__new__(Mapped)
        other.__dict__.update(self.__dict__ | changes)
        return other

    def _choose(self, rows: np.ndarray) -> np.ndarray:
        chosen = self._rows.start + self._rows.step * rows if isinstance(self._rows, range) else self._rows[rows]
        return np.where(rows < 0, -1, chosen)

    def _locate(self, key: Any) -> Any:
        """Rows of the file."""
        if isinstance(key, np.ndarray):
            return self._choose(key)
        rows = self._rows[key]
        if isinstance(rows, range):
            return slice(rows.start, rows.stop) if rows.step == 1 else np.arange(rows.start, rows.stop, rows.step)
        return rows


class Writer:
    """Appends blocks of rows to a file, which is open no longer than that takes."""

    def __init__(self, path: pathlib.Path, columns: int, dtype: Any) -> None:
        self._path, self._columns, self._dtype = path, columns, np.dtype(dtype)
        path.write_bytes(b"")

    def append(self, block: np.ndarray) -> None:
        """Adds rows."""
        with self._path.open("ab") as file:
            file.write(np.ascontiguousarray(block, self._dtype).tobytes())

    def array(self) -> Mapped:
        """Returns all rows so far."""
        return Mapped(self._path, self._columns, self._dtype)


Numbers = np.ndarray | Mapped


def view(values: Any, rows: Rows) -> Any:
    """Returns these rows of an array, without reading any where it is in a file; of row -1 one without values."""
    if isinstance(values, Mapped):
        return values.view(rows)
    if isinstance(rows, slice):
        return values[rows]
    taken = values[np.maximum(rows, 0)]
    if (rows < 0).any():
        taken[rows < 0] = np.nan
    return taken


def select(values: Any, places: list[int] | int) -> Any:
    """Returns these columns of an array, in this order, or the one of a number."""
    if isinstance(places, int):
        return values.select(places) if isinstance(values, Mapped) else values[:, places].copy()
    if places == list(range(values.shape[1])):
        return values
    if isinstance(values, Mapped):
        return values.select(places)
    whole = places == list(range(places[0], places[-1] + 1))
    # in the order of rows, as sums over them depend on it
    return values[:, places[0] : places[-1] + 1] if whole else np.array(values[:, places], order="C")


def join(parts: Sequence[Any], folder: pathlib.Path | None) -> Any:
    """Returns arrays one after the other, in a folder where one is given."""
    if folder is None:
        return np.concatenate([part[:] for part in parts])
    columns, kind = int(parts[0].shape[1]) if len(parts[0].shape) > 1 else 0, parts[0].dtype

    def write(place: pathlib.Path) -> dict[str, Any]:
        writer = Writer(place / "joined", columns, kind)
        for part in parts:
            for block in blocks(part):
                writer.append(block)
        return {"format": FORMAT}

    keep(folder, write)
    return Mapped(folder / "joined", columns, kind)


def blocks(values: Any) -> Iterator[np.ndarray]:
    """Yields an array in blocks of rows that are read one after the other."""
    size = max(BLOCK // max(int(np.prod(values.shape[1:])), 1), 1)
    for first in range(0, len(values), size):
        yield values[first : first + size]


def _publish(fresh: pathlib.Path, folder: pathlib.Path) -> None:
    """Moves a full folder into place, unless other workers have filled that one meanwhile. Nothing is ever removed that
    another may be reading.
    """
    try:
        os.rename(fresh, folder)
    except OSError:
        if not folder.is_dir():
            raise
        if not (folder / ABOUT).is_file():  # left half done
            for path in sorted(fresh.iterdir(), key=lambda path: path.name == ABOUT):  # what says that it is whole last
                os.replace(path, folder / path.name)


def keep(folder: pathlib.Path, make: Callable[[pathlib.Path], dict[str, Any]]) -> dict[str, Any]:
    """Returns what `folder` says of itself, a JSON value, after `make` has filled it, if it was not there yet: whole,
    or not at all.

    Raises InputError where the cache cannot be written.
    """
    about = folder / ABOUT
    try:
        if not about.is_file():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as place:
                fresh = pathlib.Path(place) / "fresh"
                fresh.mkdir()
                (fresh / about.name).write_text(json.dumps(make(fresh)))
                _publish(fresh, folder)
        return dict(json.loads(about.read_text()))
    except OSError as error:
        raise InputError(
            f"{folder.parent} cannot keep the numbers of a large table ({error.strerror or error}): set data.cache_dir "
            "to a folder with room for about 8 bytes a number"
        ) from error
