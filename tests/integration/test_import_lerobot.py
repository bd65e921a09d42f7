"""Import of LeRobot datasets that LeRobot itself wrote, against what LeRobot itself reads."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robo_reward.cli.main import main
from robo_reward.errors import DataError
from robo_reward.schema import Outcome
from robo_reward_data.importers.base import Options
from robo_reward_data.importers.lerobot import LeRobot, keep_facts
from robo_reward_data.importers.run import import_recordings
from robo_reward_data.store import EpisodeStore

LENGTHS = (24, 31)
# In a process of its own: importing LeRobot takes seconds, and warns.
WRITER = """
import sys
from pathlib import Path
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

for mode in ("video", "image"):
    root = Path(sys.argv[1]) / mode
    image = {"dtype": mode, "shape": (64, 96, 3), "names": ["height", "width", "channels"]}
    features = {
        "observation.images.front": image,
        "observation.images.wrist": image,
        "observation.state": {"dtype": "float32", "shape": (3,), "names": ["a", "b", "c"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
    }
    options = {"fps": 20, "features": features, "root": root, "use_videos": mode == "video"}
    dataset = LeRobotDataset.create("test/set", **options)
    rng = np.random.default_rng(0)
    for episode, length in enumerate((24, 31)):
        for number in range(length):
            front = np.full((64, 96, 3), 5 * number + 50 * episode, np.uint8)
            front[:, : 2 * number] = (200, 30, 90)
            dataset.add_frame({
                "observation.images.front": front,
                "observation.images.wrist": np.ascontiguousarray(255 - front[::-1]),
                "observation.state": rng.random(3, dtype=np.float32),
                "action": rng.random(2, dtype=np.float32),
                "next.success": np.array([episode == 0 and number > 20]),
                "task": f"task {episode}",
            })
        dataset.save_episode()
    dataset.finalize()
    dataset = LeRobotDataset("test/set", root=root, video_backend="pyav")
    items = [dataset[index] for index in range(len(dataset))]
    np.savez(
        root.with_suffix(".npz"),
        **{camera: np.stack([(item[f"observation.images.{camera}"].numpy() * 255).round().astype(np.uint8)
            .transpose(1, 2, 0) for item in items]) for camera in ("front", "wrist")},
        state=np.stack([item["observation.state"].numpy() for item in items]),
        action=np.stack([item["action"].numpy() for item in items]),
    )
"""


@pytest.fixture(scope="session")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("lerobot") is None:
        pytest.skip("no lerobot here to write a dataset with: pip install 'robo-reward[data]'")
    folder = tmp_path_factory.mktemp("lerobot")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture
def dataset(originals: Path, tmp_path: Path) -> Path:
    """A copy of the video dataset, to spoil."""
    shutil.copytree(originals / "video", tmp_path / "video")
    return tmp_path / "video"


def run(path: Path, out: Path, annotation: str = "sparse", **options: Any) -> EpisodeStore:
    import_recordings(LeRobot(annotation), path, out, Options(**options))
    return EpisodeStore.open(out)


@pytest.mark.parametrize("mode", ["video", "image"])
def test_everything_is_what_lerobot_reads(originals: Path, tmp_path: Path, mode: str) -> None:
    truth = np.load(originals / f"{mode}.npz")
    store = run(originals / mode, tmp_path / "store")
    begin = 0
    for number, (episode, length) in enumerate(zip(store, LENGTHS, strict=True)):
        rows = slice(begin, begin := begin + length)
        loaded = episode.load()
        for camera in ("front", "wrist"):
            np.testing.assert_array_equal(loaded.frames[camera], truth[camera][rows])
        assert (loaded.info.proprio_names, loaded.info.action_names) == (("a", "b", "c"), ("x", "y"))
        np.testing.assert_array_equal(loaded.proprio, truth["state"][rows])
        np.testing.assert_array_equal(loaded.actions, truth["action"][rows])
        info = loaded.info
        assert info.name == f"{mode}-episode_{number:06d}"
        assert info.instruction == f"task {number}"
        np.testing.assert_allclose(info.stamp_ns, np.arange(length) * 5e7, atol=1000)
        assert info.outcome == (Outcome.SUCCESS, Outcome.FAILURE)[number]
        assert info.success is not None
        # The action of frame 21 was the first to lead to success: frame 22 shows it.
        np.testing.assert_array_equal(info.success, (np.arange(length) > 21) & (number == 0))
        assert info.source["outcome_from"] == "recording"


def test_half_the_rate_one_camera(originals: Path, tmp_path: Path) -> None:
    truth = np.load(originals / "video.npz")
    store = run(originals / "video", tmp_path / "store", fps=10.0, size=(32, 48), cameras=("wrist",))
    episode = store.episodes[1]
    kept = np.arange(24, 24 + 31, 2)
    # What is done until the next frame that is kept: the last command before it.
    np.testing.assert_array_equal(episode.read_actions(), truth["action"][[*kept[1:] - 1, 24 + 30]])
    np.testing.assert_array_equal(episode.read_proprio(), truth["state"][kept])
    expected = [cv2.resize(image, (48, 32), interpolation=cv2.INTER_AREA) for image in truth["wrist"][kept]]
    np.testing.assert_array_equal(episode.load().frames["wrist"], expected)
    with pytest.raises(DataError, match=r"camera 'side' is missing in .*: choose from front, wrist"):
        run(originals / "video", tmp_path / "other", cameras=("side",))


@pytest.mark.parametrize("place", ["info", "video_info"])
def test_an_unusual_dataset_is_read(dataset: Path, tmp_path: Path, place: str) -> None:
    """More columns of tasks, no tasks of episodes, and depth flagged as older datasets do."""
    path = dataset / "meta/tasks.parquet"
    tasks = pq.read_table(path)
    pq.write_table(tasks.append_column("difficulty", pa.array([3] * len(tasks))), path)
    for path in (dataset / "meta/episodes").glob("*/*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["tasks"]), path)
    info = json.loads((dataset / "meta/info.json").read_text())
    info["features"]["observation.images.wrist"].setdefault(place, {})["video.is_depth_map"] = True
    (dataset / "meta/info.json").write_text(json.dumps(info))
    episode = run(dataset, tmp_path / "store", fps=None).episodes[0]
    assert episode.info.cameras == ("front",)
    assert episode.info.source["tasks"] == [episode.info.instruction]


def test_uid_ignores_place_and_options(originals: Path, dataset: Path, tmp_path: Path) -> None:
    first = run(originals / "video", tmp_path / "a")
    second = run(dataset, tmp_path / "b", fps=5.0, size=(8, 8), cameras=("front",))
    assert [episode.uid for episode in first] == [episode.uid for episode in second]
    assert len({episode.uid for episode in first}) == 2


def test_recordings_that_became_a_dataset_keep_their_uids_while_they_are_the_same(
    originals: Path, dataset: Path, tmp_path: Path
) -> None:
    """A copy of a model's own training data counted as data that it had not seen."""
    recorded = run(originals / "video", tmp_path / "hashed")
    hashed = [episode.uid for episode in recorded]
    names = zip(recorded, ("first", "second"), strict=True)
    keep_facts(
        dataset, [dataclasses.replace(episode.info, uid=uid, kind=f"{uid}_kind") for episode, uid in names]
    )
    kept = run(dataset, tmp_path / "kept", fps=5.0)
    assert [(e.uid, e.info.kind) for e in kept] == [("first", "first_kind"), ("second", "second_kind")]
    facts = dataset / "meta/robo_reward_uids.json"  # as it was written when it had the uids alone
    facts.write_text(json.dumps({key: fact["uid"] for key, fact in json.loads(facts.read_text()).items()}))
    assert [episode.uid for episode in run(dataset, tmp_path / "before")] == ["first", "second"]
    annotate(dataset, "sparse", [("reach", 0, 24)], [])
    assert [episode.uid for episode in run(dataset, tmp_path / "annotated")] == ["first", "second"]
    path = dataset / "data/chunk-000/file-000.parquet"
    table = pq.ParquetFile(path).read()
    actions = table["action"].to_pylist()
    actions[30][0] += 1.0
    at = table.column_names.index("action")
    pq.write_table(table.set_column(at, "action", pa.array(actions, table.schema.field(at).type)), path)
    first, second = (episode.uid for episode in run(dataset, tmp_path / "edited"))
    assert first == "first"
    assert second not in ("second", *hashed)


def annotate(dataset: Path, kind: str, *spans: list[tuple[str, int, int]]) -> None:
    """Add subtask columns as SARM's annotator does."""
    path = dataset / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.ParquetFile(path).read()
    for column, part in (("names", 0), ("start_frames", 1), ("end_frames", 2)):
        values = [[span[part] for span in spans_of] or None for spans_of in spans]
        table = table.append_column(f"{kind}_subtask_{column}", pa.array(values))
    pq.write_table(table, path)


def test_subtasks_become_stages(dataset: Path, tmp_path: Path) -> None:
    annotate(dataset, "sparse", [("reach", 0, 10), ("pull", 10, 24)], [("reach", 0, 9), ("pull", 15, 31)])
    annotate(dataset, "dense", [("a", 2, 5), ("b", 6, 11), ("c", 12, 22)], [])
    first, second = (episode.info for episode in run(dataset, tmp_path / "sparse"))
    assert first.stage_names == ("reach", "pull")
    assert first.boundaries is not None
    assert first.boundaries.tolist() == [0, 10, 24]
    assert (second.stage_names, second.boundaries) == ((), None)  # a gap: no telling where a stage ends
    dense = run(dataset, tmp_path / "dense", "dense", fps=10.0).episodes[0].info
    assert dense.boundaries is not None
    assert dense.boundaries.tolist() == [1, 3, 6, 12]  # frames 2, 6, 12 and 23 (the end counted in), halved
    with pytest.raises(
        DataError, match=r"annotations of episode 0 .* have changed since 'video-episode_000000'"
    ):
        import_recordings(LeRobot("dense"), dataset, tmp_path / "sparse", Options())


def test_a_changed_success_is_noticed(dataset: Path, tmp_path: Path) -> None:
    store = run(dataset, tmp_path / "store")
    assert run(dataset, tmp_path / "store").episodes[1].info.outcome == Outcome.FAILURE
    path = dataset / "data/chunk-000/file-000.parquet"
    table = pq.ParquetFile(path).read()
    at = table.column_names.index("next.success")
    flipped = pa.array([not done for done in table["next.success"].to_pylist()])
    pq.write_table(table.set_column(at, "next.success", flipped), path)
    with pytest.raises(DataError, match=r"success or annotations of episode 0 .* have changed since"):
        run(dataset, tmp_path / "store")
    again = run(dataset, tmp_path / "again")
    assert [episode.uid for episode in again] == [episode.uid for episode in store]  # no other recording
    assert again.episodes[1].info.outcome == Outcome.SUCCESS


def cut_rows(dataset: Path) -> None:
    path = dataset / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.ParquetFile(path).read().slice(0, 40), path)


def test_a_folder_that_is_not_there_is_not_called_a_damaged_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no LeRobot dataset at .*nope: there is no such folder"):
        LeRobot().recordings(tmp_path / "nope")


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no dataset": (lambda root: (root / "meta/info.json").unlink(), "is not a LeRobot dataset"),
    "old": (
        lambda root: (root / "meta/info.json").write_text('{"codebase_version": "v2.1"}'),
        "has LeRobot format v2.1, this reads v3: convert it",
    ),
    "no video": (
        lambda root: shutil.rmtree(root / "videos/observation.images.wrist"),
        r"camera 'observation.images.wrist' is missing: no file .*file-000.mp4",
    ),
    "no data": (lambda root: shutil.rmtree(root / "data"), r"cannot read .*data/chunk-000/file-000.parquet"),
    "rows": (cut_rows, r"episode 1 has 16 rows, .*meta/episodes says 31"),
}


@pytest.mark.parametrize("case", SPOILED)
def test_refusals(dataset: Path, tmp_path: Path, case: str) -> None:
    spoil, message = SPOILED[case]
    spoil(dataset)
    with pytest.raises(DataError, match=message):
        run(dataset, tmp_path / "store")


def _png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


@pytest.mark.parametrize(
    ("encoded", "why"),
    [
        (b"no image", "cannot be decoded"),
        # Distances came in as pictures that were white all over.
        (_png(np.full((64, 96), 1200, np.uint16)), r"is of uint16, .* is it depth\? .* with cameras=\["),
    ],
    ids=["damaged", "depth"],
)
def test_what_is_no_picture_is_told(originals: Path, tmp_path: Path, encoded: bytes, why: str) -> None:
    root = tmp_path / "image"
    shutil.copytree(originals / "image", root)
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.ParquetFile(path).read()
    rows = table["observation.images.front"].to_pylist()
    rows[5] = {"bytes": encoded, "path": ""}
    index = table.column_names.index("observation.images.front")
    table = table.set_column(index, "observation.images.front", pa.array(rows))
    pq.write_table(table, path)
    with pytest.raises(DataError, match=rf"episode 0 of .*, camera 'front': the image of frame 5 {why}"):
        run(root, tmp_path / "store")


def test_the_command_resumes(originals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["import", "source=lerobot", f"path={originals / 'image'}", f"out={tmp_path / 'store'}"]
    assert main(arguments) == 0
    assert "2 imported" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "0 imported, 2 there before" in capsys.readouterr().out
