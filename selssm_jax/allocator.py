"""The C library's allocator, told to keep its pages. Call it before JAX starts.

As it is, glibc gives a step's large buffers back to the kernel when they are freed, and the next step faults every page
in anew: a third of the CPU time of a small model's training was the kernel's.
"""

import ctypes
import os
import sys

# Parameters of mallopt, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_pages() -> bool:
    """Makes freed memory stay with the process: no block of its own from the kernel, no trimming, one arena for all
    threads.

    Does nothing but where the C library is glibc, and where the environment already says what it should do
    (MALLOC_ARENA_MAX and others, GLIBC_TUNABLES).

    Returns:
      Whether it did.
    """
    if not sys.platform.startswith("linux") or any(
        name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ
    ):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    # mallopt takes an int, and reads -1 as the largest size
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1))
    return all(library.mallopt(parameter, value) == 1 for parameter, value in settings)
