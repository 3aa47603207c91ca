"""Several processes that train one run, each with the devices of its machine: how they join, agree and part.

The rules are few. Every process runs the same program on the same numbers, so that all decide alike; where their
numbers could differ, in the last bit or by the clock, those of the first are taken. The first alone writes records and
holds the run's lock. Everything else in the package asks here, and knows nothing more of clusters.
"""

import contextlib
import hashlib
import importlib.util
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from selssm_jax.errors import InputError, LostProcess, first_line

HEARTBEAT = 15  # seconds without a sign of life after which a process is lost
JOIN = 300  # seconds that the first who come wait for the others
PART = 7 * 24 * 3600  # seconds that they wait, at the end, for a process that writes the report
# Each launcher, and the variable that says how many processes it has started.
LAUNCHERS = {"Slurm": "SLURM_NTASKS", "Open MPI": "OMPI_COMM_WORLD_SIZE"}
# What is in the message of an error that a lost process is the cause of.
SIGNS = ("gloo", "nccl", "closed by peer", "reset by peer", "socket closed", "heartbeat", "unhealthy", "unavailable:")

_numbers = itertools.count()  # of barriers, which need names of their own


def join(
    coordinator: str = "",
    processes: int | None = None,
    process: int | None = None,
    *,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Joins this process to its cluster, if there is one. Call it before anything is computed.

    Args:
      coordinator: HOST:PORT, where process 0 listens; empty: what launched this process is asked (Slurm, Open MPI,
        Kubernetes, Cloud TPU).
      processes: how many there are. process: the number of this one.
      before: is called where there is a cluster, before it is joined.

    Raises:
      InputError: for one of the three without the others, and where the processes do not find one another.
    """
    check_flags(coordinator, processes, process)
    launcher = find_launcher()
    if not coordinator and not launcher:
        return
    before()
    try:
        jax.distributed.initialize(
            coordinator or None,
            processes,
            process,
            initialization_timeout=JOIN,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=PART,
        )
    except (RuntimeError, ValueError) as error:
        if launcher == "Cloud TPU" and not coordinator:
            return  # a machine by itself
        raise InputError(
            f"the processes did not find one another ({first_line(error)}): start all of them within {JOIN} "
            "seconds, and give each --coordinator HOST:PORT --processes N --process K, with a HOST that all can reach"
        ) from error


def check_flags(coordinator: str, processes: int | None, process: int | None) -> None:
    """Raises InputError where --coordinator, --processes and --process do not name a process of a cluster."""
    given = [bool(coordinator), processes is not None, process is not None]
    if not any(given):
        return
    if processes is None or process is None or not coordinator:
        raise InputError("--coordinator, --processes and --process belong together: give all three, or none")
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdigit() and 0 < int(port) < 2**16):
        raise InputError(f"--coordinator={coordinator} is not HOST:PORT, as in 10.0.0.1:12345")
    if not 0 <= process < processes:
        raise InputError(f"--process={process} is none of 0 to {processes - 1}, the numbers of --processes={processes}")


def find_launcher() -> str:
    """Returns what started this process as one of several, by its environment; nothing where it stands alone."""
    for launcher, variable in LAUNCHERS.items():
        if os.environ.get(variable, "1") != "1" and (launcher != "Slurm" or "SLURM_STEP_NODELIST" in os.environ):
            return launcher
    if "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ:
        return "Kubernetes"
    # the metadata of a TPU machine are behind a request, which JAX makes
    chips = any(pathlib.Path(place).exists() for place in ("/dev/accel0", "/dev/vfio/0"))
    return "Cloud TPU" if chips and importlib.util.find_spec("libtpu") else ""


def is_joined() -> bool:
    """Whether this process has joined a cluster."""
    return jax.distributed.is_initialized()


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def is_alone() -> bool:
    """Whether there is no other process."""
    return jax.process_count() == 1


def check_alone(work: str) -> None:
    """Raises InputError in a cluster, for work that its processes cannot share."""
    if not is_alone():
        raise InputError(
            f"this is process {jax.process_index()} of a cluster of {jax.process_count()}, and {work} is the work of "
            "one process: start it alone, without --coordinator and without jax.distributed.initialize()"
        )


@contextlib.contextmanager
def starting_together() -> Iterator[None]:
    """What must succeed in every process or is not begun in any. Nothing in it may wait for another process.

    Raises:
      InputError: in processes that succeeded, where another did not.
    """
    try:
        yield
    except BaseException:
        _gather(np.zeros(1, np.uint8))
        raise
    failed = [number for number, succeeded in enumerate(_gather(np.ones(1, np.uint8))) if not succeeded]
    if failed:
        raise InputError(f"process {failed[0]} could not begin, and says why: mend that, and start all processes again")


def check_same(what: str, values: dict[str, Any]) -> None:
    """Raises InputError where JSON values are not the same in every process; the message names their keys."""
    if is_alone():
        return
    if (whole := _gather(_digest(values))).max(axis=0).tobytes() == whole.min(axis=0).tobytes():
        return
    other = next(number for number, digest in enumerate(whole) if (digest != whole[0]).any())
    names = sorted(values)
    if len(set(_gather(np.array([len(names)], np.uint32)).ravel())) == 1:
        digests = _gather(np.stack([_digest([name, values[name]]) for name in names]))
        names = [name for place, name in enumerate(names) if (digests[other, place] != digests[0, place]).any()]
    raise InputError(
        f"process {other} has other {what} than process 0 ({', '.join(names)}): give all processes the same"
    )


def _digest(value: Any) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest(), np.uint8)


def take_first(tree: Any) -> Any:
    """Returns the arrays of the first process, in every process: bit for bit."""
    if is_alone():
        return tree
    wait()
    bits = jax.tree.map(lambda leaf: np.ascontiguousarray(np.asarray(leaf)).reshape(-1).view(np.uint8), tree)
    first = multihost_utils.broadcast_one_to_all(bits)
    return jax.tree.map(
        lambda leaf, taken: np.asarray(taken).view(np.asarray(leaf).dtype).reshape(np.shape(leaf)), tree, first
    )


def take_first_numbers(values: dict[str, float]) -> dict[str, float]:
    """Returns the named numbers of the first process, in every process."""
    return dict(zip(values, take_first(np.array(list(values.values()), np.float64)).tolist(), strict=True))


def wait() -> None:
    """Waits until all are here, however long one of them takes: a collective of a CPU gives up after a while."""
    if is_alone():
        return
    everyone = set(range(jax.process_count()))
    ocp.multihost.sync_global_processes(f"selssm_jax {next(_numbers)}", timeout=12 * JOIN, processes=everyone)


def is_stop_agreed(calls: int) -> bool:
    """Whether all processes stop now, some time after one of them was sent SIGTERM.

    calls: how often it was asked, by this call: every process asks alike. See
    `multihost_utils.reached_preemption_sync_point`.
    """
    return bool(multihost_utils.reached_preemption_sync_point(calls))


def as_stored(tree: Any) -> Any:
    """Returns a tree of arrays as arrays of all processes, those too that each process holds for itself: what Orbax
    saves once.
    """
    if is_alone():
        return tree
    layout = _stored_layout()
    return jax.tree.map(
        lambda leaf: (
            jax.make_array_from_single_device_arrays(
                leaf.shape, layout, [jax.device_put(leaf.addressable_data(0), jax.local_devices()[0])]
            )
            if leaf.is_fully_addressable
            else leaf
        ),
        tree,
    )


def as_live(tree: Any, layout: Callable[[Any], jax.sharding.Sharding]) -> Any:
    """Returns restored arrays where `layout` says that they live between steps."""
    return jax.tree.map(
        lambda leaf: (
            leaf
            if leaf.sharding.is_equivalent_to(layout(leaf), leaf.ndim)
            else jax.device_put(leaf.addressable_data(0), layout(leaf))
        ),
        tree,
    )


def choose_stored(where: jax.sharding.Sharding) -> jax.sharding.Sharding:
    """Returns how an array that lives there lies when it is saved and restored: alike, or, where each process holds it
    for itself, whole on a device of each.
    """
    return _stored_layout() if not is_alone() and where.is_fully_addressable else where


def _stored_layout() -> jax.sharding.Sharding:
    firsts = {device.process_index: device for device in reversed(jax.devices())}
    devices = [firsts[process] for process in sorted(firsts)]
    return jax.sharding.NamedSharding(jax.sharding.Mesh(np.array(devices), ("process",)), jax.sharding.PartitionSpec())


def orbax_options(name: str, *, alone: bool) -> ocp.options.MultiprocessingOptions:
    """Returns which processes save or restore, under a name of its own: all together, or this one by itself."""
    if is_alone():
        return ocp.options.MultiprocessingOptions()
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=me if alone else 0,
        active_processes={me} if alone else None,
        barrier_sync_key_prefix=f"{name}{me}" if alone else name,
    )


@contextlib.contextmanager
def noticing_loss() -> Iterator[None]:
    """Raises LostProcess where an error says that another process is gone."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        if is_alone() or isinstance(error, InputError) or not any(sign in str(error).lower() for sign in SIGNS):
            raise
        raise LostProcess(
            f"another process of this cluster of {jax.process_count()} was lost ({first_line(error)})"
        ) from error


def _gather(value: np.ndarray) -> np.ndarray:
    """The values of all processes, by their number."""
    if is_alone():
        return value[None]
    wait()
    return np.asarray(multihost_utils.process_allgather(value))
