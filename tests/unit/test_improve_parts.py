"""Parts of improvement by themselves: replay worked by hand, who says success, trust, savings, summaries."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import robo_reward.improve.replay as replay_module
from robo_reward.calibration import SuccessDetector
from robo_reward.errors import CheckpointError, ConfigError, DataError, RoboRewardError
from robo_reward.improve.learner import Learner, LearnerConfig, input_scale
from robo_reward.improve.networks import Critics
from robo_reward.improve.observer import joined
from robo_reward.improve.offline import clone_weighted, cloning_weights
from robo_reward.improve.replay import Replay, Shaping, shaped_rewards
from robo_reward.improve.report import outcome_curve, wilson
from robo_reward.improve.rollouts import Rollout, load_rollout, save_rollout
from robo_reward.improve.savings import PromisingStarts, abort_rule
from robo_reward.improve.sources import DetectedSuccess, LearnedProgress, PersonSuccess, SimulatorSuccess
from robo_reward.improve.summary import Cell, area_under, paired, reached_at, t_interval
from robo_reward.improve.trust import Scaled, outcome_trust
from robo_reward.pace import check_same_pace, step_ns
from robo_reward.schema import ProgressEstimate
from robo_reward.shaping import AbsoluteProgress, Faded, NaiveDifference, PotentialBased, Standard

NAN = math.nan


def rollout(progress: Sequence[float], *, terminated: bool = False, **changes: Any) -> Rollout:
    count = len(progress) - 1
    reward = np.zeros(count, np.float32)
    reward[-1] = float(terminated)
    success = np.zeros(count + 1, np.bool_)
    success[-1] = terminated
    made = Rollout(
        parts={"proprio": np.arange(count + 1, dtype=np.float32)[:, None]},
        actions=np.linspace(-1, 1, count, dtype=np.float32)[:, None],
        task_reward=reward,
        intervened=np.zeros(count, np.bool_),
        progress=np.array(progress, np.float32),
        std=np.full(count + 1, 0.05, np.float32),
        truth=np.full(count + 1, NAN, np.float32),
        embedding=np.empty((count + 1, 0), np.float32),
        first=np.empty(0, np.float32),
        proprio=np.empty((count + 1, 0), np.float32),
        success=success,
        stamp_ns=np.arange(count + 1, dtype=np.int64) * 100_000_000,
        terminated=terminated,
        source={"index": 0, "started_after": 0},
    )
    return replace(made, **changes)


def shaping(kappa: float = 1.0, rule: Any = None, potential: Any = None, discount: float = 0.5) -> Shaping:
    return Shaping(LearnedProgress(), potential or Standard(), rule or PotentialBased(), kappa, discount)


def rows_of(episode: Rollout, how: Shaping, n_step: int) -> dict[int, tuple[float, float, int]]:
    """By row: n-step reward, discount of what follows, and the row after, as batches give them."""
    replay = Replay(how, n_step)
    replay.add(episode)
    found: dict[int, tuple[float, float, int]] = {}
    for batch in replay.batches(60, 4, 0.5, torch.Generator().manual_seed(0)):
        columns = (batch.observation[:, 0], batch.reward, batch.discount, batch.next_observation[:, 0])
        for row, reward, discount, after in zip(*(c.tolist() for c in columns), strict=True):
            found[int(row)] = (reward, discount, int(after))
    return found


# --- the replay, by hand: discount 1/2, potentials 0, .2, .4, .6 ---


def test_two_step_targets_of_a_success_worked_by_hand() -> None:
    found = rows_of(rollout([0.0, 0.2, 0.4, 0.6], terminated=True), shaping(), 2)
    # steps: F = .5*.2-0 = .1; .5*.4-.2 = 0; terminal: 1 - .4 = .6
    assert found[0] == pytest.approx((0.1 + 0.5 * 0.0, 0.25, 2))
    assert found[1] == pytest.approx((0.0 + 0.5 * 0.6, 0.0, 3))  # ends in a terminal state: no bootstrap
    assert found[2] == pytest.approx((0.6, 0.0, 3))


def test_critics_see_the_potentials_of_a_transition_whatever_the_policy_sees() -> None:
    replay = Replay(shaping(), 2)
    replay.add(rollout([0.0, 0.2, NAN, 0.6]))
    (batch,) = replay.batches(1, 64, 0.5, torch.Generator().manual_seed(0))
    known = torch.tensor([0.0, 0.2, 0.0, 0.6])  # a potential that is not known shapes nothing, and shows as 0
    torch.testing.assert_close(batch.potential[:, 0], known[batch.observation[:, 0].long()])
    torch.testing.assert_close(batch.next_potential[:, 0], known[batch.next_observation[:, 0].long()])


def test_a_truncated_episode_keeps_its_last_potential_and_bootstraps() -> None:
    found = rows_of(rollout([0.0, 0.2, 0.4, 0.6]), shaping(), 2)
    assert found[1] == pytest.approx((0.0 + 0.5 * (0.5 * 0.6 - 0.4), 0.25, 3))
    assert found[2] == pytest.approx((0.5 * 0.6 - 0.4, 0.5, 3))


def test_a_step_without_a_valid_potential_keeps_its_task_reward() -> None:
    episode = rollout([0.1, NAN, NAN], terminated=True)
    rewards = shaped_rewards(episode, shaping())
    assert rewards[0] == 0.0
    assert rewards[1] == pytest.approx(1.0 - 0.1 / 0.5)  # what was paid before the gap is charged at the end
    assert shaped_rewards(rollout([NAN, NAN, NAN], terminated=True), shaping()).tolist() == [0.0, 1.0]


def test_the_baselines_pay_for_hovering_and_shaping_does_not() -> None:
    hover = rollout([0.9] * 30)
    discounts = 0.5 ** np.arange(29)
    exact = float(discounts @ shaped_rewards(hover, shaping()))
    assert exact == pytest.approx(0.5**29 * 0.9 - 0.9)
    assert float(discounts @ shaped_rewards(hover, shaping(rule=NaiveDifference()))) == 0.0
    assert float(discounts @ shaped_rewards(hover, shaping(rule=AbsoluteProgress()))) > 1.7


def test_a_potential_that_is_unsure_of_itself_fades_to_the_sparse_reward() -> None:
    wild = rollout([0.9, 0.1, 0.8, 0.2], terminated=True, std=np.full(4, 0.5, np.float32))
    faded = shaping(potential=Faded(0.1, 0.3))
    assert shaped_rewards(wild, faded).tolist() == wild.task_reward.tolist()
    assert shaped_rewards(wild, shaping()).tolist() != wild.task_reward.tolist()


def test_half_of_a_batch_is_demonstrated_and_interventions_count_as_that() -> None:
    replay = Replay(shaping(), 3)
    replay.add(rollout([0.0, 0.5, 1.0], terminated=True, demonstration=True))
    by_hand = np.array([True, False, False])
    replay.add(rollout([0.0, 0.1, 0.2, 0.3], intervened=by_hand))
    (batch,) = replay.batches(1, 400, 0.5, torch.Generator().manual_seed(0))
    assert float(batch.demonstrated.sum()) == 200
    rows, actions = replay.decisions(replay.demonstrated())
    assert rows[:, 0].tolist() == [0.0, 1.0, 0.0]
    assert actions[2, 0] == -1.0


@pytest.mark.parametrize(
    ("in_vain", "succeeds", "shown"), [(True, False, 1), (False, False, 0), (False, True, 1)]
)
def test_help_in_vain_is_imitated_only_where_it_is_asked_for(
    in_vain: bool, succeeds: bool, shown: int
) -> None:
    replay = Replay(shaping(), 3, keep_successes=True, help_in_vain=in_vain)
    replay.add(rollout([0.0, 0.1, 0.2], intervened=np.array([False, True]), terminated=succeeds))
    assert len(replay.demonstrated()) == shown


def test_only_demonstrations_there_are_fill_the_batch() -> None:
    replay = Replay(shaping(), 3)
    with pytest.raises(DataError, match="empty"):
        list(replay.batches(1, 4, 0.5, torch.Generator().manual_seed(0)))
    replay.add(rollout([0.0, 0.5, 1.0], terminated=True, demonstration=True))
    (batch,) = replay.batches(1, 8, 0.5, torch.Generator().manual_seed(0))
    assert float(batch.demonstrated.sum()) == 8


def test_priority_draws_episodes_that_got_further() -> None:
    replay = Replay(shaping(), 1, priority=2.0)
    replay.add(rollout([0.0, 0.1, 0.1]))
    replay.add(replace(rollout([0.0, 0.9, 0.9]), parts={"proprio": np.full((3, 1), 7.0, np.float32)}))
    (batch,) = replay.batches(1, 4000, 0.5, torch.Generator().manual_seed(0))
    share = float((batch.observation[:, 0] == 7).float().mean())
    assert share == pytest.approx(0.95**2 / (0.95**2 + 0.15**2), abs=0.02)


def test_episodes_of_another_robot_are_refused() -> None:
    replay = Replay(shaping(), 1)
    replay.add(rollout([0.0, 0.2, 0.4]))
    with pytest.raises(DataError, match="observes proprio of 2 numbers, those before proprio of 1 numbers"):
        replay.add(rollout([0.0, 0.2], parts={"proprio": np.zeros((2, 2), np.float32)}))
    with pytest.raises(DataError, match="observes motion of 1 numbers"):
        replay.add(rollout([0.0, 0.2], parts={"motion": np.zeros((2, 1), np.float32)}))
    assert len(replay.episodes) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"parts": {"proprio": np.array([[0.0], [NAN], [0.0]], np.float32)}},
            "'proprio' is nan at moment 1, co",
        ),
        ({"parts": {"map": np.full((3, 4), np.inf, np.float16)}}, "'map' is inf at moment 0, column 0"),
        ({"looks": [{"proprio": np.full((3, 1), NAN, np.float32)}]}, "'proprio' is nan at moment 0"),
        ({"actions": np.array([[0.0], [NAN]], np.float32)}, "the action is nan at moment 1, column 0"),
        ({"task_reward": np.array([0.0, NAN], np.float32)}, "the task reward is nan at moment 1"),
    ],
)
def test_numbers_that_would_break_every_weight_are_refused(changes: dict[str, Any], message: str) -> None:
    replay = Replay(shaping(), 1)
    with pytest.raises(DataError, match=f"^rollout 0: {message}.*begin anew with another out="):
        replay.add(rollout([NAN, 0.2, 0.4], **changes))
    shown = {"demonstration": True, "source": {"name": "peg_003"}}
    with pytest.raises(DataError, match=f"^peg_003: {message}.*: correct it, or leave it out"):
        replay.add(rollout([NAN, 0.2, 0.4], **changes, **shown))
    assert not replay.episodes
    replay.add(rollout([NAN, 0.2, 0.4]))  # progress may be unknown


@pytest.mark.parametrize("diverging", [{"lr": 1e38}, {"actor_lr": 1e38, "value_weight": 0.0}])
def test_a_learner_that_diverges_says_so(diverging: dict[str, float]) -> None:
    replay = Replay(shaping(), 1)
    replay.add(rollout([0.0, 0.5, 1.0], terminated=True, demonstration=True))
    learner = Learner(LearnerConfig(width=8, critics=2, batch_size=8, **diverging), 1, 1, seed=0)
    learner.fit_scale(replay.observations(), replay.sizes)
    with pytest.raises(RoboRewardError, match=r"after \d+ updates .*not finite.*nothing of it is saved"):
        learner.learn(replay, 20)
    assert math.isnan(Learner(LearnerConfig(width=8, clone_steps=0), 1, 1, seed=0).clone(replay))


def test_maps_of_all_episodes_are_in_memory_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module, "_AT_ONCE", 2**16)

    def maps() -> dict[str, np.ndarray]:
        return {"map": np.ones((11, 2**15), np.float16)}

    episodes = [rollout(np.linspace(0, 1, 11).tolist(), parts=maps(), looks=[maps()]) for _ in range(12)]
    raw = sum(e.parts["map"].nbytes + e.looks[0]["map"].nbytes for e in episodes)
    replay = Replay(shaping(), 1)
    tracemalloc.start()
    for episode in episodes:
        replay.add(episode)
        assert len(list(replay.batches(1, 8, 0.5, torch.Generator().manual_seed(0)))) == 1
    shapes = [columns.shape for columns in replay.observations()]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < raw / 4
    assert {rows for rows, _ in shapes} == {12 * 2 * 11}
    assert sum(width for _, width in shapes) == 2**15
    assert max(rows * width for rows, width in shapes) <= 2**16


def test_relabelling_replaces_whole_episodes() -> None:
    def rewards(replay: Replay) -> list[float]:
        batches = replay.batches(9, 4, 0.0, torch.Generator().manual_seed(0))
        return sorted({round(float(r), 6) for batch in batches for r in batch.reward})

    replay = Replay(shaping(), 1)
    replay.add(rollout([0.0, 0.2, 0.4]))
    assert rewards(replay) == [0.0, 0.1]
    replay.relabel([rollout([0.4, 0.4, 0.4])])
    assert rewards(replay) == [-0.2]


def test_a_rollout_on_disk_is_the_rollout(tmp_path: Path) -> None:
    kept = rollout([0.0, NAN, 1.0], terminated=True, images={"top": [b"one", b"", b"three"]}, aborted=True)
    save_rollout(tmp_path / "a.npz", kept)
    back = load_rollout(tmp_path / "a.npz")
    np.testing.assert_equal(back.progress, kept.progress)
    np.testing.assert_equal(back.parts["proprio"], kept.parts["proprio"])
    assert back.images == kept.images
    assert (back.terminated, back.aborted, back.source) == (True, True, kept.source)
    whole = (tmp_path / "a.npz").read_bytes()
    for damaged in (b"half", whole[: len(whole) // 2]):
        (tmp_path / "a.npz").write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            load_rollout(tmp_path / "a.npz")


# --- networks ---


def test_the_ensemble_is_its_members_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    critics = Critics(3, 2, 8, 4, generator)
    x, action = torch.randn(5, 3, generator=generator), torch.randn(5, 2, generator=generator)
    together = critics(x, action)
    for member in range(4):
        h = torch.cat([x, action], 1)
        for layer in (1, 2):
            weight, bias, scale, shift = (
                getattr(critics, f"{name}{layer}")[member] for name in ("weight", "bias", "scale", "shift")
            )
            h = torch.nn.functional.layer_norm(h @ weight + bias, (8,))
            h = torch.relu(h * scale + shift)
        alone = (h @ critics.weight3[member] + critics.bias3[member])[:, 0]
        torch.testing.assert_close(together[member], alone)


def test_a_map_comes_last_whole_and_is_read_by_a_layer_of_its_own() -> None:
    maps = np.random.default_rng(0).normal(size=(4, 12)).astype(np.float16)
    parts = {"map": maps, "proprio": np.arange(8, dtype=np.float32).reshape(4, 2)}
    seen = joined(parts)
    np.testing.assert_array_equal(seen, np.concatenate([parts["proprio"], maps.astype(np.float32)], 1))
    replay = Replay(shaping(), n_step=1)
    replay.add(rollout([0.0, 0.3, 0.6, 1.0], terminated=True, parts=parts, demonstration=True))
    assert replay.sizes == [2, 12]
    np.testing.assert_array_equal(np.concatenate([*replay.observations()], axis=1), seen)
    batch = next(replay.batches(1, 6, 0.5, torch.Generator().manual_seed(0)))
    rows = batch.observation[:, 0].long() // 2
    np.testing.assert_array_equal(batch.observation.numpy(), seen[rows.numpy()])
    np.testing.assert_array_equal(batch.next_observation.numpy(), seen[rows.numpy() + 1])
    config = LearnerConfig(width=8, critics=2, batch_size=6, map_width=3, clone_steps=5)
    learner = Learner(config, observation=14, action=1, seed=0, map_size=12)
    learner.fit_scale(replay.observations(), replay.sizes)
    read = learner.policy.read
    x = learner.policy.normalize(batch.observation)
    assert read(x).shape == (6, 2 + 3)
    torch.testing.assert_close(read(x)[:, :2], x[:, :2])
    # Nothing but the actor's own steps moves what the actor reads by.
    cloned, judged = read.weight.detach().clone(), learner.critics.read.weight.detach().clone()
    learner.clone(replay)
    assert not torch.equal(read.weight, cloned)
    torch.testing.assert_close(learner.target_policy.read.weight, read.weight, rtol=0, atol=0)
    cloned = read.weight.detach().clone()
    learner.update(batch)
    assert not torch.equal(learner.critics.read.weight, judged)
    torch.testing.assert_close(read.weight.detach(), cloned, rtol=0, atol=0)
    learner.update(batch)  # every other update is one of the actor
    assert not torch.equal(read.weight, cloned)


def test_what_has_not_varied_gets_the_scale_of_its_part() -> None:
    seen = torch.tensor([[0.0, 5.0, 0.0], [2.0, 5.0, 100.0]])
    _, std = input_scale([seen[:, :1], seen[:, 1:]], [2, 1], 1.0)
    first = math.sqrt(2.0)
    torch.testing.assert_close(std, torch.tensor([first, 1.0, 100 / math.sqrt(2)]))


# --- the pace of an environment ---


def test_a_step_takes_what_is_said_of_it_first() -> None:
    def world(**facts: Any) -> Any:
        return SimpleNamespace(metadata={"render_fps": 20}, unwrapped=SimpleNamespace(**facts))

    assert step_ns(world(decision_ns=62_500_000), 0.03) == 30_000_000
    assert step_ns(world(decision_ns=62_500_000)) == 62_500_000
    assert step_ns(world()) == 50_000_000
    silent = SimpleNamespace(metadata={}, unwrapped=SimpleNamespace())
    with pytest.raises(ConfigError, match=r"no decision_ns, and no render_fps .*: give step_s="):
        step_ns(silent)
    for wrong in (0.0, -0.1, NAN, float("inf")):
        with pytest.raises(ConfigError, match="a step takes time"):
            step_ns(world(), wrong)
    check_same_pace("it", 1.09e8, "the env", 100_000_000, "way out")
    check_same_pace("it", NAN, "the env", 100_000_000, "way out")  # two frames are needed to tell
    for period in (1.11e8, 0.89e8):
        with pytest.raises(ConfigError, match=r"it has an action every 0.\d+ s, the env every 0.100 s: way"):
            check_same_pace("it", period, "the env", 100_000_000, "way out")


# --- who says success ---


def estimate(prob: float, valid: bool = True) -> ProgressEstimate:
    value = 0.5 if valid else NAN
    probs = np.full(2, value, np.float32)
    said = prob if valid else NAN
    return ProgressEstimate(probs, value, value, value, (value, value), said, {}, valid, "", 0, "v")


def test_the_detector_waits_for_its_debounce_and_invalid_is_no_success() -> None:
    source = DetectedSuccess()
    source.begin(SuccessDetector(threshold=0.7, debounce=2))
    found = [
        source.judge({"success": True}, said, False, False).success
        for said in (estimate(0.9), estimate(0.9, valid=False), estimate(0.9), estimate(0.9))
    ]
    assert found == [False, False, False, True]
    assert not source.judge({}, estimate(0.0), True, True).failed  # it says when, never that it has failed
    with pytest.raises(ConfigError, match="model=RUN"):
        source.begin(None)


def test_the_simulator_has_to_say_so() -> None:
    source = SimulatorSuccess()
    assert source.judge({"success": True}, None, True, True).ends
    assert not source.judge({"success": True}, None, False, False).ends
    assert source.judge({"success": True}, None, False, True).ends  # cut off as it is done: counted, so paid
    assert not source.judge({"success": False}, None, False, True).ends
    assert source.judge({"success": False}, None, True, True).failed  # the environment knows: a fall
    assert not source.judge({"success": False}, None, False, True).failed  # cut off
    with pytest.raises(ConfigError, match=r"no 'success', only fell: .*\+success.key=KEY"):
        source.judge({"fell": True}, None, False, False)
    other = SimulatorSuccess(key="is_success")
    assert other.judge({"is_success": np.True_}, None, True, True).success
    with pytest.raises(ConfigError, match="no 'is_success', only nothing"):
        other.judge({}, None, False, False)


def test_a_person_ends_an_episode_or_is_asked_at_its_end() -> None:
    typed = ["", "", "s\n"]
    source = PersonSuccess(lambda _: typed.pop(0) if typed else "")
    source.begin(None)
    assert not source.judge({}, None, False, False).ends
    assert source.judge({}, None, False, False).ends
    answers = iter(["", "y\n"])
    source = PersonSuccess(lambda _: next(answers))
    assert source.judge({}, None, False, True).success
    answers = iter(["", "n\n"])
    assert PersonSuccess(lambda _: next(answers)).judge({}, None, True, True).failed


# --- trust, savings ---


def test_a_potential_that_leads_to_nothing_loses_trust_and_one_that_leads_on_keeps_it() -> None:
    good = [rollout([0, 0.9, 0.9, 1], terminated=True) for _ in range(15)]
    modest = [rollout([0, 0.1, 0.7, 0.1]) for _ in range(15)]
    fooled = [rollout([0, NAN, 0.9, 0.1]) for _ in range(15)]
    assert outcome_trust(good + modest, LearnedProgress()) == 1.0
    assert outcome_trust(modest, LearnedProgress()) == 1.0  # it promised nothing
    assert outcome_trust(modest + fooled, LearnedProgress()) == 10 / 25  # no success is needed to tell
    assert outcome_trust(fooled + good, LearnedProgress()) == 25 / 40
    assert outcome_trust(fooled + good + good, LearnedProgress()) == 1.0  # the last thirty count
    assert outcome_trust([rollout([NAN, NAN, NAN])], LearnedProgress()) == 1.0
    halfway = [rollout([0, 0.5, 0.5]) for _ in range(40)]  # led nowhere, and never claims to have arrived
    assert outcome_trust(halfway[1:], LearnedProgress()) == 1.0
    assert outcome_trust(halfway, LearnedProgress()) == 0.0
    assert outcome_trust([*halfway, good[0]], LearnedProgress()) == 1.0
    none = shaping(potential=Scaled(Standard(), 0.0))
    assert shaped_rewards(fooled[0], none).tolist() == fooled[0].task_reward.tolist()


def test_hopeless_rollouts_are_given_up_but_not_all_of_them() -> None:
    good = [rollout(np.linspace(0, 1, 11).tolist(), terminated=True) for _ in range(10)]
    bad = [rollout([0.0] * 41) for _ in range(20)]
    rng = np.random.default_rng(0)
    rule = abort_rule(good + bad, LearnedProgress(), 1, rng)
    assert rule is not None
    assert rule.check_s < 1.0
    assert 0.0 < rule.below < 1.0
    assert abort_rule(good + bad, LearnedProgress(), 4, rng) is None
    assert abort_rule(good[:3] + bad[:3], LearnedProgress(), 1, rng) is None
    # Those that a rule let pass are no fair sample: the failures among them were given up.
    passed = [replace(r, source={**r.source, "watched": True}) for r in good]
    assert abort_rule(passed + good[:3] + bad[:3], LearnedProgress(), 1, rng) is None
    late = [rollout([*[0.0] * 20, 1.0], terminated=True) for _ in range(3)]  # looks hopeless, and is not
    assert abort_rule(good + late + bad, LearnedProgress(), 1, rng) is not None
    patient = abort_rule(good + late + bad, LearnedProgress(), 1, rng, reset_s=1e4)
    assert patient is None or patient.check_s > 2.0  # what is lost costs another reset: it waits for the late


def test_promising_starts_lie_before_the_furthest_point_of_failures() -> None:
    starts = PromisingStarts(keep=1)
    rng = np.random.default_rng(0)
    assert starts.draw(rng) is None
    phi = np.array([0, 0.2, 0.5, 0.7, 0.3, 0.1, 0.0, 0.0])
    starts.add(rollout(phi.tolist()), list(range(8)), {}, phi)
    starts.add(rollout([0.0, 1.0], terminated=True), [0, 1], {}, np.array([0.0, 1.0]))
    drawn = {start.reached for start in (starts.draw(rng) for _ in range(50)) if start}
    assert drawn == {1, 2}


def test_places_that_are_mastered_or_lead_nowhere_are_given_up() -> None:
    rng = np.random.default_rng(0)
    starts = PromisingStarts()
    for peak in (0.5, 0.6, 0.7):
        phi = np.array([0, 0.1, peak, 0.0])
        starts.add(rollout(phi.tolist()), [peak] * 4, {}, phi)
    places = {start.state: start for start in (starts.draw(rng) for _ in range(80)) if start}
    assert set(places) == {0.5, 0.6, 0.7}
    for outcome in (True, False, True):
        starts.judge(places[0.5], success=outcome)  # undecided: worth practising
        starts.judge(places[0.6], success=True)
        starts.judge(places[0.7], success=False)
    starts.judge(places[0.7], success=True)  # an order of before, which comes in late
    assert {start.state for start in (starts.draw(rng) for _ in range(80)) if start} == {0.5}
    starts.judge(places[0.5], success=True)
    starts.judge(places[0.5], success=True)
    assert starts.draw(rng) is None


# --- offline ---


def test_weighted_cloning_follows_the_decisions_that_make_progress() -> None:
    up = [rollout(np.linspace(0, 1, 13).tolist(), terminated=True) for _ in range(4)]
    up = [replace(e, actions=np.full((12, 1), 0.8, np.float32)) for e in up]
    down = [rollout(np.linspace(0.8, 0, 13).tolist()) for _ in range(8)]
    down = [replace(e, actions=np.full((12, 1), -0.8, np.float32)) for e in down]
    episodes = up + down
    weights = cloning_weights(episodes, LearnedProgress(), chunk=3)
    config = LearnerConfig(width=16, batch_size=32)
    mean = {
        name: float(clone_weighted(episodes, w, config, 200, 0)(torch.tensor([[5.0]]))[0, 0])
        for name, w in weights.items()
    }
    assert mean["plain"] < 0
    assert mean["rabc"] > 0.6
    assert mean["advantage"] > mean["plain"] + 0.3
    with pytest.raises(DataError, match="every weight is zero"):
        clone_weighted(episodes, [np.zeros(12)] * 12, config, 1, 0)


# --- summaries ---


def test_area_and_levels_worked_by_hand() -> None:
    x, y = np.array([0.0, 50.0, 100.0]), np.array([0.0, 0.5, 1.0])
    assert area_under(x, y) == 0.5
    assert reached_at(x, y, 0.8) == pytest.approx(80.0)
    assert math.isnan(reached_at(x, y * 0.5, 0.8))
    assert reached_at(x, y + 0.9, 0.8) == 0.0


def test_intervals_over_seeds_are_students_and_pair_by_seed() -> None:
    values = [0.61, 0.7, 0.55, 0.81, 0.66]
    found = t_interval(values)
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)

    def cells(arm: str, gain: float) -> list[Cell]:
        x = np.array([0.0, 100.0])
        return [
            Cell("t", arm, s, x, np.array([0.0, 2 * (v + gain)]), x, 0 * x, 1.0) for s, v in enumerate(values)
        ]

    difference = paired(cells("learned", 0.1), cells("sparse", 0.0)[::-1])
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.1, 0.1, 0.1))


def test_rates_have_wilson_intervals_and_windows() -> None:
    low, high = wilson(8, 10)
    expected = stats.binomtest(8, 10).proportion_ci(0.95, "wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-4)
    rate = outcome_curve([True] * 10 + [False] * 10 + [True] * 5, window=10)
    assert rate[[0, 9, 14, 19, 24]].tolist() == [1.0, 1.0, 0.5, 0.0, 0.5]  # few rollouts are a curve, too
