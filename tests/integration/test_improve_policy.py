"""What an improvement run leaves: a policy that acts as it did there, in a control loop and by a command."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import robo_reward
from robo_reward.cli.main import main, run_command
from robo_reward.errors import CheckpointError, ConfigError, DataError
from robo_reward.improve.rollouts import load_rollout
from robo_reward_data.store import EpisodeStore

HERE = Path(__file__).parent
TOY = ["env={_target_: improve_toy.Dot}", "plugins=[]", "reader={_target_: improve_toy.Demos}"]
SMALL = ["demos=memory", "demonstrations=1", "learner.width=32", "learner.clone_steps=100"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run whose policy looks through a hardly trained reward model; films say what it did in the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        import improve_toy

        folder = tmp_path_factory.mktemp("policy")
        improve_toy.hardly_trained(folder, steps=3)
        seen = [
            "observe=[proprio,motion,map,estimate,embedding]",
            f"model={folder / 'model'}",
            "film_every=1",
        ]
        rollouts = ["arm=sparse", "rollouts=2", "evaluate_every=2", "evaluate_episodes=2"]
        run_command("improve", [*TOY, *SMALL, *seen, *rollouts, f"out={folder / 'run'}"])
        yield folder / "run"


def test_it_acts_as_it_did_in_the_run(run: Path) -> None:
    import improve_toy

    policy = robo_reward.load_policy(run)
    assert policy.instruction == "go to the mark"
    assert policy.cameras == ("top",)
    files = sorted((run / "evaluations").glob("after_000002_*.npz"))
    assert len(files) == 2
    for file in files:  # one policy, one episode after the other
        was = load_rollout(file)
        env = improve_toy.Dot()
        observation, _ = env.reset(seed=was.source["seed"])
        policy.reset()
        taken = []
        for step in range(was.decisions):
            action = policy.act(observation["images"], step * policy.decision_ns, observation["proprio"])
            taken.append(action)
            observation, *_ = env.step(action)
        np.testing.assert_allclose(np.stack(taken) / 2, was.actions, atol=1e-4)  # the dot's units are doubled
    images, proprio = observation["images"], observation["proprio"]
    for wrong, why in (
        ({}, "looks through top, this moment has no image"),
        ({"bottom": images["top"]}, "looks through top, this moment has bottom"),
        ({"top": images["top"][:0]}, "cannot see this moment: camera 'top' gave uint8"),
    ):
        with pytest.raises(DataError, match=why):
            policy.act(wrong, 10**12, proprio)
    policy.act(images, 10**12, proprio)
    with pytest.raises(DataError, match="cannot see this moment: stamp 1000000000000 is not after"):
        policy.act(images, 10**12, proprio)
    act: Any = inspect.unwrap(type(policy).act)  # as where nobody checks annotations
    for wrong in (np.zeros(3), np.array([0.0, np.nan]), ["a"] * 2, ["1"] * 2, [[0.0], [0.0, 1.0]]):
        with pytest.raises(DataError, match="proprioception of 2 finite numbers"):
            act(policy, observation["images"], 10**12, wrong)


def test_what_it_learned_from_has_other_looks_and_what_judged_it_has_none(run: Path) -> None:
    learned = [load_rollout(file) for file in sorted((run / "rollouts").glob("*.npz"))]
    assert [len(rollout.looks) for rollout in learned] == [7, 7]
    for rollout in learned:
        assert {name for look in rollout.looks for name in look} == {"map", "embedding"}
        assert all(look["map"].shape == rollout.parts["map"].shape for look in rollout.looks)
        assert not any(np.array_equal(look["map"], rollout.parts["map"]) for look in rollout.looks)
    assert not any(load_rollout(file).looks for file in (run / "evaluations").glob("*.npz"))


def test_what_it_looks_through_is_checked(run: Path, tmp_path: Path) -> None:
    moved = run.parent / "elsewhere"
    (run.parent / "model").rename(moved)
    try:
        with pytest.raises(CheckpointError, match="say where, model=RUN"):
            robo_reward.load_policy(run)
        assert robo_reward.load_policy(run, model=moved).model is not None
    finally:
        moved.rename(run.parent / "model")
    other = torch.load(run / "policy.pt", weights_only=True) | {"model_version": "another"}
    other["model"] = str(run.parent / "model")
    torch.save(other, tmp_path / "policy.pt")
    with pytest.raises(CheckpointError, match="looks through another"):
        robo_reward.load_policy(tmp_path)
    (tmp_path / "policy.pt").unlink()
    with pytest.raises(CheckpointError, match="finished robo-reward improve"):
        robo_reward.load_policy(tmp_path)
    (tmp_path / "policy.pt").write_bytes(b"no policy")
    with pytest.raises(CheckpointError, match="is damaged"):
        robo_reward.load_policy(tmp_path)
    sim = ["arm=sparse", "privileged=true", "privileged_state=improve_toy.state", "rollouts=0"]
    sim += ["privileged_demos=improve_toy.privileged", "evaluate_every=0", f"out={tmp_path / 'sim'}"]
    run_command("improve", [*TOY, *SMALL, *sim])
    with pytest.raises(ConfigError, match="privileged=false"):
        robo_reward.load_policy(tmp_path / "sim")


def test_a_command_counts_its_successes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("robo_reward_sim")
    env = "env=robo_reward/PegInsertSide-v0"
    run_command("record", [env, f"out={tmp_path / 'demos'}", "episodes=1", "workers=1", "mix={expert: 1}"])
    limits = ["rollouts=0", "evaluate_every=0", "learner.clone_steps=20", "observe=[proprio,motion]"]
    run_command(
        "improve", [env, f"demos={tmp_path / 'demos'}", f"out={tmp_path / 'run'}", "arm=sparse", *limits]
    )
    rolled = [*("run_policy", env, f"policy={tmp_path / 'run'}", f"out={tmp_path / 'out'}", "episodes=2")]
    rolled += [f"store={tmp_path / 'rolled'}", "env_args={max_episode_steps: 4}"]
    assert main([*rolled, "action_steps=2"]) == 1
    assert "action_steps is for policies that predict chunks" in capsys.readouterr().err
    assert main(rolled) == 0
    found = json.loads((tmp_path / "out/metrics.json").read_text())
    assert found["success"]["n"] == 2
    assert [row["decisions"] for row in found["rollouts"]] == [4, 4]
    # Whatever is refused leaves what is there.
    left = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    for asked, message in (
        (["kind=other"], "rolled has rollouts with kind=policy, not other: choose another store="),
        (["seed=5", "overwrite=true"], "rolled has rollouts with seed=1000000, not 5: choose another store="),
        (
            ["env_args={action_repeat: 10}", "store=null", "overwrite=true"],  # as it was not trained
            "the policy has an action every 0.062 s, robo_reward/PegInsertSide-v0 every 0.125 s: give env",
        ),
    ):
        assert main([*(rolled[:-1] if "env_args" in asked[0] else rolled), *asked]) == 1
        assert message in capsys.readouterr().err
        assert left == {name: (tmp_path / "out" / name).read_bytes() for name in left}
    store = EpisodeStore.open(tmp_path / "rolled")
    assert len(store.episodes) == 2
    noted = dict(store.attrs["run_policy"])
    assert noted.pop("kind") == "policy"
    store.update_attrs({"run_policy": noted})  # as earlier versions wrote it
    assert main([*rolled, "episodes=3"]) == 0
    assert len(EpisodeStore.open(tmp_path / "rolled").episodes) == 3
    assert main([*rolled, "seed=5", "store=null", "episodes=1", "overwrite=true"]) == 0
    assert [row["seed"] for row in json.loads((tmp_path / "out/metrics.json").read_text())["rollouts"]] == [5]
    capsys.readouterr()
    assert main([*rolled[:2], f"policy={tmp_path}", f"out={tmp_path / 'x'}"]) == 1
    assert "the out of a finished robo-reward improve" in capsys.readouterr().err


def test_a_policy_is_run_in_an_environment_of_ones_own(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from improve_toy import Fixed

    asked = [f"policy={run}", "env={_target_: improve_toy.Fixed}", f"out={tmp_path / 'out'}"]
    command = ["run_policy", *asked, "episodes=2", f"store={tmp_path / 'store'}"]
    assert main(command) == 0
    rows = json.loads((tmp_path / "out/metrics.json").read_text())["rollouts"]
    policy = robo_reward.load_policy(run)
    for episode, row in zip(EpisodeStore.open(tmp_path / "store").episodes, rows, strict=True):
        info, env = episode.info, Fixed()
        assert (info.instruction, info.cameras, info.success[-1]) == (
            policy.instruction,
            ("top",),
            row["success"],
        )
        assert (info.length - 1, info.source["reset_seed"]) == (row["decisions"], row["seed"])
        assert set(np.diff(info.stamp_ns)) == {Fixed.decision_ns}
        observation, _ = env.reset(seed=row["seed"])
        np.testing.assert_array_equal(
            episode.read_frames("top", np.array([0]))[0], observation["images"]["top"]
        )
        for action, where in zip(episode.read_actions()[:-1], episode.read_proprio()[1:], strict=True):
            observation, *_ = env.step(action)
            np.testing.assert_array_equal(observation["proprio"], where)
    capsys.readouterr()
    assert main([*command, "env={_target_: improve_toy.Silent}", "overwrite=true", "store=null"]) == 1
    assert "info of a step has no 'success'" in capsys.readouterr().err


def test_what_a_robot_breaks_off_is_no_moment_of_the_rollout(run: Path, tmp_path: Path) -> None:
    """And what was carried out in place of an action is what is kept."""
    asked = [f"policy={run}", "env={_target_: improve_toy.Held}", f"out={tmp_path / 'out'}", "episodes=1"]
    assert main(["run_policy", *asked, f"store={tmp_path / 'store'}"]) == 0
    (episode,) = EpisodeStore.open(tmp_path / "store").episodes
    assert (episode.info.length, episode.info.source["cut"]) == (4, "the stop is held")
    np.testing.assert_array_equal(episode.read_actions(), np.float32([[0.5, 0]] * 3 + [[0, 0]]))
    np.testing.assert_allclose(np.diff(episode.info.stamp_ns), 11 * 10**7)
