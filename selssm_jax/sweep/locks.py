"""Locks between the workers of a sweep, which the system lets go of when a process ends, however it ends."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator
from typing import IO

LOCK = ".lock"  # of the sweep's folder


@contextlib.contextmanager
def hold(path: pathlib.Path) -> Iterator[None]:
    """Holds a lock that other processes wait for."""
    with path.open("w") as held:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def try_hold(path: pathlib.Path) -> IO[str] | None:
    """Returns a lock, held until it is closed; None where another process holds it."""
    held = path.open("w")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.close()
        return None
    except OSError:
        return held  # a file system without locks
    return held
