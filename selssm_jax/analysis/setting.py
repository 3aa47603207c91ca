"""The setting of a result: the configuration, the versions of what ran it, and the kind of machine; nothing that
identifies one.
"""

import dataclasses
import importlib.metadata
import os
import pathlib
import platform

import jax

from selssm_jax.analysis.results import Results
from selssm_jax.config import Experiment

PACKAGES = ("selssm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe_setting(experiment: Experiment) -> Results:
    """Returns the configuration, without the folders of this machine, the versions of what ran it, and on what."""
    versions = {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in PACKAGES if _is_installed(name)
    }
    return {"config": _portable(experiment), "versions": versions, "machine": describe_machine()}


def describe_machine() -> Results:
    """Returns on what kind of machine this runs; nothing that identifies it."""
    devices = jax.devices()
    # fewer where a process was pinned
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": cpus,
        "devices": len(devices),
        "device": devices[0].device_kind,
    }


def _portable(experiment: Experiment) -> Results:
    """The configuration without the folders of this machine, which decide nothing."""
    here = experiment.data
    there = dataclasses.replace(here, file=pathlib.Path(here.file).name, local_dir="", cache_dir="")
    return dataclasses.asdict(dataclasses.replace(experiment, data=there))


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
