"""What cannot fit into memory is refused by an estimate from below, before anything of it is made.

An estimate counts what must be there at once, and no more: what it refuses could not have run, what it lets pass may
still be too much.
"""

import math
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from selssm_jax.config import SERIES, SIGNALS, SYMBOLS, SYNTHETIC, Data
from selssm_jax.errors import InputError

LIMIT = pathlib.Path("/sys/fs/cgroup/memory.max")  # of a container
NUMBER = 4  # bytes of a float32 and of an int32
NAME = 50  # bytes of a short text, in Python
DENSEST = 1032  # bytes that deflate makes of one, at most


def machine() -> int:
    """Returns the bytes of memory that this machine, or the container that this process is in, has in all."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(whole, int(LIMIT.read_text()))
    except (OSError, ValueError):  # none, or "max"
        return whole


def refuse(parts: Mapping[str, float], available: int) -> None:
    """Raises InputError where the parts, bytes by what they are, are more than there is; it names the largest."""
    total = sum(parts.values())
    if total > available:
        largest = max(parts, key=lambda name: parts[name])
        raise InputError(
            f"this needs at least {format_bytes(total)} of memory, of {format_bytes(available)} that there are: "
            f"{largest} takes {format_bytes(parts[largest])}; lower what it says"
        )


def check_examples(config: Data) -> None:
    """Raises InputError where the batches that a config asks for cannot be held, whatever is in its files."""
    rows = max(config.batch_size, config.eval_batch_size)
    steps = config.length + (config.horizon if config.source in SERIES else 0)
    parts = {
        f"a batch of data.batch_size={config.batch_size} (data.eval_batch_size={config.eval_batch_size})": float(
            rows * NUMBER
        )
    }
    if config.source not in SIGNALS:  # whose length is that of the longest, where that is shorter
        parts = {
            f"{next(iter(parts))} with data.length={config.length}, data.horizon={config.horizon}": 2.0
            * rows
            * steps
            * NUMBER
        }
    if config.source in SYMBOLS:
        parts[f"the names of data.vocab={config.vocab} symbols"] = float(config.vocab * NAME)
    if config.source in SYNTHETIC:
        parts[f"the order of data.train_examples={config.train_examples}"] = float(config.train_examples * 8)
    refuse(parts, machine())


def check_archive(name: str, stream: Any) -> None:
    """Raises InputError where a ZIP claims to hold more than it can, or than there is memory for. Raises what `zipfile`
    does for what is none.

    The stream, of bytes, stands at its beginning before and after.
    """
    with zipfile.ZipFile(stream) as archive:
        for part in archive.infolist():
            if part.file_size > DENSEST * part.compress_size + DENSEST:
                raise InputError(
                    f"{name}: {part.filename!r} claims {format_bytes(part.file_size)} in {part.compress_size} bytes, "
                    "more than any compression makes: write it again"
                )
            with archive.open(part) as file:
                claimed = _read_claim(file)
            if claimed > part.file_size:
                raise InputError(
                    f"{name}: {part.filename!r} claims an array of {format_bytes(claimed)}, and has "
                    f"{format_bytes(part.file_size)}: write it again"
                )
        refuse({f"the arrays of {name}": float(sum(part.file_size for part in archive.infolist()))}, machine())
    stream.seek(0)


def _read_claim(file: Any) -> int:
    """Bytes of the array that the header of an NPY announces; 0 for what is none, which is for NumPy to say."""
    try:
        version = np.lib.format.read_magic(file)
        shape, _, kind = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )(file)
    except (ValueError, SyntaxError, EOFError, TypeError):
        return 0
    return math.prod(map(int, shape)) * kind.itemsize


def format_bytes(count: float) -> str:
    """Returns bytes as people say them, "1.5 GB"."""
    power = min(int(math.log10(max(count, 1)) // 3), 8)
    return f"{count / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB', 'PB', 'EB', 'ZB', 'YB')[power]}"
