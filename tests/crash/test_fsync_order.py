"""P1: a task is accepted after its rows are on the disk, and not before, as the kernel sees it.

Killing a process cannot show this: what it has written stays, in the memory of the kernel. So the system calls are recorded
by strace. Between the last write to the WAL and the acceptance there has to be an fdatasync of it that has ended.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest

CHILD = Path(__file__).parent.parent / "fsync_child.py"
TASKS = 50

# How strace shows a call: the thread, its name, its first argument with the file behind it (-y), and whether it has returned.
CALL = re.compile(r"^(?P<thread>\d+) +(?P<name>\w+)\(\d+<(?P<file>[^>]*)>(?P<rest>.*)$")
RESUMED = re.compile(r"^(?P<thread>\d+) +<\.\.\. (?P<name>\w+) resumed>")

# Or that all is ready: what was written until then is none of the tasks.
ACK = re.compile(r', "(ack|ready)')

pytestmark = [
    pytest.mark.crash,
    pytest.mark.timeout(120),
    pytest.mark.promise("P1"),
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed (Debian: apt install strace)"),
]


def record(folder: Path, durability: str) -> tuple[list[str], str]:
    """Let a process add tasks; return its system calls that write, line by line, and what it printed."""
    calls = ["strace", "-f", "-y", "-s", "8", "-e", "trace=pwrite64,write,fdatasync,fsync", "-o", str(folder / "calls")]
    child = [sys.executable, "-W", "error", str(CHILD), str(folder / "tasks.db"), durability, str(TASKS)]
    done = subprocess.run([*calls, *child], capture_output=True, text=True, timeout=60, check=False)
    if "Operation not permitted" in done.stderr:
        pytest.skip("strace may not trace here (ptrace is not permitted).")

    assert 0 == done.returncode, done.stderr
    return (folder / "calls").read_text().splitlines(), done.stdout


def judge_acks(calls: list[str]) -> list[bool]:
    """Return for each ack whether something was written to the WAL since the one before, and all of it was on the disk.

    A sync is good for what was written before it began, and good enough for an ack once it has ended.
    """
    acks: list[bool] = []
    is_on_disk = False
    syncing: dict[str, bool] = {}
    for line in calls:
        if match := RESUMED.match(line):
            is_on_disk |= syncing.pop(match["thread"], False)
        elif match := CALL.match(line):
            is_wal, is_sync = match["file"].endswith("-wal"), match["name"] in ("fsync", "fdatasync")
            if match["name"] == "write" and ACK.search(match["rest"]):
                acks.append(is_on_disk)
                is_on_disk = False
            elif is_wal and not is_sync:
                is_on_disk, syncing = False, dict.fromkeys(syncing, False)
            elif is_wal and "<unfinished" in match["rest"]:
                syncing[match["thread"]] = True
            elif is_wal:
                is_on_disk = True
    return acks[1:]


# With "normal" it is checkpoints alone that wait for the disk.
@pytest.mark.parametrize(("durability", "synchronous", "expected"), [("full", 2, {TASKS}), ("normal", 1, range(TASKS // 4))])
def test_acks_wait_for_the_disk(tmp_path: Path, durability: str, synchronous: int, expected: Collection[int]) -> None:
    """With "full" each of 50 acks comes after its fdatasync; with "normal" hardly any, so the check can fail."""
    calls, said = record(tmp_path, durability)
    acks = judge_acks(calls)
    print(f"\n{durability}: {sum(acks)} of {len(acks)} acks after the fdatasync; {said.splitlines()[-1]}")

    assert TASKS == len(acks)
    assert sum(acks) in expected
    assert f"synchronous {synchronous}" == said.splitlines()[-1]
