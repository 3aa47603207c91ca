"""One screen on an installation, `python -m selssm_jax.doctor`: versions, devices, what every recurrence does here,
memory, the data cache, and what is missing.
"""

import importlib.metadata
import os
import pathlib
import platform
import re
import shutil
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from packaging.requirements import Requirement

from selssm_jax import __version__, ops
from selssm_jax.analysis.setting import describe_machine
from selssm_jax.data.builders import origins
from selssm_jax.data.capacity import format_bytes, machine
from selssm_jax.ops.extremes import largest

STEPS, WIDTH = 64, 8
AGREE = 1e-4  # of the largest value: how near a recurrence must come to its loop here
PROJECT = pathlib.Path(__file__).resolve().parents[1] / "pyproject.toml"  # of a clone
UNKNOWN = f"not known: the package is not installed, and there is no {PROJECT}"


class Finding(NamedTuple):
    """A line of the screen: what it is about, what was found, and whether that is in order."""

    subject: str
    words: str
    is_well: bool = True


def examine() -> dict[str, list[Finding]]:
    """Returns what was found, by the headings of the screen."""
    return {
        "versions": list(_versions()),
        "devices": list(_devices()),
        "recurrences": list(_recurrences()),
        "places": list(_places()),
        "extras": list(_extras()),
    }


def write_screen(findings: Mapping[str, list[Finding]]) -> str:
    """Returns the findings as text, `!` before what is not in order, and a last line that counts those."""
    lines = []
    for heading, group in findings.items():
        lines.append(heading)
        lines += [f"{' ' if finding.is_well else '!'} {finding.subject:24s} {finding.words}" for finding in group]
    wrong = [finding.subject for group in findings.values() for finding in group if not finding.is_well]
    return "\n".join([*lines, f"not in order: {', '.join(wrong)}" if wrong else "all is in order"])


def main() -> None:
    """Prints the screen; the exit code is 1 where something is not in order."""
    findings = examine()
    print(write_screen(findings))
    sys.exit(any(not finding.is_well for group in findings.values() for finding in group))


def _versions() -> Iterator[Finding]:
    yield Finding("selssm_jax", f"{__version__}, Python {platform.python_version()}, {platform.system()}")
    if not _is_package():
        yield Finding(
            "installation", f"none: it runs from {PROJECT.parent}; to install it: pip install -e {PROJECT.parent}"
        )
    needed = _requirements(extra="")
    yield from map(_version, needed) if needed else [Finding("packages", UNKNOWN)]


def _extras() -> Iterator[Finding]:
    for extra, use in (
        ("cuda", "NVIDIA GPUs"),
        ("tpu", "TPUs, and compiling for them"),
        ("subword", "texts by subwords"),
        ("test", "the tests"),
        ("docs", "the documentation"),
    ):
        declared = _requirements(extra)
        missing = [requirement.name for requirement in declared if not _is_installed(requirement)]
        place = "selssm_jax" if _is_package() else PROJECT.parent
        words = f"not installed ({', '.join(missing)}): pip install '{place}[{extra}]'" if missing else "installed"
        yield Finding(extra, f"{use}: {words if declared else UNKNOWN}")


def _requirements(extra: str) -> list[Requirement]:
    """What the package asks for, by an extra or at all; of a clone that is not installed what its project file says."""
    if not _is_package():
        return _read_project(extra)
    declared = map(Requirement, importlib.metadata.requires("selssm_jax") or [])
    return [requirement for requirement in declared if _is_of(requirement, extra)]


def _is_package() -> bool:
    """Whether the package is installed."""
    try:
        return bool(importlib.metadata.version("selssm_jax"))
    except importlib.metadata.PackageNotFoundError:
        return False


def _read_project(extra: str) -> list[Requirement]:
    if not PROJECT.is_file():
        return []
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    declared = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return list(map(Requirement, declared))


def _is_of(requirement: Requirement, extra: str) -> bool:
    """Whether it is asked for by this extra, "" for what is always needed, and by nothing less."""
    if not requirement.marker:
        return not extra
    always = requirement.marker.evaluate({"extra": ""})
    return always if not extra else requirement.marker.evaluate({"extra": extra}) and not always


def _version(requirement: Requirement) -> Finding:
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(requirement.name, f"is missing, {requirement.specifier} is needed", False)
    is_well = requirement.specifier.contains(version, prereleases=True)
    return Finding(requirement.name, version if is_well else f"{version}, {requirement.specifier} is needed", is_well)


def _is_installed(requirement: Requirement) -> bool:
    """Whether it is there, with what its own extras ask for."""
    try:
        declared = importlib.metadata.requires(requirement.name) or []
    except importlib.metadata.PackageNotFoundError:
        return False
    return all(
        _version(part).is_well
        for part in map(Requirement, declared)
        if any(_is_of(part, extra) for extra in requirement.extras)
    )


def _devices() -> Iterator[Finding]:
    yield Finding("CPU", f"{describe_machine()['cpus']} cores, {format_bytes(machine())} of memory")
    for device in jax.local_devices():
        limit = (device.memory_stats() or {}).get("bytes_limit") if device.platform != "cpu" else None
        held = f", {format_bytes(limit)} of memory" if limit else ""
        yield Finding(f"{device.platform}:{device.id}", f"{device.device_kind}{held}")
    if jax.process_count() > 1:
        yield Finding("processes", f"{jax.process_count()}, this is {jax.process_index()}")


def _recurrences() -> Iterator[Finding]:
    """What "auto" is on this platform, by the program that it becomes, and whether that equals the loop."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    decay, drive = jax.nn.sigmoid(normal(2, STEPS, WIDTH)), normal(2, STEPS, WIDTH)
    rotation = jnp.asarray(np.linalg.qr(rng.standard_normal((2, STEPS, WIDTH, WIDTH)))[0] * 0.9, jnp.float32)
    rates = (jax.nn.softplus(drive), -jnp.exp(normal(WIDTH, 4)), normal(2, STEPS, 4), normal(2, STEPS, 4))
    yield _recurrence("linear_scan", ops.linear_scan, (decay, drive), ("sequential", "associative", "chunked"))
    yield _recurrence("dense_scan", ops.dense_scan, (rotation, drive), ("sequential", "associative"))
    yield _recurrence("selective_scan", ops.selective_scan, (drive, *rates), ("sequential", "chunked"))


def _recurrence(name: str, run: Callable[..., Any], given: tuple[Any, ...], methods: tuple[str, ...]) -> Finding:
    program = _operations(run, given, "auto")

    def distance(method: str) -> int:
        other = _operations(run, given, method)
        return ((program - other) + (other - program)).total()

    chosen = min(methods, key=distance)
    taken, loop = (jax.jit(lambda *of, how=how: run(*of, method=how)[0])(*given) for how in ("auto", "sequential"))
    error = float(largest(jnp.abs(taken - loop)) / largest(jnp.abs(loop)))
    reason = (
        "the fastest where it was measured" if jax.default_backend() == "cpu" else "chosen by reasoning, not measured"
    )
    words = f"{chosen}: {reason}; {error:.0e} from the loop"
    return Finding(name, words, bool(error < AGREE))


def _operations(run: Callable[..., Any], given: tuple[Any, ...], method: str) -> Counter[str]:
    """How often each operation stands in the program of this platform."""
    text = jax.jit(lambda *of: run(*of, method=method)).lower(*given).as_text()
    return Counter(re.findall(r"stablehlo\.\w+", text))


def _places() -> Iterator[Finding]:
    cache = origins.cache_root("")
    where = "$SELSSM_DATA_DIR" if os.environ.get("SELSSM_DATA_DIR") else "the default"
    size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) if cache.is_dir() else 0
    yield Finding("data cache", f"{cache} ({where}), {format_bytes(size)} in use")
    around = next(place for place in (cache, *cache.parents) if place.exists())
    free = shutil.disk_usage(around).free
    yield Finding("room for data", f"{format_bytes(free)} free", free > 2**30)
    yield Finding("writable", str(around), os.access(around, os.W_OK))
    compiled = jax.config.values["jax_compilation_cache_dir"]
    yield Finding("compiled programs", f"kept in {compiled}" if compiled else "not kept: each process compiles its own")


if __name__ == "__main__":
    main()
