"""`robo-reward compare` from stores to report: resumed, refused where it is unfair, drawn by a browser."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from robo_reward.checkpoint import load_checkpoint, save_checkpoint
from robo_reward.cli.main import main, run_command
from robo_reward.compare.split import hold_out
from robo_reward.errors import CheckpointError, ConfigError, DataError, RoboRewardError
from robo_reward.model.encoders import Backbone
from robo_reward.schema import Episode
from robo_reward.testing import toy_episode
from robo_reward.train.config import HoldoutConfig
from robo_reward_data.store import EpisodeStore

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FAST = [
    "network.encoder.channels=[4,4,8,8]",
    "network.encoder.bottleneck=4",
    "network.width=16",
    "network.heads=2",
    "windows.frames=4",
    "batch_size=4",
    "threads=1",
    "precision=32-true",
    "steps=2",
    "samples=100",
    "costs=false",
]


def episodes(first: int, count: int, seed: int) -> list[Episode]:
    """Successes, near misses and one retry, of two tasks, recorded with a seed."""
    found: list[Episode] = []
    for index in range(first, first + count):
        reach = 0.6 if index % 3 == 2 else 1.0
        text = "fill the bar" if index % 2 else "fill it again"
        episode = toy_episode(index, length=12 + index % 5, reach=reach, seed=seed, instruction=text)
        info = dataclasses.replace(
            episode.info,
            source={"env": "toy", "seed": seed},
            kind="fail_retry" if index == first else episode.info.kind,
        )
        found.append(dataclasses.replace(episode, info=info))
    return found


def write(path: Path, members: list[Episode]) -> Path:
    store = EpisodeStore.create(path)
    for episode in members:
        store.write(episode)
    return path


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stores")
    return {
        "train": write(folder / "train", episodes(0, 8, seed=1)),
        "test": write(folder / "test", episodes(20, 6, seed=2)),
        "calibration": write(folder / "calibration", episodes(40, 4, seed=3)),
    }


def compare(stores: dict[str, Path], out: Path, *options: str) -> dict[str, Any]:
    places = [f"train={stores['train']}", f"test={stores['test']}", f"out={out}"]
    run_command("compare", [*places, *FAST, *options])
    return json.loads((out / "metrics.json").read_text(encoding="utf-8"))


def test_methods_are_compared_resumed_and_shown(stores: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    chosen = "method=[ours,majority]"
    first = compare(stores, out, chosen)
    assert list(first["methods"]) == ["ours", "majority"]
    ours, floor = first["methods"]["ours"], first["methods"]["majority"]
    expected = {
        "progress_mae",
        "voc_mean",
        "retry_voc",
        "hesitation_rmse",
        "tau_a",
        "stage_accuracy",
        "starc",
    }
    expected |= {"success_f1", "ece", "wrong_instruction_margin", "progress_mae_one_camera_gone"}
    assert expected <= set(ours["metrics"])
    assert ours["differences"] == {}
    # A difference is that of the values, and of what the method says nothing about there is none.
    gap = floor["metrics"]["progress_mae"]["value"] - ours["metrics"]["progress_mae"]["value"]
    assert floor["differences"]["progress_mae"]["value"] == pytest.approx(gap)
    assert floor["metrics"]["stage_accuracy"]["value"] is None
    assert floor["differences"]["stage_accuracy"]["value"] is None
    assert floor["metrics"]["success_f1"]["value"] is None
    rows = pq.read_table(out / "predictions.parquet").to_pandas()
    assert rows.groupby("method").size().nunique() == 1
    mae = (rows.progress - rows.truth_progress).abs().groupby(rows.method).mean()
    for name, method in first["methods"].items():
        assert method["metrics"]["progress_mae"]["value"] == pytest.approx(mae[name], abs=1e-6)

    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.suffix in (".npz", ".safetensors")}
    with pytest.raises(CheckpointError, match="overwrite=true measures again"):
        compare(stores, out, chosen)
    again = compare(stores, out, "method=[ours,majority,hop]", "overwrite=true")
    after = {p: p.stat().st_mtime_ns for p in before}
    assert before == after, "what was fitted and predicted is not done again"
    for name in first["methods"]:
        assert again["methods"][name]["metrics"] == first["methods"][name]["metrics"], name
    assert len(list((out / "methods").glob("hop-*"))) == 1  # one model, five readouts
    # Read out otherwise, it is asked anew; what it learned is used again.
    near = compare(stores, out, "method=hop", "methods.hop_incremental.interval=1", "overwrite=true")
    errors = [x["methods"]["hop_incremental"]["metrics"]["progress_mae"]["value"] for x in (again, near)]
    assert errors[0] != errors[1]
    assert len(list((out / "methods").glob("hop-*"))) == 1
    _look_at(out / "report.html", list(near["methods"]))


def _look_at(page: Path, methods: list[str]) -> None:
    """What a browser makes of the page."""
    if BROWSER is None:
        pytest.skip("no chromium here: the page was written, not drawn")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    table = done.stdout.split('id="table-body"')[1].split("</table>")[0]
    assert all(f">{name}<" in table for name in methods)
    assert done.stdout.count('class="mark"') > len(methods)  # bars of several metrics
    assert done.stdout.count('<path class="truth"') == 6  # a chart of each test episode
    assert not re.search(r'(?:src|href)="(?!#)', done.stdout), "the page asks for something outside"


def test_a_run_that_is_there_is_judged(stores: dict[str, Path], tmp_path: Path) -> None:
    first = compare(stores, tmp_path / "a", "method=ours")
    (run,) = (tmp_path / "a" / "methods").glob("ours-*/run")
    # The pipeline kept back the very episodes that the comparison calibrates every method on.
    split = json.loads((run / "model.json").read_text())["training"]["split"]
    readers = EpisodeStore.open(stores["train"]).episodes
    fitting, kept = hold_out(readers, HoldoutConfig(), 0)
    assert {uid for uid, parts in split.items() if parts["train"]} == {r.info.uid for r in fitting}
    assert {uid for uid, parts in split.items() if parts["calibration"]} == {r.info.uid for r in kept}
    second = compare(stores, tmp_path / "b", "method=ours", f"methods.ours.run={run}")
    assert second["methods"]["ours"]["metrics"] == first["methods"]["ours"]["metrics"]
    assert "trained before" in " ".join(second["notes"])
    assert not any("was trained on" in note for note in second["notes"])
    # Of another split, its bands are fitted on what it was trained on: that is told.
    third = compare(stores, tmp_path / "d", "method=ours", f"methods.ours.run={run}", "seed=3")
    assert any("ours was trained on 1 of the 1 calibration episodes" in note for note in third["notes"])
    # Progress on another scale is not compared.
    scaled = load_checkpoint(run)
    task, *rest = scaled.model.config.tasks
    other = dataclasses.replace(task, stage_weights=(0.4, 0.6))
    scaled.model.config = dataclasses.replace(scaled.model.config, tasks=(other, *rest))
    save_checkpoint(tmp_path / "scaled", scaled.model, scaled.calibration, scaled.training)
    with pytest.raises(DataError, match=r"weighs the stages of .* by \[0\.4, 0\.6\], this comparison by"):
        compare(stores, tmp_path / "scale", "method=ours", f"methods.ours.run={tmp_path / 'scaled'}")
    # Another model in the same place is another model.
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    compare(stores, tmp_path / "e", "method=ours", f"methods.ours.run={copy}")
    found = load_checkpoint(copy)
    with torch.no_grad():
        found.model.tau_head[-1].bias.add_(torch.randn(found.model.tau_head[-1].bias.shape))
    save_checkpoint(copy, found.model, found.calibration, found.training)
    other = compare(stores, tmp_path / "e", "method=ours", f"methods.ours.run={copy}", "overwrite=true")
    assert other["methods"]["ours"]["metrics"] != first["methods"]["ours"]["metrics"]
    # Training episodes of the run as test episodes of a comparison: refused, by name.
    swapped = {**stores, "train": stores["test"], "test": stores["train"]}
    with pytest.raises(DataError, match=r"the run has learned from toy_00\d"):
        compare(swapped, tmp_path / "c", "method=ours", f"methods.ours.run={run}")


MOODY = """
from dataclasses import replace
from robo_reward.compare.floors import Random
from robo_reward.compare.method import MethodPrediction

down, asked = True, []

class Moody(Random):
    def predict(self, reader, cameras):
        asked.append(reader.info.length)
        if down and reader.info.length == 16:
            return replace(MethodPrediction.invalid(16, "no connection"), may_pass=True)
        return super().predict(reader, cameras)
"""


def test_what_had_no_answer_is_asked_again_and_nothing_else(
    stores: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "moody.py").write_text(MOODY)
    monkeypatch.syspath_prepend(str(tmp_path))
    moody = importlib.import_module("moody")
    options = ["method=majority", "+methods.moody._target_=moody.Moody", "reference=moody"]

    def share(*more: str) -> float:
        moody.asked.clear()
        found = compare(stores, tmp_path / "out", *options, *more)
        return found["methods"]["moody"]["metrics"]["valid_share"]["value"]

    assert share() < 1.0
    assert set(moody.asked) == {12, 13, 14, 15, 16}
    moody.down = False
    assert share("overwrite=true") == 1.0
    assert set(moody.asked) == {16}
    assert share("overwrite=true") == 1.0
    assert not moody.asked


def test_what_was_fitted_is_judged_on_other_episodes_where_its_first_weights_are_gone(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    """A method trained from a file of weights could be used only where that file was."""
    first = tmp_path / "first.pt"
    body = Backbone((32, 32), 16, 16, "torchvision/resnet18", pretrained=False).body
    torch.save(body.state_dict(), first)
    encoder = ["name=torchvision/resnet18", f"weights={first}"]
    options = ["network=base", *(f"network.encoder.{option}" for option in encoder), "image_size=[32,32]"]
    options += ["method=frame_index", f"fitted={tmp_path / 'fitted'}"]
    options += [option for option in FAST if not option.startswith("network.encoder")]

    def errors(test: str, out: str) -> dict[str, Any]:
        places = [f"train={stores['train']}", f"test={stores[test]}", f"out={tmp_path / out}"]
        run_command("compare", [*places, *options])
        return json.loads((tmp_path / out / "metrics.json").read_text())["methods"]["frame_index"]["metrics"]

    before = errors("test", "a")
    first.unlink()
    assert errors("test", "b") == before
    assert errors("calibration", "c") != before


def test_a_calibration_store_of_its_own(stores: dict[str, Path], tmp_path: Path) -> None:
    found = compare(
        stores, tmp_path / "out", "method=[ours,majority]", f"calibration={stores['calibration']}"
    )
    assert found["facts"]["calibration"] == "4 episodes"
    assert found["facts"]["train"].endswith("8 episodes")
    assert found["methods"]["ours"]["metrics"]["coverage_90"]["value"] is not None


def test_failures_are_practised_by_all_that_learn_from_them(stores: dict[str, Path], tmp_path: Path) -> None:
    misses = [
        toy_episode(index, length=14, reach=0.3, seed=5, instruction=text)
        for index, text in enumerate(("fill the bar", "fill it again"), 60)
    ]
    place = write(tmp_path / "misses", misses)
    chosen = "method=[ours,hop,stage_tau,success,frame_index]"
    found = compare(stores, tmp_path / "with", chosen, f"practice={place}", "practice_share=0.5")
    assert found["facts"]["practice"] == f"{place}: 2 episodes, 50% of the windows"
    assert f"practice={place}" in found["facts"]["command"]
    compare(stores, tmp_path / "without", chosen)

    def weights(out: Path) -> dict[str, bytes]:
        files = [*out.rglob("network.safetensors"), *out.rglob("model.safetensors")]
        return {path.relative_to(out).parts[1].rsplit("-", 1)[0]: path.read_bytes() for path in files}

    practised, plain = weights(tmp_path / "with"), weights(tmp_path / "without")
    same = {name for name in plain if practised[name] == plain[name]}
    # Which learns from successes alone: these show none.
    assert (len(plain), same) == (5, {"frame_index"})
    (run,) = (tmp_path / "with" / "methods").glob("ours-*/run")
    split = load_checkpoint(run).training["split"]
    assert all(split[e.info.uid]["train"] and not split[e.info.uid]["calibration"] for e in misses)
    # Elsewhere they are the same episodes: nothing is fitted again.
    before = {path.name for path in (tmp_path / "with" / "methods").iterdir()}
    moved = shutil.copytree(place, tmp_path / "moved")
    options = ["practice_share=0.5", "overwrite=true"]
    compare(stores, tmp_path / "with", chosen, f"practice={moved}", *options)
    assert {path.name for path in (tmp_path / "with" / "methods").iterdir()} == before


def test_all_look_through_the_cameras_that_are_asked_for(stores: dict[str, Path], tmp_path: Path) -> None:
    """Methods were shown cameras that they had never learned, and ours trained on what calibrates it."""

    def filmed(members: list[Episode], *kept: str) -> list[Episode]:
        return [
            dataclasses.replace(
                one,
                info=dataclasses.replace(
                    one.info, cameras=kept, image_sizes={name: one.info.image_sizes[name] for name in kept}
                ),
                frames={name: one.frames[name] for name in kept},
            )
            for one in members
        ]

    train, test = episodes(0, 13, seed=1), episodes(20, 6, seed=2)
    name, other = train[0].info.cameras
    places = {
        "train": write(tmp_path / "train", [*filmed(train[:1], other), *train[1:]]),
        "test": write(tmp_path / "test", [*filmed(test[:1], other), *test[1:]]),
    }
    chosen = ["method=[ours,frame_index,stage_tau]", f"cameras=[{name}]", "holdout.calibration=0.25"]
    found = compare(places, tmp_path / "out", *chosen)
    assert found["notes"][0] == (
        "left out, as none of cameras= has seen them: 1 of 13 episodes of train, 1 of 6 episodes of test"
    )
    # The same recordings without the other camera give the same numbers.
    plain = {
        "train": write(tmp_path / "plain_train", filmed(train[1:], name)),
        "test": write(tmp_path / "plain_test", filmed(test[1:], name)),
    }
    alone = compare(plain, tmp_path / "alone", *chosen)
    for method in found["methods"]:
        for metric, value in alone["methods"][method]["metrics"].items():
            assert found["methods"][method]["metrics"][metric] == value, (method, metric)
    # Which learned from other episodes than are kept back is refused.
    (run,) = (tmp_path / "out" / "methods").glob("ours-*/run")
    known = load_checkpoint(run)
    split = {uid: {"train": [[0, 9]]} for uid in known.training["split"]}
    save_checkpoint(run, known.model, known.calibration, {**known.training, "split": split})
    with pytest.raises(CheckpointError, match=r"'ours': it was trained on toy_\d+, which all are calibrated"):
        compare(places, tmp_path / "out", *chosen, "overwrite=true")
    with pytest.raises(DataError, match=r"no episode has any of cameras=\['none'\]: they have"):
        compare(places, tmp_path / "x", "method=majority", "reference=majority", "cameras=[none]")


def test_practice_that_is_judged_or_taught_nowhere_is_refused(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    options = ["method=majority", "reference=majority"]
    with pytest.raises(DataError, match=r"is in test \(toy_020\) and in practice \(toy_020\)"):
        compare(stores, tmp_path / "out", *options, f"practice={stores['test']}")
    strange = write(tmp_path / "strange", [toy_episode(90, length=9, instruction="dance", seed=9)])
    with pytest.raises(DataError, match=r"practice: toy_090 is of a task .*\('dance'\): leave it out, or"):
        compare(stores, tmp_path / "out", *options, f"practice={strange}")
    plain = [
        dataclasses.replace(one, info=dataclasses.replace(one.info, truth=None, success=None))
        if one.info.instruction == "fill the bar"
        else one
        for one in episodes(0, 8, seed=1)
    ]
    untaught = {**stores, "train": write(tmp_path / "untaught", plain)}
    marked = write(tmp_path / "marked", [toy_episode(91, length=9, instruction="fill the bar", seed=9)])
    with pytest.raises(DataError, match=r"train has no episode with stages \('fill the bar'\)"):
        compare(untaught, tmp_path / "out", "method=hop", "reference=hop_mean", f"practice={marked}")
    with pytest.raises(ConfigError, match=r"practice_share=1.5"):
        compare(stores, tmp_path / "out", *options, "practice_share=1.5")


def test_stores_that_share_a_recording_or_a_seed_are_refused(stores: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"recording \w+ is in train \(toy_000\) and in test \(toy_000\)"):
        compare(
            {**stores, "test": stores["train"]}, tmp_path / "out", "method=majority", "reference=majority"
        )
    same_seed = write(tmp_path / "same_seed", episodes(60, 2, seed=1))
    options = ["method=majority"]
    with pytest.raises(DataError, match="train and test both hold task 'toy' with seed 1"):
        compare({**stores, "test": same_seed}, tmp_path / "out", *options)
    other = write(tmp_path / "other", episodes(60, 2, seed=2))
    with pytest.raises(DataError, match="test and calibration both hold task 'toy' with seed 2"):
        compare(stores, tmp_path / "out", *options, f"calibration={other}")
    assert not (tmp_path / "out").exists()


def test_what_makes_no_comparison_is_refused(
    stores: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="reference='ours' is not among the methods: random"):
        compare(stores, tmp_path / "out", "method=random", "reference=ours")
    for key in ("seed=-1", "cost_frames=0"):
        with pytest.raises(ConfigError, match=key):
            compare(stores, tmp_path / "out", "method=random", key)
    with pytest.raises(ConfigError, match="which lacks part of Method"):
        compare(stores, tmp_path / "out", "method=ours", "+methods.mine._target_=pathlib.Path")
    strange = [
        dataclasses.replace(e, info=dataclasses.replace(e.info, instruction="dance"))
        for e in episodes(80, 1, 9)
    ]
    with pytest.raises(DataError, match="'dance' is no task of the training data"):
        compare({**stores, "test": write(tmp_path / "strange", strange)}, tmp_path / "out", "method=ours")
    assert main(["compare", f"train={stores['train']}", f"test={stores['test']}", "out=x", "samples=5"]) == 1
    assert "samples=5: an interval needs 100 resamples" in capsys.readouterr().err


def test_methods_that_would_fail_are_refused_together_before_any_is_trained(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    failures = [
        toy_episode(i, length=12, reach=0.6, instruction="fill the bar" if i % 2 else "fill it again")
        for i in range(100, 108)
    ]
    failed = {**stores, "train": write(tmp_path / "failed", failures)}
    with pytest.raises(DataError) as refused:
        compare(failed, out, "method=[ours,frame_index,success,hop,goal_distance,majority]")
    assert str(refused.value) == (
        "method 'frame_index', 'goal_distance': it learns from successes, and no training episode succeeds: "
        "add some that do; method 'success': a success classifier needs frames that are done and frames that "
        "are not, and no training frame is known to be done: add episodes that have some; method "
        "'hop_incremental', 'hop_forward', 'hop_backward', 'hop_mean', 'hop_gate': no training success of "
        "'fill it again': there is no picture of its goal; add one (nothing was trained; method=[...] "
        "chooses others)"
    )
    run = f"methods.ours.run={tmp_path / 'none'}"
    with pytest.raises(CheckpointError, match=r"method 'ours': .*none"):
        compare(stores, out, "method=[majority,ours]", run)
    with pytest.raises(ConfigError, match=r"method 'ours', 'stage_tau': cannot import 'nobody\.Encoder'"):
        compare(stores, out, "method=[ours,majority,stage_tau]", "network.encoder._target_=nobody.Encoder")
    with pytest.raises(
        ConfigError, match=r"method 'mine': .*'nobody.Mine'.*; method 'other': a PosixPath, which"
    ):
        compare(
            stores,
            out,
            "method=ours",
            "+methods.mine._target_=nobody.Mine",
            "+methods.other._target_=pathlib.Path",
        )
    assert not out.exists()


MINE = """
import numpy as np
from robo_reward.compare.floors import Majority
from robo_reward.errors import DataError

class Mine(Majority):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def fit(self, *given):
        if self.how == "refuses":
            raise DataError("cannot learn from this")
        if self.how == "crashes":
            np.zeros(3) + np.zeros(4)
        super().fit(*given)

    def predict(self, *given):
        found = super().predict(*given)
        object.__setattr__(found, "progress", found.progress.tolist())
        return None if self.how == "silent" else found
"""


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("refuses", "cannot learn from this"),
        ("crashes", r"unexpected ValueError: .*--debug"),
        ("silent", "predict gave NoneType, not a robo_reward.compare.method.MethodPrediction"),
        ("listed", "progress is list, not an array of numbers"),
    ],
)
def test_a_method_that_fails_is_named_and_the_others_are_kept(
    stores: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, why: str
) -> None:
    (tmp_path / "ours_fails.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    mine = ["+methods.mine._target_=ours_fails.Mine", f"+methods.mine.how={how}"]
    with pytest.raises(RoboRewardError, match=rf"^method 'mine'(, toy_\d+)?: {why}"):
        compare(stores, tmp_path / "out", "method=majority", *mine)
    assert list((tmp_path / "out/predictions").glob("majority-test-*"))


@pytest.mark.slow
def test_costs_are_measured_in_a_process_of_their_own(stores: dict[str, Path], tmp_path: Path) -> None:
    found = compare(stores, tmp_path / "out", "method=ours", "costs=true", "cost_frames=10")
    metrics = found["methods"]["ours"]["metrics"]
    assert 0 < metrics["latency_ms_p50"]["value"] <= metrics["latency_ms_p99"]["value"]
    assert metrics["latency_ms_p50"]["n"] == 10
    assert 50 < metrics["peak_mib"]["value"] < 20_000
    assert np.isfinite(metrics["peak_mib"]["value"])
