"""The environment of a process that has a core to itself and computes on images, one batch after the other.

Only what the user has not set otherwise: it is to be overridden, as in `SINGLE_CORE_ENV | os.environ`.
"""

from __future__ import annotations

from typing import Final

SINGLE_CORE_ENV: Final = {
    "OPENBLAS_NUM_THREADS": "1",  # NumPy's, of which it would start one a core
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20),
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TOP_PAD_": str(16 * 2**20),
    "MALLOC_ARENA_MAX": "1",
}
"""The rest is for glibc. It is to keep what is freed: by default it gives memory back, to ask for the same a moment
later, and every page of it has to be made anew. And it is to have one heap for all threads: what one of them frees, as
a model that was replaced, then serves the others."""
