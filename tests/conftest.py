"""Hostile settings for every test: four CPU devices, no silent broadcasting of ranks, warnings are errors
(pyproject.toml).

They are environment variables where JAX has one, so that commands started by a test run under the same settings.
"""

import json
import os
import pathlib
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version

import pytest
from jaxtyping import install_import_hook

# JAX reads these when it is imported, which happens after this file.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of a run's time is the compilation of small programs: without parallel code generation it takes two thirds of it,
# and, in versions that can, a quarter by the emitters that were there before those of fusions.
LEGACY_EMITTERS = (
    ["--xla_cpu_use_fusion_emitters=false"] if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11) else []
)
FLAGS = ["--xla_force_host_platform_device_count=4", "--xla_cpu_parallel_codegen_split_count=1", *LEGACY_EMITTERS]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]).strip()
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# One folder for each process of a parallel run: entries are not written at once, and another process may read half of
# one.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "alone")
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(
    tempfile.gettempdir(), f"selssm_jax-compiled-{os.getuid()}-{WORKER}"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# programs of tests run once: what is saved in compiling them is a third of all time
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["MPLBACKEND"] = "Agg"
# Threads of BLAS beside as many processes as there are cores wait for one another.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
# of test functions, as tests/durations.py measured them
SECONDS = json.loads((REPOSITORY / "tests" / "durations.json").read_text())["seconds"]
SLOW = 0.7  # seconds from which on a case is left out of a developer's loop
BUDGET = 2.0  # seconds of a function's cases that are not exhaustive; at least one is not
LONGEST = 20.0  # seconds from which on a case is exhaustive, unless it is marked as one that always runs

# Shapes and types are checked at every call. The configuration is left out: it checks its own, and says the fix.
CHECKED = [
    f"selssm_jax.{path.stem}"
    for path in (REPOSITORY / "selssm_jax").iterdir()
    if path.stem not in ("__init__", "__pycache__", "config", "errors")
]
install_import_hook(CHECKED, "typechecking.check")
pytest_plugins = ["small_runs"]  # runs that several folders of tests read


@pytest.hookimpl(tryfirst=True)  # before cases are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what takes long by its measured duration; of a function whose cases together go over the budget, as many as
    fit, spread over all, are kept.
    """
    cases = defaultdict(list)
    for item in items:
        if not item.get_closest_marker("exhaustive"):
            cases[item.nodeid.partition("[")[0]].append(item)
    for function, all_of_it in cases.items():
        seconds = SECONDS.get(function, 0.0)
        always = all_of_it[0].get_closest_marker("always")
        room = 0 if seconds >= LONGEST and not always else max(1, int(BUDGET / max(seconds, 1e-3)))
        kept = {len(all_of_it) * place // room for place in range(room)} if room else set()
        for place, item in enumerate(all_of_it):
            if len(all_of_it) > room and place not in kept:
                item.add_marker("exhaustive")
    for item in items:
        if item.get_closest_marker("exhaustive") or SECONDS.get(item.nodeid.partition("[")[0], 0.0) >= SLOW:
            item.add_marker("slow")


@pytest.fixture(scope="session", autouse=True)
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder where prepared records of this session are kept: nothing is read from or left in a person's cache."""
    folder = tmp_path_factory.mktemp("data_cache")
    os.environ["SELSSM_DATA_DIR"] = str(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Frees what a file of tests compiled: the programs of all of them together are more than a process can map."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
    """The root of the working tree."""
    return REPOSITORY
