"""Ranking of rollouts: hand-made numbers, and the command from a store to its files."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from robo_reward.calibration import Calibration, SuccessDetector
from robo_reward.checkpoint import save_checkpoint
from robo_reward.cli.main import main
from robo_reward.metrics import Metric
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.schema import Outcome
from robo_reward.testing import toy_episode
from robo_reward_data.rank import filtered, show
from robo_reward_data.rank import run as rank_run
from robo_reward_data.rank.judge import Rollout, agreement, find_failure, keep, order, preferences
from robo_reward_data.rank.run import _spell
from robo_reward_data.store import EpisodeStore

NEVER_DONE = Calibration(detector=SuccessDetector(threshold=1.0))


def rollout(
    name: str, score: float, success: int | None = None, std: float = 0.1, truth: float = np.nan
) -> Rollout:
    return Rollout(name, name, "task", "policy", 10, 1.0, score, std, score, success, None, "unknown", truth)


def test_what_is_not_known_is_not_spelled_as_a_number() -> None:
    assert _spell(Metric.undefined()) == "-"
    assert _spell(Metric.exact(0.5, 1)) == "0.500"
    assert _spell(Metric(0.5, 0.25, 0.75, 4)) == "0.500 [0.250, 0.750]"


def test_a_fall_is_found_where_it_begins() -> None:
    progress = np.array([0, 0.2, 0.5, 0.6, 0.6, 0.3, 0.2, 0.25], np.float32)
    found = find_failure(progress)
    assert found is not None
    assert (found.kind, found.frame) == ("regressed", 4)  # the last frame at which all was well
    assert found.lost == pytest.approx(0.4)


def test_a_stall_is_found_where_gain_ends() -> None:
    progress = np.array([0, 0.2, np.nan, 0.41, 0.44, 0.43, 0.42, 0.44], np.float32)
    found = find_failure(progress)
    assert found is not None
    assert (found.kind, found.frame) == ("stalled", 3)
    assert find_failure(np.full(4, np.nan, np.float32)) is None


def test_order_and_filter() -> None:
    given = [
        rollout("slow", 0.9, success=9),
        rollout("almost", 0.95),
        rollout("fast", 0.9, success=5),
        rollout("unknown", np.nan),
        rollout("bad", 0.1),
    ]
    assert [r.name for r in order(given)] == ["fast", "slow", "almost", "bad", "unknown"]
    assert keep(given, top=0.4) == {"fast", "slow"}
    hundred = [rollout(f"r{i:03d}", 1.0 - i / 100) for i in range(100)]
    for percent in range(1, 101):
        assert len(keep(hundred, top=percent / 100)) == percent
    assert keep(given, min_score=0.5) == {"fast", "slow", "almost"}
    assert keep([rollout("unsure", 0.9, std=0.4)], max_std=0.3) == set()


def test_preferences_prefer_the_better_and_only_where_they_differ() -> None:
    given = [rollout("a", 0.9), rollout("b", 0.85), rollout("c", 0.2), rollout("d", np.nan)]
    pairs = list(preferences(given, 0.1, 100, np.random.default_rng(0)))
    assert {(p["chosen"], p["rejected"]) for p in pairs} == {("a", "c"), ("b", "c")}
    # 0.7 apart with a standard deviation of 0.1 each: Phi(0.7 / 0.1414)
    assert pairs[0]["confidence"] == pytest.approx(1.0, abs=1e-5)
    assert len(list(preferences(given, 0.1, 1, np.random.default_rng(0)))) == 1


def test_agreement_with_the_truth() -> None:
    given = [
        rollout(f"r{i}", s, truth=t)
        for i, (s, t) in enumerate([(0.1, 0.0), (0.5, 1.0), (0.4, 0.5), (0.9, 1.0)])
    ]
    found = agreement(given, np.random.default_rng(0))["task"]
    assert found["tau_a"].value == pytest.approx(5 / 6)  # two of the truths are tied
    assert found["ranked_pairs"].value == 1.0


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A store of toy rollouts, and a model with random weights."""
    store = EpisodeStore.create(tmp_path / "store")
    for index, reach in enumerate((1.0, 1.0, 0.6, 0.3)):
        store.write(toy_episode(index, length=16, reach=reach))
    torch.manual_seed(0)
    config = ModelConfig(
        encoder={
            "_target_": "robo_reward.model.encoders.TinyEncoder",
            "channels": [4, 8, 8, 8],
            "bottleneck": 8,
        },
        tasks=(TaskConfig(("fill the bar",), ("red", "green"), (0.5, 0.5)),),
        cameras=("front", "wrist"),
        image_size=(32, 32),
        period_s=0.1,
        width=16,
        heads=2,
        window=3,
    )
    save_checkpoint(tmp_path / "run", ProgressModel(config), NEVER_DONE, {})
    return tmp_path


def test_the_command_writes_what_it_found(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["rank", f"model={suite / 'run'}", f"data={suite / 'store'}", f"out={suite / 'out'}"]
    assert main([*arguments, "pairs.margin=0.0", "keep.top=0.5"]) == 0
    table = pq.ParquetFile(suite / "out/ranking.parquet").read().to_pylist()
    assert [row["rank"] for row in table] == [1, 2, 3, 4]
    assert sum(row["kept"] for row in table) == 2
    assert {row["name"]: row["true_failure_kind"] for row in table}["toy_003"] == "stalled"
    assert {row["name"]: row["true_failure_kind"] for row in table}["toy_000"] is None
    assert [row["score"] for row in table] == sorted((row["score"] for row in table), reverse=True)
    pairs = [json.loads(line) for line in (suite / "out/pairs.jsonl").read_text().splitlines()]
    rank = {row["name"]: row["rank"] for row in table}
    assert len(pairs) == 6
    assert all(rank[pair["chosen"]] < rank[pair["rejected"]] for pair in pairs)
    summary = json.loads((suite / "out/summary.json").read_text())
    assert set(summary["groups"]) == {"expert", "near_miss"}
    assert summary["agreement"]["fill the bar"]["tau_a"]["n"] == 4
    assert (suite / "out/ranking.csv").read_text().count("\n") == 5
    assert main(arguments) == 1
    assert "holds a ranking: overwrite=true" in capsys.readouterr().err
    assert main([*arguments, "overwrite=true", "group=author"]) == 1
    assert "group is 'author', which toy_000 does not have" in capsys.readouterr().err


def test_the_kept_rollouts_become_a_store_of_their_own(
    suite: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["rank", f"model={suite / 'run'}", f"data={suite / 'store'}", f"out={suite / 'out'}"]
    arguments += [f"store={suite / 'best'}", "keep.top=0.5"]
    # Cut off in the middle of the second episode: nothing of the store is to be seen.
    copy = filtered._copy
    calls = iter(range(2))

    def cut_off(*given: Any) -> None:
        if next(calls) == 1:
            raise KeyboardInterrupt
        copy(*given)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(filtered, "_copy", cut_off)
        main(arguments)
    assert not (suite / "best").exists()
    assert main(arguments) == 0  # and again, without overwrite
    assert sorted(p.name for p in suite.iterdir()) == ["best", "out", "run", "store"]
    table = pq.ParquetFile(suite / "out/ranking.parquet").read().to_pylist()
    best, source = EpisodeStore.open(suite / "best"), EpisodeStore.open(suite / "store")
    kept = {row["name"]: row for row in table if row["kept"]}
    assert {episode.name for episode in best} == set(kept)
    assert len(kept) == 2
    for episode in best:
        original = source[episode.name]
        assert episode.uid == original.uid
        ranked = {**episode.info.source}.pop("ranked")
        assert ranked["score"] == pytest.approx(kept[episode.name]["score"])
        ours, theirs = episode.load(), original.load()
        assert ours.info.outcome == theirs.info.outcome
        np.testing.assert_array_equal(ours.info.stamp_ns, theirs.info.stamp_ns)
        for camera in original.info.cameras:
            np.testing.assert_array_equal(ours.frames[camera], theirs.frames[camera])
    facts = best.attrs["rank"]
    assert (facts["rollouts"], facts["kept"], facts["keep"]["top"]) == (4, 2, 0.5)
    assert facts["data"] == [str(suite / "store")]
    # Never overwritten, whatever the ranking may be; and refused before anything is judged.
    assert main([*arguments, "overwrite=true"]) == 1
    assert "choose another store=" in capsys.readouterr().err
    nothing = [*arguments, "overwrite=true", f"store={suite / 'none'}", "keep.min_score=1.0"]
    assert main(nothing) == 1
    assert "no rollout is good enough" in capsys.readouterr().err
    assert not (suite / "none").exists()


def test_a_summary_is_of_the_tables_beside_it(
    suite: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["rank", f"model={suite / 'run'}", f"data={suite / 'store'}", f"out={suite / 'out'}"]
    assert main([*arguments, "group=robot"]) == 1
    assert "group is 'robot', which toy_000 does not have" in capsys.readouterr().err
    assert not (suite / "out").exists()  # refused before anything is judged
    assert main(arguments) == 0
    assert main([*arguments, "group=robot", "overwrite=true"]) == 1
    assert (suite / "out/summary.json").is_file()

    def cut_off(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(rank_run, "preferences", cut_off)  # the tables are written by then
        main([*arguments, "overwrite=true", "keep.top=0.5"])
    assert not (suite / "out/summary.json").exists()
    assert main([*arguments, "keep.top=0.5"]) == 0  # and again, without overwrite
    assert len(json.loads((suite / "out/summary.json").read_text())["kept"]) == 2


def test_how_far_a_keyframed_rollout_got_is_known_of_successes_alone(suite: Path) -> None:
    """Their truths differed by the length of their last stage, which the ranking was then held against."""
    store = EpisodeStore.create(suite / "keyframed")
    outcomes = (Outcome.SUCCESS, Outcome.SUCCESS, Outcome.FAILURE)
    for index, (outcome, middle) in enumerate(zip(outcomes, (4, 12, 8), strict=True)):
        made = toy_episode(20 + index, length=16)
        keyframes = {"boundaries": np.array([0, middle, 16]), "truth": None, "success": None}
        store.write(replace(made, info=replace(made.info, outcome=outcome, **keyframes)))
    assert main(["rank", f"model={suite / 'run'}", f"data={store.path}", f"out={suite / 'out'}"]) == 0
    table = pq.ParquetFile(suite / "out/ranking.parquet").read().to_pylist()
    truths = {row["name"]: row["truth"] for row in table}
    assert truths == {"toy_020": 1.0, "toy_021": 1.0, "toy_022": None}


@pytest.mark.parametrize("keep_more", ["min_score=2", "max_std=-1", "top=0"])
def test_what_no_rollout_can_be_is_refused_before_any_is_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], keep_more: str
) -> None:
    assert main(["rank", "model=none", "data=none", f"out={tmp_path / 'out'}", f"keep.{keep_more}"]) == 1
    assert f"keep.{keep_more.partition('=')[0]} is" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_list_of_episodes_says_whether_there_are_more(
    suite: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = ["show", "model=none", f"data={suite / 'store'}", f"out={suite / 'x.rrd'}", "episode=0"]
    assert main(wrong) == 1
    assert capsys.readouterr().err.endswith("choose from toy_000, toy_001, toy_002, toy_003\n")
    monkeypatch.setattr(show, "_LISTED", 3)
    assert main(wrong) == 1
    assert capsys.readouterr().err.endswith("choose from toy_000, toy_001, toy_002 and 1 more\n")


def test_rerun_opens_the_recording(suite: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rerun", reason="no rerun here: pip install 'robo-reward[viz]'")
    out = suite / "toy.rrd"
    arguments = ["show", f"model={suite / 'run'}", f"data={suite / 'store'}", f"out={out}"]
    assert main([*arguments, "episode=toy_001"]) == 0
    rerun = [sys.executable, "-m", "rerun", "rrd"]
    subprocess.run([*rerun, "verify", str(out)], check=True, capture_output=True)
    told = subprocess.run([*rerun, "print", str(out)], check=True, capture_output=True, text=True).stdout
    entities = ("/progress/estimate", "/progress/truth", "/camera/front", "/camera/wrist", "/stage/name")
    assert [name for name in entities if name not in told] == []
    assert main([*arguments, "episode=toy_001"]) == 1
    assert "exists: overwrite=true" in capsys.readouterr().err
    assert main([*arguments, "episode=toy_009", "overwrite=true"]) == 1
    assert "no episode 'toy_009'" in capsys.readouterr().err
    shutil.copytree(suite / "store", suite / "again")
    for path in (suite / "again" / "episodes").glob(
        "*/zarr.json"
    ):  # recordings of their own, of the same names
        path.write_text(re.sub(r'("uid": ")[0-9a-f]', r"\1x", path.read_text()))
    several = f"data=[{suite / 'store'},{suite / 'again'}]"
    assert main([*arguments, several, "episode=toy_001", "overwrite=true"]) == 1
    assert "'toy_001' is in several of [" in capsys.readouterr().err
