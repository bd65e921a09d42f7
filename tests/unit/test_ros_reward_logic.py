"""What the reward node decides, without ROS: pace, worker, and how an episode begins, is cut and ends."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# A checkout without the ROS extra has the package on no path.
sys.path.append(str(Path(__file__).resolve().parents[2] / "ros_nodes" / "robo_reward_ros"))

from robo_reward.errors import ConfigError
from robo_reward.schema import ProgressEstimate
from robo_reward.shaping import Shaper
from robo_reward_ros.command import RewardCommand, node_arguments
from robo_reward_ros.episode import Ending, EpisodeError, EpisodeJudge, Pacer, TaskRewards, shaper_factory
from robo_reward_ros.health import Doubts
from robo_reward_ros.worker import LatestWins

RGB = np.zeros((2, 2, 3), np.uint8)


class Counting:
    """A model whose progress is a tenth for each image seen, and NaN where there is none."""

    version = "v1"

    def stream(self, instruction: str | None = None) -> Any:
        return CountingStream(0)


class CountingStream:
    def __init__(self, seen: int) -> None:
        self.seen = seen

    def reset(self) -> None:
        self.seen = 0

    def push(self, images: Mapping[str, np.ndarray], stamp_ns: int) -> ProgressEstimate:
        valid = bool(images)
        self.seen += valid
        progress = self.seen / 10 if valid else math.nan
        probs = np.array([1.0], np.float32) if valid else np.array([np.nan], np.float32)
        return ProgressEstimate(
            stage_probs=probs,
            tau=progress,
            progress=progress,
            std=0.0 if valid else math.nan,
            interval=(progress, progress),
            success_prob=progress,
            per_view={},
            valid=valid,
            reason="" if valid else "no camera frame",
            stamp_ns=stamp_ns,
            model_version="v1",
        )


@pytest.fixture
def judge() -> EpisodeJudge:
    return EpisodeJudge(Counting(), lambda: Shaper(discount=0.5), TaskRewards(step=-1.0, success=4.0))


def values(judge: EpisodeJudge, count: int, first: int = 1) -> list[float | None]:
    found = []
    for stamp in range(first, first + count):
        moment = judge.push({"a": RGB}, stamp)
        assert moment is not None
        found.append(None if moment.payment is None else moment.payment.reward.value)
    return found


def test_rewards_by_hand(judge: EpisodeJudge) -> None:
    assert values(judge, 2) == [None, None]  # no episode: progress .1, .2 and no reward
    judge.start("e")
    # Progress .1, .2, .3: -1 + .5 * .2 - .1 = -1.0; -1 + .5 * .3 - .2 = -1.05.
    assert values(judge, 3, first=10) == pytest.approx([None, -1.0, -1.05])
    summary = judge.end(Ending.FAILURE)
    assert summary.payment is not None
    assert summary.payment.reward.value == pytest.approx(0.0 - 0.3)  # terminal: -Phi, and failure pays 0
    assert (summary.rewards, summary.total_value) == (3, pytest.approx(-2.35))
    judge.start("f")
    assert values(judge, 1, first=20) == [None]
    cut = judge.end(Ending.TRUNCATED)
    assert cut.payment is not None
    assert cut.payment.reward.value == pytest.approx(-1.0 + 0.5 * 0.1 - 0.1)  # the potential is kept


def test_an_episode_without_a_moment_pays_nothing(judge: EpisodeJudge) -> None:
    judge.start("e")
    assert judge.end(Ending.SUCCESS).payment is None
    with pytest.raises(EpisodeError, match="no episode is running"):
        judge.end(Ending.SUCCESS)


def test_the_robots_success_is_the_terminal_moment(judge: EpisodeJudge) -> None:
    judge.start("e")
    values(judge, 2)
    moment = judge.push({"a": RGB}, 3, robot_success=True)
    assert moment is not None
    assert moment.payment is not None
    assert moment.payment.ending is Ending.SUCCESS
    assert moment.payment.reward.value == pytest.approx(4.0 - 0.2)
    assert judge.episode_id == ""


def test_moments_from_before_the_episode_or_the_last_reset_are_left_out(judge: EpisodeJudge) -> None:
    before = judge.epoch
    judge.start("e")
    assert judge.push({"a": RGB}, 5, epoch=before) is None
    assert judge.push({"a": RGB}, 6, epoch=judge.epoch) is not None
    assert judge.push({"a": RGB}, 1, generation=2, reset="the clock jumped") is not None
    assert judge.push({"a": RGB}, 7, generation=1) is None
    # A node that is activated again counts resets anew, and its stamps may be earlier.
    judge.renew()
    moment = judge.push({"a": RGB}, 1, generation=0)
    assert moment is not None
    assert moment.estimate.progress == 0.1  # the stream began anew


def test_a_reset_is_paid_as_invalid_once_and_both_sides_add_up(judge: EpisodeJudge) -> None:
    judge.start("e")
    values(judge, 2, first=100)
    moment = judge.push({"a": RGB}, 1, generation=1, reset="the clock jumped")
    assert moment is not None
    assert moment.payment is not None
    assert moment.estimate.progress == 0.1  # the stream began anew
    reward = moment.payment.reward
    assert (reward.valid, reward.reason, reward.value) == (False, "the clock jumped", -1.0)
    assert math.isnan(reward.shaping)
    after = judge.push({"a": RGB}, 2, generation=1, reset="the clock jumped")
    assert after is not None
    assert after.payment is not None
    assert after.payment.reward.value == pytest.approx(-1 + 0.5 * 0.2 - 0.1)


def test_images_that_cannot_be_used_give_their_own_reason(judge: EpisodeJudge) -> None:
    judge.start("e")
    values(judge, 1)
    moment = judge.push({}, 5, problems="camera 'a': images are 'bayer'")
    assert moment is not None
    assert moment.payment is not None
    assert moment.estimate.reason == moment.payment.reward.reason == "camera 'a': images are 'bayer'"
    assert (moment.payment.reward.valid, moment.payment.reward.value) == (False, -1.0)


def test_new_settings_apply_from_the_next_episode_on(judge: EpisodeJudge) -> None:
    judge.start("e")
    values(judge, 1)
    judge.settle(lambda: Shaper(discount=0.5, kappa=0.0), TaskRewards(step=7.0))
    assert values(judge, 1, first=2) == pytest.approx([-1.0])
    judge.end(Ending.TRUNCATED)
    judge.start("f")
    assert values(judge, 2, first=10) == [None, 7.0]


@pytest.mark.parametrize(
    ("rate", "stamps", "accepted"),
    [
        (0.0, [0, 1, 2], [0, 1, 2]),
        (10.0, range(0, 400, 33), [0, 99, 198, 297, 396]),
        (10.0, [0, 101, 199, 305, 399], [0, 101, 199, 305, 399]),  # jitter costs no decision
        (10.0, [5000, 5010, 100, 110, 200], [5000, 100, 200]),  # the clock went back
    ],
)
def test_the_pace_of_decisions(rate: float, stamps: list[int], accepted: list[int]) -> None:
    pacer = Pacer(rate)
    assert [stamp for stamp in stamps if pacer.accept(stamp * 1_000_000)] == accepted


def test_the_worker_takes_the_newest_and_survives_a_failure() -> None:
    started, go_on, done = threading.Event(), threading.Event(), threading.Event()
    worked: list[int] = []
    failures: list[Exception] = []

    def work(item: int) -> None:
        started.set()
        assert go_on.wait(10)
        if item == 4:
            done.set()
            raise ValueError("4")
        worked.append(item)

    worker: LatestWins[int] = LatestWins(work, failures.append, "test")
    assert worker.offer(1)
    assert started.wait(10)
    assert [worker.offer(item) for item in (2, 3, 4)] == [True, False, False]
    go_on.set()
    assert done.wait(10)
    worker.offer(5)
    while 5 not in worked:
        started.wait(0.01)
    worker.close()
    assert worked == [1, 5]
    assert [str(error) for error in failures] == ["4"]
    assert (worker.offered, worker.dropped) == (5, 2)


def test_a_potential_comes_in_by_its_import_path() -> None:
    shaper = shaper_factory("robo_reward.shaping.Faded", {"none_above": 0.4}, discount=0.9)()
    assert (shaper.discount, shaper.potential.none_above) == (0.9, 0.4)
    with pytest.raises(ConfigError, match="Nothing"):
        shaper_factory("robo_reward.shaping.Nothing", {})
    with pytest.raises(ConfigError, match="needs 0 <= full_below < none_above"):
        shaper_factory("robo_reward.shaping.Faded", {"none_above": 0.0})
    # What cannot say a number of one moment would fail at every decision, or at the first.
    for target, arguments, why in (
        ("os.getcwd", {}, "potential 'os.getcwd'"),
        ("robo_reward.shaping.Pessimistic", {"k": "x"}, "'robo_reward.shaping.Pessimistic'"),
    ):
        with pytest.raises(ConfigError, match=why):
            shaper_factory(target, arguments)


def test_the_command_becomes_the_nodes_arguments(tmp_path: Path) -> None:
    config = RewardCommand(
        model="my: run", topics={"front": "/cam"}, namespace="arm", parameters={"kappa": 0.5}
    )
    arguments = node_arguments(config, ["front", "wrist"])
    assert arguments[:3] == ["--ros-args", "-r", "__ns:=/arm"]
    for text in (
        'model:="my: run"',
        'cameras:=["front", "wrist"]',
        'camera.front.topic:="/cam"',
        "kappa:=0.5",
    ):
        assert arguments[arguments.index(text) - 1] == "-p"
    with pytest.raises(ConfigError, match="topics names left"):
        node_arguments(RewardCommand(model="m", topics={"left": "/l"}), ["front"])
    # Typed with dots, +parameters.camera.cam.model_name=left arrives as mappings in mappings.
    nested = RewardCommand(model="m", parameters={"camera": {"cam": {"model_name": "left"}}, "kappa": 1.0})
    told = node_arguments(nested, ["cam"])
    assert told[-4:] == ["-p", 'camera.cam.model_name:="left"', "-p", "kappa:=1.0"]
    with pytest.raises(ConfigError, match="camera 'cam-1': ROS takes letters, digits and _"):
        node_arguments(RewardCommand(model="m"), ["cam-1"])
    with pytest.raises(ConfigError, match="namespace '/left/1arm': '1arm' is no name in ROS"):
        node_arguments(RewardCommand(model="m", namespace="/left/1arm"), ["front"])
    with pytest.raises(ConfigError, match="no parameter file"):
        node_arguments(RewardCommand(model="m", params_file=str(tmp_path / "none")), ["front"])


def test_what_the_model_doubts_is_told_where_it_is_often_and_an_error_where_nothing_else_comes() -> None:
    doubts = Doubts()
    assert (doubts.error, doubts.warning, doubts.of("a")) == ("", "", "")
    bent, strange = "camera 'a' changed its aspect", "the scene is unlike what calibration saw (novelty 2.0)"
    doubts.add(True, strange)
    assert doubts.warning == "", "it may be over"
    doubts.add(True, f"{bent}; {strange}")
    assert doubts.but_for_cameras == strange
    doubts.add(True, f"{bent}; {strange}")
    assert (doubts.warning, doubts.of("a"), doubts.of("b")) == (f"{bent}; {strange}", bent, "")
    for _ in range(2):
        doubts.add(False, bent)
    assert doubts.error == ""
    doubts.add(False, bent)
    assert doubts.error == f"no decision is valid: {bent}"
    for _ in range(18):
        doubts.add(True, "")
    assert (doubts.error, doubts.warning) == ("", bent), "two of the last twenty"
    doubts.add(True, "")
    assert (doubts.warning, doubts.of("a")) == ("", "")
