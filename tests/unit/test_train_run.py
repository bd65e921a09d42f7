"""Which run a folder holds: options by value, and those that older versions did not have."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from robo_reward.errors import CheckpointError, DataError
from robo_reward.evaluate.predict import true_labels
from robo_reward.model.config import ModelConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.offline import encode_episode
from robo_reward.schema import Episode, EpisodeInfo, Outcome
from robo_reward.testing import MemoryReader, toy_episode
from robo_reward.train.config import HoldoutConfig, OptimizerConfig, TrainConfig
from robo_reward.train.folder import check_held_out, claim_folder, is_finished
from robo_reward.train.split import learned_before, make_split, seen_frames
from robo_reward.train.vocabulary import make_tasks, proprio_names


def _config(muon: float) -> TrainConfig:
    return TrainConfig(data="store", out="run", optimizer=OptimizerConfig(muon=muon))


def test_a_run_of_before_goes_on_as_it_was_trained_and_not_otherwise(tmp_path: Path) -> None:
    claim_folder(tmp_path, _config(0.0), "data", "data", "held")
    path = tmp_path / "train.json"
    before = json.loads(path.read_text())
    del before["config"]["optimizer"]["muon"]
    path.write_text(json.dumps(before))
    assert not is_finished(tmp_path, _config(0.0), "data", "data")
    with pytest.raises(CheckpointError, match=r"optimizer\.muon \(0\.0, now 2\.0\)"):
        is_finished(tmp_path, _config(2.0), "data", "data")
    with pytest.raises(CheckpointError, match="other data"):
        is_finished(tmp_path, _config(0.0), "other data", "other data")


def test_a_run_is_told_by_its_options_and_not_by_what_does_not_change_it(tmp_path: Path) -> None:
    config = _config(2.0)
    claim_folder(tmp_path, config, "data", "data", "held")
    assert not is_finished(tmp_path, dataclasses.replace(config, threads=1, log_every=5), "data", "data")
    with pytest.raises(CheckpointError, match=r"seed \(0, now 1\)"):
        is_finished(tmp_path, dataclasses.replace(config, seed=1), "data", "data")


def test_what_is_practised_beside_is_no_part_of_what_a_run_is_about(tmp_path: Path) -> None:
    """The same episodes, all of them data once, some of them put aside the other time."""
    claim_folder(tmp_path, _config(2.0), "F+D", "F+D", "held")
    with pytest.raises(CheckpointError, match="other data"):
        is_finished(tmp_path, _config(2.0), "F+D", "D")


def test_a_run_that_held_out_other_episodes_is_not_gone_on_with(tmp_path: Path) -> None:
    """Which these are has changed once, for stores with unlabelled episodes; runs of before do not say."""
    claim_folder(tmp_path, _config(2.0), "data", "data", "held")
    check_held_out(tmp_path, "held", usual=False)
    with pytest.raises(CheckpointError, match="held out other episodes"):
        check_held_out(tmp_path, "others", usual=True)
    path = tmp_path / "train.json"
    before = json.loads(path.read_text())
    del before["held_out"]
    path.write_text(json.dumps(before))
    check_held_out(tmp_path, "held", usual=True)
    with pytest.raises(CheckpointError, match="held out other episodes"):
        check_held_out(tmp_path, "held", usual=False)


def _marked(index: int, names: tuple[str, ...], outcome: Outcome) -> EpisodeInfo:
    info = toy_episode(index, length=20).info
    boundaries = np.linspace(0, 20, len(names) + 1).astype(np.int64)
    return dataclasses.replace(
        info, truth=None, success=None, stage_names=names, boundaries=boundaries, outcome=outcome
    )


def test_a_failure_may_name_the_stages_alone_that_it_got_to() -> None:
    whole = _marked(0, ("reach", "grasp", "place"), Outcome.SUCCESS)
    short = _marked(1, ("reach", "grasp"), Outcome.FAILURE)
    (task,) = make_tasks([short, whole], "equal")
    assert task.stage_names == whole.stage_names
    truth = true_labels(task, short)
    # By hand: half of the first of three stages at frame 5; how far the second got nobody knows.
    assert truth.progress is not None
    assert truth.same_stages
    assert truth.progress[5] == pytest.approx(1 / 6)
    assert np.isnan(truth.progress[10:]).all()
    (weighted,) = make_tasks([short, whole], "duration")
    assert weighted.stage_weights == pytest.approx([0.3, 0.35, 0.35])
    for other in (
        _marked(1, ("reach", "push"), Outcome.FAILURE),
        _marked(1, ("reach", "grasp"), Outcome.SUCCESS),
    ):
        with pytest.raises(DataError, match="toy_000 has 3 stages, toy_001 has 2: annotate them alike"):
            make_tasks([whole, other], "equal")


def test_what_was_learned_before_is_never_held_out_and_counts_as_seen_at_any_frame_rate() -> None:
    infos = [toy_episode(index, length=20).info for index in range(12)]
    known = {
        infos[0].uid: {"train": [[0, 20]], "calibration": [], "test": []},
        infos[1].uid: {"train": [[0, 8], [12, 20]], "calibration": [[8, 10]], "test": [[10, 12]]},
    }
    slow = dataclasses.replace(infos[1], stamp_ns=np.arange(7) * 300_000_000, truth=None, success=None)
    assert seen_frames(known, infos[1]).tolist() == [True] * 10 + [False] * 2 + [True] * 8
    assert seen_frames(known, slow).all(), (
        "other frames of one recording: which of them is which nobody knows"
    )
    assert not seen_frames(known, infos[2]).any()
    holdout = HoldoutConfig(calibration=0.4, test=0.4)
    held = 0
    for seed in range(20):
        drawn = make_split(infos, holdout, seed)
        split = learned_before(drawn, infos, known)
        held += drawn.calibration[0].any() or drawn.test[0].any()
        assert split.train[0].all()
        assert not (split.calibration[1] | split.test[1])[seen_frames(known, infos[1])].any()
        assert all((a == b).all() for a, b in zip(split.train[2:], drawn.train[2:], strict=True))
        for parts in zip(split.train, split.calibration, split.test, strict=True):
            assert (np.sum(parts, axis=0) == 1).all()
    assert held, "or else nothing was shown"


def test_labelled_episodes_are_held_out_however_few_they_are() -> None:
    labelled = [toy_episode(index, length=10).info for index in range(3)]
    others = [
        dataclasses.replace(toy_episode(index, length=10).info, truth=None, stage_names=())
        for index in range(3, 40)
    ]
    infos = [*others, *labelled]
    for seed in range(20):
        split = make_split(infos, HoldoutConfig(calibration=0.1, test=0.1), seed)
        for part in (split.train, split.calibration, split.test):
            assert sum(mask.all() for mask in part[-3:]) == 1
        assert sum(mask.all() for mask in split.calibration) == 1 + 4


def test_proprioception_is_told_by_its_names() -> None:
    """In training they must agree; what is looked at afterwards is brought into their order."""
    episodes = [toy_episode(index, length=6) for index in range(3)]

    def named(*names: tuple[str, ...]) -> list[Episode]:
        pairs = zip(episodes, names, strict=False)
        return [dataclasses.replace(e, info=dataclasses.replace(e.info, proprio_names=n)) for e, n in pairs]

    infos = [episode.info for episode in named(("x", "y"), (), ("x", "y"))]
    assert proprio_names(infos) == ("x", "y")
    with pytest.raises(DataError, match="of toy_000 is x, y, that of toy_001 y, x: import them alike"):
        proprio_names([episode.info for episode in named(("x", "y"), ("y", "x"))])
    torch.manual_seed(0)
    model = ProgressModel(
        ModelConfig(
            encoder={"_target_": "robo_reward.model.encoders.TinyEncoder", "channels": [4, 8, 8, 8]},
            tasks=make_tasks(infos, "equal"),
            cameras=("front", "wrist"),
            image_size=(32, 32),
            period_s=0.1,
            width=16,
            proprio_dim=2,
            proprio_names=proprio_names(infos),
        )
    )
    values = np.arange(18, dtype=np.float32).reshape(6, 3)
    (turned,) = named(("y", "wheel", "x"))
    seen = encode_episode(model, MemoryReader(dataclasses.replace(turned, proprio=values))).proprio
    np.testing.assert_array_equal(seen, values[:, [2, 0]])
    (other,) = named(("y", "wheel", "z"))
    with pytest.raises(DataError, match=r"toy_000: proprioception has no 'x', .*it has y, wheel, z"):
        encode_episode(model, MemoryReader(dataclasses.replace(other, proprio=values)))
    assert ModelConfig.from_json(json.loads(json.dumps(model.config.to_json()))) == model.config
