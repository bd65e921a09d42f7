"""`robo-reward export`: ONNX Runtime says what PyTorch says, whatever cameras do, and needs no PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv

import robo_reward
from robo_reward.calibration import Calibration
from robo_reward.checkpoint import load_checkpoint, save_checkpoint
from robo_reward.errors import CheckpointError, ConfigError, DataError
from robo_reward.export import export_model
from robo_reward.fusion import PERSPECTIVES, FusionParameters
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.onnx_stream import load_onnx
from robo_reward.schema import ProgressEstimate
from robo_reward.testing import toy_episode

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason="the `onnx` extra is not installed")

TASKS = ("fill the bar", "empty the bar")
LENGTH = 24  # more than four times around the ring cache


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with everything that a model may have, at random weights."""
    torch.manual_seed(5)
    config = ModelConfig(
        encoder={
            "_target_": "robo_reward.model.encoders.TinyEncoder",
            "channels": [8, 8, 16, 16],
            "bottleneck": 8,
        },
        tasks=(
            TaskConfig((TASKS[0],), ("red", "green"), (0.4, 0.6)),
            TaskConfig((TASKS[1], "drain it"), ("a", "b", "c"), (0.2, 0.5, 0.3)),
        ),
        cameras=("front", "wrist"),
        image_size=(32, 32),
        period_s=0.1,
        width=32,
        window=5,
        ensemble=3,
        proprio_dim=2,
    )
    model = ProgressModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.familiar_whiten.copy_(torch.eye(32))
    calibration = Calibration(
        fitted=True,
        stage_temperature=0.7,
        fusion=FusionParameters(active=PERSPECTIVES),
        novelty_limit=3.0,
        absent=(1.5,),
    )
    folder = tmp_path_factory.mktemp("export") / "run"
    save_checkpoint(folder, model, calibration, {})
    return folder


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    """What the command writes, in a process of its own."""
    out = run.parent / "exported"
    command = [sys.executable, "-m", "robo_reward.cli.main", "export", f"model={run}", f"out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "agree to" in done.stdout
    names = {"encode.onnx", "remember.onnx", "reward.json", "step.onnx"}
    assert {path.name for path in out.iterdir()} == names
    return out


def numbers(found: ProgressEstimate) -> np.ndarray:
    single = [found.progress, found.std, found.tau, found.success_prob, found.novelty]
    shares = (found.per_view[name] for name in sorted(found.per_view))
    return np.array([*single, *found.interval, *found.stage_probs, *shares])


def moment(index: int) -> tuple[list[dict[str, np.ndarray]], list[int], list[np.ndarray | None]]:
    """Two streams: cameras come and go, one is new to the model, moments are late, empty or malformed."""
    episodes = [toy_episode(i, length=LENGTH, cameras=("front", "wrist", "side")) for i in range(2)]
    images = [{name: rgb[index] for name, rgb in e.frames.items()} for e in episodes]
    stamp = int(index * 1e8 + (index * 7919) % 5 * 1e7)
    stamps = [stamp, stamp]
    if index < 3 or index % 4 == 1:
        del images[0]["side"]
    if index % 5 == 2:
        del images[1]["front"]
    if index == 6:
        images[1] = {}
    if index == 7:
        images[1] = {"side": images[1]["side"]}
    if index == 9:
        stamps[0] = 0
    if index == 11:
        images[0]["front"] = images[0]["front"].astype(np.float32)
    if index > 12:
        images[1]["wrist"] = episodes[1].frames["wrist"][12]
    body = [None if index % 3 == 0 else np.array([0.1 * index, np.nan if index % 4 == 0 else 1], np.float32)]
    return images, stamps, [*body, np.array([index, 0.5], np.float32)]


def test_onnxruntime_says_what_pytorch_says(run: Path, exported: Path) -> None:
    """A whole episode and the start of the next: goal pictures, faults, resets, fusion, novelty."""
    engines = [model.batch_stream(2, TASKS) for model in (robo_reward.load(run), load_onnx(exported))]
    goal = {name: rgb[-1] for name, rgb in toy_episode(7).frames.items()}
    worst, seen, notes = 0.0, set(), set()
    for index in range(LENGTH):
        for engine in engines:
            if index == 4:
                engine.set_goal(0, goal)
            if index == 10:
                engine.reset(1)
        ours, theirs = (engine.push(*moment(index)) for engine in engines)
        for mine, other in zip(ours, theirs, strict=True):
            assert (mine.valid, mine.reason, mine.note) == (other.valid, other.reason, other.note)
            assert (mine.stamp_ns, mine.model_version) == (other.stamp_ns, other.model_version)
            assert mine.per_view.keys() == other.per_view.keys()
            seen.add(mine.reason)
            notes.add(mine.note.split(";")[0])
            if mine.valid:
                worst = max(worst, float(np.abs(numbers(mine) - numbers(other)).max()))
        np.testing.assert_allclose(engines[0].states, engines[1].states, atol=1e-4)
    assert 0 < worst < 1e-4
    assert len(seen) == 5  # good moments, and each kind of bad one: all known cameras stuck, too
    assert any(note.endswith("is stuck: 8 times the same image") for note in notes)


def test_a_network_that_says_nan_is_invalid_and_leaves_no_trace(exported: Path) -> None:
    model = load_onnx(exported)
    streams = [model.stream(TASKS[0]), model.stream(TASKS[0])]
    call = model.call
    for index in range(8):
        images = {name: rgb[index] for name, rgb in toy_episode(3).frames.items()}
        clean = streams[0].push(images, (index + 1) * 10**8)
        if index in (0, 4):
            model.call = lambda graph, **given: [
                x * np.float32("nan") if graph == "encode" else x for x in call(graph, **given)
            ]
            poisoned = streams[1].push(images, (index + 1) * 10**8 - 1)
            assert (poisoned.valid, poisoned.reason) == (False, "the network's output is not finite")
            model.call = call
        found = streams[1].push(images, (index + 1) * 10**8)
        np.testing.assert_allclose(numbers(found), numbers(clean), atol=1e-6)


class Bar(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """A bar that fills by itself."""

    metadata = {"render_modes": [], "render_fps": 10}  # noqa: RUF012
    observation_space = spaces.Dict(
        {"front": spaces.Box(0, 255, (32, 32, 3), np.uint8), "proprio": spaces.Box(-1, 1, (2,), np.float32)}
    )
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(seed=seed)
        self.at = 0
        return self._look(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self.at += 1
        return self._look(), float(self.at == 6), self.at == 6, False, {}

    def _look(self) -> dict[str, np.ndarray]:
        rgb = np.zeros((32, 32, 3), np.uint8)
        rgb[:, : 5 * self.at] = 200
        return {"front": rgb, "proprio": np.array([0.1 * self.at, 0.5], np.float32)}


def test_an_exported_model_shapes_rewards_as_the_model_does(run: Path, exported: Path) -> None:
    paid = []
    for model in (robo_reward.load(run), load_onnx(exported)):
        single = robo_reward.ShapedRewardEnv(Bar(), model, instruction=TASKS[0])
        several = robo_reward.ShapedRewardEnv(SyncVectorEnv([Bar, Bar]), model, instruction=TASKS[0])
        for env in (single, several):
            env.reset(seed=0)
        idle = np.zeros(1, np.float32)
        paid.append(
            np.array([[single.step(idle)[1], *several.step(np.stack([idle] * 2))[1]] for _ in range(6)])
        )
    np.testing.assert_allclose(paid[0], paid[1], atol=1e-4)
    np.testing.assert_allclose(paid[0][:, 0], paid[0][:, 1], atol=1e-5)
    assert np.abs(paid[0] - [[0.0], [0], [0], [0], [0], [1]]).max() > 1e-3


def test_the_runner_needs_no_torch(exported: Path) -> None:
    code = f"""
import json, sys
import numpy as np
from robo_reward.onnx_stream import load_onnx
stream = load_onnx({str(exported)!r}).stream("drain it")
found = [stream.push({{"wrist": np.full((48, 48, 3), 60 * i, np.uint8)}}, i) for i in range(3)]
heavy = sorted({{"torch", "onnx", "onnxscript", "zarr", "gymnasium"}} & set(sys.modules))
print(json.dumps([[e.valid for e in found], found[-1].stage, heavy]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    valid, stage, heavy = json.loads(done.stdout)
    assert (valid, heavy) == ([True] * 3, [])
    assert stage in (0, 1, 2)


def test_refusals_name_the_way_out(
    run: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = load_checkpoint(run)
    with pytest.raises(ConfigError, match="is there already: name another folder, or remove it"):
        export_model(checkpoint, exported)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxscript", None)
        with pytest.raises(ConfigError, match=r"needs onnxscript.*pip install 'robo-reward\[onnx\]'"):
            export_model(checkpoint, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(CheckpointError, match="robo-reward export model=RUN"):
        load_onnx(tmp_path)
    (tmp_path / "reward.json").write_text('{"export_version": 0}')
    with pytest.raises(CheckpointError, match="has export version 0"):
        load_onnx(tmp_path)
    model = load_onnx(exported)
    with pytest.raises(ConfigError, match="knows several tasks"):
        model.stream()
    with pytest.raises(DataError, match="does not know the instruction 'dance'"):
        model.stream("dance")
    for either in (model, robo_reward.load(run)):
        with pytest.raises(ConfigError, match="streams=0: must be 1 or more"):
            either.batch_stream(0, TASKS[0])
        with pytest.raises(
            ConfigError, match="2 instructions for 3 streams: name one for each, or one for all"
        ):
            either.batch_stream(3, TASKS)
        assert len(either.batch_stream(3, TASKS[0])) == 3
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(ConfigError, match="pip install onnxruntime"):
            load_onnx(exported)
