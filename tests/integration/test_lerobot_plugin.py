"""Our plug-ins, found and used by LeRobot's own mechanisms, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SETUP = """
import json, os, sys, types
from pathlib import Path
import numpy as np
import torch
from lerobot.configs.parser import load_plugin
from robo_reward.calibration import Calibration
from robo_reward.checkpoint import load_checkpoint, save_checkpoint
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.testing import MemoryReader, toy_episode

folder = Path(sys.argv[1])
torch.manual_seed(0)
encoder = {"_target_": "robo_reward.model.encoders.TinyEncoder", "channels": [4, 8, 8, 8], "bottleneck": 8}
task = TaskConfig(("fill the bar",), ("red", "green"), (0.4, 0.6))
config = ModelConfig(encoder, (task,), ("front", "wrist"), (32, 32), 0.1, width=16, heads=2, window=3)
save_checkpoint(folder / "run", ProgressModel(config), Calibration(), {"steps": 7})
"""
REWARD_MODEL = """
import huggingface_hub, shutil
from lerobot.rewards.factory import (
    make_reward_model, make_reward_model_config, make_reward_pre_post_processors
)
from dataclasses import replace
from robo_reward.checkpoint import Checkpoint
from robo_reward.errors import DataError
from robo_reward.fusion import FusionParameters
from robo_reward.offline import encode_episode, estimate_episode
import robo_reward

load_plugin("robo_reward_data.lerobot_plugin")
settings = make_reward_model_config(
    "robo_reward", run=str(folder / "run"), fps=10.0, moments=5, device="cpu", repo_id="someone/bars"
)
model = make_reward_model(settings)
assert not model.is_trainable
checkpoint = load_checkpoint(folder / "run")

# A hub that is a folder.
hub = folder / "hub"
class Api:
    def __init__(self, **_): pass
    def create_repo(self, repo_id, **_): return types.SimpleNamespace(repo_id=repo_id)
    def upload_folder(self, *, repo_id, folder_path, **_):
        shutil.copytree(folder_path, hub / repo_id)
        return types.SimpleNamespace(repo_url=types.SimpleNamespace(url=repo_id))
import lerobot.utils.hub
lerobot.utils.hub.HfApi = Api
model.push_model_to_hub(None)
saved = hub / "someone/bars"
assert sorted(path.name for path in saved.iterdir()) == [
    "README.md", "config.json", "model.json", "model.safetensors"
]
card = (saved / "README.md").read_text()
assert "library_name: lerobot" in card and "red (0.40), green (0.60)" in card and "7 steps" in card

from robo_reward_data.lerobot_plugin import modeling_robo_reward as plugin
asked = []
plugin.snapshot_download = lambda name, **_: asked.append(name) or str(hub / name)
downloaded = plugin.RoboProgressRewardModel.from_pretrained("someone/bars")
assert asked == ["someone/bars"]
# One of the Hub that names other code is not loaded; from a folder it is as it was.
from robo_reward.errors import CheckpointError
import json, shutil
shutil.copytree(hub / "someone/bars", hub / "anyone/bars")
meta = json.loads((hub / "anyone/bars/model.json").read_text())
meta["model"]["encoder"]["_target_"] = "os.system"
(hub / "anyone/bars/model.json").write_text(json.dumps(meta))
try:
    plugin.RoboProgressRewardModel.from_pretrained("anyone/bars")
except CheckpointError as error:
    assert "of the Hub would call os.system" in str(error)
else:
    raise AssertionError("it would have run what it names")
settings.pretrained_path = str(saved)
loaded = make_reward_model(settings)
assert robo_reward.load(saved).version == checkpoint.version
for name, value in checkpoint.model.state_dict().items():
    assert torch.equal(loaded.model.state_dict()[name], value)
    assert torch.equal(downloaded.model.state_dict()[name], value)

reader = MemoryReader(toy_episode(1, length=20))
truth = estimate_episode(checkpoint.model, encode_episode(checkpoint.model, reader), Calibration())
images = {
    f"observation.images.{c}":
        torch.from_numpy(reader.read_frames(c, np.arange(20))).permute(0, 3, 1, 2).float() / 255
    for c in ("front", "wrist")
}
prepare, finish = make_reward_pre_post_processors(loaded.config)
deltas = loaded.config.observation_delta_indices
moments = [0, 2, 9, 19]
batch = {}
for key, shown in images.items():
    places = torch.tensor([[t + d for d in deltas] for t in moments])
    batch[key] = shown[places.clamp(0)]
    batch[f"{key}_is_pad"] = places < 0
batch["task"] = ["fill the bar"] * 4
windows = loaded.compute_reward(prepare(batch))
assert windows.shape == (4,)
np.testing.assert_allclose(windows, truth.progress[moments], atol=1e-5)
# A camera that the model was not trained on changes nothing beside those that it was.
beside = {**batch, "observation.images.odd": batch["observation.images.front"].flip(-1)}
np.testing.assert_array_equal(loaded.compute_reward(prepare(beside)), windows)

for _ in range(2):  # one live episode, then another
    loaded.reset()
    shown = [{"task": "fill the bar", **{k: v[t] for k, v in images.items()}} for t in range(20)]
    live = [float(loaded.compute_reward(prepare(moment))) for moment in shown]
    np.testing.assert_allclose(live, truth.progress, atol=1e-5)
# At three times the rate every third moment is asked for; between them the last estimate holds.
fast = make_reward_model(replace(loaded.config, fps=30.0, stride=3))
held = [float(fast.compute_reward(prepare(shown[t // 3]))) for t in range(60)]
np.testing.assert_allclose(held, np.repeat(truth.progress, 3), atol=1e-5)
# Fused perspectives: hops from the first frame start from what was said there, wherever a window begins.
forward = Calibration(fusion=FusionParameters(active=("forward",)))
fused = estimate_episode(checkpoint.model, encode_episode(checkpoint.model, reader), forward)
hopping = plugin.RoboProgressRewardModel(loaded.config, Checkpoint(checkpoint.model, forward))
np.testing.assert_allclose(hopping.compute_reward(prepare(batch)), fused.progress[moments], atol=1e-5)
assert np.abs(fused.progress - truth.progress).max() > 1e-3
# Proprioception reaches the model, and is asked for.
bodily = ProgressModel(replace(config, proprio_dim=2))
felt = plugin.RoboProgressRewardModel(loaded.config, Checkpoint(bodily, Calibration()))
body = torch.linspace(-1, 1, 40).reshape(20, 2)
own = MemoryReader(replace(toy_episode(1, length=20), proprio=body.numpy()))
sensed = estimate_episode(bodily, encode_episode(bodily, own), Calibration())
where = torch.tensor([[t + d for d in deltas] for t in moments]).clamp(0)
said = felt.compute_reward({**prepare(batch), "observation.state": body[where]})
np.testing.assert_allclose(said, sensed.progress[moments], atol=1e-5)
try:
    felt.compute_reward(prepare(batch))
except DataError as error:
    assert "2 numbers of proprioception" in str(error)
else:
    raise AssertionError("it would have said something else than label")
# Another instruction is another episode, also where nobody says reset.
other = {**shown[0], "task": "another wording"}
begun = float(loaded.compute_reward(prepare(other)))
loaded.reset()
assert float(loaded.compute_reward(prepare(other))) == begun
# Without an instruction a model of several tasks takes none for granted.
from robo_reward.errors import ConfigError
several = replace(config, tasks=(task, replace(task, instructions=("empty the bar",))))
undecided = plugin.RoboProgressRewardModel(loaded.config, Checkpoint(ProgressModel(several), Calibration()))
try:
    undecided.compute_reward({key: value[:1] for key, value in images.items()})
except ConfigError as error:
    assert "several tasks" in str(error)
else:
    raise AssertionError("it would have judged the first task")
try:
    loaded.forward(batch)
except NotImplementedError:
    pass
else:
    raise AssertionError("lerobot-train would have trained it")
"""
ACT = """
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

load_plugin("robo_reward_data.lerobot_plugin")
settings = make_policy_config(
    "weighted_act", device="cpu", chunk_size=4, n_action_steps=4, dim_model=16, n_heads=2, dim_feedforward=16,
    n_encoder_layers=1, n_vae_encoder_layers=1, latent_dim=4, dropout=0.0,
    input_features={
        "observation.state": PolicyFeature(FeatureType.STATE, (3,)),
        "observation.environment_state": PolicyFeature(FeatureType.ENV, (2,)),
    },
    output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
)
policy = get_policy_class("weighted_act")(settings).train()
assert make_pre_post_processors(settings, dataset_stats=None)
batch = {
    "observation.state": torch.randn(6, 3),
    "observation.environment_state": torch.randn(6, 2),
    "action": torch.randn(6, 4, 2),
    "action_is_pad": torch.arange(4) >= torch.tensor([4, 3, 2, 1, 4, 4])[:, None],
}
def loss(reduction):
    torch.manual_seed(3)  # ACT samples its latent
    return policy.forward(batch, reduction)
each, told = loss("none")
whole, said = loss("mean")
assert each.shape == (6,)
assert torch.allclose(each.mean(), whole, rtol=1e-5)
assert abs(told["l1_loss"] - said["l1_loss"]) < 1e-5 and abs(told["kld_loss"] - said["kld_loss"]) < 1e-5
def gradient():
    policy.zero_grad()
    (loss("none")[0] * torch.tensor([0.0, 1, 1, 1, 1, 1])).sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
before = gradient()
batch["action"][0] += 100.0  # what has no weight has no say
assert before.abs().max() > 0 and torch.allclose(gradient(), before, rtol=1e-3, atol=1e-5)
"""
HIL_SERL = """
import gymnasium
from gymnasium import spaces
import lerobot.utils.import_utils as imports
sys.modules["gym_hil"] = types.ModuleType("gym_hil")  # LeRobot wants it, whatever the environment
imports._require_package_cache["gym_hil"] = True

class Bar(gymnasium.Env):
    metadata = {"render_fps": 10, "render_modes": []}
    observation_space = spaces.Dict({
        "front": spaces.Box(0, 255, (32, 32, 3), np.uint8), "proprio": spaces.Box(-1, 1, (4,), np.float32)
    })
    action_space = spaces.Box(-1, 1, (3,), np.float32)
    def look(self):
        rgb = np.zeros((32, 32, 3), np.uint8)
        rgb[:, : 5 * self.t] = 200
        return {"front": rgb, "proprio": np.full(4, 0.1, np.float32)}
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.look(), {}
    def step(self, action):
        self.t += 1
        return self.look(), float(self.t == 5), self.t == 5, False, {}

gymnasium.register(id="toy/Bar-v0", entry_point=Bar)
told = {"task": "Bar-v0", "env": "toy/Bar-v0", "model": str(folder / "run"), "shaping": {"discount": 0.97}}
(folder / "hil.json").write_text(json.dumps(told))
os.environ["ROBO_REWARD_HIL_SERL"] = str(folder / "hil.json")
load_plugin("robo_reward_data.lerobot_plugin")
from lerobot.envs.configs import HILSerlRobotEnvConfig
from lerobot.rl.gym_manipulator import (
    make_processors, make_robot_env, reset_and_build_transition, step_env_and_process_transition
)
settings = HILSerlRobotEnvConfig(name="gym_hil", task="Bar-v0")
env, _ = make_robot_env(settings)
after, before = make_processors(env, None, settings)
moment = reset_and_build_transition(env, after, before)
assert moment["observation"]["observation.images.front"].shape == (1, 3, 32, 32)
assert moment["observation"]["observation.state"].shape == (1, 4)
first = moment["info"]["estimate"]["progress"]
earned, discount = 0.0, 1.0
for step in range(5):
    moment = step_env_and_process_transition(env, moment, torch.zeros(3), after, before)
    earned += discount * (float(moment["reward"]) - float(step == 4))
    discount *= 0.97
assert bool(moment["done"])
np.testing.assert_allclose(earned, -first, atol=1e-6)  # shaping sums to -Phi_0, whatever the model says
"""


@pytest.mark.slow
def test_lerobot_uses_the_plug_ins(tmp_path: Path) -> None:
    """HIL-SERL, the reward model and the weighted ACT in one process: LeRobot takes its time to import."""
    if find_spec("lerobot") is None:
        pytest.skip("no lerobot here: pip install 'robo-reward[data]'")
    done = subprocess.run(
        [sys.executable, "-c", SETUP + HIL_SERL + REWARD_MODEL + ACT, str(tmp_path)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_naming_the_plug_in_imports_no_lerobot() -> None:
    code = "import sys, robo_reward_data.lerobot_plugin; assert 'lerobot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
