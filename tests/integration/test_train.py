"""Training end to end on a toy task: it learns, repeats itself, survives a kill, and refuses what it must."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from robo_reward.checkpoint import load_checkpoint
from robo_reward.cli.main import run_command
from robo_reward.errors import CheckpointError, ConfigError, DataError, RoboRewardError
from robo_reward.intake import resize_frames
from robo_reward.schema import Outcome
from robo_reward.testing import MemoryReader, toy_episode
from robo_reward.train.calibrate import calibrate
from robo_reward.train.config import TrainConfig, WindowConfig
from robo_reward.train.data import FrameCache, WindowSampler, prefetch
from robo_reward.train.loop import Plan, load_state, pinned, save_state, seed_of_rank, to_tensors
from robo_reward.train.split import Split
from robo_reward.train.vocabulary import make_model_config
from robo_reward_data.store import EpisodeStore

FAST = [
    "augment=sim",
    "network.encoder.channels=[8,8,16,16]",
    "network.encoder.bottleneck=8",
    "network.width=32",
    "windows.frames=5",
    "batch_size=6",
    "threads=1",
    "accelerator=cpu",
    "precision=32-true",
]


@pytest.fixture(scope="session")
def toy_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten toy episodes, three of them failures."""
    path = tmp_path_factory.mktemp("toy") / "store"
    store = EpisodeStore.create(path)
    for index in range(10):
        store.write(toy_episode(index, length=18, reach=0.6 if index % 3 == 2 else 1.0))
    return path


def train(store: Path, out: Path, *overrides: str) -> dict[str, torch.Tensor]:
    run_command("train", [f"data={store}", f"out={out}", *FAST, *overrides])
    return load_file(out / "model.safetensors")


def scalars(run: Path, tag: str) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    toy_store: Path, tmp_path: Path
) -> None:
    first = train(toy_store, tmp_path / "a", "steps=8")
    again = train(toy_store, tmp_path / "b", "steps=8")
    other = train(toy_store, tmp_path / "c", "steps=8", "seed=1")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stage_head.weight"], other["stage_head.weight"])


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_losses_and_weights(toy_store: Path, tmp_path: Path) -> None:
    """SIGKILL in mid-training, then the same command again."""
    whole = train(toy_store, tmp_path / "whole", "steps=24", "log_every=1")
    out = tmp_path / "killed"
    arguments = [
        f"data={toy_store}",
        f"out={out}",
        *FAST,
        "steps=24",
        "log_every=1",
        "checkpoint_every_s=0.0",
    ]
    command = [sys.executable, "-m", "robo_reward.cli.main", "train", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (out / "state.pt").is_file():
            assert process.poll() is None, "training ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    step = int(torch.load(out / "state.pt", weights_only=True)["step"])
    assert 0 < step < 24, "killed too late to prove anything"
    assert not (out / "model.json").exists()
    with pytest.raises(CheckpointError, match="training has not finished"):
        load_checkpoint(out)
    run_command("train", arguments)
    resumed = load_file(out / "model.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    expected, got = scalars(tmp_path / "whole", "train/loss"), scalars(out, "train/loss")
    assert {s: v for s, v in got.items() if s > step} == {s: v for s, v in expected.items() if s > step}


def interrupted(monkeypatch: pytest.MonkeyPatch, out: Path, step: int, *options: str) -> None:
    """A run that ends right after it saved its state at this step."""

    def save(path: Path, at: int, *rest: Any) -> None:
        save_state(path, at, *rest)
        if at == step:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("robo_reward.train.loop.save_state", save)
        with pytest.raises(KeyboardInterrupt):
            run_command("train", [f"out={out}", *options, "checkpoint_every_s=0"])


@pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "foreign"])
def test_a_damaged_state_is_named_with_the_way_out(
    toy_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    out = tmp_path / "run"
    interrupted(monkeypatch, out, 2, f"data={toy_store}", *FAST, "steps=4")
    state = out / "state.pt"
    whole = state.read_bytes()
    state.write_bytes({"cut": whole[: len(whole) // 2], "empty": b""}.get(damage, bytes(len(whole))))
    if damage == "foreign":
        torch.save({"step": 2, "model": {}}, state)
    with pytest.raises(CheckpointError, match=r"run/state\.pt', from which .*: delete this file to begin"):
        train(toy_store, out, "steps=4")
    state.unlink()
    again, expected = train(toy_store, out, "steps=4"), train(toy_store, tmp_path / "whole", "steps=4")
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_a_state_is_on_the_disk_before_it_takes_the_place_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else a power cut leaves an empty file under the name of a whole one."""
    done: list[str] = []
    real = Path.replace

    def replace(path: Path, to: Path) -> Path:
        done.append("replace")
        return real(path, to)

    monkeypatch.setattr("os.fsync", lambda _file: done.append("fsync"))
    monkeypatch.setattr(Path, "replace", replace)
    nets = [torch.nn.Linear(2, 2) for _ in range(2)]
    saving, loading = (torch.optim.AdamW(n.parameters(), lr) for n, lr in zip(nets, (0.5, 0.1), strict=True))
    save_state(tmp_path / "state.pt", 7, nets[0], nets[0], saving, Plan(9, None, 3.0))
    assert done == ["fsync", "replace"]
    plan = Plan(9, None)
    assert load_state(tmp_path / "state.pt", nets[1], nets[1], loading, plan) == 7
    assert torch.equal(nets[0].weight, nets[1].weight)
    assert (plan.elapsed, loading.param_groups[0]["lr"]) == (3.0, 0.5)


def test_the_number_of_loaders_changes_nothing(toy_store: Path, tmp_path: Path) -> None:
    one = train(toy_store, tmp_path / "one", "steps=5")
    many = train(toy_store, tmp_path / "many", "steps=5", "loaders=4")
    assert all(torch.equal(one[name], many[name]) for name in one)
    with pytest.raises(ConfigError, match="loaders=0: must be 1 or more"):
        train(toy_store, tmp_path / "none", "steps=5", "loaders=0")


def test_batches_come_in_order_whichever_is_made_first() -> None:
    later = threading.Event()

    def make(step: int) -> int:
        if step == 4:
            assert later.wait(60), "two loaders make two at a time"
        later.set()
        return step

    assert list(prefetch(make, 4, 11, loaders=2)) == [4, 5, 6, 7, 8, 9, 10]


def test_no_two_processes_draw_alike_and_the_first_draws_as_ever() -> None:
    def draw(seed: int) -> tuple[int, ...]:
        return tuple(torch.randint(1 << 30, (4,), generator=torch.Generator().manual_seed(seed)).tolist())

    steps = [*range(9), *range(1_000_003, 1_000_012)]
    assert [seed_of_rank(step, 0) for step in steps] == steps
    assert len({draw(seed_of_rank(step, rank)) for step in steps for rank in range(16)}) == len(steps) * 16


def watched_sampler(held_out: tuple[int, ...]) -> tuple[WindowSampler, list[str]]:
    """Of six toy episodes, some of them held out, and the names of those that it reads from as it does."""
    asked: list[str] = []

    class Watched(MemoryReader):
        def read_frames(self, camera: str, indices: np.ndarray) -> np.ndarray:
            asked.append(self.info.name)
            return super().read_frames(camera, indices)

    readers = [Watched(toy_episode(index, length=18)) for index in range(6)]
    infos = [reader.info for reader in readers]
    train = tuple(np.full(info.length, index not in held_out) for index, info in enumerate(infos))
    nothing = tuple(np.zeros(info.length, np.bool_) for info in infos)
    split = Split(train, tuple(~mask for mask in train), nothing)
    encoder = {"_target_": "robo_reward.model.encoders.TinyEncoder"}
    config = TrainConfig(data="store", out="run", network={"encoder": encoder})
    unknown = [None] * len(infos)
    model = make_model_config(config, infos, unknown)
    return WindowSampler(readers, split, model, WindowConfig(frames=3), {}, {}, 1e9, unknown), asked


def test_held_out_episodes_are_neither_decoded_ahead_nor_kept_in_memory() -> None:
    sampler, asked = watched_sampler(held_out=(2, 5))
    assert set(asked) == {"toy_000", "toy_001", "toy_003", "toy_004"}
    asked.clear()
    for episode in (0, 2):
        found = sampler.frames.get(episode, "front", np.arange(4))
        np.testing.assert_array_equal(found, toy_episode(episode, length=18).frames["front"][:4])
    assert asked == ["toy_002"]


def test_a_gpu_copies_batches_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a batch, pinned for the GPU that trains; for a CPU nothing is copied at all."""
    batch = watched_sampler(held_out=())[0].batch(2, seed=0, step=0)
    current: list[torch.device] = []
    pinning: list[torch.Tensor] = []

    @contextlib.contextmanager
    def on(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        current.append(torch.device("cpu"))

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        assert current == [torch.device("cuda:1")]
        pinning.append(tensor)
        return tensor

    monkeypatch.setattr("torch.cuda.device", on)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    ready = pinned(batch, torch.device("cpu"))
    assert (current, pinning) == ([], [])
    assert ready.rgb.data_ptr() == batch.rgb.ctypes.data
    ready = pinned(batch, torch.device("cuda:1"))
    assert len(pinning) == sum(isinstance(value, np.ndarray) for value in vars(batch).values()) > 10
    moved = to_tensors(ready, torch.device("cpu"))
    assert torch.equal(moved.rgb, torch.from_numpy(batch.rgb))
    assert moved.texts == batch.texts


def test_a_pretrained_backbone_that_is_trained_on_is_changed_little(
    toy_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """About a tenth as much as at the rate of the rest; a half-finished run goes on to the same weights."""
    timm = pytest.importorskip("timm", reason="the `backbones` extra is not installed")
    body = timm.create_model("resnet10t", pretrained=False, num_classes=0)
    torch.save(body.state_dict(), tmp_path / "body.pt")
    encoder = ["name=resnet10t", "pretrained=false", "frozen=false", f"weights={tmp_path / 'body.pt'}"]
    options = [
        f"data={toy_store}",
        "network=base",
        "image_size=[32,32]",
        "network.width=32",
        "network.heads=4",
        "network.layers=1",
        *(f"network.encoder.{key}" for key in encoder),
        *FAST[4:],
        "steps=4",
    ]

    def go(name: str, *overrides: str) -> dict[str, torch.Tensor]:
        run_command("train", [f"out={tmp_path / name}", *options, *overrides])
        return load_file(tmp_path / name / "model.safetensors")

    little, much = go("little"), go("much", "optimizer.backbone_lr=1")
    for name, start in body.named_parameters():
        if start.ndim >= 2:
            by, most = ((run[f"encoder.body.{name}"] - start).abs().mean() for run in (little, much))
            assert 0.0 < by < 0.2 * most, name
    interrupted(monkeypatch, tmp_path / "half", 2, *options)
    with pytest.raises(CheckpointError, match=r"optimizer\.backbone_lr \(0\.1, now 1\.0\)"):
        go("half", "optimizer.backbone_lr=1")
    resumed = go("half")
    assert all(torch.equal(little[name], resumed[name]) for name in little)


@pytest.mark.gpu
def test_a_gpu_that_has_trained_a_model_calibrates_it_too(
    toy_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is about as sure on held-out episodes as a CPU that calibrates the same weights."""
    from robo_reward.train import calibrate as module

    devices: set[str] = set()
    real = module.encode_episode

    def watched(model: Any, *arguments: Any) -> Any:
        devices.add(model.no_goal.device.type)
        return real(model, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(module, "encode_episode", watched)
        train(toy_store, tmp_path / "run", "steps=20", "accelerator=gpu", "holdout.calibration=0.3")
    assert devices == {"cuda"}
    loaded = load_checkpoint(tmp_path / "run")
    readers = EpisodeStore.open(toy_store).episodes
    parts = loaded.training["split"]
    kept = tuple(np.full(r.info.length, bool(parts[r.info.uid]["calibration"])) for r in readers)
    nothing = tuple(np.zeros(len(mask), np.bool_) for mask in kept)
    again = calibrate(loaded.model, readers, Split(tuple(~mask for mask in kept), kept, nothing))
    np.testing.assert_allclose(again.quantiles, loaded.calibration.quantiles, rtol=0.05)


def test_a_finished_run_is_not_trained_again_and_another_is_not_overwritten(
    toy_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    train(toy_store, out, "steps=3")
    written = (out / "model.safetensors").stat().st_mtime_ns
    train(toy_store, out, "steps=3")
    assert "already trained" in capsys.readouterr().err
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    # Nor does another process of torchrun wait for the first one, which has nothing to do.
    with monkeypatch.context() as second:
        second.setenv("LOCAL_RANK", "1")
        second.setattr("robo_reward.train.run.make_fabric", lambda _config: pytest.fail("it waits"))
        train(toy_store, out, "steps=3", "resume=false")
    assert capsys.readouterr().err == ""
    with pytest.raises(CheckpointError, match=r"other windows.goal_share \(0.2, now 0.5\): choose"):
        train(toy_store, out, "steps=3", "windows.goal_share=0.5")
    with pytest.raises(CheckpointError, match=r"other seed \(0, now 5\)"):
        train(toy_store, out, "steps=3", "seed=5")
    stray = tmp_path / "stray"
    stray.mkdir()
    (stray / "thesis.tex").write_text("do not touch")
    with pytest.raises(CheckpointError, match="not empty and not a training run"):
        train(toy_store, stray, "steps=3")


def test_what_is_practised_is_trained_on_and_neither_calibrated_on_nor_judged(
    toy_store: Path, tmp_path: Path
) -> None:
    practice = EpisodeStore.create(tmp_path / "practice")
    for index in range(20, 24):
        practice.write(toy_episode(index, length=18, reach=0.3))
    plain = train(toy_store, tmp_path / "plain", "steps=4", "holdout.calibration=0.3")
    options = ["steps=4", "holdout.calibration=0.3", f"practice={practice.path}"]
    practised = train(toy_store, tmp_path / "run", *options)
    assert not torch.equal(plain["stage_head.weight"], practised["stage_head.weight"])
    split, before = (load_checkpoint(tmp_path / run).training["split"] for run in ("run", "plain"))
    extra = {episode.uid for episode in practice.episodes}
    assert set(split) - set(before) == extra
    assert {uid: parts for uid, parts in split.items() if uid not in extra} == before
    assert all(split[uid] == {"train": [[0, 18]], "calibration": [], "test": []} for uid in extra)
    with pytest.raises(CheckpointError, match="other data"):
        train(toy_store, tmp_path / "run", *options[:2])
    with pytest.raises(DataError, match="for practice, and in the data, too: leave them out"):
        train(toy_store, tmp_path / "twice", "steps=4", f"practice={toy_store}")
    with pytest.raises(ConfigError, match=r"practice_share=1.0: must be a share"):
        train(toy_store, tmp_path / "all", *options, "practice_share=1.0")


@pytest.mark.slow
def test_it_learns_the_toy_task_and_is_judged_on_unseen_episodes(toy_store: Path, tmp_path: Path) -> None:
    """The one test of quality: after a short training, error is far below a constant guess's (about .25)."""
    import pyarrow.parquet as pq

    train(toy_store, tmp_path / "run", "steps=400", "optimizer.lr=3e-3", "optimizer.ema=0.97")
    unseen = EpisodeStore.create(tmp_path / "test")
    for index in range(20, 26):
        unseen.write(toy_episode(index, length=18, reach=0.6 if index % 3 == 2 else 1.0))
    run_command(
        "evaluate",
        [f"model={tmp_path / 'run'}", f"data={tmp_path / 'test'}", f"out={tmp_path / 'eval'}", "threads=1"],
    )
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics["progress_mae"]["value"] < 0.06
    assert metrics["progress_mae"]["low"] < metrics["progress_mae"]["value"] < metrics["progress_mae"]["high"]
    assert metrics["progress_mae"]["n"] == 6
    assert metrics["voc_mean"]["value"] > 0.8
    assert metrics["retry_voc"]["value"] is None
    promised = (
        "progress_mae voc_pos voc_neg voc_mean stage_accuracy success_f1 false_positives_per_100 "
        "false_positives_in_failures_per_100 ece "
        "coverage_90 retry_voc hesitation_rmse tau_a latency_ms_p50 latency_ms_p99"
    )
    assert set(promised.split()) <= set(metrics)
    assert set(metrics["conditions"]) == {"without front", "without wrist"}
    table = pq.read_table(tmp_path / "eval" / "predictions.parquet")
    assert table.num_rows == 6 * 18
    wanted = (
        "episode frame stamp_ns progress std stage tau success_prob valid reason truth_progress truth_stage"
    )
    assert set(wanted.split()) <= set(table.column_names)
    assert (tmp_path / "eval" / "report.html").stat().st_size > 50_000
    with pytest.raises(CheckpointError, match="overwrite=true"):
        run_command(
            "evaluate", [f"model={tmp_path / 'run'}", f"data={tmp_path / 'test'}", f"out={tmp_path / 'eval'}"]
        )
    with pytest.raises(DataError, match="has seen every frame"):
        run_command(
            "evaluate", [f"model={tmp_path / 'run'}", f"data={toy_store}", f"out={tmp_path / 'leak'}"]
        )
    # The calibration episode was held out of training but fitted on: it may not be judged either.
    split = load_checkpoint(tmp_path / "run").training["split"]
    assert sum(bool(part["calibration"]) for part in split.values()) == 1


def test_one_demonstration_keeps_segments_back_and_is_judged_on_them_alone(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "one")
    store.write(toy_episode(0, length=120))
    train(tmp_path / "one", tmp_path / "run", "steps=4", "holdout.test=0.2", "precision=bf16-mixed")
    run_command(
        "evaluate",
        [f"model={tmp_path / 'run'}", f"data={tmp_path / 'one'}", f"out={tmp_path / 'eval'}", "threads=1"],
    )
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics["progress_mae"]["n"] == 24
    assert "only their held-out frames count" in " ".join(metrics["notes"])

    # Segments are the easiest frames there are: they sharpen nothing.
    assert load_checkpoint(tmp_path / "run").calibration.stage_temperature == 1.0


def test_other_orders_of_one_demonstration_are_practised_and_never_counted(tmp_path: Path) -> None:
    """Copies are drawn in training, keep its held-out frames back, and are no episodes to anybody else."""
    import dataclasses

    import numpy as np

    toy = toy_episode(0, length=120)
    done = int(np.flatnonzero(toy.info.success)[0])
    half = int(np.flatnonzero(toy.info.truth.stage)[0])
    bounds = np.array([0, half, done], dtype=np.int64)
    store = EpisodeStore.create(tmp_path / "one")
    store.write(dataclasses.replace(toy, info=dataclasses.replace(toy.info, truth=None, boundaries=bounds)))
    options = ["steps=4", "holdout.test=0.2"]
    plain = train(tmp_path / "one", tmp_path / "plain", *options)
    pieces = ["reorder.stages=1", "reorder.orders=2", "reorder.cameras=[front]"]
    reordered = train(tmp_path / "one", tmp_path / "run", *options, *pieces)
    assert not torch.equal(plain["stage_head.weight"], reordered["stage_head.weight"])
    seen = load_checkpoint(tmp_path / "run").training["split"]
    assert seen == load_checkpoint(tmp_path / "plain").training["split"]
    assert list(seen) == [toy.info.uid]


def test_frames_are_cached_a_few_at_a_time() -> None:
    """An episode is many times as large at the size that is stored as at the model's."""
    import numpy as np

    asked: list[int] = []

    class Watched(MemoryReader):
        def read_frames(self, camera: str, indices: np.ndarray) -> np.ndarray:
            asked.extend([len(indices)] * (camera == "front"))
            return super().read_frames(camera, indices)

    toy = toy_episode(0, length=150)
    cached = FrameCache([Watched(toy)], ("front", "wrist"), (16, 16), 1e9)
    assert (max(asked), sum(asked)) == (64, 150)  # none of them twice
    everything = np.arange(150)
    for camera in ("front", "wrist"):
        expected = resize_frames(toy.frames[camera], (16, 16))
        np.testing.assert_array_equal(cached.get(0, camera, everything), expected)


def test_data_that_cannot_be_trained_on_is_refused_by_name(toy_store: Path, tmp_path: Path) -> None:
    import dataclasses

    store = EpisodeStore.create(tmp_path / "bare")
    bare = toy_episode(0)
    store.write(dataclasses.replace(bare, info=dataclasses.replace(bare.info, truth=None, stage_names=())))
    with pytest.raises(DataError, match="no episode has stages"):
        train(tmp_path / "bare", tmp_path / "r1", "steps=2")
    with pytest.raises(DataError, match="no episode has camera 'top': the data has front, wrist"):
        train(toy_store, tmp_path / "r2", "steps=2", "cameras=[front,top]")
    with pytest.raises(DataError, match="is in the data twice"):
        run_command("train", [f"data=[{toy_store},{toy_store}]", f"out={tmp_path / 'r3'}", *FAST, "steps=2"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("optimizer.clip=-1", r"optimizer.clip=-1.0: must be above 0"),
        ("optimizer.lr=nan", r"optimizer.lr=nan: must be 0 \(off\) or more"),
        ("optimizer.ema=2", r"optimizer.ema=2.0: must be 0 \(off\) or more, below 1"),
        ("optimizer.warmup=5", r"optimizer.warmup=5.0: must be a share of the steps"),
        ("progress_weight=inf", r"progress_weight=inf: must be 0 \(off\) or more"),
        ("windows.end_share=2", r"windows.end_share=2.0: must be a share"),
        ("cameras=[front,front]", r"cameras=\('front', 'front'\): must be each named once"),
        ("seed=99999999999999", r"seed=99999999999999: must be 0 or more, below 2\*\*32"),
        ("network.window=0", r"network.window=0: must be 1 or more"),
        ("network.ensemble=0", r"network.ensemble=0: must be 1 or more"),
        ("network.tau_bins=1", r"network.tau_bins=1: must be 2 or more"),
        ("network.dropout=2.0", r"network.dropout=2.0: must be 0 \(off\) or more, below 1"),
    ],
)
def test_values_that_train_nothing_are_refused(
    option: str, message: str, toy_store: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(toy_store, tmp_path / "run", "steps=2", option)
    assert not (tmp_path / "run").exists()


def test_training_that_diverges_ends_and_saves_nothing(toy_store: Path, tmp_path: Path) -> None:
    """It ended with exit 0 and a model that said NaN."""
    with pytest.raises(RoboRewardError, match=r"learning has diverged, and nothing of it is saved; delete"):
        train(toy_store, tmp_path / "run", "steps=12", "optimizer.lr=1e30")
    assert not (tmp_path / "run" / "model.json").exists()
    assert not (tmp_path / "run" / "state.pt").exists()


def test_a_task_without_a_label_among_others_does_not_end_the_training(
    toy_store: Path, tmp_path: Path
) -> None:
    """It is none of the model's: it calibrates nothing, and a model that is asked for it says so at once."""
    import dataclasses

    store = EpisodeStore.create(tmp_path / "more")
    for index in range(30, 36):
        episode = toy_episode(index, length=18, instruction="sort" if index % 2 else "stack")
        if index % 2:
            bare = {
                "truth": None,
                "stage_names": (),
                "success": None,
                "outcome": Outcome.FAILURE,
                "reached": 0,
            }
            episode = dataclasses.replace(episode, info=dataclasses.replace(episode.info, **bare))
        store.write(episode)
    options = ["steps=2", "holdout.calibration=0.5"]
    run_command("train", [f"data=[{toy_store},{store.path}]", f"out={tmp_path / 'run'}", *FAST, *options])
    found = load_checkpoint(tmp_path / "run")
    assert [task.instructions[0] for task in found.model.config.tasks] == ["fill the bar", "stack"]
    assert found.calibration.quantiles
    new = EpisodeStore.create(tmp_path / "new")
    for index, text in ((50, "stack"), (51, "sort")):
        new.write(toy_episode(index, length=18, instruction=text))
    with pytest.raises(DataError, match=r"toy_051: the model does not know the instruction 'sort'"):
        run_command("evaluate", [f"model={tmp_path / 'run'}", f"data={new.path}", f"out={tmp_path / 'out'}"])


def test_cameras_that_are_not_trained_on_do_not_calibrate(tmp_path: Path) -> None:
    """What a model of one camera is sure of is the same, whatever other cameras stood there."""
    import dataclasses

    both, one = EpisodeStore.create(tmp_path / "both"), EpisodeStore.create(tmp_path / "one")
    for index in range(10):
        episode = toy_episode(index, length=12)
        both.write(episode)
        front = {"front": episode.frames["front"]}
        info = dataclasses.replace(episode.info, cameras=("front",), image_sizes={"front": (32, 32)})
        one.write(dataclasses.replace(episode, info=info, frames=front))
    options = ["steps=3", "cameras=[front]", "holdout.calibration=0.4"]
    weights = [train(store.path, tmp_path / f"{store.path.name}_run", *options) for store in (both, one)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    found = [load_checkpoint(tmp_path / name).calibration for name in ("both_run", "one_run")]
    assert found[0] == found[1]


def test_episodes_that_the_model_cannot_see_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of another camera: nothing of the model differs from one that never had them among its data."""
    mixed, seen = EpisodeStore.create(tmp_path / "mixed"), EpisodeStore.create(tmp_path / "seen")
    unseen = EpisodeStore.create(tmp_path / "unseen")
    for index in range(12):
        episode = toy_episode(index, length=12, cameras=("wrist",) if index % 2 else ("front", "wrist"))
        for store in (mixed, unseen if index % 2 else seen):
            store.write(episode)
    options = ["steps=3", "cameras=[front]", "holdout.calibration=0.4"]
    with_them = train(mixed.path, tmp_path / "a", *options)
    assert "6 of 12 episodes have none of the cameras front: left out" in _said(capsys)
    without = train(seen.path, tmp_path / "b", *options)
    assert "left out" not in _said(capsys)
    assert all(torch.equal(with_them[name], without[name]) for name in without)
    found, expected = (load_checkpoint(tmp_path / name) for name in "ab")
    assert found.calibration == expected.calibration
    assert found.training["split"] == expected.training["split"]
    with pytest.raises(DataError, match="no episode has camera 'front': the data has wrist"):
        train(unseen.path, tmp_path / "c", *options)
    # Nor are they practised, or calibrated on where they are brought for that.
    with pytest.raises(DataError, match="no episode has camera 'front': the data has wrist"):
        train(seen.path, tmp_path / "c", *options, f"practice={unseen.path}")
    readers = unseen.episodes
    every = tuple(np.ones(reader.info.length, np.bool_) for reader in readers)
    nothing = tuple(~mask for mask in every)
    assert not calibrate(found.model, readers, Split(nothing, every, nothing)).fitted


def test_a_detector_that_few_successes_calibrate_is_told_of(
    toy_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(toy_store, tmp_path / "few", "steps=2")
    assert "note: 1 successes calibrate the success detector, fewer than 3" in _said(capsys)
    train(toy_store, tmp_path / "enough", "steps=2", "holdout.calibration=0.8")
    assert "calibrate the success detector" not in _said(capsys)
    train(toy_store, tmp_path / "none", "steps=2", "holdout.calibration=0")
    assert "calibrate the success detector" not in _said(capsys)


def _said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_calibration_learns_how_long_cameras_stand_still(tmp_path: Path) -> None:
    store = EpisodeStore.create(tmp_path / "still")
    for index in range(10):
        episode = toy_episode(index, length=24)
        episode.frames["front"][3:14] = episode.frames["front"][3]  # ten repeats, while the wrist moves
        store.write(episode)
    train(store.path, tmp_path / "run", "steps=2", "holdout.calibration=0.3")
    assert load_checkpoint(tmp_path / "run").model.config.still == {"front": 10}


@pytest.mark.slow
def test_two_processes_train_one_model(toy_store: Path, tmp_path: Path) -> None:
    """Data-parallel training by Fabric's own launcher, over gloo on this machine."""
    command = [
        sys.executable,
        "-m",
        "robo_reward.cli.main",
        "train",
        f"data={toy_store}",
        f"out={tmp_path / 'ddp'}",
    ]
    ran = subprocess.run(
        [*command, *FAST, "steps=3", "devices=2"], check=True, timeout=240, capture_output=True, text=True
    )
    told = " ".join(ran.stderr.split())
    assert told.count("2 devices: 6 windows a step on each, 12 together, at optimizer.lr=0.001") == 1
    assert load_checkpoint(tmp_path / "ddp").training["steps"] == 3
