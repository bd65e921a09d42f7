"""The demo from nothing, at its smallest: all it promises is there, and a second call does nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from robo_reward.cli.main import run_command
from robo_reward_data.store import EpisodeStore


def contents(folder: Path) -> dict[Path, int]:
    """When each file was written, in ns."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_the_demo_runs_from_nothing_and_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    arguments = [f"out={out}", "train_episodes=2", "test_episodes=2", "steps=2"]
    run_command("demo", arguments)
    told = capsys.readouterr().err
    assert "4/4 stream one more unseen episode live" in told
    assert "one decision, all cameras: median" in told
    assert "unseen seeds: progress_mae" in told
    metrics = json.loads((out / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["progress_mae"]["n"] == 2
    test = [reader.info for reader in EpisodeStore.open(out / "test").episodes]
    train = [reader.info for reader in EpisodeStore.open(out / "train").episodes]
    assert not {info.uid for info in test} & {info.uid for info in train}
    rows = pq.read_table(out / "evaluation" / "predictions.parquet")
    assert rows.num_rows == sum(info.length for info in test)
    assert "<html" in (out / "evaluation" / "report.html").read_text(encoding="utf-8")[:200]

    made = contents(out)
    run_command("demo", arguments)
    assert "already trained" in capsys.readouterr().err
    kept = {path: when for path, when in made.items() if "evaluation" not in path.parts}
    now = contents(out)
    assert {path: now[path] for path in kept} == kept
    assert now.keys() == made.keys()
    assert now[out / "evaluation" / "metrics.json"] > made[out / "evaluation" / "metrics.json"]
