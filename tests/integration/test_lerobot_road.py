"""From demonstrations to a policy that is judged: the whole road to LeRobot and back, on a simulated task."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from robo_reward.cli.main import main
from robo_reward.labels import label_ceiling
from robo_reward.schema import Outcome
from robo_reward.testing import toy_episode
from robo_reward_data.importers.base import Options
from robo_reward_data.importers.lerobot import LeRobot
from robo_reward_data.importers.run import import_recordings
from robo_reward_data.store import EpisodeStore

ENV = "robo_reward/ButtonPress-v0"
CHUNK = 4
# run_policy, and what LeRobot itself does with the policy at the moments at which it planned.
JUDGE = """
import json, sys
import numpy as np
import torch
from lerobot.common.control_utils import predict_action
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from robo_reward.cli.main import main
from robo_reward_data.store import EpisodeStore

answer, folder, store, *arguments = sys.argv[1:]
assert main(arguments) == 0
config = PreTrainedConfig.from_pretrained(folder)
policy = get_policy_class(config.type).from_pretrained(folder, config=config)
before, after = make_pre_post_processors(config, pretrained_path=folder)
said = []
for episode in EpisodeStore.open(store).episodes:
    frames, states = episode.read_frames("right", np.arange(episode.info.length)), episode.read_proprio()
    for at in range(0, episode.info.length - 1, 2):
        seen = {"observation.images.right": frames[at].copy(), "observation.state": states[at].copy()}
        policy.reset()
        action = predict_action(
            seen, policy, torch.device("cpu"), before, after, False, task=episode.info.instruction
        )
        said.append(action[0].tolist())
with open(answer, "w") as file:
    json.dump(said, file)
"""


def python(folder: Path, *arguments: str) -> str:
    """What a process of its own prints: LeRobot stays out of this one."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def trained(at: Path, policy: list[str]) -> Path:
    """A policy after two weighted steps, from demonstrations by way of a reward model in `at/model`."""
    recorded = [f"out={at / 'store'}", "image_size=[32,32]", "cameras=[right]", "workers=1"]
    assert main(["record", f"env={ENV}", "episodes=5", "mix={expert: 4, aborted: 1}", *recorded]) == 0
    taught = ["minutes=null", "steps=2", "augment=sim", "holdout.calibration=0.2"]
    assert main(["train", f"data={at / 'store'}", f"out={at / 'model'}", *taught]) == 0
    python(at, "-m", "robo_reward.cli.main", "to_lerobot", f"data={at / 'store'}", f"out={at / 'set'}")
    assert main(["label", f"model={at / 'model'}", f"dataset={at / 'set'}", f"rabc.chunk={CHUNK}"]) == 0
    python(
        at,
        *("-m", "lerobot.scripts.lerobot_train", "--dataset.repo_id=local/episodes"),
        *(f"--dataset.root={at / 'set'}", f"--output_dir={at / 'policy'}"),
        "--ext.discover_packages_path=robo_reward_data.lerobot_plugin",
        *policy,
        *("--sample_weighting.type=rabc", "--sample_weighting.head_mode=robo_reward"),
        *("--steps=2", "--batch_size=4", "--num_workers=0"),
    )
    return at / "policy"


@pytest.mark.slow
@pytest.mark.parametrize("video", ["false", "true"])
def test_a_dataset_is_written_without_the_noise_of_what_writes_it(tmp_path: Path, video: str) -> None:
    """Tracebacks of a decoder that is not needed, bars and an encoder's settings looked like a failure."""
    if find_spec("lerobot") is None:
        pytest.skip("no lerobot here to write a dataset with: pip install 'robo-reward[data]'")
    store = EpisodeStore.create(tmp_path / "store")
    stages = ([0, 3, 8], [1, 4, 7])
    for index, bounds in enumerate(stages):
        episode = toy_episode(index, length=8)
        info = dataclasses.replace(
            episode.info, stage_names=("a", "b"), boundaries=np.array(bounds), truth=None, paraphrases=()
        )
        store.write(dataclasses.replace(episode, info=info))
    failed = toy_episode(2, length=8)
    info = dataclasses.replace(
        failed.info, stage_names=("a", "b"), truth=None, success=None, paraphrases=(),
        outcome=Outcome.FAILURE, reached=0, kind="empty_handed",
    )  # fmt: skip
    store.write(dataclasses.replace(failed, info=info))
    written = [f"data={tmp_path / 'store'}", f"out={tmp_path / 'set'}", f"video={video}"]
    done = subprocess.run(
        [sys.executable, "-m", "robo_reward.cli.main", "to_lerobot", *written],
        env={**os.environ, "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout == f"3 episodes, 24 frames at 10/s: {tmp_path / 'set'}\n"
    import_recordings(LeRobot(), tmp_path / "set", tmp_path / "again", Options(fps=None, size=None))
    again = [episode.info for episode in EpisodeStore.open(tmp_path / "again").episodes]
    assert [(i.stage_names, i.boundaries.tolist()) for i in again[:2]] == [(("a", "b"), b) for b in stages]
    # What LeRobot has no column for comes back, too: how far a failure got, and of what kind it was.
    last = again[2]
    assert (last.stage_names, last.reached, last.kind) == (("a", "b"), 0, "empty_handed")
    assert label_ceiling(last) == 0
    # They are the recordings that they were: a model that learned from the store has seen them.
    assert [i.uid for i in again] == [episode.uid for episode in store]
    # LeRobot reads what was written beside its own columns.
    program = (
        "from lerobot.datasets.lerobot_dataset import LeRobotDataset\n"
        f"data = LeRobotDataset('local/episodes', root={str(tmp_path / 'set')!r}, video_backend='pyav')\n"
        "print(len(data), data.meta.episodes[1]['sparse_subtask_end_frames'], data[15]['task'])"
    )
    assert python(tmp_path, "-c", program).split("\n")[0] == f"24 [4, 7] {again[0].instruction}"


@pytest.mark.slow
@pytest.mark.timeout(900)  # four processes import LeRobot, which a busy machine takes long over
def test_demonstrations_become_a_policy_that_is_run(
    tmp_path: Path, small_act: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    if find_spec("lerobot") is None or find_spec("accelerate") is None:
        pytest.skip("no lerobot here that trains: pip install 'robo-reward[data]' accelerate")
    at, policy = tmp_path, trained(tmp_path, small_act(CHUNK, use_vae="false", conv_channels="[8,16]"))
    rolled = [
        *("run_policy", f"policy={policy}", f"env={ENV}", f"out={at / 'out'}", f"store={at / 'rolled'}"),
        *("env_args={max_episode_steps: 5}", "action_steps=2", "episodes=2"),
    ]
    python(at, "-m", "robo_reward.cli.main", *rolled)
    notes = at / "out/rollouts.jsonl"
    whole = notes.read_text()
    notes.write_text(whole[:-10])  # killed while it noted the second rollout, which is in the store already
    at_last = policy / "checkpoints/last/pretrained_model"
    python(at, "-c", JUDGE, str(at / "planned.json"), str(at_last), str(at / "rolled"), *rolled)
    assert notes.read_text() == whole
    found = json.loads((at / "out/metrics.json").read_text())
    assert found["success"] == {"value": 0.0, "low": 0.0, "high": pytest.approx(0.6576, abs=1e-3), "n": 2}
    assert [row["seed"] for row in found["rollouts"]] == [1_000_000, 1_000_001]
    assert all(row["decisions"] == 5 and 0 <= row["progress"] < 0.5 for row in found["rollouts"])

    episodes = EpisodeStore.open(at / "rolled").episodes
    scenes = [episode.info.source["reset_seed"] for episode in episodes]
    assert scenes == [1_000_000, 1_000_001]
    taken = np.concatenate([episode.read_actions()[0:5:2] for episode in episodes])
    planned = np.clip(json.loads((at / "planned.json").read_text()), -1, 1)
    np.testing.assert_allclose(taken, planned, atol=1e-5)

    capsys.readouterr()
    assert main(rolled) == 0  # all there: needs no LeRobot
    assert "0 of 2 rollouts succeed, 0.000 [0.000, 0.658]" in capsys.readouterr().out
    assert main([*rolled, "action_steps=1"]) == 1
    assert "has rollouts with action_steps=2, not 1" in capsys.readouterr().err
    assert notes.read_text() == whole
    assert main(["rank", f"model={at / 'model'}", f"data={at / 'rolled'}", f"out={at / 'ranking'}"]) == 0
    assert json.loads((at / "ranking/summary.json").read_text())["rollouts"] == 2
