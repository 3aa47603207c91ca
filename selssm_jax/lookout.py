"""Watches over a process of a cluster: where another one is lost, a sentence takes the place of the native stack dump.

JAX ends a process whose cluster has lost a member from C++, by an abort that no Python code outlives: what there is to
say must be said by someone else, a process of a few lines that reads what native code writes on standard error.
"""

import os
import pathlib
import re
import subprocess
import sys
from typing import TextIO

# What JAX's native code says of its cluster.
_OF_CLUSTER = re.compile(rb"^[WEF]\d{4} [\d:. ]+\S*(coordination|preemption|distributed|client\.h)|^\[Gloo\] Rank ")
_FAULT = re.compile(rb"^[EF]\d{4} ")
_ABORT = b"Terminating process because the JAX distributed service"
# Which process was lost: of these texts the first that is there.
_LOST = (
    rb"unhealthy \(stopped sending heartbeats\):\s+((?:\d+\s*)+)",
    rb"[Tt]ask (\d+) heartbeat timeout",
    rb"task:(\d+)",
)
_COORDINATOR = re.compile(rb"Socket closed|[Cc]onnection refused|recvmsg:|UNAVAILABLE")


def watch(folder: str | os.PathLike[str], again: str) -> tuple[TextIO, TextIO]:
    """Starts the watcher of this process, which from now on sees what native code writes, and passes it on to standard
    error. Returns standard output and standard error as Python itself is to use them.

    folder: of the run, whose newest checkpoint is named. again: the command that goes on.
    """
    streams = os.dup(1), os.dup(2)
    watcher = subprocess.Popen(
        [sys.executable, "-P", __file__, os.fspath(folder), again], stdin=subprocess.PIPE, start_new_session=True
    )
    assert watcher.stdin is not None
    sys.stdout.flush()
    sys.stderr.flush()
    for native in (1, 2):
        os.dup2(watcher.stdin.fileno(), native)
    watcher.stdin.close()
    watcher.returncode = 0  # it ends after this process, which does not wait for it
    out, err = (os.fdopen(stream, "w", buffering=1) for stream in streams)
    return out, err


def describe_loss(lost: str, folder: str, again: str) -> str:
    """Returns the sentence: which process was lost, the last good checkpoint, the command that goes on.

    The checkpoint is that of `Workdir.last_good`, found without it: the watcher imports nothing of the package.
    """
    checkpoints = pathlib.Path(folder) / "checkpoints"
    steps = [int(entry.name) for entry in checkpoints.glob("*") if entry.name.isdigit()]
    good = f"the last good checkpoint is step {max(steps)} in {checkpoints}" if steps else "no checkpoint was saved yet"
    return (
        f"error: {lost} of this cluster was lost, so that this one stops too; {good}; to go on, start all of them "
        f"again: {again}"
    )


def name_lost(text: bytes) -> str:
    """Returns which process was lost, as native code tells of it: "process 1"."""
    for pattern in _LOST:
        if match := re.search(pattern, text):
            numbers = match[1].decode().split()
            return f"process {numbers[0]}" if len(numbers) == 1 else f"processes {', '.join(numbers)}"
    return "process 0" if _COORDINATOR.search(text) else "a process"


def _pass_on(folder: str, again: str) -> None:
    """Copies lines until nobody writes any more. Those of the cluster are held back, and told of if they ended it."""
    held = b""
    for line in sys.stdin.buffer:
        if held or (_OF_CLUSTER.match(line) and _FAULT.match(line)):
            held += line
        elif not _OF_CLUSTER.match(line):
            sys.stderr.buffer.write(line)
            sys.stderr.flush()
    if _ABORT in held:
        print(describe_loss(name_lost(held), folder, again), file=sys.stderr)
    else:
        sys.stderr.buffer.write(held)


if __name__ == "__main__":
    _pass_on(*sys.argv[1:])
