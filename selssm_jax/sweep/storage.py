"""Where Optuna keeps the trials of a sweep, by `sweep.storage`: a database, or a journal of all that happened."""

import contextlib
import pathlib
import re
import sqlite3
from collections.abc import Iterator
from functools import partial

from optuna.exceptions import OptunaError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from selssm_jax.config.sweep import JOURNALS
from selssm_jax.errors import InputError, first_line
from selssm_jax.sweep.locks import LOCK, hold

DATABASE = "sweep.db"  # in the sweep's folder, where sweep.storage names no other
# what a wrong address, a driver that is missing, a server that is away, and a file of another kind raise
FAULTS = (SQLAlchemyError, OptunaError, ImportError, OSError, ValueError, TypeError, RuntimeError, LookupError)
PATIENCE = 60.0  # seconds that a worker waits for another one's write


def open_storage(setting: str, folder: pathlib.Path) -> BaseStorage:
    """Returns the storage that sweep.storage names: FOLDER/sweep.db where that is empty, else a URL of a database as
    SQLAlchemy has it, or a path of a journal or a SQLite file, which is made where it is not there yet.

    Sweeps that start in one moment wait for each other: Optuna makes its tables without a lock. No connection
    outlives its question: one that waits in a pool is closed by nobody, or by a server while a trial trains.

    Raises:
      InputError: for a place that cannot be opened, or that holds something else.
    """
    with hold(folder / LOCK), _clear_errors(setting or str(folder / DATABASE)):
        if "://" in setting:
            return RDBStorage(setting, engine_kwargs={"poolclass": NullPool})
        path = pathlib.Path(setting).absolute() if setting else folder / DATABASE
        path.parent.mkdir(parents=True, exist_ok=True)
        return _open_journal(path) if path.suffix in JOURNALS else _open_sqlite(path)


def _open_journal(path: pathlib.Path) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(path), _JournalLock(f"{path}.held")))


class _JournalLock(JournalFileOpenLock):
    """Between two writers of a journal. Optuna's own outlives a process that is killed while it has it."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._path, self._holding = pathlib.Path(path), contextlib.ExitStack()

    def acquire(self) -> bool:
        self._holding.enter_context(hold(self._path))
        return True

    def release(self) -> None:
        self._holding.close()


def _open_sqlite(path: pathlib.Path) -> RDBStorage:
    """A file of any name: in an address, "?" and "%" would lead elsewhere, by SQLAlchemy's version."""
    connect = partial(sqlite3.connect, path, timeout=PATIENCE, check_same_thread=False)
    return RDBStorage(f"sqlite:///{DATABASE}", engine_kwargs={"creator": connect, "poolclass": NullPool})


@contextlib.contextmanager
def _clear_errors(place: str) -> Iterator[None]:
    """Turns what a storage raises into an InputError that names it, without its password."""
    try:
        yield
    except FAULTS as error:
        if isinstance(error, InputError):
            raise
        shown = re.sub(r"(://[^/@]*?):[^/]*@", r"\1:***@", place)
        raise InputError(
            f"sweep.storage: {shown} cannot be opened ({first_line(error)}): give a database that is there, such as "
            "postgresql://USER:PASSWORD@HOST/NAME with its driver installed, or a path that ends in .log or .db"
        ) from error
