"""Hostile settings for every test: four CPU devices, no silent broadcasting of ranks, warnings are errors
(pyproject.toml).

They are environment variables where JAX has one, so that commands started by a test run under the same settings.
"""

import dataclasses
import gc
import json
import math
import os
import pathlib
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

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
# Smaller ones, single operations as a rule, are compiled sooner than written: they stay in memory instead, below.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
# programs of tests run once: what is saved in compiling them is a third of all time
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ["MPLBACKEND"] = "Agg"
# Threads of BLAS beside as many processes as there are cores wait for one another.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
# of test functions, as tests/durations.py measured them
SECONDS = json.loads((REPOSITORY / "tests" / "durations.json").read_text())["seconds"]
QUICK = 0.1  # seconds of a case that is not among them
SLOW = 0.7  # seconds from which on a case is left out of a developer's loop
BUDGET = 1.0  # seconds of a function's cases that are not exhaustive; at least one is not
LONGEST = 2.0  # seconds from which on a case is exhaustive, unless it is marked as one that always runs
MAPPINGS = 5_000  # regions of memory, some two gigabytes of programs; Linux grants a process 65,530

# Shapes and types are checked at every call. The configuration is left out: it checks its own, and says the fix.
CHECKED = [
    f"selssm_jax.{path.stem}"
    for path in (REPOSITORY / "selssm_jax").iterdir()
    if path.stem not in ("__init__", "__pycache__", "config", "errors")
]
install_import_hook(CHECKED, "typechecking.check")


@pytest.hookimpl(wrapper=True, tryfirst=True)  # cases are chosen by their marks in between
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Marks what takes long by its measured duration; of a function whose cases together go over the budget, as many as
    fit, spread over all, are kept.

    What is chosen is put into an order: files whose programs can be shared before others, and the longest first, so
    that all processes end at about the same time.
    """
    cases = defaultdict(list)
    for item in items:
        if not item.get_closest_marker("exhaustive"):
            cases[function_of(item)].append(item)
    for function, all_of_it in cases.items():
        seconds = SECONDS.get(function, 0.0)
        always = all_of_it[0].get_closest_marker("always")
        room = 0 if seconds >= LONGEST and not always else max(1, int(BUDGET / max(seconds, 1e-3)))
        kept = {len(all_of_it) * place // room for place in range(room)} if room else set()
        for place, item in enumerate(all_of_it):
            if len(all_of_it) > room and place not in kept:
                item.add_marker("exhaustive")
    for item in items:
        if item.get_closest_marker("exhaustive") or SECONDS.get(function_of(item), 0.0) >= SLOW:
            item.add_marker("slow")
    yield
    seconds_of_files: dict[pathlib.Path, float] = defaultdict(float)
    for item in items:
        seconds_of_files[item.path] += SECONDS.get(function_of(item), QUICK)
    alone = files_that_replace_parts(items)
    items.sort(key=lambda item: (item.path in alone, -seconds_of_files[item.path]))


def pytest_collection_finish() -> None:
    """Keeps the garbage collector from walking again and again through all that was imported, which stays."""
    gc.freeze()


def function_of(item: pytest.Item) -> str:
    """Returns the test function of a case, as durations.json has it."""
    return item.nodeid.partition("[")[0]


def files_that_replace_parts(items: list[pytest.Item]) -> set[pathlib.Path]:
    """Returns the files some of whose tests replace a part of the package: what was compiled without it must not serve
    them, nor what they compile serve others.
    """
    return {item.path for item in items if "monkeypatch" in getattr(item, "fixturenames", ())}


@pytest.fixture(scope="session", autouse=True)
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder where prepared records of this session are kept: nothing is read from or left in a person's cache."""
    folder = tmp_path_factory.mktemp("data_cache")
    os.environ["SELSSM_DATA_DIR"] = str(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def forget_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Frees what files of tests compiled where the next may not use it, or where it is near what a process can map.

    Files share programs until then, for most of them are single operations.
    """
    alone = request.path in files_that_replace_parts(request.session.items)
    if alone:
        clear_programs()
    yield
    if alone or count_mappings() > MAPPINGS:
        clear_programs()


def clear_programs() -> None:
    """Frees what JAX compiled in this process, if it is there at all."""
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


def count_mappings() -> float:
    """Returns how many regions of memory this process has; a program has three or more."""
    regions = pathlib.Path("/proc/self/maps")
    return regions.read_text().count("\n") if regions.exists() else math.inf


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
    """The root of the working tree."""
    return REPOSITORY


# Runs that several folders of tests read. The process that hands out the tests loads nothing of the package, for that
# takes half a minute: it is loaded where it is used.
@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The workdir of configs/smoke.py after 12 steps."""
    from small_runs import train_smoke

    workdir = tmp_path_factory.mktemp("smoke") / "run"
    train_smoke(workdir)
    return workdir


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A text, a table and labelled signals of one's own, as {source: config.Data}."""
    from small_runs import write_files

    return write_files(tmp_path_factory.mktemp("files"))


@pytest.fixture
def untrained(files: dict[str, Any], tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """Makes the workdir of a run on one of `files` whose parameters are as drawn, "best" at step 3."""
    from small_runs import write_untrained

    def make(source: str, **options: Any) -> pathlib.Path:
        write_untrained(tmp_path / "run", dataclasses.replace(files[source], **options))
        return tmp_path / "run"

    return make
