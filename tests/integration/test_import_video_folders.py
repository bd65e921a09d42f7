"""Import of video folders: labels, pixels, resuming, and every refusal by file and frame."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from robo_reward.cli.main import main
from robo_reward.errors import DataError
from robo_reward.labels import label_episode
from robo_reward.schema import Outcome
from robo_reward_data.importers.base import Options
from robo_reward_data.importers.run import import_recordings
from robo_reward_data.importers.video_folders import VideoFolders
from robo_reward_data.store import EpisodeStore

LENGTH = 60
KEYFRAMES = [
    {"anotation": "reach", "start_frame_id": 8, "end_frame_id": 30},
    {"annotation": "pull", "start_frame_id": 30, "end_frame_id": 51},
]


def write_video(
    path: Path,
    length: int = LENGTH,
    seed: int = 0,
    size: tuple[int, int] = (48, 64),
    rate: int = 30,
    stamps_ms: Sequence[int] | None = None,
) -> None:
    """Noise, whose first red column counts the frames; with B-frames, and any stamps."""
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv444p"
        stream.options = {"g": "12", "crf": "5"}
        if stamps_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(length):
            image = rng.integers(0, 40, (*size, 3), np.uint8)
            image[:, :8] = 4 * number
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if stamps_ms is not None:
                frame.pts, frame.time_base = stamps_ms[number], Fraction(1, 1000)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos to copy from: making them takes longer than all else."""
    folder = tmp_path_factory.mktemp("videos")
    for seed in range(4):
        write_video(folder / f"{seed}.mp4", seed=seed)
    write_video(folder / "short.mp4", length=57, seed=9)
    return folder


@pytest.fixture
def task(tmp_path: Path, videos: Path) -> Path:
    """A task of two episodes with two cameras; the second has no keyframes."""
    folder = tmp_path / "tasks" / "drawer"
    for episode in range(2):
        (folder / f"episode_{episode}").mkdir(parents=True)
        for number, camera in enumerate(("front", "wrist")):
            shutil.copy(videos / f"{2 * episode + number}.mp4", folder / f"episode_{episode}/{camera}.mp4")
    (folder / "episode_0/annotated_keyframes.json").write_text(json.dumps(KEYFRAMES))
    (folder / "task_instruction.json").write_text('["open the drawer", "pull the drawer"]')
    return folder


def run(path: Path, out: Path, skip: bool = False, **options: Any) -> Any:
    options = {"fps": 10.0, "size": (12, 16)} | options
    return import_recordings(VideoFolders(), path, out, Options(**options), skip_errors=skip)


def test_labels_and_pixels(task: Path, tmp_path: Path) -> None:
    result = run(task, tmp_path / "store")
    assert result.imported == ("drawer-episode_0", "drawer-episode_1")
    first, second = EpisodeStore.open(tmp_path / "store").episodes
    info = first.info
    assert info.cameras == ("front", "wrist")
    assert dict(info.image_sizes) == {"front": (12, 16), "wrist": (12, 16)}
    np.testing.assert_array_equal(info.stamp_ns, np.arange(20) * 100_000_000)
    assert (info.instruction, info.paraphrases) == ("open the drawer", ("pull the drawer",))
    assert info.stage_names == ("reach", "pull")
    # Kept are frames 0, 3, 6, ...: 9 is the first in stage 0, 30 the first in stage 1, 51 the first after it.
    assert info.boundaries is not None
    assert info.boundaries.tolist() == [3, 10, 17]
    assert (info.outcome, second.info.outcome) == (Outcome.SUCCESS, Outcome.UNKNOWN)
    assert (second.info.boundaries, second.info.stage_names) == (None, ())
    with av.open(str(task / "episode_0/wrist.mp4")) as container:
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    expected = [cv2.resize(image, (16, 12), interpolation=cv2.INTER_AREA) for image in images[::3]]
    np.testing.assert_array_equal(first.load().frames["wrist"], expected)


def test_how_an_episode_ended_is_said_or_assumed_aloud(
    task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(task, tmp_path / "auto")) == 0
    out = capsys.readouterr().out
    assert "nothing says how 1 of them ended: success, by outcome=auto" in out
    assert "nothing says how 1 of them ended: unknown, by outcome=auto" in out
    assert "1 of them have no stages" in out
    first = EpisodeStore.open(tmp_path / "auto").episodes[0].info
    assert (first.outcome, first.source["outcome_from"]) == (Outcome.SUCCESS, "outcome=auto")
    run(task, tmp_path / "reached", outcome="failure", reached=0)
    # Where stages are marked, they say more.
    assert [e.info.reached for e in EpisodeStore.open(tmp_path / "reached")] == [None, 0]
    run(task, tmp_path / "failed", outcome="failure")
    store = EpisodeStore.open(tmp_path / "failed")
    assert store.attrs["import"]["outcome"] == "failure"
    assert [(e.info.outcome, e.info.kind) for e in store] == [(Outcome.FAILURE, "")] * 2
    label = label_episode(store.episodes[0].info)
    assert label is not None
    assert label.valid.tolist() == [True] * 10 + [False] * 10  # nobody knows how far the last stage got
    with pytest.raises(
        DataError, match=r"made with .*outcome=failure.*; this import asks for .*outcome=auto"
    ):
        run(task, tmp_path / "failed")
    # A store from before there was a choice goes on as auto.
    attrs = EpisodeStore.open(tmp_path / "auto").attrs["import"]
    older = {key: value for key, value in attrs.items() if key not in ("outcome", "reached")}
    EpisodeStore.open(tmp_path / "auto").update_attrs({"import": older})
    assert main(command(task, tmp_path / "auto")) == 0


def test_own_rate_and_size_and_chosen_cameras(task: Path, tmp_path: Path) -> None:
    run(task / "episode_0", tmp_path / "store", fps=None, size=None, cameras=("wrist",))
    (episode,) = EpisodeStore.open(tmp_path / "store").episodes
    assert episode.info.length == LENGTH
    assert episode.info.boundaries is not None
    assert episode.info.boundaries.tolist() == [8, 30, 51]
    frames = episode.read_frames("wrist", np.arange(LENGTH))
    assert frames.shape == (LENGTH, 48, 64, 3)
    np.testing.assert_allclose(frames[:, 20, 3, 0], 4 * np.arange(LENGTH), atol=6)


def test_path_may_be_episode_task_or_tasks(task: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    assert run(task / "episode_1", out).imported == ("drawer-episode_1",)
    again = run(task, out)
    assert (again.imported, again.already) == (("drawer-episode_0",), ("drawer-episode_1",))
    shutil.copytree(task, task.parent / "door")
    with pytest.raises(
        DataError, match=r"'door-episode_0' is the recording .* already as 'drawer-episode_0'"
    ):
        run(task.parent, out)


def test_what_lies_beside_episodes_hides_none_of_them(task: Path, videos: Path, tmp_path: Path) -> None:
    """A stray video one level up, files that a Mac leaves, and an ending in capitals."""
    shutil.copy(videos / "0.mp4", task / "overview.mp4")
    shutil.copy(videos / "0.mp4", task.parent / "all.mp4")
    (task / "episode_0/._front.mp4").write_bytes(b"resource fork")
    (task / ".Trashes").mkdir()
    (task / "episode_1/raw").mkdir()
    shutil.copy(videos / "3.mp4", task / "episode_1/raw/front.mp4")
    (task / "episode_1/wrist.mp4").rename(task / "episode_1/wrist.MP4")
    (task / "task_instruction.json").write_text('["open the drawer"]', encoding="utf-8-sig")
    result = run(task.parent, tmp_path / "store")
    assert result.imported == ("drawer-episode_0", "drawer-episode_1")
    assert run(task, tmp_path / "again").imported == result.imported
    assert run(task / "episode_1", tmp_path / "alone").imported == result.imported[1:]
    assert all(e.info.cameras == ("front", "wrist") for e in EpisodeStore.open(tmp_path / "store").episodes)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_images_are_turned_as_players_show_them(task: Path, tmp_path: Path, quarters: int) -> None:
    path = task / "episode_1/front.mp4"
    upright = _first_frame(path)
    _turn(path, quarters)
    shown = _first_frame(path)
    assert shown.shape[:2] == (upright.shape[:2] if quarters == 2 else upright.shape[1::-1])
    run(task / "episode_1", tmp_path / "store", size=None)
    (episode,) = EpisodeStore.open(tmp_path / "store").episodes
    assert tuple(episode.info.image_sizes["front"]) == shown.shape[:2]
    (stored,) = episode.read_frames("front", np.array([0]))
    assert np.abs(stored.astype(int) - shown).mean() < 3


def _first_frame(path: Path) -> np.ndarray:
    """As OpenCV shows it, which turns it by itself."""
    capture = cv2.VideoCapture(str(path))
    image = capture.read()[1]
    capture.release()
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _turn(path: Path, quarters: int) -> None:
    """Write into an MP4's track header how it is to be shown, as phones do."""
    data = path.read_bytes()
    a, b = {1: (0, 1), 2: (-1, 0), 3: (0, -1)}[quarters]
    one, before = 1 << 16, struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", a * one, b * one, 0, -b * one, a * one, 0, 0, 0, 1 << 30)
    at = data.index(before, data.index(b"tkhd"))
    path.write_bytes(data[:at] + turned + data[at + len(before) :])


def test_frames_of_one_number_are_of_one_moment(task: Path, tmp_path: Path) -> None:
    slow = task / "episode_1/wrist.mp4"
    write_video(slow, rate=15)
    with pytest.raises(
        DataError, match=r"60 frames of 'front' take 1.97 s, those of 'wrist' 3.93 s: .* one frame rate"
    ):
        run(task / "episode_1", tmp_path / "store")


EVEN = 100 * np.arange(LENGTH)
STAMPS = {
    "frames lost": EVEN + 200 * (np.arange(LENGTH) > 20),
    "a slower clock": np.round(104.5 * np.arange(LENGTH)).astype(int),
    "later by its file": EVEN + 5000,
}


@pytest.mark.parametrize("how", STAMPS)
def test_the_nearest_frames_of_cameras_belong_together(task: Path, tmp_path: Path, how: str) -> None:
    """They were matched by their numbers: those of a camera that lost frames were late from there on."""
    stamps = STAMPS[how]
    write_video(task / "episode_1/front.mp4", stamps_ms=EVEN.tolist())
    write_video(task / "episode_1/wrist.mp4", stamps_ms=stamps.tolist())
    run(task / "episode_1", tmp_path / "store", fps=None, size=None)
    (episode,) = EpisodeStore.open(tmp_path / "store").episodes
    assert episode.info.length == LENGTH
    np.testing.assert_array_equal(episode.info.stamp_ns - episode.info.stamp_ns[0], EVEN * 1_000_000)
    nearest = [int(np.argmin(np.abs(stamps - stamps[0] - moment))) for moment in EVEN]
    for camera, shown in (("front", list(range(LENGTH))), ("wrist", nearest)):
        red = episode.read_frames(camera, np.arange(LENGTH))[:, 20, 3, 0]
        assert np.round(red / 4).astype(int).tolist() == shown
    assert (nearest == list(range(LENGTH))) == (how == "later by its file")


def test_a_camera_without_a_frame_of_a_moment_is_refused(task: Path, tmp_path: Path) -> None:
    """As many frames that take as long, one second apart between the holes."""
    early, late = (EVEN + 1000 * (np.arange(LENGTH) > hole) for hole in (10, 50))
    write_video(task / "episode_1/front.mp4", stamps_ms=early.tolist())
    write_video(task / "episode_1/wrist.mp4", stamps_ms=late.tolist())
    with pytest.raises(
        DataError,
        match=r"wrist.mp4: its frame nearest to 5.\d0 s, where front.mp4 has frame 4\d, is 0.50 s away",
    ):
        run(task / "episode_1", tmp_path / "store")


def test_uid_is_the_recordings_alone(task: Path, tmp_path: Path) -> None:
    run(task, tmp_path / "a")
    copy = tmp_path / "elsewhere"
    shutil.copytree(task, copy)
    run(copy, tmp_path / "b", fps=5.0, size=(6, 8), cameras=("front",))
    stores = [EpisodeStore.open(tmp_path / name) for name in "ab"]
    first, second = ([episode.uid for episode in store] for store in stores)
    assert first == second
    assert len(set(first)) == 2


def test_other_options_are_refused(task: Path, tmp_path: Path) -> None:
    run(task, tmp_path / "store")
    with pytest.raises(DataError, match=r"made with .*fps=10.0 .*; this import asks for .*fps=5.0"):
        run(task, tmp_path / "store", fps=5.0)
    EpisodeStore.create(tmp_path / "recorded")
    with pytest.raises(DataError, match="was not made by import"):
        run(task, tmp_path / "recorded")


def test_changed_labels_are_refused(task: Path, tmp_path: Path) -> None:
    run(task, tmp_path / "store")
    (task / "task_instruction.json").write_text('["shut the drawer"]')
    with pytest.raises(DataError, match=r"annotations of .*episode_0 have changed since 'drawer-episode_0'"):
        run(task, tmp_path / "store")


def keyframes(*spans: tuple[int, int]) -> str:
    names = "abcdef"
    return json.dumps(
        [
            {"anotation": name, "start_frame_id": start, "end_frame_id": end}
            for name, (start, end) in zip(names, spans, strict=False)
        ]
    )


def labelled(text: str) -> Callable[[Path, Path], Any]:
    return lambda episode, _: (episode / "annotated_keyframes.json").write_text(text)


def damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(byte ^ 0x5A for byte in content[middle : middle + 3000])
    path.write_bytes(content)


REFUSALS: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "length": (
        lambda episode, videos: shutil.copy(videos / "short.mp4", episode / "wrist.mp4"),
        r"different length in .*episode_0: 'front' has 60 .*, 'wrist' has 57 .*: wrist.mp4 ends before",
    ),
    "order": (
        labelled(keyframes((8, 30), (51, 30))),
        r"annotated_keyframes.json: stage 'b' is out of order: .* frame 30",
    ),
    "swapped": (
        labelled(keyframes((30, 51), (8, 30))),
        r"stage 'b' overlaps stage 'a': it starts at frame 8, .* frame 51",
    ),
    "overlap": (
        labelled(keyframes((8, 30), (29, 51))),
        r"stage 'b' overlaps stage 'a': it starts at frame 29",
    ),
    "gap": (
        labelled(keyframes((8, 30), (33, 51))),
        r"stage 'b' leaves a gap after stage 'a': it starts at frame 33",
    ),
    "range": (labelled(keyframes((8, 61))), r"stage 'a' \(frames 8..61\) is out of range: .* frames 0..60"),
    "negative": (labelled(keyframes((-1, 20))), r"stage 'a' \(frames -1..20\) is out of range"),
    "thin": (
        labelled(keyframes((8, 10), (10, 12), (12, 30))),
        r"no frame of stage 'b' \(frames 10..12\) is left",
    ),
    "entry": (labelled('[{"anotation": "a"}]'), r"annotated_keyframes.json: entry 0 must be like"),
    "no list": (labelled("[]"), r"annotated_keyframes.json must be a JSON list"),
    "no json": (labelled("{"), r"annotated_keyframes.json is not JSON"),
    "damaged": (
        lambda episode, _: damaged(episode / "wrist.mp4"),
        r"wrist.mp4 cannot be decoded from about frame \d+ on",
    ),
    "no video": (
        lambda episode, _: (episode / "wrist.mp4").write_bytes(b""),
        r"wrist.mp4 is not a readable video",
    ),
    "missing": (
        lambda episode, _: (episode / "wrist.mp4").unlink(),
        r"camera 'wrist' is missing: no file .*wrist.mp4 \(front",
    ),
    "no instruction": (
        lambda episode, _: (episode.parent / "task_instruction.json").unlink(),
        r"no .*task_instruction.json",
    ),
    "odd instruction": (
        lambda episode, _: (episode.parent / "task_instruction.json").write_text("[3]"),
        r"task_instruction.json must be a JSON list of one wording",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(task: Path, videos: Path, tmp_path: Path, case: str) -> None:
    spoil, message = REFUSALS[case]
    spoil(task / "episode_0", videos)
    with pytest.raises(DataError, match=message):
        run(task, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_an_empty_or_cut_video_is_refused(task: Path, tmp_path: Path) -> None:
    path = task / "episode_0/wrist.mp4"
    with av.open(str(task / "episode_0/front.mp4")) as source:
        fast = {"movflags": "faststart"}
        with av.open(str(path), "w", options=fast) as container:
            stream = container.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    container.mux(packet)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(
        DataError, match=r"wrist.mp4 is cut short: its index promises 60 frames, \d\d are there"
    ):
        run(task, tmp_path / "store")
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.start_encoding()
    with pytest.raises(DataError, match=r"wrist.mp4 (is an empty video|is not a readable video)"):
        run(task, tmp_path / "store")


def test_no_episodes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no episodes found in"):
        run(tmp_path, tmp_path / "store")
    with pytest.raises(DataError, match="no folder"):
        run(tmp_path / "nowhere", tmp_path / "store")


def test_skip_imports_the_rest_and_says_so(task: Path, tmp_path: Path) -> None:
    whole = (task / "episode_0/wrist.mp4").read_bytes()
    damaged(task / "episode_0/wrist.mp4")
    result = run(task, tmp_path / "store", skip=True)
    assert result.imported == ("drawer-episode_1",)
    assert "cannot be decoded" in result.left_out["drawer-episode_0"]
    (note,) = EpisodeStore.open(tmp_path / "store").attrs["left_out"]
    assert note["path"] == str(task / "episode_0")
    assert "wrist.mp4" in note["reason"]
    (task / "episode_0/wrist.mp4").write_bytes(whole)
    assert run(task, tmp_path / "store", skip=True).imported == ("drawer-episode_0",)
    assert EpisodeStore.open(tmp_path / "store").attrs["left_out"] == []


def test_skip_fails_where_nothing_is_left(task: Path, tmp_path: Path) -> None:
    for episode in task.glob("episode_*"):
        (episode / "wrist.mp4").unlink()
        (episode / "front.mp4").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"none of 2 recordings in .* can be imported; drawer-episode_0: .*front.mp4"
    ):
        run(task, tmp_path / "store", skip=True)
    assert not (tmp_path / "store").exists()


def command(task: Path, out: Path, *more: str) -> Sequence[str]:
    return ["import", "source=video_folders", f"path={task}", f"out={out}", *more]


def test_the_command(task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(task, tmp_path / "store")) == 0
    assert "2 imported, 0 there before, 0 left out" in capsys.readouterr().out
    assert EpisodeStore.open(tmp_path / "store").episodes[0].info.image_sizes["front"] == (96, 128)
    (task / "episode_1/front.mp4").unlink()
    assert (
        main(command(task, tmp_path / "other", "on_error=skip", "cameras=[front]", "fps=null", "size=null"))
        == 0
    )
    out = capsys.readouterr().out
    assert "left out drawer-episode_1: camera 'front' is missing" in out
    assert main(command(task, tmp_path / "third", "cameras=[front]")) == 1
    assert "camera 'front' is missing" in capsys.readouterr().err
    for wrong in ("on_error=maybe", "outcome=won", "fps=0", "size=[3]", "cameras=[]"):
        assert main(command(task, tmp_path / "fourth", wrong)) == 1
        assert wrong.split("=")[0] in capsys.readouterr().err
