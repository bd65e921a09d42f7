"""Judging a model on data unlike its own: other stages, words, cameras, sizes, and no truth at all."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from robo_reward.cli.main import run_command
from robo_reward.errors import CheckpointError, DataError
from robo_reward.schema import Episode, Outcome, ProgressLabel
from robo_reward.testing import toy_episode
from robo_reward_data.store import EpisodeStore

FAST = [
    "augment=sim",
    "network.encoder.channels=[4,4,8,8]",
    "network.encoder.bottleneck=4",
    "network.width=16",
    "network.heads=2",
    "windows.frames=4",
    "batch_size=4",
    "threads=1",
    "accelerator=cpu",
    "precision=32-true",
    "steps=3",
]


def write(path: Path, *episodes: Episode) -> Path:
    store = EpisodeStore.create(path)
    for episode in episodes:
        store.write(episode)
    return path


def known_as(episode: Episode, **changes: Any) -> Episode:
    return dataclasses.replace(episode, info=dataclasses.replace(episode.info, **changes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one task with two stages and the cameras front and wrist; hardly trained."""
    folder = tmp_path_factory.mktemp("evaluate")
    data = write(folder / "store", *(toy_episode(i, length=12) for i in range(6)))
    run_command("train", [f"data={data}", f"out={folder / 'run'}", *FAST])
    return folder / "run"


def evaluate(model: Path, data: Path, out: Path) -> dict[str, Any]:
    run_command("evaluate", [f"model={model}", f"data={data}", f"out={out}", "threads=1"])
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))


def test_other_stages_words_and_cameras_are_judged_and_noted(trained: Path, tmp_path: Path) -> None:
    """Three stages by boundaries, other words, an unknown camera, other and unequal image sizes."""
    strange = known_as(
        toy_episode(30, length=20, cameras=("top", "front"), size=(40, 56), instruction="pour the tea"),
        stage_names=("lift", "tilt", "put back"),
        boundaries=np.array([2, 8, 15, 20]),
        truth=None,
        success=None,
    )
    alone = toy_episode(31, length=15, cameras=("front",))
    metrics = evaluate(trained, write(tmp_path / "data", strange, alone), tmp_path / "out")
    notes = " ".join(metrics["notes"])
    assert "new to the model and taken for its only task: 'pour the tea'" in notes
    assert "cameras left out, as in training: top" in notes
    assert "other stages than the model" in notes
    # Progress is judged in both, stages only where there are as many as the model's.
    assert metrics["progress_mae"]["n"] == 2
    assert metrics["stage_accuracy"]["n"] == 1
    assert metrics["success_f1"]["n"] >= 1
    assert metrics["conditions"] == {}
    assert "stuck" not in notes
    frozen = toy_episode(33, length=24)
    frozen.frames["wrist"][4:20] = frozen.frames["wrist"][4]
    metrics = evaluate(trained, write(tmp_path / "frozen", frozen), tmp_path / "frozen_out")
    assert "camera 'wrist' is stuck in 1 of 1 episodes (in toy_033 for 8 of 24 frames)" in " ".join(
        metrics["notes"]
    )
    elsewhere = toy_episode(32, length=15, cameras=("top",))  # none that it knows: those that there are
    metrics = evaluate(trained, write(tmp_path / "elsewhere", elsewhere), tmp_path / "elsewhere_out")
    assert "cameras the model was not trained on: top" in " ".join(metrics["notes"])
    rows = pq.read_table(tmp_path / "out" / "predictions.parquet").to_pydict()
    truth = np.array(rows["truth_progress"][:20], dtype=float)
    assert rows["valid"] == [True] * 35
    # By hand: three stages weigh a third each, whatever the model's weigh; at 0, k_0, k_1, 4/5 of the last.
    np.testing.assert_allclose(truth[[0, 2, 8, 19]], [0, 0, 1 / 3, 2 / 3 + 4 / 15], atol=1e-6)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "put back" in page


def test_stages_without_names_are_shown(trained: Path, tmp_path: Path) -> None:
    """Per-frame truth of three stages that nobody named."""
    stage = np.repeat(np.arange(3), 4)
    truth = ProgressLabel(stage, np.tile(np.float32([0, 0.3, 0.6, 0.9]), 3), np.ones(12, np.bool_))
    bare = known_as(toy_episode(32, length=12), stage_names=(), truth=truth)
    metrics = evaluate(trained, write(tmp_path / "data", bare), tmp_path / "out")
    assert metrics["progress_mae"]["n"] == 12
    assert metrics["stage_accuracy"]["value"] is None
    assert "stage 3" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_without_any_truth_there_are_estimates_and_no_numbers(trained: Path, tmp_path: Path) -> None:
    """Recordings nobody labelled: null, never zero, for what cannot be known."""
    episodes = [
        known_as(
            toy_episode(40 + i, length=12),
            truth=None,
            success=None,
            stage_names=(),
            outcome=Outcome.UNKNOWN,
        )
        for i in range(2)
    ]
    metrics = evaluate(trained, write(tmp_path / "data", *episodes), tmp_path / "out")
    for name in ("progress_mae", "stage_accuracy", "success_f1", "ece", "coverage_90", "tau_a", "voc_mean"):
        assert metrics[name]["value"] is None, name
        assert metrics[name]["n"] == 0, name
    assert metrics["latency_ms_p50"]["value"] > 0
    table = pq.read_table(tmp_path / "out" / "predictions.parquet")
    assert table["truth_progress"].null_count == table.num_rows == 24
    assert table["progress"].null_count == 0


def test_what_a_model_must_not_be_judged_on_is_refused(trained: Path, tmp_path: Path) -> None:
    strangers = tmp_path / "thesis"
    strangers.mkdir()
    (strangers / "thesis.tex").write_text("do not touch")
    data = write(tmp_path / "data", toy_episode(50, length=12))
    halved = tmp_path / "halved"
    halved.mkdir()
    (halved / ".predictions.parquet.tmp").write_text("an evaluation was killed here")
    evaluate(trained, data, halved)
    with pytest.raises(CheckpointError, match=r"holds other files \(thesis\.tex\)"):
        evaluate(trained, data, strangers)
    with pytest.raises(DataError, match="has seen every frame"):
        evaluate(trained, trained.parent / "store", tmp_path / "seen")
    # The calibration episode was never trained on, but fitted on: it may not be judged either.
    seen = ["allow_seen=true", f"out={tmp_path / 'seen'}"]
    run_command("evaluate", [f"model={trained}", f"data={trained.parent / 'store'}", *seen])
    metrics = json.loads((tmp_path / "seen" / "metrics.json").read_text(encoding="utf-8"))
    assert "these numbers say nothing about new episodes" in metrics["notes"][0]
