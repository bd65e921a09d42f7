"""Import of a real recording: three cameras, 1,277 frames at 30 Hz, 16 stages."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from robo_reward_data.importers.base import Options
from robo_reward_data.importers.run import import_recordings
from robo_reward_data.importers.video_folders import VideoFolders
from robo_reward_data.store import EpisodeStore


def test_clean_table(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "clean_table"
    if not folder.is_dir():
        pytest.skip(f"no real recording here: {folder} does not exist")
    import_recordings(VideoFolders(), folder, tmp_path / "store", Options(fps=10.0, size=(96, 128)))
    (episode,) = EpisodeStore.open(tmp_path / "store").episodes
    info = episode.info
    assert info.name == "clean_table-episode_001"
    assert info.cameras == ("cam_high", "cam_left_wrist", "cam_right_wrist")
    assert info.length == 426
    assert (info.instruction, len(info.paraphrases)) == ("clean the table", 4)
    keyframes = json.loads((folder / "episode_001/annotated_keyframes.json").read_text())
    ends = [keyframes[0]["start_frame_id"], *(entry["end_frame_id"] for entry in keyframes)]
    assert info.boundaries is not None
    # Every third frame is kept: a boundary moves to the first one that is not before it.
    np.testing.assert_array_equal(info.boundaries, [-(-end // 3) for end in ends])
    with av.open(str(folder / "episode_001/cam_left_wrist.mp4")) as container:
        images = [frame.to_ndarray(format="rgb24") for frame in islice(container.decode(video=0), 301)]
    expected = cv2.resize(images[300], (128, 96), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(episode.read_frames("cam_left_wrist", np.array([100]))[0], expected)
