"""The store under killed writers, several writers, threads and forks."""

from __future__ import annotations

import multiprocessing
import signal
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from robo_reward.schema import Episode, EpisodeInfo
from robo_reward_data.store import EpisodeStore

WRITER = """
import sys, time
import numpy as np
from robo_reward.schema import Episode, EpisodeInfo
from robo_reward_data.store import EpisodeStore

store = EpisodeStore.create(sys.argv[1], exist_ok=True)
who, count, stuck = sys.argv[2], int(sys.argv[3]), sys.argv[4] == "stuck"
frames = np.full((150, 8, 8, 3), 7, np.uint8)
for number in range(count):
    name = f"{who}_{number}"
    info = EpisodeInfo(name, name, ("c",), {"c": (8, 8)}, np.arange(150), "do")
    store.write(Episode(info, {"c": frames}))
if stuck:
    with store.draft("half") as draft:
        draft.camera("c", 150, (8, 8)).extend(frames[:120])
        print("writing", flush=True)
        time.sleep(600)
"""


def start(path: Path, who: str, count: int, how: str = "done") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), who, str(count), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def work_left(path: Path) -> list[str]:
    return [entry.name for entry in (path / ".writing").iterdir() if entry.name != "zarr.json"]


def test_a_killed_writer_leaves_whole_episodes_only(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with start(path, "a", 1, "stuck") as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        store = EpisodeStore.open(path)
        assert [episode.name for episode in store] == ["a_0"]
        # A living writer's half is left alone by the next one.
        with store.draft("other"):
            assert len(work_left(path)) == 4
        writer.send_signal(signal.SIGKILL)
    assert len(work_left(path)) == 2
    with store.draft("half"):
        assert len(work_left(path)) == 2  # its own
    assert work_left(path) == []
    assert [episode.name for episode in store] == ["a_0"]
    assert store.episodes[0].load().frames["c"].min() == 7


def test_two_processes_make_and_fill_one_store(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with start(path, "a", 5) as first, start(path, "b", 5) as second:
        assert first.wait() == second.wait() == 0
    names = [episode.info.name for episode in EpisodeStore.open(path)]
    assert names == [f"{who}_{number}" for who in "ab" for number in range(5)]
    assert work_left(path) == []


def numbered(path: Path) -> EpisodeStore:
    frames = np.arange(250, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    info = EpisodeInfo("e", "e", ("c",), {"c": (8, 8)}, np.arange(250), "do")
    store = EpisodeStore.create(path)
    store.write(Episode(info, {"c": frames}))
    return store


def test_threads_read_one_episode(tmp_path: Path) -> None:
    episode = numbered(tmp_path / "store").episodes[0]

    def read(seed: int) -> bool:
        indices = np.random.default_rng(seed).integers(0, 250, 8)
        return bool((episode.read_frames("c", indices)[:, 0, 0, 0] == indices).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(200)))


def test_a_fork_reads_on(tmp_path: Path) -> None:
    episode = numbered(tmp_path / "store").episodes[0]
    episode.read_frames("c", np.array([0]))
    with warnings.catch_warnings():
        # Forking with threads is what a data loader does by default; reading must survive it.
        warnings.simplefilter("ignore", DeprecationWarning)
        with multiprocessing.get_context("fork").Pool(1) as pool:
            result = pool.apply_async(episode.read_frames, ("c", np.array([249, 3])))
            assert result.get(timeout=60)[:, 0, 0, 0].tolist() == [249, 3]
