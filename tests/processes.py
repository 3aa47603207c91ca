"""Commands in several processes that form a cluster on this machine."""

import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import runs
from selssm_jax.config import Experiment


def find_port() -> int:
    """Returns a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start(script: str, arguments: Sequence[str], count: int, *, devices: int = 1) -> list[subprocess.Popen[str]]:
    """Starts a command in `count` processes, each with so many virtual devices."""
    address = f"localhost:{find_port()}"
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    environment = os.environ | {
        "XLA_FLAGS": " ".join([*flags, f"--xla_force_host_platform_device_count={devices}"]),
    }
    return [
        subprocess.Popen(
            [sys.executable, script, *arguments, f"--coordinator={address}", f"--processes={count}", f"--process={k}"],
            cwd=runs.REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in range(count)
    ]


def train(
    folder: pathlib.Path, config: Experiment, count: int, *flags: str, devices: int = 1
) -> list[subprocess.Popen[str]]:
    """Starts the training of configs/smoke.py as this experiment."""
    return start("train.py", [*runs.train_command(folder, config)[2:], *flags], count, devices=devices)


def finish(processes: Sequence[subprocess.Popen[str]], *, within: float = 300) -> list[tuple[int, str, str]]:
    """Returns the exit code and what was written on standard output and standard error, of each; none is left."""
    try:
        written = [process.communicate(timeout=within) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, written, strict=True)]


def wait_for(happened: Callable[[], object], *, within: float = 300) -> None:
    """Waits until something has happened. Raises AssertionError where it does not."""
    end = time.monotonic() + within
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
