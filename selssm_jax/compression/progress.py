"""What a compression has worked out so far, in a folder of its own, so that one that was stopped at any moment goes
on.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from selssm_jax.config import Experiment
from selssm_jax.errors import InputError
from selssm_jax.training.checkpoint import write_whole

VALUES = "values.json"  # the name of an item's JSON among its arrays
CHECKSUM = hashlib.sha256().digest_size  # bytes before an item's arrays
IDENTITY = "identity"  # the file that says what the items are of
PyTree = Any


@dataclasses.dataclass(frozen=True)
class Progress:
    """Named items, each a file that is written whole or not at all: JSON values and arrays. Without a folder nothing is
    remembered.
    """

    folder: pathlib.Path | None = None

    @property
    def begun(self) -> bool:
        """Whether anything is kept."""
        return self.folder is not None and any(self.folder.glob("*.item"))

    def recall(self, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
        """Returns the values and arrays that were kept under a name; None where none were, or where their checksum does
        not agree any more.
        """
        if self.folder is None or not (path := self._path(name)).is_file():
            return None
        checksum, content = (stored := path.read_bytes())[:CHECKSUM], stored[CHECKSUM:]
        if hashlib.sha256(content).digest() != checksum:
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as item:
            arrays = {key: item[key] for key in item.files}
        return json.loads(arrays.pop(VALUES).tobytes()), arrays

    def keep(self, name: str, values: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
        """Keeps values, as JSON knows them, and arrays under a name. Raises InputError where the folder cannot be
        written.
        """
        if self.folder is None:
            return
        path, content = self._path(name), io.BytesIO()
        text = np.frombuffer(json.dumps(dict(values)).encode(), np.uint8)
        columns: dict[str, Any] = {VALUES: text} | {key: np.asarray(value) for key, value in arrays.items()}
        np.savez(content, **columns)
        try:
            write_whole(path, hashlib.sha256(content.getvalue()).digest() + content.getvalue())
        except OSError as error:
            raise InputError(
                f"{self.folder} could not be written ({error.strerror}): mend that and run the same command again, it "
                "goes on"
            ) from error

    def _path(self, name: str) -> pathlib.Path:
        assert self.folder is not None
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.item"


@contextlib.contextmanager
def open_progress(folder: pathlib.Path, identity: str) -> Iterator[Progress]:
    """Opens the folder of an unfinished compression for this process alone; items of another identity are removed. It
    is the caller's to remove at the end.

    Raises InputError where it cannot be written, or another process works in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}): make room for the compressed run beside its original"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another process compresses into {folder}: wait for it, or stop it") from error
        except OSError:
            pass  # a file system without locks
        if not (folder / IDENTITY).is_file() or (folder / IDENTITY).read_text() != identity:
            for path in [path for path in folder.iterdir() if path.name != ".lock"]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            (folder / IDENTITY).write_text(identity)
        yield Progress(folder)


def fingerprint(experiment: Experiment, params: PyTree, *also: Any) -> str:
    """Returns a hash of an experiment, of parameters and of whatever else decides what a compression gives."""
    digest = hashlib.sha256(json.dumps([dataclasses.asdict(experiment), also], sort_keys=True, default=str).encode())
    for path, leaf in jax.tree_util.tree_flatten_with_path(jax.device_get(params))[0]:
        digest.update(f"{path} {leaf.shape} {leaf.dtype}".encode() + np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
