"""Pages that stay with the process, and who decides it."""

import os
import subprocess
import sys

import pytest

import runs

REPEATED = """
import resource, numpy
from selssm_jax.allocator import keep_pages
kept = keep_pages()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    numpy.ones(2**22)  # 32 MiB, which glibc takes from the kernel and gives back
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**environment):
    """(whether pages are kept, page faults of 20 buffers of 32 MiB)."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", REPEATED],
        cwd=runs.REPOSITORY,
        env=inherited | {"NUMPY_MADVISE_HUGEPAGE": "0"} | environment,  # 512 faults in one
        capture_output=True,
        text=True,
        check=True,
    )
    kept, count = done.stdout.split()
    return kept == "True", int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the C library is another")
def test_what_is_freed_is_used_again_unless_the_environment_says_otherwise():
    (kept, few), (left, many) = faults(), faults(GLIBC_TUNABLES="")
    if not kept:
        pytest.skip("the C library is not glibc")
    assert not left and few < many / 4
    assert not faults(MALLOC_ARENA_MAX="2")[0]
