"""Cores and memory by cgroups, in folders as Linux, Docker and Kubernetes lay them out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from shared.runtime.resources import available_cores, memory_limit_bytes

CORES = len(os.sched_getaffinity(0))
POD = "kubepods/burstable/pod1/box"


def machine(root: Path, groups: str, files: Mapping[str, str]) -> Path:
    """Lays out `proc` and `sys` below `root`, as the kernel of some machine shows them."""
    for name, text in {
        "proc/self/cgroup": groups,
        **{f"sys/fs/cgroup/{key}": text for key, text in files.items()},
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        pytest.param("0::/\n", {"cpu.max": "max 100000\n"}, CORES, id="version 2 without a quota"),
        pytest.param("0::/\n", {"cpu.max": "50000 100000\n"}, 1, id="half a core"),
        pytest.param("0::/\n", {"cpu.max": "150000 100000\n"}, min(2, CORES), id="one and a half"),
        pytest.param("0::/\n", {"cpu.max": "6400000 100000\n"}, CORES, id="more than there are"),
        pytest.param(
            f"0::/{POD}\n",
            {f"{POD}/cpu.max": "max 100000", "kubepods/cpu.max": "100000 100000"},
            1,
            id="by a group above",
        ),
        pytest.param(
            f"0::/{POD}\n", {"cpu.max": "100000 100000"}, 1, id="a mount that begins at the container's group"
        ),
        pytest.param(
            f"4:cpu,cpuacct:/{POD}\n0::/\n",
            {f"cpu,cpuacct/{POD}/cpu.cfs_quota_us": "50000", f"cpu,cpuacct/{POD}/cpu.cfs_period_us": "100000"},
            1,
            id="version 1",
        ),
        pytest.param(
            "1:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, CORES, id="1 without"
        ),
        pytest.param("0::/\n", {}, CORES, id="no file at all"),
    ],
)
def test_cores_are_what_the_quota_allows(tmp_path: Path, groups: str, files: dict[str, str], cores: int) -> None:
    assert available_cores(machine(tmp_path, groups, files)) == cores


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        pytest.param("0::/\n", {"memory.max": "max\n"}, None, id="version 2 without a limit"),
        pytest.param("0::/\n", {"memory.max": "536870912\n"}, 2**29, id="version 2"),
        pytest.param(f"0::/{POD}\n", {f"{POD}/memory.max": "max", "kubepods/memory.max": "1024"}, 1024, id="above"),
        pytest.param("4:memory:/a\n", {"memory/a/memory.limit_in_bytes": "1048576\n"}, 2**20, id="version 1"),
        pytest.param(
            "4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None, id="version 1 without"
        ),
    ],
)
def test_memory_is_what_the_group_may_use(
    tmp_path: Path, groups: str, files: dict[str, str], limit: int | None
) -> None:
    assert memory_limit_bytes(machine(tmp_path, groups, files)) == limit


def test_where_there_are_no_groups_affinity_counts(tmp_path: Path) -> None:
    assert available_cores(tmp_path) == CORES
    assert memory_limit_bytes(tmp_path) is None


def test_this_machine_has_a_core_for_us() -> None:
    assert 1 <= available_cores() <= CORES
