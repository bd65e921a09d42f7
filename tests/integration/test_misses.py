"""Misses: a demonstration played back beside the objects, and what training makes of them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from robo_reward.cli.main import run_command
from robo_reward.errors import ConfigError, DataError
from robo_reward.evaluate.predict import EpisodeResult, true_labels
from robo_reward.evaluate.quantities import overclaim
from robo_reward.labels import label_ceiling, label_episode
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.schema import EpisodeReader, Outcome
from robo_reward.testing import MemoryReader, toy_episode
from robo_reward.train.config import HoldoutConfig, WindowConfig
from robo_reward.train.data import WindowSampler
from robo_reward.train.loop import to_tensors
from robo_reward.train.loss import losses, predict
from robo_reward.train.split import Beside, make_split, with_beside
from robo_reward_data.store import EpisodeStore

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small world is imported by name, as a user's own would be."""
    monkeypatch.syspath_prepend(str(HERE))


def misses(out: Path, *overrides: str) -> list[EpisodeReader]:
    world = ["env={_target_: improve_toy.Dot}", "demos=memory", "reader._target_=improve_toy.Demos"]
    aside = ["aside_low=[-1.0,-1.0]", "aside_high=[1.0,1.0]", "aside_decisions=5", "plugins=[]"]
    run_command("misses", [*world, *aside, "episodes=3", f"out={out}", *overrides])
    return list(EpisodeStore.open(out).episodes)


def test_the_demonstration_is_played_back_aside_and_achieves_nothing(tmp_path: Path) -> None:
    from improve_toy import Demos, Dot

    found = misses(tmp_path / "misses")
    demos = Demos(Path()).episodes
    assert len(found) == 3
    for index, reader in enumerate(found):
        info, demo = reader.info, demos[index]
        assert (info.outcome, info.reached, info.kind) == (Outcome.FAILURE, 0, "miss")
        assert label_episode(info) is None  # nothing is known of where in the stage it is
        assert label_ceiling(info) == 0
        assert info.success is not None
        assert not info.success.any()
        assert info.instruction == demo.info.instruction
        actions, played = demo.read_actions(), reader.read_actions()
        assert actions is not None
        assert played is not None
        aside = np.array(info.source["aside"])
        np.testing.assert_allclose(played[:5], np.tile(aside, (5, 1)), atol=1e-3)
        np.testing.assert_array_equal(played[5:-1], actions[:-1][: len(played) - 6])
        env = Dot()  # what is stored is what such actions lead to
        env.reset(seed=0)
        places = [env.place.copy(), *(env.step(action)[0]["proprio"] for action in played[:-1])]
        proprio = reader.read_proprio()
        np.testing.assert_allclose(proprio, np.array(places), atol=1e-5)
    assert len({info.uid for info in (r.info for r in found)}) == 3

    # A killed run is gone on with, and makes what it would have made.
    lost = found[1].info.uid
    shutil.rmtree(tmp_path / "misses" / "episodes" / "miss_000001")
    assert misses(tmp_path / "misses")[1].info.uid == lost
    with pytest.raises(DataError, match="store of other episodes"):
        misses(tmp_path / "misses", "seed=1")
    with pytest.raises(DataError, match="store of other episodes"):
        misses(tmp_path / "misses", "same_scene=false")
    with pytest.raises(DataError, match="store of other episodes"):
        misses(tmp_path / "misses", "env_args.limit=20")
    store = EpisodeStore.open(tmp_path / "misses")
    before = {key: value for key, value in store.attrs["misses"].items() if key != "recipe"}
    store.update_attrs({"misses": before})
    with pytest.raises(DataError, match=r"misses of another version of robo-reward.*choose another out="):
        misses(tmp_path / "misses")


def test_a_miss_that_moves_the_object_is_none(tmp_path: Path) -> None:
    pytest.importorskip("robo_reward_sim")
    import gymnasium

    env, views = "robo_reward/DoorOpen-v0", {"cameras": ["right"], "image_size": [24, 24]}
    seen = [f"{name}={value}" for name, value in views.items()]
    demo = ["episodes=1", "workers=1", "mix={expert: 1}", f"out={tmp_path / 'demo'}"]
    run_command("record", [f"env={env}", *seen, *demo])
    where = [f"env={env}", f"demos={tmp_path / 'demo'}", *(f"env_args.{option}" for option in seen)]
    run_command("misses", [*where, "episodes=6", f"out={tmp_path / 'misses'}"])
    scene = EpisodeStore.open(tmp_path / "demo").episodes[0].info.source["reset_seed"]
    world = gymnasium.make(env, cameras=(), max_episode_steps=1000)
    base: Any = world.unwrapped
    for reader in EpisodeStore.open(tmp_path / "misses").episodes:
        world.reset(seed=scene)
        stages = [base.oracle().stage]
        actions = reader.read_actions()
        assert actions is not None
        for action in actions[:-1]:  # what is stored is played once more
            world.step(action)
            stages.append(base.oracle().stage)
        assert max(stages) <= (reader.info.reached or 0) == 0, reader.info.name
    world.close()


def test_a_miss_may_end_in_a_failure_of_its_own_and_never_in_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import improve_toy

    world = ["env={_target_: improve_toy.Stranger}", "+env_args.off=0.2", "aside_low=[-2.0,-2.0]"]
    fallen = misses(tmp_path / "fallen", *world, "aside_high=[-1.9,2.0]")
    for reader in fallen:  # a step of 0.12 a decision: the second one is beyond 0.2
        assert reader.info.length == 3
        assert (reader.info.outcome, reader.info.reached) == (Outcome.FAILURE, 0)
        assert np.diff(reader.info.stamp_ns).tolist() == [100_000_000] * 2  # its frame rate says so
        proprio = reader.read_proprio()
        assert proprio is not None
        assert proprio[-1, 0] < -0.2 or abs(proprio[-1, 1]) > 0.2  # the fall is seen

    class Wordless(improve_toy.Stranger):
        """One that ends its episodes without a word, and knows no stages."""

        oracle = property()

        def step(self, action: np.ndarray) -> Any:
            *rest, _ = super().step(action)
            return *rest, {}

    monkeypatch.setattr(improve_toy, "Wordless", Wordless, raising=False)
    wordless = ["env={_target_: improve_toy.Wordless}", *world[1:], "aside_high=[-1.9,2.0]"]
    with pytest.raises(DataError, match="gets beyond stage 0 after a step aside"):
        misses(tmp_path / "wordless", *wordless)  # an end of which nothing is said may be success
    monkeypatch.setitem(improve_toy.Stranger.metadata, "render_fps", 5)
    with pytest.raises(ConfigError, match=r"dot_000 has an action every 0.100 s, .* every 0.200 s: .*step_s"):
        misses(tmp_path / "slow", *world)
    told = misses(tmp_path / "told", *world, "aside_high=[-1.9,2.0]", "step_s=0.1")
    assert [reader.info.length for reader in told] == [3, 3, 3]
    with pytest.raises(ConfigError, match=r"no camera 'top', which dot_000 has: .*images.top uint8\(3, 32"):
        misses(tmp_path / "blind", *world, "+env_args.layout=chw", "step_s=0.1")


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["aside_low=[0,0]", "aside_high=[0,0]"], ConfigError, "played back as it was may succeed"),
        (["aside_low=[-1]"], ConfigError, "as many axes each"),
        (["aside_low=[-1,-1,-1]", "aside_high=[1,1,1]"], ConfigError, "has 3 axes, an action of"),
        (
            ["aside_high=[0.01,0.0]", "aside_low=[0,0]"],
            DataError,
            "gets beyond stage 0 after a step",
        ),
        (["reached=2"], ConfigError, r"reached=2: dot_000 has stages 0\.\.1"),
        (["episodes=0"], ConfigError, "must be 1 or more"),
        (["env_args.cameras=[side]"], ConfigError, "has no camera 'top', which dot_000 has"),
    ],
)
def test_misses_that_cannot_be_made_are_refused(
    tmp_path: Path, overrides: list[str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        misses(tmp_path / "misses", *overrides)


def sampler_with_misses(share: float) -> tuple[WindowSampler, ModelConfig]:
    demos = [MemoryReader(toy_episode(i, length=18)) for i in range(2)]
    failed = [toy_episode(10 + i, length=18, reach=0.4) for i in range(3)]
    bounded = [
        MemoryReader(replace(episode, info=replace(episode.info, truth=None, reached=0)))
        for episode in failed
    ]
    config = ModelConfig(
        encoder={
            "_target_": "robo_reward.model.encoders.TinyEncoder",
            "channels": [4, 4, 8, 8],
            "bottleneck": 4,
        },
        tasks=(TaskConfig(("fill the bar",), ("red", "green"), (0.5, 0.5)),),
        cameras=("front", "wrist"),
        image_size=(32, 32),
        period_s=0.1,
        width=16,
        heads=2,
        layers=1,
    )
    beside = [Beside("misses", bounded, share, "x")]
    split = make_split([r.info for r in demos], HoldoutConfig(calibration=0.0, test=0.0), seed=1)
    sampler = WindowSampler(
        [*demos, *bounded],
        with_beside(split, beside),
        config,
        WindowConfig(frames=4),
        {},
        {},
        1e9,
        [None] * 5,
        beside,
    )
    return sampler, config


def test_of_a_miss_training_knows_the_furthest_stage_and_no_more() -> None:
    sampler, config = sampler_with_misses(share=0.4)
    batches = [sampler.batch(16, seed=3, step=step) for step in range(20)]
    missed = np.concatenate([b.ceiling[:, 0] == 0 for b in batches])
    assert 0.3 < missed.mean() < 0.5
    for batch in batches:
        here = (batch.ceiling == 0) & batch.moment_mask
        assert not batch.labelled[here].any()
        assert (batch.success_known[here] & (batch.success[here] == 0)).all()
        rest = (batch.ceiling == -1) & batch.moment_mask
        assert batch.labelled[rest].all()

    # The loss of such moments: minus the log of the probability of the stages up to the ceiling.
    torch.manual_seed(0)
    model = ProgressModel(config).eval()
    batch = to_tensors(batches[0], torch.device("cpu"))
    only = replace(batch, labelled=torch.zeros_like(batch.labelled), episode=torch.full_like(batch.stage, -1))
    low = replace(only, ceiling=torch.zeros_like(batch.ceiling))
    prediction, _, _ = predict(model, low)
    first = prediction.stage_logits.softmax(-1)[..., 0]
    expected = -first.log()[batch.moment_mask].mean()
    torch.testing.assert_close(losses(model, low, 0)["stage"], expected, rtol=1e-4, atol=1e-5)
    top = replace(only, ceiling=torch.ones_like(batch.ceiling))
    # "No further than the last stage" says nothing, and nothing is said of the way through a stage.
    torch.testing.assert_close(losses(model, top, 0)["stage"], torch.tensor(0.0), rtol=0, atol=1e-6)
    torch.testing.assert_close(losses(model, low, 0)["tau"], torch.tensor(0.0))


def test_a_store_keeps_the_furthest_stage_and_refuses_one_that_cannot_be(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "store")
    failed = toy_episode(0, reach=0.4)
    said = replace(failed, info=replace(failed.info, truth=None, reached=1))
    assert store.write(said).info.reached == 1
    assert store.write(toy_episode(1)).info.reached is None
    for info in (replace(said.info, reached=2), replace(said.info, outcome=Outcome.SUCCESS)):
        with pytest.raises(DataError, match=r"reached=\d is for failures, the index of a stage \(of 2\)"):
            store.write(replace(said, info=replace(info, name="other", uid="f" * 32)))


def test_claims_beyond_what_a_failure_achieved_are_measured() -> None:
    task = TaskConfig(("fill the bar",), ("red", "green"), (0.3, 0.7))
    failed = toy_episode(0, length=4, reach=0.4).info
    assert failed.truth is not None
    known = true_labels(task, failed)
    assert known.progress is not None
    assert known.furthest == pytest.approx(float(known.progress.max()))
    bounded = true_labels(task, replace(failed, truth=None, reached=0))
    assert bounded.furthest == pytest.approx(0.3)  # the end of its first stage
    assert np.isnan(true_labels(task, toy_episode(1).info).furthest)
    assert np.isnan(true_labels(task, replace(failed, truth=None)).furthest)
    # 0, 0.2 and 0.6 beyond; no answer counts for nothing
    said = np.array([0.1, 0.5, 0.9, np.nan], np.float32)
    names = ("progress", "std", "low", "high", "tau", "success_prob", "stage", "valid", "reason")
    forward = SimpleNamespace(**dict.fromkeys(names, said))
    bands = (np.zeros((9, 4), np.float32), np.ones((9, 4), np.float32))
    result = EpisodeResult(failed, bounded, np.ones(4, np.bool_), forward, forward, {}, bands)
    assert overclaim([result, result]).metric(np.random.default_rng(0)).value == pytest.approx(0.8 / 3)
