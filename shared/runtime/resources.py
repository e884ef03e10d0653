"""How many cores and how much memory this process may use, by affinity and by the limits of its cgroup."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_NO_LIMIT: Final = 2**60
"""Version 1 of cgroups has no word for "no limit": it shows a number beyond all memory there is."""


def available_cores(root: Path = Path("/")) -> int:
    """Returns how many cores this process may use: no more than its affinity and its CPU quota allow, and at least one.

    Args:
        root: where `proc` and `sys` are mounted.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # A quota of 1.5 cores keeps two processes busy, each of them most of the time.
    return min([cores, *(max(1, math.ceil(quota)) for quota in _cpu_quotas(root))])


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """Returns how much memory this process's cgroup may use; None where there is no limit.

    Args:
        root: where `proc` and `sys` are mounted.
    """
    found = [
        int(text)
        for folder, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes"))
        for text in _values(root, folder, name)
        if text.isdecimal()
    ]
    limit = min(found, default=_NO_LIMIT)
    return limit if limit < _NO_LIMIT else None


def _cpu_quotas(root: Path) -> Iterator[float]:
    """Yields the quotas in force, in cores."""
    for text in _values(root, "", "cpu.max"):
        quota, _, period = text.partition(" ")
        if quota.isdecimal() and period.isdecimal():
            yield int(quota) / int(period)
    periods = list(_values(root, "cpu", "cpu.cfs_period_us"))
    for quota, period in zip(_values(root, "cpu", "cpu.cfs_quota_us"), periods, strict=False):
        if quota.isdecimal() and period.isdecimal():  # -1 is no quota
            yield int(quota) / int(period)


def _values(root: Path, controller: str, name: str) -> Iterator[str]:
    """Yields what a file of this process's cgroup says, and of every group above it: each of them limits it.

    Args:
        root: where `proc` and `sys` are mounted.
        controller: of version 1; empty for version 2, whose controllers share one tree.
        name: of the file.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / controllers
        if not controller and (mount / "unified").is_dir():
            mount /= "unified"
        # In a container the mount may begin at its own group, which the path names from the host's root.
        inner = Path(path.strip("/"))
        for folder in (mount / inner, *(mount / parent for parent in inner.parents)):
            try:
                yield (folder / name).read_text().strip()
            except OSError:
                continue
