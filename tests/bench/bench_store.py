"""Random windows of frames: the episode store against seeking in the videos it was imported from.

Run with: python tests/bench/bench_store.py [--windows 200] [--size 96 128] [--camera-size 480 640].
Makes its own videos, of the stored size and of a camera's; prints one JSON object a line, then a table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from rich.console import Console
from rich.table import Table

from robo_reward_data.importers.base import Options
from robo_reward_data.importers.run import import_recordings
from robo_reward_data.importers.video import open_video, resize
from robo_reward_data.importers.video_folders import VideoFolders
from robo_reward_data.store import EpisodeStore

CAMERAS = ("front", "wrist")
LENGTH = 300
WINDOW = 8


@dataclass(frozen=True)
class Case:
    """A window of WINDOW frames, `stride` apart."""

    name: str
    stride: int


def write_video(path: Path, size: tuple[int, int], rng: np.random.Generator) -> None:
    """A moving, slightly noisy picture: H.264 with key frames as far apart as the encoder likes."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for number in range(LENGTH):
            wave = (
                100 + 60 * np.sin((columns + 2 * number) / 17)[..., None] + 40 * np.cos(rows / 11)[..., None]
            )
            image = (wave + rng.normal(0, 4, (*size, 3))).clip(0, 255).astype(np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


class Seeker:
    """What a training loop does without a store: an open video, a seek and a decode for each window."""

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        self._size = size
        self._container = av.open(str(path))
        self._stream = self._container.streams.video[0]
        self._pts = open_video(path).pts

    def read(self, window: np.ndarray) -> np.ndarray:
        wanted = self._pts[window].tolist()
        self._container.seek(wanted[0], stream=self._stream)
        images: list[np.ndarray] = []
        for frame in self._container.decode(self._stream):
            if frame.pts == wanted[len(images)]:
                images.append(resize(frame.to_ndarray(format="rgb24"), self._size))
                if len(images) == len(wanted):
                    break
        return np.stack(images)


def frames_per_second(read: Callable[[str, np.ndarray], Any], windows: list[np.ndarray]) -> float:
    for camera in CAMERAS:
        read(camera, windows[0])
    began = time.perf_counter()
    for window in windows:
        for camera in CAMERAS:
            read(camera, window)
    return len(windows) * len(CAMERAS) * WINDOW / (time.perf_counter() - began)


def measure(
    folder: Path, size: tuple[int, int], video_size: tuple[int, int], count: int
) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    task = folder / "task"
    (task / "episode").mkdir(parents=True)
    (task / "task_instruction.json").write_text('["do"]')
    for camera in CAMERAS:
        write_video(task / "episode" / f"{camera}.mp4", video_size, rng)
    import_recordings(VideoFolders(), task, folder / "store", Options(size=size))
    episode = EpisodeStore.open(folder / "store").episodes[0]
    seekers = {camera: Seeker(task / "episode" / f"{camera}.mp4", size) for camera in CAMERAS}

    def from_store(camera: str, window: np.ndarray) -> Any:
        return episode.read_frames(camera, window)

    def from_video(camera: str, window: np.ndarray) -> Any:
        return seekers[camera].read(window)

    results: list[dict[str, Any]] = []
    for case in (Case("consecutive", 1), Case("every third", 3), Case("every tenth", 10)):
        starts = rng.integers(0, LENGTH - WINDOW * case.stride, count)
        windows = [start + case.stride * np.arange(WINDOW) for start in starts.tolist()]
        if not np.array_equal(from_store("front", windows[0]), from_video("front", windows[0])):
            raise AssertionError("store and video disagree")
        store = frames_per_second(from_store, windows)
        video = frames_per_second(from_video, windows[: max(1, count // 5)])
        results.append(
            {
                "bench": "store_windows",
                "window": case.name,
                "frames": WINDOW,
                "cameras": len(CAMERAS),
                "size": list(size),
                "video_size": list(video_size),
                "store_fps": round(store),
                "video_fps": round(video),
                "ratio": round(store / video, 1),
            }
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=200, help="random windows to read from the store")
    parser.add_argument("--size", type=int, nargs=2, default=(96, 128), help="height and width of the images")
    parser.add_argument(
        "--camera-size", type=int, nargs=2, default=(480, 640), help="that of the larger videos"
    )
    arguments = parser.parse_args()
    size, camera_size = tuple(arguments.size), tuple(arguments.camera_size)
    results: list[dict[str, Any]] = []
    for video_size in (size, camera_size):
        with tempfile.TemporaryDirectory() as folder:
            results += measure(Path(folder), size, video_size, arguments.windows)
    for result in results:
        sys.stdout.write(json.dumps(result) + "\n")
    columns = ("window", "video_size", "store_fps", "video_fps", "ratio")
    table = Table(
        *columns, title=f"{WINDOW} frames x {len(CAMERAS)} cameras at {size[0]}x{size[1]}, frames/s"
    )
    for result in results:
        table.add_row(*(str(result[column]) for column in columns))
    Console().print(table)


if __name__ == "__main__":
    main()
