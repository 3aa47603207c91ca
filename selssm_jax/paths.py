"""What a path leads to, asked before anything of it is read."""

import os
import pathlib
import re
import stat

from selssm_jax.errors import ArgumentError, InputError

WRITTEN = "give the folder that train.py wrote, for example runs/quickstart"
# By the letter that `ls -l` begins a line with.
KINDS = {"d": "a folder", "p": "a pipe", "c": "a device", "b": "a device", "s": "a socket"}


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raises OSError where a path leads to no regular file: a pipe, a device or a socket may have no end, or never a
    beginning, and a folder has no content.

    Raises ValueError for what can be no path, as all that opens one does.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise OSError(
            f"it is {KINDS.get(stat.filemode(mode)[0], 'of another kind')}, expected a regular file: write what is to "
            "be read into one"
        )


def check_new_file(path: str, argument: str) -> None:
    """Raises ArgumentError, before work starts, where a file is there already, or cannot be written; leaves nothing."""
    if os.path.lexists(path):
        raise ArgumentError(argument, f"={path} exists already: move or remove it, or name another file")
    probe = pathlib.Path(f"{path}.{os.getpid()}")
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArgumentError(argument, f"={path} cannot be written ({reason}): name another file") from error


def check_local(path: str, flag: str = "--workdir") -> None:
    """Raises InputError for a place that is no folder of this machine, such as gs://bucket/run."""
    if re.match(r"[A-Za-z][\w+.-]+:/", path):
        raise InputError(
            f"{flag} {path} is no folder of this machine: files are written and read in local folders alone; give one, "
            "and copy it afterwards"
        )


def check_folder(workdir: str | os.PathLike[str]) -> pathlib.Path:
    """Returns a run's folder. Raises InputError where none is named, or there is none of that name."""
    if not str(workdir):
        raise ArgumentError("run_folder", f" is missing: {WRITTEN}", flag="workdir")
    check_local(str(workdir))
    folder = pathlib.Path(workdir)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ArgumentError("run_folder", f"={workdir} {what}: {WRITTEN}", flag="workdir")
    return folder
