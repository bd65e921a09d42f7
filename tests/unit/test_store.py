"""The episode store keeps what it is given, and refuses, by name, what breaks the schema."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import zarr

from robo_reward.errors import DataError
from robo_reward.schema import Episode, EpisodeInfo, EpisodeReader, EpisodeSource, Outcome, ProgressLabel
from robo_reward_data.store import EpisodeStore

LENGTH = 130
SIZES = {"front": (12, 16), "/wrist/image raw": (8, 8)}


def make_episode(
    name: str = "episode_000000", uid: str = "a", length: int = LENGTH, **changes: Any
) -> Episode:
    rng = np.random.default_rng(7)
    truth = ProgressLabel(
        np.repeat([0, 1], [length // 2, length - length // 2]),
        np.linspace(0, 1, length, dtype=np.float32),
        rng.random(length) > 0.5,
    )
    fields: dict[str, Any] = {
        "cameras": tuple(SIZES),
        "image_sizes": SIZES,
        "stamp_ns": 5 + np.arange(length) * 100_000_000,
        "instruction": "open the drawer",
        "paraphrases": ("pull the drawer",),
        "stage_names": ("reach", "pull"),
        "boundaries": np.array([0, 50, length]),
        "truth": truth,
        "success": np.arange(length) > 120,
        "outcome": Outcome.SUCCESS,
        "kind": "expert",
        "source": {"seed": 3, "noise": [0.5, None]},
    }
    info = EpisodeInfo(name, uid, **(fields | changes))
    frames = {camera: rng.integers(0, 256, (length, *size, 3), np.uint8) for camera, size in SIZES.items()}
    frames["front"][:] *= (np.arange(length) > 110)[:, None, None, None]  # a whole shard of black
    proprio = rng.random((length, 4), np.float32)
    return Episode(info, frames, proprio, np.zeros((length, 2), np.float32))


def broken(episode: Episode, **fields: Any) -> Episode:
    """The episode with fields that the types forbid, as code without shape checks could make it."""
    for name, value in fields.items():
        target = episode if name in ("frames", "proprio", "actions") else episode.info
        object.__setattr__(target, name, value)
    return episode


@pytest.fixture
def store(tmp_path: Path) -> EpisodeStore:
    return EpisodeStore.create(tmp_path / "store", {"fps": 10})


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, ProgressLabel):
        return all(same(getattr(a, part), getattr(b, part)) for part in ("stage", "tau", "valid"))
    return a == b


def test_what_is_written_is_read(store: EpisodeStore) -> None:
    episode = make_episode()
    store.write(episode)
    stored = EpisodeStore.open(store.path).episodes[0]
    for field in EpisodeInfo.__slots__:
        assert same(getattr(episode.info, field), getattr(stored.info, field)), field
    loaded = stored.load()
    assert all(same(episode.frames[camera], loaded.frames[camera]) for camera in SIZES)
    assert same(episode.proprio, loaded.proprio)
    assert same(episode.actions, loaded.actions)


def test_unknown_fields_stay_unknown(store: EpisodeStore) -> None:
    full = make_episode(stage_names=(), boundaries=None, truth=None, success=None, outcome=Outcome.UNKNOWN)
    stored = store.write(Episode(full.info, full.frames))
    assert (stored.info.boundaries, stored.info.truth, stored.info.success) == (None, None, None)
    assert stored.read_proprio() is None
    assert stored.read_actions() is None


def test_any_zarr_reader_sees_the_same_images(store: EpisodeStore) -> None:
    episode = make_episode()
    store.write(episode)
    group = zarr.open_group(store.path, mode="r")
    assert same(group["episodes/episode_000000/frames/front"][...], episode.frames["front"])  # pyright: ignore
    assert set(dict(group.members(max_depth=None))) >= {"episodes/episode_000000/stamp_ns"}


def test_protocols_order_names_and_pickle(store: EpisodeStore) -> None:
    for name in ("b", "a/1", ".hidden", "__x", "ü 2", "aa"):
        store.write(make_episode(name, uid=name, length=LENGTH))
    copy = pickle.loads(pickle.dumps(store))
    assert [episode.name for episode in copy.episodes] == [".hidden", "__x", "a/1", "aa", "b", "ü 2"]
    assert [episode.info.name for episode in copy] == [episode.name for episode in store]
    assert copy.fingerprint == store.fingerprint
    assert "a/1" in copy
    assert "a" not in copy
    assert isinstance(store, EpisodeSource)
    reader = pickle.loads(pickle.dumps(copy["b"]))
    assert isinstance(reader, EpisodeReader)
    assert reader.info.name == "b"


def test_names_longer_than_those_of_files(store: EpisodeStore) -> None:
    """A character of Chinese takes nine bytes of a file's name, which has 255 at the most."""
    fits, longest = "把桌" * 13 + "a" * 21, "把桌子" * 40
    names = [f"{longest}-episode_{index:03d}" for index in (2, 0, 1)]
    for name in (fits, *names):
        store.write(make_episode(name, uid=name, length=LENGTH))
    assert [episode.name for episode in store] == sorted((fits, *names))
    assert all(name in store and store[name].info.name == name for name in names)
    assert f"{longest}-episode_003" not in store
    folders = {path.name for path in (store.path / "episodes").iterdir()}
    assert quote(fits) in folders
    assert all(len(name.encode()) <= 255 for name in folders)
    with pytest.raises(DataError, match=r"is stored in .* already"):
        store.write(make_episode(names[0], uid="other", length=LENGTH))


def test_fingerprint_follows_content(store: EpisodeStore) -> None:
    empty = store.fingerprint
    store.write(make_episode(truth=None))
    one = store.fingerprint
    before = store.episodes[0].info
    store.annotate("episode_000000", ("whole",), np.array([3, 100]))
    annotated = store.fingerprint
    assert len({empty, one, annotated}) == 3
    assert store.episodes[0].info.stage_names == ("whole",)
    assert store.episodes[0].info.boundaries is not None
    assert store.episodes[0].info.boundaries.tolist() == [3, 100]
    assert before.stage_names == ("reach", "pull")


def test_annotation_is_checked(store: EpisodeStore) -> None:
    store.write(make_episode(truth=None))
    store.write(make_episode("oracle", uid="o"))
    with pytest.raises(DataError, match="'oracle' knows its stage at every frame"):
        store.annotate("oracle", ("a",), np.array([0, 10]))
    with pytest.raises(DataError, match=r"boundaries \[0, 131\] leave its frames 0..130"):
        store.annotate("episode_000000", ("a",), np.array([0, 131]))
    with pytest.raises(DataError, match="no episode 'b'"):
        store.annotate("b", ("a",), np.array([0, 10]))
    store.annotate("episode_000000", (), None)
    assert store.episodes[0].info.boundaries is None
    # What reading refuses may not be written: nothing could be read, or annotated, any more.
    bare = {"truth": None, "boundaries": None, "stage_names": (), "success": None}
    store.write(make_episode("failed", uid="f", outcome=Outcome.FAILURE, reached=2, **bare))
    with pytest.raises(
        DataError, match=r"'failed': reached=2 is for failures, the index of a stage \(of 2\)"
    ):
        store.annotate("failed", ("reach", "pull"), np.array([0, 50, 100]))
    assert [each.info.name for each in store.episodes] == ["episode_000000", "failed", "oracle"]


def test_attributes(store: EpisodeStore) -> None:
    store.update_attrs({"left_out": ["x"]})
    assert EpisodeStore.open(store.path).attrs == {"fps": 10, "left_out": ["x"]}
    assert EpisodeStore.create(store.path, {"fps": 99}, exist_ok=True).attrs["fps"] == 10
    with pytest.raises(DataError, match="cannot be stored as JSON"):
        store.update_attrs({"bad": float("nan")})


REFUSALS: list[tuple[str, dict[str, Any]]] = [
    (
        r"camera 'front' has 3 frames for 130 stamps",
        {"frames": {"front": np.zeros((3, 12, 16, 3), np.uint8)}},
    ),
    (
        r"info names cameras .*wrist.*, frames came from \['front'\]",
        {"frames": {"front": make_episode().frames["front"]}},
    ),
    (
        r"camera 'front': frame 0 is float32",
        {"frames": {camera: np.zeros((LENGTH, *size, 3), np.float32) for camera, size in SIZES.items()}},
    ),
    (
        r"camera 'front' has images of \(12, 16\), info says \(12, 17\)",
        {"image_sizes": {**SIZES, "front": (12, 17)}},
    ),
    (
        r"frame 2 \(1 ns\) is not after frame 1 \(1 ns\)",
        {"stamp_ns": np.array([0, 1, 1, *range(2, LENGTH - 1)])},
    ),
    (r"stamp_ns must be int64 .* got int32", {"stamp_ns": np.arange(LENGTH, dtype=np.int32)}),
    (r"has no frames", {"stamp_ns": np.zeros(0, np.int64)}),
    (r"boundaries must increase, but 50 follows 60", {"boundaries": np.array([0, 60, 50])}),
    (r"boundaries \[0, 50, 131\] leave its frames 0..130", {"boundaries": np.array([0, 50, 131])}),
    (r"2 stages need 3 boundaries, got \[0, 50\]", {"boundaries": np.array([0, 50])}),
    (r"success has 3 rows for 130 frames", {"success": np.zeros(3, np.bool_)}),
    (r"proprio has 3 rows for 130 frames", {"proprio": np.zeros((3, 4), np.float32)}),
    (r"actions is nan at frame 0, column 1", {"actions": np.full((LENGTH, 2), [0, np.nan], np.float32)}),
    (r"actions must be float32 with 2 axes, got float64", {"actions": np.zeros((LENGTH, 2))}),
    (
        r"truth.stage is 2 at frame 0, must be 0..1",
        {"truth": ProgressLabel(np.full(LENGTH, 2), np.zeros(LENGTH, np.float32), np.ones(LENGTH, np.bool_))},
    ),
    (
        r"truth.tau is 1.5 at frame 0",
        {
            "truth": ProgressLabel(
                np.zeros(LENGTH, np.int64), np.full(LENGTH, 1.5, np.float32), np.ones(LENGTH, np.bool_)
            )
        },
    ),
    (r"cannot be stored as JSON", {"source": {"thing": object()}}),
]


@pytest.mark.parametrize(("message", "fields"), REFUSALS, ids=[message for message, _ in REFUSALS])
def test_refuses_by_name_and_leaves_nothing(
    store: EpisodeStore, message: str, fields: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        store.write(broken(make_episode(), **fields))
    assert "episode_000000" in str(caught.value)
    assert len(store) == 0
    assert [path.name for path in (store.path / ".writing").iterdir()] == ["zarr.json"]


def test_refuses_a_second_of_the_same(store: EpisodeStore) -> None:
    store.write(make_episode("a", uid="1"))
    with pytest.raises(DataError, match=r"episode 'a' is stored in .* already"):
        store.write(make_episode("a", uid="2"))
    with pytest.raises(DataError, match=r"episode 'b' is the recording '1', stored in .* already as 'a'"):
        store.write(make_episode("b", uid="1"))


def test_opens_only_stores(tmp_path: Path, store: EpisodeStore) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        EpisodeStore.open(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is not an episode store"):
        EpisodeStore.open(tmp_path)
    with pytest.raises(DataError, match=r"is not empty \(store\)"):
        EpisodeStore.create(tmp_path)
    assert not (tmp_path / ".writing").exists()
    with pytest.raises(DataError, match="is a store already"):
        EpisodeStore.create(store.path)
    zarr.create_group(tmp_path / "other")
    with pytest.raises(DataError, match="was not written by robo_reward"):
        EpisodeStore.open(tmp_path / "other")


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    content["attributes"]["robo_reward"] |= changes
    path.write_text(json.dumps(content))


def test_a_newer_schema_is_refused(store: EpisodeStore) -> None:
    episode = store.write(make_episode())
    edit_json(store.path / "episodes/episode_000000/zarr.json", schema_version=9)
    with pytest.raises(DataError, match=r"schema version 9, this robo_reward reads up to 1"):
        _ = EpisodeStore.open(store.path).episodes[0].info
    edit_json(store.path / "zarr.json", schema_version=9)
    with pytest.raises(DataError, match="install a newer one"):
        EpisodeStore.open(store.path)
    assert episode.name == "episode_000000"


def damage(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    "how",
    ["pixels", "index", "cut", "gone", "stamps", "metadata", "image metadata", "no shape", "other codec"],
)
def test_damage_is_told(store: EpisodeStore, how: str) -> None:
    store.write(make_episode())
    folder = store.path / "episodes/episode_000000"
    # Encoded names keep the folder readable on every file system.
    shard = folder / "frames/%2Fwrist%2Fimage raw/c/1/0/0/0"
    if how == "pixels":
        damage(shard, 30)
    elif how == "index":
        damage(shard, -10)
    elif how == "cut":
        shard.write_bytes(shard.read_bytes()[:40])
    elif how == "gone":
        shard.unlink()
    elif how == "stamps":
        (folder / "stamp_ns/c/0").unlink()
    elif how == "image metadata":
        (folder / "frames/%2Fwrist%2Fimage raw/zarr.json").write_text('{"shape": [130, 24, 32, 3]}')
    elif how == "no shape":
        metadata = folder / "frames/%2Fwrist%2Fimage raw/zarr.json"
        metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"shape": None}))
    elif how == "other codec":
        metadata = folder / "frames/%2Fwrist%2Fimage raw/zarr.json"
        metadata.write_text(metadata.read_text().replace('"zstd"', '"gzip"'))
    else:
        (folder / "zarr.json").write_text("{")
    with pytest.raises(DataError, match=r"episode(_| ')") as caught:
        EpisodeStore.open(store.path).episodes[0].load()
    if how not in ("stamps", "metadata"):
        assert "camera '/wrist/image raw'" in str(caught.value)


def test_wrong_camera_or_frame(store: EpisodeStore) -> None:
    episode = store.write(make_episode())
    with pytest.raises(DataError, match=r"has no camera 'side': choose one of front"):
        episode.read_frames("side", np.array([0]))
    for frame in (-1, LENGTH):
        with pytest.raises(DataError, match=rf"no frame {frame}: it has frames 0..129"):
            episode.read_frames("front", np.array([0, frame]))
