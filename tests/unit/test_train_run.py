"""Which run a folder holds: options by value, and those that older versions did not have."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from robo_reward.errors import CheckpointError, ConfigError, DataError
from robo_reward.evaluate.predict import true_labels
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.offline import encode_episode
from robo_reward.schema import Episode, EpisodeInfo, Outcome
from robo_reward.testing import MemoryReader, toy_episode
from robo_reward.train.config import HoldoutConfig, OptimizerConfig, TrainConfig
from robo_reward.train.folder import check_held_out, claim_folder, is_finished
from robo_reward.train.run import seconds_to_train
from robo_reward.train.split import learned_before, make_split, seen_frames
from robo_reward.train.vocabulary import make_tasks, number_tasks, proprio_names


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


def test_a_backbone_s_learning_rate_tells_runs_apart_where_one_is_tuned_alone(tmp_path: Path) -> None:
    """Runs of before had no such option: a tuned backbone went at the rate of the rest."""
    tuned = {"encoder": {"pretrained": True, "frozen": False}}
    scratch = {"encoder": {"pretrained": False, "weights": None, "frozen": False}}
    given = {"encoder": {"pretrained": False, "weights": "mine.pt", "frozen": False}}
    for name, network in (("none", {}), ("frozen", {"encoder": {"frozen": True}}), ("scratch", scratch)):
        config = dataclasses.replace(_config(2.0), network=network)
        _claim_of_before(tmp_path / name, config)
        other = dataclasses.replace(config, optimizer=OptimizerConfig(muon=2.0, backbone_lr=0.1))
        assert not is_finished(tmp_path / name, other, "data", "data")
    for name, network in (("tuned", tuned), ("given", given)):
        config = dataclasses.replace(_config(2.0), network=network)
        _claim_of_before(tmp_path / name, config)
        assert not is_finished(tmp_path / name, config, "data", "data")
        other = dataclasses.replace(config, optimizer=OptimizerConfig(muon=2.0, backbone_lr=0.1))
        with pytest.raises(CheckpointError, match=r"optimizer\.backbone_lr \(1\.0, now 0\.1\)"):
            is_finished(tmp_path / name, other, "data", "data")


def _claim_of_before(folder: Path, config: TrainConfig) -> None:
    """As a version wrote it that had neither `backbone_lr` nor `loaders`."""
    claim_folder(folder, config, "data", "data", "held")
    path = folder / "train.json"
    before = json.loads(path.read_text())
    before["config"]["optimizer"].pop("backbone_lr", None)
    assert "loaders" not in before["config"]
    path.write_text(json.dumps(before))


def test_devices_are_a_number_or_which(tmp_path: Path) -> None:
    def config(devices: object, accelerator: str = "auto") -> TrainConfig:
        return TrainConfig(data="store", out="run", devices=devices, accelerator=accelerator)

    # As the command line gives them, and as Python does.
    assert [config(given).devices for given in (2, "2", [1], ["1"], ("0", "2"))] == [2, 2, (1,), (1,), (0, 2)]
    assert [config(given).device_count for given in (2, [1], [0, 2])] == [2, 1, 2]
    for given in (0, -1, "x", "1,2", [], [-1], [1, 1], ["a"], True):
        with pytest.raises(ConfigError, match=r"devices=.*: must be 1 or more, or a list of indices"):
            config(given)
    with pytest.raises(ConfigError, match="accelerator=cpu, which has no indices"):
        config([1], accelerator="cpu")
    # Which card it was on is nothing to the run; how many there were is.
    claim_folder(tmp_path, config(1), "data", "data", "held")
    assert not is_finished(tmp_path, config([3]), "data", "data")
    with pytest.raises(CheckpointError, match=r"devices \(1, now 2\)"):
        is_finished(tmp_path, config([0, 1]), "data", "data")


def test_a_budget_keeps_back_what_calibration_needs() -> None:
    assert seconds_to_train(600.0, spent=12.0, calibration=0.0) == pytest.approx(600 * 0.97 - 12)
    assert seconds_to_train(600.0, spent=12.0, calibration=50.0) == pytest.approx(600 * 0.97 - 12 - 50)
    assert seconds_to_train(600.0, spent=12.0, calibration=4000.0) == pytest.approx(300 - 12)
    assert seconds_to_train(60.0, spent=90.0, calibration=0.0) == 1.0


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
        told = (
            r"'fill the bar': toy_000 has 3 stages \(reach, grasp, place\), toy_001 2 stages \({}\): annotate"
        )
        with pytest.raises(DataError, match=told.format(", ".join(other.stage_names))):
            make_tasks([whole, other], "equal")


@pytest.mark.parametrize(
    ("names", "same"),
    [
        (("Reach", "put_in ", "Close Drawer"), True),
        (("reach", "insert", "close drawer"), True),  # another word for one of them
        (("stage_1", "stage 2", "Stage_3"), True),
        (("subtask1", "subtask2", "subtask3"), True),
        (("put in", "reach", "close drawer"), False),
        (("Put_In", "stage_2", "reach"), False),
        (("approach", "reach", "put in"), False),
        (("open", "wipe", "shut"), False),
    ],
)
def test_stages_are_told_by_their_names_and_not_by_their_number(names: tuple[str, ...], same: bool) -> None:
    known = ("reach", "put in", "close drawer")
    one, other = _marked(0, known, Outcome.SUCCESS), _marked(1, names, Outcome.SUCCESS)
    task = TaskConfig(("fill the bar",), known, (0.2, 0.3, 0.5))
    assert true_labels(task, other).same_stages == same
    counted = _marked(2, ("stage_1", "stage_2", "stage_3"), Outcome.SUCCESS)
    for infos in ([one, other], [counted, one, other]):  # names that only count hide nothing
        if same:
            (made,) = make_tasks(infos, "equal")
            assert made.stage_names == known
            continue
        told = r"toy_000 has 3 stages \(reach, put in, close drawer\), toy_001 3 stages \({}\): annotate"
        with pytest.raises(DataError, match=told.format(", ".join(names))):
            make_tasks(infos, "equal")


def _worded(index: int, *texts: str, names: tuple[str, ...] = ("reach", "pull")) -> EpisodeInfo:
    info = _marked(index, names, Outcome.SUCCESS)
    return dataclasses.replace(info, instruction=texts[0], paraphrases=texts[1:])


def test_wordings_that_share_a_text_are_one_task() -> None:
    """In any order, and by a third: "tug" and "open" are never said of one episode."""
    infos = [
        _worded(0, "open", "pull"),
        _worded(1, "press", "push"),
        _worded(2, "tug", "haul"),
        _worded(3, "pull", "tug"),
        _worded(4, "push", "press"),
    ]
    assert number_tasks(infos) == [0, 1, 0, 0, 1]
    tasks = make_tasks(infos, "equal")
    assert [task.instructions for task in tasks] == [("open", "pull", "tug", "haul"), ("press", "push")]
    other = _worded(5, "shut", "push", names=("reach", "press", "retreat"))
    with pytest.raises(DataError, match="'shut' and 'press', which share a text: toy_005 has 3 stages"):
        make_tasks([*infos, other], "equal")


def test_the_only_demonstration_of_a_task_is_never_held_out() -> None:
    """Of "once" there is one, of "twice" there are two, by different wordings."""
    texts = [("often",)] * 6 + [("once",), ("twice", "again"), ("again",)]
    infos = [_worded(index, *said) for index, said in enumerate(texts)]
    holdout = HoldoutConfig(calibration=0.4, test=0.4)
    held = set[int]()
    for seed in range(30):
        split = make_split(infos, holdout, seed)
        taught = [mask.all() for mask in split.train]
        assert taught[6]
        assert taught[7] or taught[8]
        assert any(taught[:6])
        assert sum(mask.all() for mask in split.test) == 4
        assert sum(mask.all() for mask in split.calibration) == 2  # all that are left but one of each task
        held |= {index for index, kept in enumerate(taught) if not kept}
    assert {7, 8} <= held


def test_of_many_episodes_of_each_task_the_same_are_held_out_as_ever() -> None:
    infos = [_worded(index, ("open", "press")[index % 2]) for index in range(20)]
    split = make_split(infos, HoldoutConfig(calibration=0.2, test=0.1), 3)
    order = np.random.default_rng([3, 0x5B117]).permutation(20)
    assert {i for i, mask in enumerate(split.test) if mask.all()} == set(order[:2].tolist())
    assert {i for i, mask in enumerate(split.calibration) if mask.all()} == set(order[2:6].tolist())


def test_of_tasks_with_one_demonstration_each_pieces_are_held_out() -> None:
    infos = [_worded(index, f"task {index}") for index in range(6)]
    split = make_split(infos, HoldoutConfig(calibration=0.2), 0)
    for train, kept in zip(split.train, split.calibration, strict=True):
        assert kept.any()
        assert train[[0, -1]].all()


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
    with pytest.raises(
        DataError, match=r"toy_000: proprioception is not .*: it has no 'x', only y, wheel, z"
    ):
        encode_episode(model, MemoryReader(dataclasses.replace(other, proprio=values)))
    assert ModelConfig.from_json(json.loads(json.dumps(model.config.to_json()))) == model.config
