"""Worker processes: they work, and end with whoever asked for the work."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from robo_reward.workers import worker_pool

ASKER = """
import os, time
from robo_reward.workers import worker_pool

if __name__ == "__main__":
    pool = worker_pool(1)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600)
    time.sleep(600)
"""


def test_work_is_done_elsewhere() -> None:
    with worker_pool(2) as pool:
        assert list(pool.map(pow, (2, 3), (3, 2))) == [8, 9]
        assert pool.submit(os.getpid).result() != os.getpid()


def test_workers_end_with_a_killed_asker(tmp_path: Path) -> None:
    (tmp_path / "asker.py").write_text(ASKER)
    asker = subprocess.Popen([sys.executable, str(tmp_path / "asker.py")], stdout=subprocess.PIPE, text=True)
    assert asker.stdout is not None
    with asker, asker.stdout:
        worker = int(asker.stdout.readline())
        assert _runs(worker)
        asker.kill()
    deadline = time.monotonic() + 30.0
    while _runs(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(worker)


def _runs(pid: int) -> bool:
    """Whether there is such a process, that is not a dead one waiting to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
