"""A file of one's own: opened as often as its readers need, and known by its content, wherever it lies."""

import codecs
import dataclasses
import functools
import glob
import hashlib
import io
import pathlib
from collections.abc import Iterator, Sequence

from selssm_jax.errors import InputError
from selssm_jax.paths import check_regular

CHUNK = 1 << 20  # bytes read at a time


@dataclasses.dataclass(frozen=True)
class OwnFile:
    """A file and its identity.

    Attributes:
      path: as the user gave it.
      size: bytes.
      sha256: of its content.
      newlines: how many line ends it has.
    """

    path: str
    size: int
    sha256: str
    newlines: int

    def open(self) -> io.BufferedReader:
        """Returns the content from its beginning, to be read piece by piece."""
        return pathlib.Path(self.path).expanduser().open("rb")

    def pieces(self) -> Iterator[str]:
        """Yields the text in pieces, with a line feed alone for line ends. Raises InputError where it is not UTF-8, or
        white space alone.
        """
        rest, empty = "", True
        for number, piece in enumerate(self._decode()):
            text = rest + (piece.removeprefix("\ufeff") if not number else piece)
            rest = "\r" if text.endswith("\r") and piece else ""  # the line feed may come in the next piece
            text = text.removesuffix(rest).replace("\r\n", "\n")
            empty = empty and not text.strip()
            yield text
        if empty:
            raise InputError(f"{self.path} is empty: give a text to model")

    def _decode(self) -> Iterator[str]:
        """The content as text, chunk by chunk, and an empty string at its end."""
        decoder, before, lines = codecs.getincrementaldecoder("utf-8")(), 0, 1
        with self.open() as stream:
            chunk = b"start"
            while chunk:
                chunk = stream.read(CHUNK)
                try:
                    text = decoder.decode(chunk, final=not chunk)
                except UnicodeDecodeError as error:
                    place = before - (len(error.object) - len(chunk)) + error.start
                    line = lines + error.object[: error.start].count(b"\n")
                    raise InputError(
                        f"{self.path} is not UTF-8 (byte {place}, line {line}): convert it, for example with iconv"
                    ) from error
                before, lines = before + len(chunk), lines + text.count("\n")
                if text or not chunk:
                    yield text

    def open_text(self) -> io.TextIOBase:
        """Returns the text in its `encoding`, line ends as they are."""
        return io.TextIOWrapper(self.open(), self.encoding, newline="", errors="replace")

    @functools.cached_property
    def encoding(self) -> str:
        """That of its beginning: UTF-16 where a byte order mark says so, UTF-8 where it is, else Windows-1252."""
        with self.open() as stream:
            start = stream.read(CHUNK)
        if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return "utf-16"
        try:
            codecs.getincrementaldecoder("utf-8")().decode(start)
        except UnicodeDecodeError:
            return "cp1252"
        return "utf-8-sig"

    @property
    def notes(self) -> list[str]:
        """What a reader of `open_text` should know."""
        return ["not UTF-8, read as Windows-1252"] if self.encoding == "cp1252" else []


def open_each(paths: str) -> list[OwnFile]:
    """Returns the files that a path names, or several between commas, or a pattern such as data/*.csv, in order of
    their names. Raises InputError where there is none, and as `open_own` does.
    """
    if pathlib.Path(paths).expanduser().exists():
        return [open_own(paths)]
    files = []
    for path in [part.strip() for part in paths.split(",")]:
        place = pathlib.Path(path).expanduser()
        matches = sorted(glob.glob(str(place))) if glob.has_magic(path) else [path]
        if not matches:
            raise InputError(f"data.file={path!r} matches no file: give a pattern that does, such as data/*.csv")
        files += [open_own(match) for match in matches]
    return files


def identify(files: Sequence[OwnFile]) -> str:
    """Returns the sha256 of the content of a file, of several that of theirs."""
    hashes = [file.sha256 for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def open_own(path: str) -> OwnFile:
    """Returns a file of the user's after one reading of it. Raises InputError where it cannot be read, or is no regular
    file.
    """
    try:
        place = pathlib.Path(path).expanduser()
        check_regular(place)
        size, newlines, digest = 0, 0, hashlib.sha256()
        with place.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                size, newlines = size + len(chunk), newlines + chunk.count(b"\n")
                digest.update(chunk)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"data.file={path!r} cannot be read ({reason}): set it to an existing file, or in eval.py name one by "
            "--file or --predict"
        ) from error
    return OwnFile(path, size, digest.hexdigest(), newlines)
