"""What a process may have, against trees of control groups as Linux shows them."""

import os
from pathlib import Path

import pytest

from fedspeech import machine

MEGABYTE = 2**20
TOTAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Write files under the folders that stand for /proc and /sys/fs/cgroup; nothing else counts.

    `tree(cgroup, files)`: what /proc/self/cgroup says, and path -> content.
    """
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "CONTROL_GROUPS", tmp_path / "cgroup")

    def write(cgroup: str, files: dict[str, str]) -> None:
        own = {"proc/self/cgroup": cgroup, "proc/meminfo": f"MemAvailable: {2**30} kB\n"}
        for name, content in {**own, **{f"cgroup/{n}": c for n, c in files.items()}}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    return write


def test_without_control_groups_it_is_what_the_machine_has(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "PROC", tmp_path)
    assert machine.cores() == len(os.sched_getaffinity(0))
    assert machine.memory_limit_bytes() == TOTAL
    assert machine.memory_free_bytes() == TOTAL  # the kernel does not say
    about = Path("/proc/meminfo").read_text(encoding="ascii")
    assert pytest.approx(int(about.split()[1]) * 1024, rel=0.01) == TOTAL


def test_the_affinity_counts(child):
    code = (
        "import os; from fedspeech import machine; os.sched_setaffinity(0, {min("
        "os.sched_getaffinity(0))}); print(machine.cores())"
    )
    assert child(code).stdout == "1\n"


@pytest.fixture
def many_processors(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))


V2 = "0::/batch/job7\n"
V1 = "9:name=systemd:/\n4:memory:/docker/ab\n2:cpu,cpuacct:/docker/ab\n0::/\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "expected"),
    [
        (V2, {"batch/job7/cpu.max": "max 100000\n"}, 64),
        (V2, {"batch/job7/cpu.max": "350000 100000\n"}, 3),
        (V2, {"batch/job7/cpu.max": "50000 100000\n"}, 1),
        (V2, {"batch/cpu.max": "200000 100000\n", "batch/job7/cpu.max": "900000 100000\n"}, 2),
        (V2, {"cpu.max": "500000 100000\n"}, 5),  # a container sees its own group as the root
        (
            V1,
            {
                "cpu,cpuacct/docker/ab/cpu.cfs_quota_us": "400000\n",
                "cpu,cpuacct/docker/ab/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            V1,
            {
                "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            64,
        ),
    ],
)
def test_processors_of_a_control_group(tree, many_processors, cgroup, files, expected):
    tree(cgroup, files)
    assert machine.cores() == expected


@pytest.mark.parametrize(
    ("cgroup", "files", "limit", "free"),
    [
        (
            V2,
            {
                "batch/job7/memory.max": f"{500 * MEGABYTE}\n",
                "batch/job7/memory.current": f"{300 * MEGABYTE}\n",
                "batch/job7/memory.stat": f"anon 5\ninactive_file {40 * MEGABYTE}\n",
            },
            500 * MEGABYTE,
            240 * MEGABYTE,
        ),
        (
            V2,
            {
                "batch/job7/memory.max": f"{500 * MEGABYTE}\n",
                "batch/job7/memory.current": f"{100 * MEGABYTE}\n",
                "batch/memory.max": f"{400 * MEGABYTE}\n",
                "batch/memory.current": f"{350 * MEGABYTE}\n",
            },
            400 * MEGABYTE,
            50 * MEGABYTE,
        ),
        (
            V1,
            {
                "memory/docker/ab/memory.limit_in_bytes": f"{200 * MEGABYTE}\n",
                "memory/docker/ab/memory.usage_in_bytes": f"{230 * MEGABYTE}\n",
                "memory/docker/ab/memory.stat": f"total_inactive_file {10 * MEGABYTE}\n",
            },
            200 * MEGABYTE,
            0,
        ),
        (V2, {"batch/job7/memory.max": "max\n"}, TOTAL, 2**40),
        (V1, {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, TOTAL, 2**40),
    ],
)
def test_memory_of_a_control_group(tree, cgroup, files, limit, free):
    tree(cgroup, files)
    assert machine.memory_limit_bytes() == limit
    assert machine.memory_free_bytes() == free
