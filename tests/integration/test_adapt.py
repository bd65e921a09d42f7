"""A model learns one more task from one demonstration, and begins with all that it knew."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import robo_reward
from robo_reward.adapt import grow, merge_tasks
from robo_reward.checkpoint import load_checkpoint, save_checkpoint
from robo_reward.cli.main import run_command
from robo_reward.errors import CheckpointError, ConfigError, DataError
from robo_reward.model.config import TaskConfig
from robo_reward.schema import Episode
from robo_reward.testing import toy_episode
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
NEW = "empty the bar"


def emptied(index: int) -> Episode:
    """The toy task played backwards: another task, seen by one known and one new camera."""
    episode = toy_episode(index, length=18, cameras=("front", "top"), instruction=NEW)
    info = episode.info
    truth = info.truth
    assert truth is not None
    frames = {name: images[::-1].copy() for name, images in episode.frames.items()}
    turned = replace(truth, stage=1 - truth.stage[::-1], tau=(1 - truth.tau[::-1]).astype(np.float32))
    success = np.arange(info.length) == info.length - 1
    return replace(
        episode, frames=frames, info=replace(info, truth=turned, success=success, uid=f"{index:032x}")
    )


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapt")
    old = EpisodeStore.create(root / "old")
    for index in range(6):
        old.write(toy_episode(index, length=18, reach=0.6 if index % 3 == 2 else 1.0))
    EpisodeStore.create(root / "demo").write(emptied(0))
    EpisodeStore.create(root / "new").write(emptied(1))
    run_command("train", [f"data={root / 'old'}", f"out={root / 'base'}", *FAST, "steps=60"])
    return {name: root / name for name in ("old", "demo", "new", "base")}


def mae(run: Path, store: Path) -> float:
    """Mean absolute error of progress on the episodes of a store."""
    model = robo_reward.load(run)
    errors: list[float] = []
    for reader in EpisodeStore.open(store).episodes:
        stream = model.stream(reader.info.instruction)
        truth = reader.info.truth
        assert truth is not None
        images = {c: reader.read_frames(c, np.arange(reader.info.length)) for c in reader.info.cameras}
        for t, stamp in enumerate(reader.info.stamp_ns):
            estimate = stream.push({name: rgb[t] for name, rgb in images.items()}, stamp_ns=int(stamp))
            errors.append(abs(estimate.progress - (truth.stage[t] + truth.tau[t]) / 2))
    return float(np.mean(errors))


def test_bands_are_no_surer_with_cameras_gone_than_those_of_before(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    base = load_checkpoint(stores["base"])
    careful = replace(base.calibration, absent=(3.0,))
    save_checkpoint(tmp_path / "base", base.model, careful, base.training)
    adapt({**stores, "base": tmp_path / "base"}, tmp_path / "out", "steps=2")
    assert load_checkpoint(tmp_path / "out").calibration.absent[0] >= 3.0


def adapt(stores: dict[str, Path], out: Path, *overrides: str) -> None:
    options = ["batch_size=6", "threads=1", "accelerator=cpu", "precision=32-true", *overrides]
    run_command("adapt", [f"model={stores['base']}", f"demos={stores['demo']}", f"out={out}", *options])


@pytest.mark.slow
def test_one_demonstration_teaches_a_new_task(stores: dict[str, Path], tmp_path: Path) -> None:
    adapt(stores, tmp_path / "out", "steps=300", "lr=2e-3")
    model = robo_reward.load(tmp_path / "out")
    assert model.instructions == ("fill the bar", NEW)
    assert model.cameras == ("front", "wrist", "top")
    # The new episode and its noise were never seen; to a model of the old task it goes backwards.
    before, after = mae(stores["base"], stores["new"]), mae(tmp_path / "out", stores["new"])
    assert after < 0.15 < before
    base = load_checkpoint(stores["base"])
    meta = json.loads((tmp_path / "out" / "model.json").read_text())
    assert meta["training"]["origin"] == base.version
    # What it has seen is still seen.
    assert base.training["split"].items() < meta["training"]["split"].items()
    ours = load_checkpoint(tmp_path / "out").calibration
    assert all(a >= b for a, b in zip(ours.quantiles, base.calibration.quantiles, strict=True))
    assert ours.detector == base.calibration.detector
    # What its threshold is about stays too: fitted on a few held-out frames it was too unsure to call any.
    assert ours.success_scale == base.calibration.success_scale
    assert ours.success_bias == base.calibration.success_bias


@pytest.mark.slow
def test_older_tasks_that_are_practised_beside_the_new_one_are_not_forgotten(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    steps = ["steps=200", "lr=2e-3"]
    adapt(stores, tmp_path / "alone", *steps)
    adapt(stores, tmp_path / "both", *steps, f"older={stores['old']}", "older_share=0.5")
    kept = mae(tmp_path / "both", stores["old"])
    assert kept < 0.5 * mae(tmp_path / "alone", stores["old"])
    assert mae(tmp_path / "both", stores["new"]) < 0.6 * mae(stores["base"], stores["new"])
    meta = json.loads((tmp_path / "both" / "model.json").read_text())
    # What is held out, and what uncertainty is fitted on, is of the new demonstrations alone; of the older
    # ones every frame counts as seen.
    split = meta["training"]["split"]
    held = {uid for uid, parts in split.items() if parts["calibration"] or parts["test"]}
    assert held == {EpisodeStore.open(stores["demo"]).episodes[0].info.uid}
    old = [reader.info.uid for reader in EpisodeStore.open(stores["old"]).episodes]
    assert [split[uid]["train"] for uid in old] == [[[0, 18]]] * len(old)
    with pytest.raises(CheckpointError, match="other data"):
        adapt(stores, tmp_path / "both", *steps)
    told = r"older_share=1\.0, misses_share=0\.25, reorder\.share=0\.4: shares between 0 and 1"
    with pytest.raises(ConfigError, match=told):
        adapt(stores, tmp_path / "third", *steps, f"older={stores['old']}", "older_share=1.0")


def _without_stages(at: Path, episode: Episode) -> Path:
    EpisodeStore.create(at).write(replace(episode, info=replace(episode.info, truth=None)))
    return at


def test_older_episodes_that_cannot_be_practised_are_refused(stores: dict[str, Path], tmp_path: Path) -> None:
    bare = _without_stages(tmp_path / "bare", toy_episode(20, length=18))
    for demos, older, problem in (
        (stores["demo"], bare, "no labelled frame in the episodes of older tasks"),
        (
            _without_stages(tmp_path / "new", emptied(3)),
            stores["old"],
            "no labelled frame in the new episodes",
        ),
        (stores["demo"], stores["demo"], "episodes of older tasks, and in the data, too"),
    ):
        with pytest.raises(DataError, match=problem):
            adapt({**stores, "demo": demos}, tmp_path / "out", "steps=2", f"older={older}")
        assert not (tmp_path / "out").exists()


def test_what_the_model_was_trained_on_neither_calibrates_nor_judges_it_later(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    """The store has grown since: what it held then is practised again, and held out nowhere."""
    known = EpisodeStore.open(stores["old"]).episodes
    grown = EpisodeStore.create(tmp_path / "grown")
    for index in range(12):
        grown.write(toy_episode(index, length=18, reach=0.6 if index % 3 == 2 else 1.0))
    held = ["steps=2", "holdout.calibration=0.5", "holdout.test=0.3"]
    adapt({**stores, "demo": grown.path}, tmp_path / "out", *held)
    base, found = load_checkpoint(stores["base"]), load_checkpoint(tmp_path / "out")
    split = found.training["split"]
    learned = {uid for uid, parts in base.training["split"].items() if parts["train"]}
    assert learned <= {reader.info.uid for reader in known}
    assert all(split[uid]["train"] == [[0, 18]] for uid in learned)
    assert any(parts["calibration"] for parts in split.values())
    assert any(parts["test"] for parts in split.values())
    # Where nothing is left to hold out, the model is as sure as it was before, and no surer.
    again = ["steps=2", "holdout.episodes=6", "holdout.calibration=0.1"]
    adapt({**stores, "demo": stores["old"]}, tmp_path / "again", *again)
    after = load_checkpoint(tmp_path / "again").calibration
    assert (after.quantiles, after.detector) == (base.calibration.quantiles, base.calibration.detector)


def _grown(stores: dict[str, Path]) -> Any:
    config = load_checkpoint(stores["base"]).model.config
    new = TaskConfig((NEW,), ("a", "b", "c"), (0.2, 0.3, 0.5))
    return replace(config, tasks=merge_tasks(config.tasks, [new]), cameras=(*config.cameras, "top"))


def test_a_demonstration_is_adapted_to_in_other_orders(stores: dict[str, Path], tmp_path: Path) -> None:
    episode = emptied(0)
    bounds = np.array([0, 9, episode.info.length], dtype=np.int64)
    demo = replace(episode, info=replace(episode.info, truth=None, boundaries=bounds))
    EpisodeStore.create(tmp_path / "demo").write(demo)
    command = [f"model={stores['base']}", f"demos={tmp_path / 'demo'}", "steps=3", "threads=1", "seed=0"]
    orders = ["reorder.stages=1", "reorder.orders=2", "reorder.cameras=[front]"]
    run_command("adapt", [*command, f"out={tmp_path / 'plain'}"])
    run_command("adapt", [*command, *orders, f"out={tmp_path / 'run'}"])
    plain, run = (load_checkpoint(tmp_path / name).model.state_dict() for name in ("plain", "run"))
    assert any(not plain[name].equal(run[name]) for name in plain)
    shares = [f"older={stores['old']}", "reorder.share=0.6"]
    with pytest.raises(ConfigError, match=r"reorder\.share=0\.6: shares .* leave windows"):
        run_command("adapt", [*command, *orders, *shares, f"out={tmp_path / 'no'}"])


def test_growing_changes_nothing_that_was_known(stores: dict[str, Path]) -> None:
    base = load_checkpoint(stores["base"]).model
    torch.manual_seed(9)
    grown = grow(base, _grown(stores)).eval()
    h = torch.randn(3, base.config.width)
    task = torch.zeros(3, dtype=torch.long)
    before, after = base.heads(h, task), grown.heads(h, task)
    known = base.config.max_stages
    torch.testing.assert_close(after.stage_logits[..., :known], before.stage_logits)
    assert torch.isinf(after.stage_logits[..., known:]).all()
    torch.testing.assert_close(after.tau_logits[..., :known, :], before.tau_logits)
    torch.testing.assert_close(grown.embed_text(["fill the bar"]), base.embed_text(["fill the bar"]))
    torch.testing.assert_close(grown.embed_text([NEW]), base.embed_text(["what?"]))
    rgb = torch.randint(0, 256, (1, 2, *base.config.image_size, 3), dtype=torch.uint8)
    mask = torch.ones(1, 2, dtype=torch.bool)
    for names in (["front", "wrist"], ["front", "top"]):
        found = [
            m.encode(rgb, m.camera_ids(names)[None], mask, m.remember(rgb, mask), mask) for m in (base, grown)
        ]
        torch.testing.assert_close(found[0], found[1])
    with pytest.raises(ConfigError, match="only tasks and cameras may differ"):
        grow(base, replace(base.config, width=64))


def test_a_task_that_is_known_gets_new_texts_and_keeps_its_stages() -> None:
    known = TaskConfig(("open", "pull"), ("a", "b"), (0.4, 0.6))
    for names in (("A", "_b"), ("stage 1", "stage 2"), ("a", "y")):
        merged = merge_tasks([known], [TaskConfig(("pull", "tug"), names, (0.5, 0.5))])
        assert merged == (replace(known, instructions=("open", "pull", "tug")),)


@pytest.mark.parametrize("names", [("x",), ("b", "a"), ("x", "y")])
def test_a_task_that_is_known_by_other_stages_is_refused(names: tuple[str, ...]) -> None:
    """Fewer, in another order, and as many that have nothing to do with them."""
    known = TaskConfig(("open", "pull"), ("a", "b"), (0.4, 0.6))
    told = rf"knows 'open' with 2 stages \(a, b\), the demonstrations have {len(names)} stages "
    with pytest.raises(DataError, match=told + rf"\({', '.join(names)}\): annotate them alike"):
        merge_tasks([known], [TaskConfig(("pull",), names, (1 / len(names),) * len(names))])


def test_one_demonstration_is_augmented_like_few_real_ones_and_many_as_the_model_was(
    stores: dict[str, Path], repo: Path, tmp_path: Path
) -> None:
    real = yaml.safe_load((repo / "configs/augment/real.yaml").read_text())["pixels"]
    trained = load_checkpoint(stores["base"]).training["config"]["pixels"]
    adapt(stores, tmp_path / "one", "steps=1")
    few = load_checkpoint(tmp_path / "one").training["config"]["pixels"]
    assert few == {**trained, "geometry": real["geometry"], "color": real["color"]}
    adapt(stores, tmp_path / "many", "steps=1", f"demos=[{stores['demo']},{stores['old']}]")
    assert load_checkpoint(tmp_path / "many").training["config"]["pixels"] == trained
    with pytest.raises(ConfigError, match="augmentation=none"):
        adapt(stores, tmp_path / "out", "augmentation=none")


@pytest.mark.slow
def test_it_resumes_and_refuses(stores: dict[str, Path], tmp_path: Path) -> None:
    adapt(stores, tmp_path / "out", "steps=3")
    first = load_checkpoint(tmp_path / "out").version
    adapt(stores, tmp_path / "out", "steps=3")
    assert load_checkpoint(tmp_path / "out").version == first
    with pytest.raises(CheckpointError, match="is a run with other steps"):
        adapt(stores, tmp_path / "out", "steps=4")
    adapt(stores, tmp_path / "again", "steps=3", "loaders=3")
    assert load_checkpoint(tmp_path / "again").version == first
    with pytest.raises(CheckpointError, match="no model at"):
        run_command("adapt", [f"model={tmp_path / 'no'}", f"demos={stores['demo']}", f"out={tmp_path / 'x'}"])
