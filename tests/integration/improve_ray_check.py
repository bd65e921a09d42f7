"""What `test_improve_ray.py` runs in a process of its own: `python improve_ray_check.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import ray

from robo_reward.cli.main import load_config
from robo_reward.improve.demonstrations import choose_demonstrations, demonstration_rollout
from robo_reward.improve.learner import Learner
from robo_reward.improve.replay import Replay, Shaping
from robo_reward.improve.run import improve
from robo_reward.improve.runners import LocalRunner, RayRunner
from robo_reward.improve.sources import LearnedProgress
from robo_reward.improve.worker import Order, Worker
from robo_reward.shaping import PotentialBased, Standard

OPTIONS = [
    "env={_target_: improve_toy.Dot}",
    "plugins=[]",
    "reader={_target_: improve_toy.Demos}",
    "demos=memory",
    "demonstrations=1",
    "arm=oracle",
    "privileged=true",
    "privileged_state=improve_toy.state",
    "privileged_demos=improve_toy.privileged",
    "learner.width=16",
    "learner.batch_size=16",
    "learner.clone_steps=50",
    "learner.updates_per_decision=1",
    "evaluate_every=3",
    "evaluate_episodes=2",
    "rollouts=6",
]


def check(folder: Path) -> None:
    """Raises AssertionError where a rollout in an actor differs, or a killed actor is not replaced."""
    _, config = load_config("improve", [*OPTIONS, f"out={folder / 'run'}"])
    reader = choose_demonstrations(config)[0]
    worker = Worker(config, reader.info.instruction)
    rule = Shaping(LearnedProgress(), Standard(), PotentialBased(), 0.0, 0.9)
    replay = Replay(rule, 3)
    replay.add(demonstration_rollout(config, worker, reader))
    learner = Learner(config.learner, sum(replay.sizes), 2, 0)
    learner.fit_scale(replay.observations(), replay.sizes)
    learner.clone(replay)
    orders = [Order(index=i, seed=50 + i, noise=0.2) for i in range(4)]
    local = LocalRunner(worker, reader.info.instruction)
    expected = local.finish(local.start(orders, learner.policy))
    remote = RayRunner(config, reader.info.instruction, 2)
    pending = remote.start(orders, learner.policy)
    ray.kill(remote.actors[0])
    found = remote.finish(pending)
    assert remote.replaced == 1
    for ours, theirs in zip(expected, found, strict=True):
        np.testing.assert_array_equal(ours.rollout.actions, theirs.rollout.actions)
        np.testing.assert_array_equal(ours.rollout.truth, theirs.rollout.truth)
    remote.close()

    metrics = improve(load_config("improve", [*OPTIONS, f"out={folder / 'ray'}", "workers=2"])[1])
    assert metrics["rollouts"] == 6
    assert [rollouts for rollouts, _ in metrics["evaluations"]] == [0, 3, 6]


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    check(Path(sys.argv[1]))
    ray.shutdown()
    sys.stdout.write("checked\n")
