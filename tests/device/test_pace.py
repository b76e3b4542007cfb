"""Threads and niceness of a device, as the system counts them."""

import pytest

from fedspeech.device import pace
from fedspeech.errors import ConfigError

SETTLED = """
import os, sys
from pathlib import Path
import torch
from fedspeech.device import pace

torch.set_num_threads(3)
torch.mm(torch.ones(500, 500), torch.ones(500, 500))  # PyTorch's threads begin
pace.settle(int(sys.argv[1]), int(sys.argv[2]))
tasks = [int(task.name) for task in Path("/proc/self/task").iterdir()]
print(torch.get_num_threads(), len(tasks), {os.getpriority(os.PRIO_PROCESS, t) for t in tasks})
"""
BACK = """
import ctypes, os
from fedspeech.device import pace
from fedspeech.errors import ConfigError

pace.settle(1, 7)
if os.geteuid() == 0:
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, sets) == 0
pace.settle(1, 7)
try:
    pace.settle(1, 6)
except ConfigError as error:
    print(error)
"""


def test_all_threads_of_the_process_give_way(child):
    done = child(SETTLED, 2, 11)
    threads, tasks, niceness = done.stdout.split(maxsplit=2)
    assert (threads, niceness) == ("2", "{11}\n"), done.stderr
    assert int(tasks) > 1


def test_without_a_wish_niceness_stays(child):
    done = child(
        SETTLED.replace("int(sys.argv[2])", "None").replace(
            "import os,", "import os\nos.nice(5)\nimport"
        ),
        2,
    )
    assert done.stdout.split(maxsplit=2)[::2] == ["2", "{5}\n"], done.stderr


def test_niceness_is_not_taken_back(child):
    done = child(BACK)
    assert done.stdout == "nice: this process may not go back to 6\n", done.stderr


@pytest.mark.parametrize(
    ("threads", "niceness", "told"),
    [
        (0, 0, "threads: expected at least 1, found 0"),
        (1, 20, "nice: expected 0 … 19, found 20"),
        (1, -1, "nice: expected 0 … 19, found -1"),
    ],
)
def test_numbers_out_of_range(threads, niceness, told):
    with pytest.raises(ConfigError, match=told):
        pace.settle(threads, niceness)
