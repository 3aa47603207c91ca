"""The SHA-256 of every file of a folder, kept in the folder itself, so that what is read is what was written."""

import hashlib
import json
import pathlib
from collections.abc import Iterator

from selssm_jax.paths import check_regular

MANIFEST = "checksums.json"
# Orbax writes the time of a commit after the sums were taken; nothing that a run goes on from is read from these.
UNLISTED = frozenset({MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt"})


class Damaged(Exception):
    """A file is not what was written."""


def seal(folder: pathlib.Path) -> None:
    """Writes the sums of all files of a folder, "state/_METADATA": "9f86d0...", into its checksums.json."""
    sums = {name: _digest(folder / name) for name in _names(folder)}
    (folder / MANIFEST).write_text(json.dumps(sums))


def verify(folder: pathlib.Path, only: str = "") -> bool:
    """Compares the files of a folder, or one of them, with its sums; returns whether it has any: folders of earlier
    versions have none.

    Raises:
      Damaged: naming the file that is missing or has another sum.
      OSError: where one cannot be read.
    """
    try:
        check_regular(folder / MANIFEST)
        sums = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return False
    except ValueError as error:
        raise Damaged(f"{MANIFEST} is damaged") from error
    if not isinstance(sums, dict) or not sums:
        raise Damaged(f"{MANIFEST} is damaged: expected the sum of every file")
    for name in [only] if only else sums:
        if not (folder / name).is_file():
            raise Damaged(f"{name} is missing")
        if _digest(folder / name) != sums.get(name):
            raise Damaged(f"{name} is not what was written: its SHA-256 differs")
    return True


def _names(folder: pathlib.Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in UNLISTED:
            yield name


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
