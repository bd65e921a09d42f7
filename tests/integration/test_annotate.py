"""Annotating a store: stages found, files read and written, marks that survive a killed server."""

from __future__ import annotations

import dataclasses
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

import robo_reward
from robo_reward.calibration import Calibration
from robo_reward.checkpoint import save_checkpoint
from robo_reward.cli.main import main, run_command
from robo_reward.errors import ConfigError, DataError
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.schema import Episode, EpisodeInfo, EpisodeReader, Outcome, ProgressLabel
from robo_reward.stages import boundary_matches
from robo_reward.testing import MemoryReader
from robo_reward_data.annotate.auto import FoundStages, StageSettings, long_enough
from robo_reward_data.annotate.journal import Entry, Journal, Marks
from robo_reward_data.annotate.server import AnnotationServer
from robo_reward_data.annotate.session import ConflictError, Session
from robo_reward_data.annotate.spread import note_spread
from robo_reward_data.store import EpisodeStore

STAGES = ("reach", "grasp", "carry")


def demonstration(index: int, lengths: tuple[int, int, int], truth: bool = False) -> Episode:
    """A hand (a bright square) goes right, stands while its fingers close, and goes down with the object."""
    rng = np.random.default_rng(index)
    steps = np.repeat([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]], lengths, axis=0)
    speed = np.repeat([20 / lengths[0], 1 / lengths[1], 20 / lengths[2]], lengths)[:, None]
    path = (steps * speed).cumsum(axis=0) + np.array([4 + rng.uniform(0, 4), 4, 1])
    length = len(path)
    frames = np.full((length, 32, 32, 3), 60, np.uint8)
    for frame, (x, y, open_) in zip(frames, path, strict=True):
        row, column, gap = round(y), round(x), round(2 * max(open_, 0))
        frame[row : row + 4, column - gap : column - gap + 2] = 250
        frame[row : row + 4, column + gap + 2 : column + gap + 4] = 250
    boundaries = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    stage = np.repeat(np.arange(3), lengths)
    label = ProgressLabel(stage, np.zeros(length, np.float32), np.ones(length, np.bool_))
    info = EpisodeInfo(
        name=f"episode_{index:02d}",
        uid=f"uid{index}",
        cameras=("front",),
        image_sizes={"front": (32, 32)},
        stamp_ns=np.arange(length) * 50_000_000,
        instruction="carry it",
        stage_names=STAGES if truth else (),
        boundaries=boundaries if truth else None,
        truth=label if truth else None,
        outcome=Outcome.SUCCESS,
        source={"boundaries": boundaries.tolist()},
    )
    proprio = (path + rng.normal(0, 0.01, path.shape)).astype(np.float32)
    return Episode(info, {"front": frames}, proprio)


def cut(episode: Episode, length: int) -> Episode:
    """Its first frames: a recording that was stopped at once."""
    info = dataclasses.replace(episode.info, stamp_ns=episode.info.stamp_ns[:length])
    assert episode.proprio is not None
    return Episode(info, {"front": episode.frames["front"][:length]}, episode.proprio[:length])


def make_store(path: Path, count: int = 6, truth: bool = False) -> EpisodeStore:
    store = EpisodeStore.create(path)
    rng = np.random.default_rng(7)
    for index in range(count):
        a, b, c = (int(n) for n in rng.integers((15, 10, 15), (30, 18, 30)))
        store.write(demonstration(index, (a, b, c), truth))
    return store


def test_stages_are_found_written_and_not_overwritten_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(tmp_path / "store")
    failed = demonstration(6, (20, 12, 20))
    store.write(dataclasses.replace(failed, info=dataclasses.replace(failed.info, outcome=Outcome.FAILURE)))
    command = ["annotate", f"data={store.path}", "lead=0", "resamples=2", "names=[reach,grasp,carry]"]
    assert main([*command, f"files={tmp_path / 'files'}"]) == 0
    said = capsys.readouterr().out
    assert "'carry it': 3 stages in 6 episodes" in said
    assert "stability of the boundaries: 1.00, 1.00" in said
    for episode in store.episodes[:6]:
        info = episode.info
        assert info.stage_names == STAGES
        assert info.boundaries is not None
        assert boundary_matches(info.boundaries, np.array(info.source["boundaries"]), info.length) == 2
    assert store["episode_06"].info.boundaries is None
    before = store.fingerprint
    assert main(command) == 0
    assert store.fingerprint == before, (
        "the same seed finds the same stages, and finding them again is no harm"
    )
    assert main([*command, "stages=2", "names=null"]) == 0
    assert "'carry it': left as it is, 6 of 6 demonstrations have stages" in capsys.readouterr().out
    assert store.fingerprint == before
    assert main([*command, "overwrite=true", "names=[a,b]"]) == 1
    assert "names has 2 stages, 3 were found: set stages=2" in capsys.readouterr().err
    # The files say what the store does, and bring it back where it is lost.
    bounds = store["episode_00"].info.boundaries
    store.annotate("episode_00", (), None)
    run_command("annotate", [f"data={store.path}", "mode=read", f"files={tmp_path / 'files'}"])
    assert store["episode_00"].info.boundaries.tolist() == bounds.tolist()
    assert store.fingerprint == before
    store.annotate("episode_00", STAGES, bounds + np.array([0, 1, 1, 0]))
    assert main([*command, "mode=read", f"files={tmp_path / 'files'}"]) == 1
    assert "1 episodes (episode_00, ...) have other boundaries already" in capsys.readouterr().err


def test_a_recording_that_was_stopped_at_once_changes_nothing_for_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With one of two frames, every episode silently got a single stage."""
    alone, beside = (make_store(tmp_path / name) for name in ("alone", "beside"))
    beside.write(cut(demonstration(6, (20, 12, 20)), 2))
    given = ["lead=0", "resamples=2"]
    for keys in (given, [*given, "stages=3", "overwrite=true"]):
        run_command("annotate", [f"data={alone.path}", *keys])
        capsys.readouterr()
        run_command("annotate", [f"data={beside.path}", *keys])
        said = capsys.readouterr().out
        assert "'carry it': 3 stages in 6 episodes" in said
        assert "left out, too short: episode_06 (2 frames)\n6 episodes annotated" in said
        for one, other in zip(alone.episodes, beside.episodes, strict=False):
            assert one.info.boundaries.tolist() == other.info.boundaries.tolist()
        assert beside["episode_06"].info.boundaries is None
    # Nothing is left to do; replacing stages takes those away that it was given before.
    run_command("annotate", [f"data={beside.path}", *given])
    assert "left as it is, 6 of 6 demonstrations" in capsys.readouterr().out
    beside.annotate("episode_06", ("stage_1",), np.array([0, 2]))
    run_command("annotate", [f"data={beside.path}", *given, "overwrite=true"])
    assert beside["episode_06"].info.boundaries is None
    with pytest.raises(
        DataError, match=r"none long enough of 'carry it' \(too short: .*ask for fewer stages"
    ):
        run_command("annotate", [f"data={beside.path}", "stages=40", "overwrite=true"])


def test_short_recordings_are_only_left_out_beside_longer_ones() -> None:
    readers = [MemoryReader(cut(demonstration(i, (20, 12, 20)), n)) for i, n in enumerate((9, 8, 11, 4, 3))]
    assert long_enough(readers, StageSettings()) == [True, True, True, True, False]
    assert long_enough(readers, StageSettings(stages=3)) == [True, True, True, False, False]
    assert long_enough(readers, StageSettings(stages=5)) == [False, False, True, False, False]


def test_a_task_of_one_demonstration_keeps_no_other_from_its_stages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, copy = make_store(tmp_path / "store", 3, truth=True), tmp_path / "copy"
    push = demonstration(8, (20, 12, 20), truth=True)
    store.write(dataclasses.replace(push, info=dataclasses.replace(push.info, instruction="push")))
    command = ["annotate", f"data={store.path}", f"out={copy}", "resamples=1"]
    assert main([*command, "stages=40"]) == 1
    assert main([*command, "stages=3", "names=[a,b]"]) == 1
    assert main([*command, "mode=spread"]) == 1
    assert not copy.exists(), "where nothing is found, nothing is copied"
    capsys.readouterr()
    assert main([*command, "stages=3"]) == 0
    assert "left out: stages are what demonstrations share, and there is one alone of 'push'" in (
        capsys.readouterr().out
    )
    found = [episode.info.boundaries for episode in EpisodeStore.open(copy).episodes]
    assert [None if bounds is None else len(bounds) for bounds in found] == [4, 4, 4, None]


def give_task(store: EpisodeStore, index: int, task: str, marks: Sequence[int] | None) -> None:
    made = demonstration(index, (15 + index % 9, 12, 20))
    bounds = None if marks is None else np.array([*marks, made.info.length])
    names = () if bounds is None else ("a", "b")
    info = dataclasses.replace(made.info, instruction=task, boundaries=bounds, stage_names=names)
    store.write(dataclasses.replace(made, info=info))


@pytest.mark.parametrize("like", [False, True])
def test_what_is_marked_is_not_looked_at_again_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], like: bool
) -> None:
    """Eight tasks marked by hand were replaced by one that was not, as the refusal advised."""
    store = EpisodeStore.create(tmp_path / "store")
    for index in range(4):
        give_task(store, index, "clear", [0, 9])
    give_task(store, 4, "close the box", [0, 7])
    for index in range(5, 8):
        give_task(store, index, "carry it", None)
    command = ["annotate", f"data={store.path}", "stages=3", "resamples=1"]
    if like:
        other = EpisodeStore.create(tmp_path / "other")
        for index in range(6):
            episode = demonstration(40 + index, (14 + index, 12, 26 - index))
            bounds = np.array(episode.info.source["boundaries"])
            info = dataclasses.replace(episode.info, boundaries=bounds, stage_names=STAGES)
            other.write(dataclasses.replace(episode, info=info))
        command += [f"like=[{other.path}]"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "'clear': left as it is, 4 of 4 demonstrations have stages" in said
    assert "'close the box': left as it is, 1 of 1 demonstrations have stages" in said
    assert "'carry it': 3 stages in 3 episodes" in said
    stages = [episode.info.boundaries.tolist()[:2] for episode in store.episodes[:5]]
    assert stages == [[0, 9]] * 4 + [[0, 7]]
    assert [len(episode.info.boundaries) for episode in store.episodes[5:]] == [4] * 3
    # Asked to, it does all that it can: one alone shares its stages with nobody.
    assert main([*command, "overwrite=true"]) == 0
    counts = [len(episode.info.boundaries) for episode in store.episodes]
    assert counts == [4] * 4 + [4 if like else 3] + [4] * 3


def test_a_task_of_which_some_is_marked_is_one_to_spread(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(tmp_path / "store", 5, truth=True)
    copy = ["annotate", f"data={store.path}", f"out={tmp_path / 'copy'}", "stages=3", "resamples=1"]
    assert main(copy) == 0  # a simulator's truth is no mark
    made = EpisodeStore.open(tmp_path / "copy")
    for name in ("episode_01", "episode_03"):
        made.annotate(name, (), None)
    for command in (["annotate", f"data={made.path}"], copy):  # marks in the copy count as well
        before = made.fingerprint
        assert main(command) == 1
        said = capsys.readouterr().err
        assert "3 of 5 demonstrations of 'carry it' have stages already: mode=spread" in said
        assert made.fingerprint == before
    assert main([*copy, "mode=spread"]) == 0
    assert "'carry it': 3 marked, 2 follow" in capsys.readouterr().out
    give_task(made, 9, "push", None)
    assert main(["annotate", f"data={made.path}"]) == 1
    assert "there is one alone of 'push'" in capsys.readouterr().err


def test_a_few_marked_demonstrations_give_the_others_their_stages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(tmp_path / "store", count=8)
    command = ["annotate", f"data={store.path}", "mode=spread"]
    assert main(command) == 1
    assert "mark one or more of each first" in capsys.readouterr().err
    # Someone marks late: so it is to be in the others.
    for name in ("episode_01", "episode_04"):
        info = store[name].info
        true = np.array(info.source["boundaries"])
        store.annotate(name, STAGES, true + np.array([0, 2, 2, 0]))
    marked = store["episode_01"].info.boundaries
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "'carry it': 2 marked, 6 follow; told from each other, 100% of the marked boundaries" in said
    for episode in store.episodes:
        info = episode.info
        assert info.stage_names == STAGES
        assert info.boundaries is not None
        assert info.boundaries[[0, -1]].tolist() == [0, info.length]
        wanted = np.array(info.source["boundaries"])[1:3] + 2
        assert np.abs(info.boundaries[1:3] - wanted).max() <= 2
    assert store["episode_01"].info.boundaries.tolist() == marked.tolist()
    # With another mark, what was spread is spread anew; what a person changed since is a person's.
    before = store.fingerprint
    assert main(command) == 0
    assert "2 marked, 6 follow" in capsys.readouterr().out
    assert store.fingerprint == before
    for name in ("episode_01", "episode_04", "episode_06"):
        store.annotate(name, STAGES, np.array(store[name].info.source["boundaries"]) - np.array([0, 2, 2, 0]))
    own = store["episode_06"].info.boundaries
    assert main(command) == 0
    assert "3 marked, 5 follow" in capsys.readouterr().out
    assert store["episode_06"].info.boundaries.tolist() == own.tolist()
    for episode in store.episodes:
        wanted = np.array(episode.info.source["boundaries"])[1:3] - 2
        assert np.abs(episode.info.boundaries[1:3] - wanted).max() <= 2
    # Where a person has looked at all of them, none follows.
    for episode in store.episodes:
        store.annotate(episode.name, STAGES, np.array(episode.info.source["boundaries"]))
    assert main(command) == 1
    # Names can be given where the marked have none; others than theirs are refused.
    store.annotate("episode_00", (), None)
    assert main([*command, "names=[a,b,c]"]) == 1
    assert "named as the marked ones are" in capsys.readouterr().err
    for episode in store.episodes[1:]:
        store.annotate(episode.name, (), episode.info.boundaries)
    assert main([*command, "names=[a,b]"]) == 1
    assert "names has 2 stages, 3 are marked" in capsys.readouterr().err
    assert main([*command, "names=[a,b,c]"]) == 0
    assert store["episode_00"].info.stage_names == ("a", "b", "c")
    store.annotate("episode_00", STAGES, store["episode_00"].info.boundaries)
    # One that is too short for so many stages keeps no other from them, and is named; it loses those that
    # it got where they were fewer.
    store.write(cut(demonstration(8, (20, 12, 20)), 2))
    note_spread(store, {"episode_08": Marks(("whole",), (0, 2))})
    store.annotate("episode_08", ("whole",), np.array([0, 2]))
    store.annotate("episode_00", (), None)
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "7 marked, 1 follow" in said
    assert "left out, too short: episode_08 (2 frames)\n1 episodes annotated" in said
    assert store["episode_00"].info.boundaries is not None
    assert store["episode_08"].info.boundaries is None
    store.annotate("episode_00", STAGES, store["episode_00"].info.boundaries)
    assert main(command) == 1
    assert "not marked is too short for the stages of those that are: episode_08 (2 frames)" in (
        capsys.readouterr().err
    )
    # Marks that disagree about the stages are refused before anything is written.
    store.annotate("episode_02", (), None)
    store.annotate("episode_03", ("a", "b"), np.array([0, 9, 30]))
    before = store.fingerprint
    assert main(command) == 1
    assert "has 2 stages, 'episode_07' 3: mark them alike" in capsys.readouterr().err
    assert store.fingerprint == before


def test_stages_end_where_those_of_other_tasks_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other, store = EpisodeStore.create(tmp_path / "other"), make_store(tmp_path / "store", count=5)
    for index in range(12):
        episode = demonstration(40 + index, (14 + index, 12 + index % 4, 26 - index))
        # Whoever marked this task marks two frames late, and does not tell the second step from the third.
        marks = np.array(episode.info.source["boundaries"])[[0, 1, 3]] + [0, 2, 0]
        named = {"instruction": "put it there", "stage_names": ("reach", "take"), "boundaries": marks}
        other.write(dataclasses.replace(episode, info=dataclasses.replace(episode.info, **named)))
    store.write(cut(demonstration(5, (20, 12, 20)), 2))
    command = ["annotate", f"data={store.path}", f"like=[{other.path}]"]
    assert main([*command, "stages=2", "names=[reach,take]"]) == 0
    said = capsys.readouterr().out
    assert "'carry it': 2 stages in 5 episodes" in said
    assert "left out, too short: episode_05 (2 frames)" in said
    assert store["episode_05"].info.boundaries is None
    for episode in store.episodes[:5]:
        wanted = episode.info.source["boundaries"][1] + 2
        assert abs(episode.info.boundaries[1] - wanted) <= 2
        assert episode.info.boundaries[2] == episode.info.length
    # Left to choose, it finds no more stages than there are signs of.
    assert main([*command, "overwrite=true"]) == 0
    assert "'carry it': 2 stages in 5 episodes" in capsys.readouterr().out
    before = store.fingerprint
    assert main([*command, "overwrite=true", "hand=[0,1]"]) == 1
    assert "hand=[0, 1]: three of the 3 columns of proprioception, or none" in capsys.readouterr().err
    bare = f"like=[{make_store(tmp_path / 'bare').path}]"
    assert main(["annotate", f"data={store.path}", "overwrite=true", bare]) == 1
    assert "like has no successful episode with stage boundaries" in capsys.readouterr().err
    assert store.fingerprint == before


def test_the_last_stage_ends_where_the_recording_shows_the_task_done(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "store")
    for index, lengths in enumerate([(14, 12, 16), (17, 10, 14), (12, 13, 18)]):
        episode = demonstration(index, (*lengths[:2], lengths[2] + 15))  # what is done goes on for 15 frames
        done = np.arange(episode.info.length) >= sum(lengths)
        store.write(dataclasses.replace(episode, info=dataclasses.replace(episode.info, success=done)))
    run_command("annotate", [f"data={store.path}", "stages=3"])
    for episode in EpisodeStore.open(store.path).episodes:
        assert episode.info.boundaries[-1] == int(np.argmax(episode.info.success))


def test_pictures_alone_will_do_where_they_show_the_stages(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "store")
    for index, lengths in enumerate([(12, 20, 16), (22, 10, 18), (15, 15, 15), (20, 24, 12)]):
        episode = demonstration(index, lengths)
        # Three lamps brighten one after the other, on the left, in the middle and on the right.
        level = np.concatenate([np.linspace(0, 1, n + 1)[1:] for n in lengths])
        frames = np.zeros_like(episode.frames["front"])
        stage = np.repeat(np.arange(3), lengths)
        for t, (lamp, now) in enumerate(zip(stage, level, strict=True)):
            frames[t, :, : 10 * lamp] = 200
            frames[t, :, 10 * lamp : 10 * (lamp + 1)] = round(200 * now)
        store.write(Episode(episode.info, {"front": frames}))
    run_command("annotate", [f"data={store.path}", "lead=0", "stages=3", "resamples=1"])
    for episode in store.episodes:
        info = episode.info
        assert boundary_matches(info.boundaries, np.array(info.source["boundaries"]), info.length) == 2


def test_a_store_that_knows_its_truth_needs_a_copy_which_goes_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(tmp_path / "store", truth=True)
    before = store.fingerprint
    assert main(["annotate", f"data={store.path}"]) == 1
    assert "know their stage at every frame" in capsys.readouterr().err
    copy = tmp_path / "copy"
    # A copy that was interrupted is gone on with.
    EpisodeStore.create(copy, {"annotated_copy_of": {"store": "store", "attrs": {}}})
    run_command("annotate", [f"data={store.path}", f"out={copy}", "stages=3", "resamples=1"])
    assert store.fingerprint == before
    for original, annotated in zip(store.episodes, EpisodeStore.open(copy).episodes, strict=True):
        assert annotated.uid == original.uid
        assert annotated.info.truth is None
        assert len(annotated.info.boundaries) == 4
        everything = np.arange(original.info.length)
        frames = (episode.read_frames("front", everything) for episode in (original, annotated))
        assert np.array_equal(*frames)
        assert np.array_equal(original.read_proprio(), annotated.read_proprio())
    make_store(tmp_path / "other", 1)
    with pytest.raises(DataError, match="not an annotated copy"):
        run_command("annotate", [f"data={store.path}", f"out={tmp_path / 'other'}"])


def test_real_keyframes_go_through_the_store_and_back(shared_data: Path, tmp_path: Path) -> None:
    task = shared_data / "clean_table"
    store = tmp_path / "store"
    options = ["source=video_folders", f"path={task}", f"out={store}", "size=[24,32]", "cameras=[cam_high]"]
    run_command("import", options)
    (name,) = [episode.name for episode in EpisodeStore.open(store).episodes]
    info = EpisodeStore.open(store)[name].info
    run_command("annotate", [f"data={store}", "mode=write", f"files={tmp_path / 'files'}"])
    written = tmp_path / "files" / "clean_table" / "episode_001" / "annotated_keyframes.json"
    ours, theirs = (
        [list(entry.values()) for entry in json.loads(path.read_text())]
        for path in (written, task / "episode_001" / "annotated_keyframes.json")
    )
    assert [entry[0] for entry in ours] == [entry[0] for entry in theirs]
    # 10 of 30 frames a second are kept: a boundary is off by the two frames that are not, at most.
    assert np.abs(np.array([e[1:] for e in ours]) - np.array([e[1:] for e in theirs])).max() <= 2
    run_command("annotate", [f"data={store}", "mode=read", f"files={tmp_path / 'files'}"])
    assert EpisodeStore.open(store)[name].info.boundaries.tolist() == info.boundaries.tolist()
    written.write_text(written.read_text().replace("subtask1", "other", 1))
    with pytest.raises(DataError, match="says something else"):
        run_command("annotate", [f"data={store}", "mode=write", f"files={tmp_path / 'files'}"])


def test_a_recording_whose_name_ends_in_capitals_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "drawer" / "episode_0"
    folder.mkdir(parents=True)
    with av.open(str(folder / "front.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        for number in range(30):
            image = np.full((32, 32, 3), 8 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    (folder / "front.mp4").rename(folder / "front.MP4")  # as cameras write them
    (folder.parent / "task_instruction.json").write_text('["open the drawer"]')
    store, files = tmp_path / "store", tmp_path / "files"
    run_command("import", ["source=video_folders", f"path={folder.parent}", f"out={store}", "fps=10"])
    EpisodeStore.open(store).annotate("drawer-episode_0", ("reach", "pull"), np.array([0, 4, 10]))
    run_command("annotate", [f"data={store}", "mode=write", f"files={files}"])
    written = json.loads((files / "drawer/episode_0/annotated_keyframes.json").read_text())
    assert [(entry["start_frame_id"], entry["end_frame_id"]) for entry in written] == [(0, 12), (12, 30)]
    (folder / "front.MP4").unlink()
    with pytest.raises(DataError, match=r"no video .*front\.mp4, from where the episode was imported"):
        run_command("annotate", [f"data={store}", "mode=read", f"files={files}"])


LEROBOT = """
import sys
from pathlib import Path
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

image = {"dtype": "image", "shape": (32, 32, 3), "names": ["height", "width", "channels"]}
features = {
    "observation.images.front": image,
    "observation.state": {"dtype": "float32", "shape": (2,), "names": ["a", "b"]},
    "action": {"dtype": "float32", "shape": (1,), "names": ["x"]},
}
root = Path(sys.argv[1])
dataset = LeRobotDataset.create("test/set", fps=20, features=features, root=root, use_videos=False)
for length in (24, 31):
    for number in range(length):
        dataset.add_frame({
            "observation.images.front": np.full((32, 32, 3), 5 * number, np.uint8),
            "observation.state": np.array([number, 0], np.float32),
            "action": np.zeros(1, np.float32),
            "task": "carry it",
        })
    dataset.save_episode()
dataset.finalize()
"""


@pytest.mark.slow
def test_stages_go_back_into_the_lerobot_dataset_that_they_are_of(tmp_path: Path) -> None:
    if find_spec("lerobot") is None:
        pytest.skip("no lerobot here to write a dataset with: pip install 'robo-reward[data]'")
    dataset, store = tmp_path / "set", tmp_path / "store"
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    subprocess.run(
        [sys.executable, "-c", LEROBOT, str(dataset)], env=offline, check=True, capture_output=True
    )
    half = ["source=lerobot", "size=null", "fps=10"]
    run_command("import", [*half, f"path={dataset}", f"out={store}"])
    for episode, boundaries in zip(EpisodeStore.open(store).episodes, ([2, 7, 12], [0, 5, 16]), strict=True):
        EpisodeStore.open(store).annotate(episode.name, ("reach", "pull"), np.array(boundaries))
    dataset.rename(tmp_path / "moved")
    assert main(["annotate", f"data={store}", "mode=write", "lerobot=sparse"]) == 1
    for form in ("language", "sparse"):
        copy = tmp_path / form / "set"
        write = ["mode=write", f"lerobot={form}", f"lerobot_out={copy}", f"recordings={tmp_path / 'moved'}"]
        run_command("annotate", [f"data={store}", *write])
        again = tmp_path / f"{form}_store"
        run_command("import", [*half, f"source.annotation={form}", f"path={copy}", f"out={again}"])
        found = [episode.info for episode in EpisodeStore.open(again).episodes]
        assert [info.stage_names for info in found] == [("reach", "pull")] * 2
        assert [info.boundaries.tolist() for info in found] == [[2, 7, 12], [0, 5, 16]]


@pytest.mark.parametrize("mode", ["auto", "web", "read", "write"])
def test_an_empty_store_is_called_empty(tmp_path: Path, mode: str) -> None:
    EpisodeStore.create(tmp_path / "store")
    with pytest.raises(DataError, match="has no episodes: record or import some first"):
        run_command("annotate", [f"data={tmp_path / 'store'}", f"mode={mode}", f"files={tmp_path}"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["mode=guess"], "choose one of auto, spread, web, read, write"),
        (["stages=0"], "stages=0"),
        (["lead=0.5"], "lead=0.5"),
        (["mode=read"], "mode=read needs files=FOLDER"),
        (["names=[a,a]"], "name each stage once"),
        (["like=[other]", "mode=spread"], "like goes with mode=auto and mode=web"),
        (["like=[other]", "proprio=false"], "like looks at proprioception"),
        (["like=[other]", "model=run"], "like looks at proprioception alone"),
        (["hand=[0,1,2]"], "hand says what like looks at"),
        (["lerobot=fine"], "lerobot=fine: choose language, sparse or dense"),
    ],
)
def test_keys_that_make_no_sense_are_refused(tmp_path: Path, keys: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_command("annotate", [f"data={tmp_path}", *keys])


def small_model(folder: Path) -> Path:
    """A model of random weights that knows the task."""
    torch.manual_seed(0)
    config = ModelConfig(
        encoder={
            "_target_": "robo_reward.model.encoders.TinyEncoder",
            "channels": [4, 4, 8, 8],
            "bottleneck": 4,
        },
        tasks=(TaskConfig(("carry it",), STAGES, (0.3, 0.3, 0.4)),),
        cameras=("front",),
        image_size=(32, 32),
        period_s=0.05,
        width=16,
    )
    save_checkpoint(folder, ProgressModel(config), Calibration(), {})
    return folder


def test_a_model_lends_its_embedding_and_shows_its_curve(tmp_path: Path) -> None:
    run = small_model(tmp_path / "run")
    store = make_store(tmp_path / "store", 3)
    run_command("annotate", [f"data={store.path}", f"model={run}", "stages=3", "resamples=1"])
    assert all(len(episode.info.boundaries) == 4 for episode in store.episodes)
    session = Session(store, robo_reward.load(run))
    curve = session.curve("episode_00")
    session.close()
    assert curve["reason"] == ""
    assert len(curve["progress"]) == store["episode_00"].info.length
    assert all(value is None or 0 <= value <= 1 for value in curve["progress"])
    assert any(value is not None for value in curve["progress"])


# --- by hand -------------------------------------------------------------------------------------------


def test_marks_are_in_the_store_as_soon_as_they_are_an_annotation(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", 2)
    session = Session(store)
    state = session.save("episode_00", 0, Marks((), (7,)))
    assert store["episode_00"].info.boundaries is None, "one boundary bounds nothing"
    assert state["boundaries"] == (7,)
    session.save("episode_00", 1, Marks(("a", "b"), (7, 20, 30)))
    assert store["episode_00"].info.boundaries.tolist() == [7, 20, 30]
    with pytest.raises(ConflictError) as caught:
        session.save("episode_00", 1, Marks(("c",), (0, 9)))
    assert caught.value.state["boundaries"] == (7, 20, 30)
    for marks in (Marks(("a",), (9, 9)), Marks(("a",), (0, 999)), Marks((), (0, 9)), Marks((" ",), (0, 9))):
        with pytest.raises(DataError, match="episode_00"):
            session.save("episode_00", 2, marks)
    with pytest.raises(DataError, match=r"each stage needs a name of its own, got \['a', 'a '\]: rename one"):
        session.save("episode_00", 2, Marks(("a", "a "), (7, 20, 30)))
    with pytest.raises(DataError, match="another process"):
        Session(store)
    session.close()
    again = Session(store)
    assert again.state("episode_00")["boundaries"] == (7, 20, 30)
    again.close()


def test_names_that_a_file_repeats_can_be_mended_one_after_the_other(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", 1)
    store.annotate("episode_00", ("a", "a", "a"), np.array([0, 9, 20, 30]))
    session = Session(store)
    session.save("episode_00", 0, Marks(("a", "a", "a"), (0, 9, 21, 30)))
    session.save("episode_00", 1, Marks(("b", "a", "a"), (0, 9, 21, 30)))
    session.save("episode_00", 2, Marks(("b", "c", "a"), (0, 9, 21, 30)))
    with pytest.raises(DataError, match="a name of its own"):
        session.save("episode_00", 3, Marks(("b", "a", "a"), (0, 9, 21, 30)))
    session.close()


def test_what_another_process_wrote_is_seen_before_anything_is_put_over_it(tmp_path: Path) -> None:
    """A page that was open while mode=spread ran put its old marks over those that it gave."""
    store = make_store(tmp_path / "store", 5)
    session = Session(EpisodeStore.open(store.path))
    session.overview()
    own = session.save("episode_00", 0, Marks(("a",), (0, 9)))
    session.save("episode_01", 0, Marks((), (7,)))
    assert [state["revision"] for state in session.overview()["episodes"]] == [1, 1, 0, 0, 0]
    for name in ("episode_00", "episode_01", "episode_02"):
        store.annotate(name, STAGES, np.array([0, 10, 20, 30]))
    for name in ("episode_00", "episode_01", "episode_02"):
        with pytest.raises(ConflictError) as caught:
            session.save(name, own["revision"] if name == "episode_00" else 0, Marks(("b",), (1, 9)))
        assert caught.value.state["boundaries"] == (0, 10, 20, 30)
    states = session.overview()["episodes"]
    assert [state["revision"] for state in states] == [2, 2, 1, 0, 0]
    assert [state["revision"] for state in session.overview()["episodes"]] == [2, 2, 1, 0, 0]
    # What follows goes by what is there by now, and goes over nothing.
    store.annotate("episode_03", STAGES, np.array([0, 11, 21, 31]))
    assert [state["name"] for state in session.spread("episode_00")["episodes"]] == ["episode_04"]
    assert store["episode_03"].info.boundaries.tolist() == [0, 11, 21, 31]
    # Nor does a later session take the mark that was replaced for one that was lost.
    store.annotate("episode_00", (), None)
    assert session.state("episode_00")["boundaries"] == ()
    session.close()
    again = Session(store)
    assert again.recovered == []
    assert again.state("episode_00")["boundaries"] == ()
    again.close()


def test_a_session_suggests_marks_for_what_nobody_has_marked(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", 6)
    store.write(cut(demonstration(6, (20, 12, 20)), 2))
    true = {e.name: np.array(e.info.source["boundaries"]) for e in store.episodes}
    session = Session(store)
    with pytest.raises(DataError, match="0 marked and 7 unmarked"):
        session.spread("episode_03")
    for name in ("episode_00", "episode_02"):
        session.save(name, 0, Marks(STAGES, tuple(true[name].tolist())))
    session.save("episode_01", 0, Marks((), (7,)))  # begun by hand: left alone
    said = session.spread("episode_03")
    assert said["agreement"] == 1.0
    assert said["left_out"] == ["episode_06 (2 frames)"]
    assert [state["name"] for state in said["episodes"]] == ["episode_03", "episode_04", "episode_05"]
    for state in said["episodes"]:
        assert state["names"] == STAGES
        assert np.abs(np.array(state["boundaries"]) - true[state["name"]]).max() <= 2
    assert session.state("episode_01")["boundaries"] == (7,)
    with pytest.raises(DataError, match=r"too short for its stages: episode_06 \(2 frames\)"):
        session.spread("episode_03")
    session.close()
    again = Session(EpisodeStore.open(store.path))
    assert again.state("episode_04")["boundaries"] == said["episodes"][1]["boundaries"]
    again.close()


def test_a_session_finds_stages_where_nothing_is_marked_and_something_can_tell(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", 4)
    asked: list[list[str]] = []

    def finder(readers: Sequence[EpisodeReader]) -> FoundStages:
        asked.append([reader.info.name for reader in readers])
        return FoundStages(tuple(np.array([0, 9, r.info.length]) for r in readers), np.ones(1), {2: 1.0})

    session = Session(store, names=("reach", "carry"), finder=finder)
    session.save("episode_01", 0, Marks((), (7,)))  # begun by hand: left alone
    said = session.spread("episode_00")
    assert asked == [["episode_00", "episode_02", "episode_03"]]
    assert said["agreement"] is None
    assert {state["names"] for state in said["episodes"]} == {("reach", "carry")}
    assert store["episode_02"].info.boundaries[1] == 9
    # From then on there are marks to go by.
    session.save("episode_01", 1, Marks((), ()))
    session.spread("episode_00")
    assert len(asked) == 1
    session.close()


def test_what_did_not_reach_the_store_comes_from_the_journal(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", 3)
    done = Marks(("a",), (0, 9))
    journal = Journal(store.path / ".annotate")
    journal.append(Entry("episode_00", done, Marks()))  # killed between journal and store
    journal.append(Entry("episode_01", Marks((), (4,)), Marks()))  # begun
    journal.append(Entry("episode_02", done, Marks()))  # overtaken: another program annotated it since
    journal.close()
    store.annotate("episode_02", ("x",), np.array([3, 8]))
    with (store.path / ".annotate" / "journal.jsonl").open("a") as file:
        file.write('{"episode":"episode_00","marks":{"names":["torn"],"bound')
    session = Session(store)
    assert session.recovered == ["episode_00"]
    assert store["episode_00"].info.boundaries.tolist() == [0, 9]
    assert session.state("episode_01")["boundaries"] == (4,)
    assert session.state("episode_02")["names"] == ("x",)
    session.save("episode_00", session.state("episode_00")["revision"], Marks(("b",), (1, 9)))
    session.close()
    assert Session(store).state("episode_00")["names"] == ("b",), "a torn line does not hide what comes after"


def test_marks_that_the_store_refuses_are_refused_at_once_and_spoil_no_later_session(tmp_path: Path) -> None:
    """They stayed in the journal, and the store could not be annotated again."""
    store = make_store(tmp_path / "store", 2)
    failed = demonstration(2, (20, 12, 20))
    info = dataclasses.replace(failed.info, outcome=Outcome.FAILURE, reached=2, stage_names=STAGES)
    store.write(dataclasses.replace(failed, info=info))
    session = Session(store)
    with pytest.raises(DataError, match="reached=2 is for failures"):
        session.save("episode_02", 0, Marks(("a", "b"), (0, 9, 20)))
    assert session.state("episode_02")["revision"] == 0
    session.close()
    journal = Journal(store.path / ".annotate")
    journal.append(Entry("episode_02", Marks(("a", "b"), (0, 9, 20)), Marks()))  # as before this was checked
    journal.append(Entry("episode_00", Marks(("a",), (0, 9)), Marks()))
    journal.close()
    session = Session(store)
    assert session.recovered == ["episode_00"]
    assert len(session.refused) == 1
    assert "episode 'episode_02': reached=2 is for failures" in session.refused[0]
    session.close()


def test_stages_say_how_a_recording_ended_where_nobody_else_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where it is imported with keyframes: success was never learned from annotated recordings."""
    store = EpisodeStore.create(tmp_path / "store")
    for index, said in enumerate(("outcome=auto", "outcome=auto", "outcome=unknown")):
        made = demonstration(index, (20 + index, 12, 20))
        source = {**made.info.source, "outcome_from": said}
        info = dataclasses.replace(made.info, outcome=Outcome.UNKNOWN, source=source)
        store.write(dataclasses.replace(made, info=info))
    run_command("annotate", [f"data={store.path}", "stages=3", "resamples=1"])
    assert (
        "2 of them do not say how they ended: with stages they count as successes" in capsys.readouterr().out
    )
    ends = [episode.info.outcome for episode in store.episodes]
    assert ends == [Outcome.SUCCESS, Outcome.SUCCESS, Outcome.UNKNOWN]
    assert store.annotate("episode_00", (), None).info.outcome is Outcome.UNKNOWN


def test_a_copy_of_another_store_is_no_copy_of_this_one(tmp_path: Path) -> None:
    first, second = (make_store(tmp_path / side / "store", 2, truth=True) for side in ("a", "b"))
    run_command("annotate", [f"data={first.path}", f"out={tmp_path / 'copy'}", "stages=3", "resamples=1"])
    for episode in second.episodes:
        path = second.path / "episodes" / episode.name / "zarr.json"
        path.write_text(path.read_text().replace(f'"{episode.uid}"', f'"x{episode.uid}"'))
    with pytest.raises(DataError, match=r"is a copy of another store than .*b/store: its episode_00"):
        run_command("annotate", [f"data={second.path}", f"out={tmp_path / 'copy'}", "stages=3"])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AnnotationServer]:
    session = Session(make_store(tmp_path / "store", 2))
    server = AnnotationServer(session)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
    session.close()


def ask(port: int, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        text = None if body is None else json.dumps(body)
        connection.request(method, path, text, named)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_only_the_page_itself_can_write(server: AnnotationServer) -> None:
    port, page = server.server_address[1], f"page={server.page}"
    save = f"/api/save?{page}"
    change = {"episode": "episode_00", "revision": 0, "names": ["a"], "boundaries": [0, 9]}
    good = {
        "Cookie": f"annotate_{port}={server.token}",
        "Origin": f"http://127.0.0.1:{port}",
        "Content_Type": "application/json",
    }
    for changed in (
        {"Cookie": ""},
        {"Cookie": f"annotate_{port}=guess"},
        {"Origin": "http://evil.example"},
        {"Origin": f"http://127.0.0.1:{port + 1}"},
        {"Host": f"evil.example:{port}"},
    ):
        status, why = ask(port, "POST", save, change, **{**good, **changed})
        assert (status, changed) == (403, changed), why
    assert ask(port, "POST", save, change, **{**good, "Content_Type": "text/plain"})[0] == 400
    without = {key: value for key, value in good.items() if key != "Origin"}
    assert ask(port, "POST", save, change, **without)[0] == 403
    for path in ("/", "/?token=guess", "/api/overview", "/strip?episode=episode_00&camera=front&start=0"):
        assert ask(port, "GET", path)[0] == 403
    # A tab of a server that had the port before, whose store has episodes of the same names.
    for other in ("", "?page=another"):
        assert ask(port, "POST", f"/api/save{other}", change, **good)[0] == 403
        assert ask(port, "GET", f"/api/overview{other}", Cookie=good["Cookie"])[0] == 403
    strip = f"/strip?{page}&episode=episode_00&camera=front"
    assert server.session.state("episode_00")["revision"] == 0
    assert ask(port, "POST", save, change, **good)[0] == 200
    status, now = ask(port, "POST", save, {**change, "boundaries": [1, 9]}, **good)
    assert (status, json.loads(now)["boundaries"]) == (409, [0, 9])
    for bad in (
        {**change, "boundaries": [0, 9.5]},
        {**change, "boundaries": "x"},
        {**change, "episode": "../x"},
        [],
        7,
    ):
        assert ask(port, "POST", save, bad, **good)[0] == 400
    status, jpeg = ask(port, "GET", f"{strip}&start=24", Cookie=good["Cookie"])
    assert (status, jpeg[:3]) == (200, b"\xff\xd8\xff")
    assert ask(port, "GET", f"{strip}&start=9999", Cookie=good["Cookie"])[0] == 400
    with pytest.raises(ConfigError, match=r"host=0\.0\.0\.0: requests must name the address"):
        AnnotationServer(server.session, "0.0.0.0")


def test_a_killed_server_loses_nothing(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", 2)
    command = [
        sys.executable,
        "-m",
        "robo_reward.cli.main",
        "annotate",
        f"data={store.path}",
        "mode=web",
        "port=0",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)", process.stdout.readline())
        assert found is not None
        port, token = int(found[1]), found[2]
        page = re.search(rb'data-page="([^"]+)"', ask(port, "GET", f"/?token={token}")[1])
        assert page is not None
        save = f"/api/save?page={page[1].decode()}"
        headers = {
            "Cookie": f"annotate_{port}={token}",
            "Origin": f"http://127.0.0.1:{port}",
            "Content_Type": "application/json",
        }
        for revision, frame in enumerate(range(5, 25)):
            change = {
                "episode": "episode_01",
                "revision": revision,
                "names": ["a", "b"],
                "boundaries": [0, frame, 30],
            }
            assert ask(port, "POST", save, change, **headers)[0] == 200
        begun = {"episode": "episode_00", "revision": 0, "names": [], "boundaries": [3]}
        assert ask(port, "POST", save, begun, **headers)[0] == 200
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert store["episode_01"].info.boundaries.tolist() == [0, 24, 30]
    session = Session(store)
    assert session.state("episode_01")["boundaries"] == (0, 24, 30)
    assert session.state("episode_00")["boundaries"] == (3,)
    session.close()
