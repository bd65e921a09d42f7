"""`robo-reward label` on datasets that LeRobot wrote, and what LeRobot then reads and trains with."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from robo_reward.calibration import Calibration
from robo_reward.checkpoint import load_checkpoint, save_checkpoint
from robo_reward.cli.main import main
from robo_reward.errors import DataError
from robo_reward.model.config import ModelConfig, TaskConfig
from robo_reward.model.progress_model import ProgressModel
from robo_reward.offline import encode_episode, estimate_episode
from robo_reward.shaping import Gated, potentials
from robo_reward_data.importers.base import Options
from robo_reward_data.importers.lerobot import LeRobot
from robo_reward_data.importers.run import import_recordings
from robo_reward_data.label.subtasks import Subtasks, write_subtasks
from robo_reward_data.label.table import FILE
from robo_reward_data.store import EpisodeStore

LENGTHS = (24, 31, 12, 18, 9)
CHUNK = 6
WRITER = """
import sys
from pathlib import Path
import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

for mode in ("video", "image"):
    root = Path(sys.argv[1]) / mode
    image = {"dtype": mode, "shape": (32, 32, 3), "names": ["height", "width", "channels"]}
    features = {
        "observation.images.front": image,
        "observation.images.wrist": image,
        "observation.state": {"dtype": "float32", "shape": (2,), "names": ["a", "b"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
    }
    dataset = LeRobotDataset.create(
        "test/set", fps=20, features=features, root=root, use_videos=mode == "video"
    )
    rng = np.random.default_rng(0)
    for episode, length in enumerate(map(int, sys.argv[2:])):
        for number in range(length):
            front = np.full((32, 32, 3), 40 * episode, np.uint8)
            front[:, : 2 + number] = (200, 30, 90)
            dataset.add_frame({
                "observation.images.front": front,
                "observation.images.wrist": np.ascontiguousarray(255 - front[::-1]),
                "observation.state": rng.random(2, dtype=np.float32),
                "action": rng.random(2, dtype=np.float32),
                "next.success": np.array([episode % 2 == 0 and number == length - 1]),
                "task": "fill the bar",
            })
        dataset.save_episode()
    dataset.finalize()
"""
# What LeRobot itself makes of the labelled datasets: columns, statistics, RA-BC weights, language.
READER = """
import json, sys
from pathlib import Path
import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.rewards.sarm.rabc import RABCWeights

folder, chunk, answer = Path(sys.argv[1]), int(sys.argv[2]), {}
for name in ("copy", "in_place"):
    dataset = LeRobotDataset("test/set", root=folder / name, video_backend="pyav")
    items = [dataset[index] for index in range(len(dataset))]
    keys = [key for key in items[0] if key.startswith("robo_reward.")]
    answer[name] = {
        "columns": {key: [float(item[key]) for item in items] for key in keys},
        "types": {key: str(items[0][key].dtype) for key in keys},
        "means": {key: float(dataset.meta.stats[key]["mean"][0]) for key in keys},
        "images": [float(item["observation.images.front"].mean()) for item in items],
    }
weigher = RABCWeights(
    folder / "in_place/sarm_progress.parquet", chunk, "robo_reward", device=torch.device("cpu")
)
full = int(sys.argv[4])  # a sample of weight 1, to undo the scaling of the batch
pairs = [weigher.compute_batch_weights({"index": torch.tensor([full, index])})[0] for index in range(94)]
answer["weights"] = [float(pair[1] / pair[0]) for pair in pairs]
said = LeRobotDataset("test/set", root=folder / "language", video_backend="pyav")[30]["language_persistent"]
answer["language"] = [[row["style"], row["content"], row["timestamp"]] for row in said]
Path(sys.argv[3]).write_text(json.dumps(answer))
"""


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}


def lerobot(code: str, folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="session")
def labelled_sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets (`video`, `image`) and a model with random weights (`run`)."""
    if find_spec("lerobot") is None:
        pytest.skip("no lerobot here to write a dataset with: pip install 'robo-reward[data]'")
    folder = tmp_path_factory.mktemp("label")
    lerobot(WRITER, folder, str(folder), *map(str, LENGTHS))
    torch.manual_seed(1)
    config = ModelConfig(
        encoder={
            "_target_": "robo_reward.model.encoders.TinyEncoder",
            "channels": [4, 8, 8, 8],
            "bottleneck": 8,
        },
        tasks=(TaskConfig(("fill the bar",), ("red", "green"), (0.4, 0.6)),),
        cameras=("front", "wrist"),
        image_size=(32, 32),
        period_s=0.05,
        width=16,
        heads=2,
        window=4,
    )
    save_checkpoint(folder / "run", ProgressModel(config), Calibration(), {})
    return folder


def copy_of(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def label(folder: Path, dataset: Path, *options: str) -> int:
    return main(["label", f"model={folder / 'run'}", f"dataset={dataset}", f"rabc.chunk={CHUNK}", *options])


@pytest.mark.parametrize("mode", ["video", "image"])
def test_the_file_holds_what_the_model_says_of_every_frame(
    labelled_sources: Path, tmp_path: Path, mode: str
) -> None:
    dataset = copy_of(labelled_sources / mode, tmp_path / mode)
    assert label(labelled_sources, dataset, "shaping.discount=0.9", "lanes=2", "chunk=5") == 0
    table = pq.ParquetFile(dataset / "sarm_progress.parquet").read()
    assert table["index"].to_pylist() == list(range(sum(LENGTHS)))
    import_recordings(LeRobot(), dataset, tmp_path / "store", Options())
    checkpoint = load_checkpoint(labelled_sources / "run")
    begin = 0
    for number, reader in enumerate(EpisodeStore.open(tmp_path / "store")):
        found = estimate_episode(
            checkpoint.model, encode_episode(checkpoint.model, reader), checkpoint.calibration
        )
        rows = table.slice(begin, LENGTHS[number])
        begin += LENGTHS[number]
        assert set(rows["episode_index"].to_pylist()) == {number}
        progress = rows["progress_sparse"].to_numpy()
        np.testing.assert_allclose(progress, found.progress, atol=2e-6)
        np.testing.assert_allclose(rows["std"].to_numpy(), found.std, atol=2e-6)
        np.testing.assert_array_equal(rows["stage"].to_numpy(), found.stage)
        shaping = rows["shaping"].to_numpy()
        np.testing.assert_allclose(shaping[:-1], 0.9 * progress[1:] - progress[:-1], atol=1e-6)
        if number % 2 == 0:  # next.success at its end: terminated
            np.testing.assert_allclose(shaping[-1], -progress[-1], atol=1e-6)
        else:
            assert np.isnan(shaping[-1])


def test_between_decisions_the_last_one_holds(labelled_sources: Path, tmp_path: Path) -> None:
    dataset = copy_of(labelled_sources / "image", tmp_path / "image")
    assert label(labelled_sources, dataset, "fps=5") == 0
    table = pq.ParquetFile(dataset / "sarm_progress.parquet").read()
    progress = table["progress_sparse"].to_numpy()[: LENGTHS[0]]
    np.testing.assert_array_equal(progress, np.repeat(progress[::4], 4))
    assert len(np.unique(progress)) == 6
    # A potential that remembers is asked once a decision: what holds is no further evidence.
    shaping = table["shaping"].to_numpy()
    careful = ["shaping=gated", "shaping.potential.limit=0.5", "overwrite=true"]
    assert label(labelled_sources, dataset, "fps=5", *careful) == 0
    gated = pq.ParquetFile(dataset / "sarm_progress.parquet").read()["shaping"].to_numpy()
    phi = np.repeat(potentials(Gated(0.5), progress[::4], table["std"].to_numpy()[: LENGTHS[0] : 4]), 4)
    np.testing.assert_allclose(gated[: LENGTHS[0] - 1], 0.99 * phi[1:] - phi[:-1], atol=1e-5)
    assert not np.allclose(gated[: LENGTHS[0] - 1], shaping[: LENGTHS[0] - 1], atol=1e-3)


def test_a_linked_folder_is_refused_in_place_and_copied_elsewhere(
    labelled_sources: Path, tmp_path: Path
) -> None:
    """Videos on another disk: they were left out of the new dataset, and the link was gone."""
    dataset = copy_of(labelled_sources / "video", tmp_path / "video")
    (dataset / "videos").rename(tmp_path / "far")
    (dataset / "videos").symlink_to(tmp_path / "far")
    before = sorted(path.name for path in (tmp_path / "far").rglob("*"))
    assert label(labelled_sources, dataset, "in_place=true") == 1
    assert (dataset / "videos").is_symlink()
    assert label(labelled_sources, dataset, f"out={tmp_path / 'copy'}") == 0
    assert sorted(path.name for path in (tmp_path / "copy/videos").rglob("*")) == before


@pytest.mark.slow
def test_lerobot_reads_the_columns_and_arrives_at_our_weights(labelled_sources: Path, tmp_path: Path) -> None:
    """A copy and a dataset changed in place, two processes; the weights of LeRobot's own class are ours."""
    in_place = copy_of(labelled_sources / "image", tmp_path / "in_place")
    assert label(labelled_sources, labelled_sources / "video", f"out={tmp_path / 'copy'}") == 0
    assert label(labelled_sources, in_place, "in_place=true", "pool.workers=2", "lanes=1") == 0
    assert not (labelled_sources / "video/sarm_progress.parquet").exists()
    stages = {n: Subtasks(("reach", "pull"), np.array([0, 5, size])) for n, size in enumerate(LENGTHS)}
    write_subtasks(in_place, stages, out=tmp_path / "language")
    ours = pq.ParquetFile(in_place / "sarm_progress.parquet").read()["rabc_weight"].to_numpy()
    assert {0.0, 1.0} < set(ours.tolist())  # soft ones, too
    full = str(np.flatnonzero(ours == 1)[0])
    lerobot(READER, tmp_path, str(tmp_path), str(CHUNK), str(tmp_path / "answer.json"), full)
    answer = json.loads((tmp_path / "answer.json").read_text())
    for name in ("copy", "in_place"):
        table = pq.ParquetFile(tmp_path / name / "sarm_progress.parquet").read()
        read = answer[name]
        for key, values in read["columns"].items():
            column = key.removeprefix("robo_reward.").replace("progress", "progress_sparse")
            written = table[column].to_numpy().astype(np.float64)
            np.testing.assert_allclose(values, written, rtol=1e-6)
            np.testing.assert_allclose(read["means"][key], np.nanmean(written), rtol=1e-6, atol=1e-9)
        assert read["types"]["robo_reward.stage"] == "torch.int64"
        assert read["types"]["robo_reward.success"] == "torch.bool"
        assert np.ptp(read["images"]) > 0.1
    ends = np.cumsum(LENGTHS) - 1
    told = np.ones(len(ours), np.bool_)
    told[ends[ours[ends] < 1]] = False  # LeRobot has no way to be told of the last frame: see label/weights
    np.testing.assert_allclose(np.array(answer["weights"])[told], ours[told], atol=1e-4)
    assert answer["language"] == [["subtask", "reach", 0.0], ["subtask", "pull", 0.25]]


# `lerobot-train` as it is, with a note taken of every weight that enters its loss.
TRAINER = """
import json, sys
from pathlib import Path
from lerobot.rewards.sarm.rabc import RABCWeights
from lerobot.scripts import lerobot_train

noted, compute = [], RABCWeights.compute_batch_weights
def note(self, batch):
    weights, stats = compute(self, batch)
    noted.append([batch["index"].tolist(), weights.tolist()])
    return weights, stats
RABCWeights.compute_batch_weights = note
answer = Path(sys.argv.pop(1))
lerobot_train.main()
answer.write_text(json.dumps(noted))
"""


@pytest.mark.slow
def test_lerobot_train_weighs_its_loss_as_we_wrote(
    labelled_sources: Path, tmp_path: Path, small_act: Callable[..., list[str]]
) -> None:
    if find_spec("accelerate") is None:
        pytest.skip("lerobot-train needs accelerate: pip install 'lerobot[training]'")
    dataset = copy_of(labelled_sources / "image", tmp_path / "set")
    assert label(labelled_sources, dataset) == 0
    ours = pq.ParquetFile(dataset / "sarm_progress.parquet").read()["rabc_weight"].to_numpy()
    lerobot(
        TRAINER,
        tmp_path,
        str(tmp_path / "noted.json"),
        "--ext.discover_packages_path=robo_reward_data.lerobot_plugin",
        *small_act(CHUNK, n_vae_encoder_layers=1, latent_dim=4),
        "--dataset.repo_id=test/set",
        f"--dataset.root={dataset}",
        "--sample_weighting.type=rabc",
        "--sample_weighting.head_mode=robo_reward",
        *("--steps=2", "--batch_size=24", "--num_workers=0", "--save_checkpoint=false"),
        f"--output_dir={tmp_path / 'policy'}",
    )
    noted = json.loads((tmp_path / "noted.json").read_text())
    assert len(noted) == 2
    ends = np.cumsum(LENGTHS) - 1
    untold = ends[ours[ends] < 1]
    for index, weights in noted:
        told = ~np.isin(index, untold)
        wanted, got = ours[index][told], np.array(weights)[told]
        assert wanted.max() == 1
        np.testing.assert_allclose(got / got.max(), wanted, atol=1e-4)  # LeRobot scales a batch's sum


@pytest.mark.parametrize("form", ["language", "sparse", "dense"])
def test_stages_written_in_each_form_are_read_back(labelled_sources: Path, tmp_path: Path, form: str) -> None:
    stages = {
        0: Subtasks(("reach", "pull"), np.array([0, 10, 24])),
        1: Subtasks(("reach",), np.array([0, 31])),
    }
    root = copy_of(labelled_sources / "video", tmp_path / "set")
    write_subtasks(root, stages, form)
    found = [recording.prepare(Options()).info for recording in LeRobot().recordings(root)]
    assert [info.stage_names for info in found] == [("reach", "pull"), ("reach",), (), (), ()]
    assert found[0].boundaries is not None
    assert found[0].boundaries.tolist() == [0, 10, 24]
    if form != "language":
        shares = found[0].source["temporal_proportions"]
        np.testing.assert_allclose([shares["reach"], shares["pull"]], [0.548387, 0.451613], atol=1e-5)
    write_subtasks(root, {0: Subtasks(("all",), np.array([0, 24]))}, form)  # replaces, does not add
    assert LeRobot().recordings(root)[0].prepare(Options()).info.stage_names == ("all",)
    with pytest.raises(DataError, match=r"episode 2 of .* leave the episode's 12 frames"):
        write_subtasks(root, {2: Subtasks(("far",), np.array([0, 13]))}, form)


@pytest.mark.parametrize("form", ["language", "sparse"])
def test_stages_end_with_the_work_in_each_form(labelled_sources: Path, tmp_path: Path, form: str) -> None:
    """Subtasks in words have no end: frames after the last one were taught as unfinished."""
    root = copy_of(labelled_sources / "image", tmp_path / "set")
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.ParquetFile(path).read()
    begins = np.cumsum([0, *LENGTHS])
    led = np.zeros(len(table), np.bool_)
    led[begins[0] + 16 : begins[1]] = True  # shown from frame 17 on
    led[begins[1] + 5 : begins[1] + 9] = True  # and lost again
    led[begins[2] + 2 : begins[3]] = True  # before the last stage begins
    at = table.column_names.index("next.success")
    pq.write_table(table.set_column(at, "next.success", pa.array(led)), path)
    bounds = [[0, 10, 17], [0, 12, 31], [0, 8, 12]]
    stages = {n: Subtasks(("reach", "pull"), np.array(bound)) for n, bound in enumerate(bounds)}
    write_subtasks(root, stages, form)
    found = [recording.prepare(Options()).info for recording in LeRobot().recordings(root)]
    assert [None if i.boundaries is None else i.boundaries.tolist() for i in found] == [*bounds, None, None]


def test_cameras_that_training_left_out_are_left_out(
    labelled_sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `evaluate` does: they were shown as cameras without a name."""
    dataset = copy_of(labelled_sources / "image", tmp_path / "image")
    both = load_checkpoint(labelled_sources / "run").model
    config = dataclasses.replace(both.config, cameras=("front",))
    torch.manual_seed(1)
    model = ProgressModel(config).eval()
    save_checkpoint(tmp_path / "run", model, Calibration(), {})
    assert label(tmp_path, dataset) == 0
    assert "note: cameras left out, as in training: wrist (the model knows front" in capsys.readouterr().out
    progress = pq.ParquetFile(dataset / FILE).read()["progress_sparse"].to_numpy()[: LENGTHS[0]]
    import_recordings(LeRobot(), dataset, tmp_path / "store", Options())
    encoded = encode_episode(model, EpisodeStore.open(tmp_path / "store").episodes[0])
    np.testing.assert_allclose(progress, estimate_episode(model, encoded, Calibration()).progress, atol=2e-6)
    assert label(tmp_path, dataset) == 0
    assert "already labelled" in capsys.readouterr().out
    # Those that are asked for are looked through, whatever they are, and that gives other labels.
    asked = "cameras={front: front, wrist: wrist}"
    assert label(tmp_path, dataset, asked) == 1
    assert "has other labels: cameras.wrist was None, now it is 'wrist'" in capsys.readouterr().err
    assert label(tmp_path, dataset, asked, "overwrite=true") == 0
    assert "cameras the model was not trained on: wrist" in capsys.readouterr().out
    strange = pq.ParquetFile(dataset / FILE).read()["progress_sparse"].to_numpy()[: LENGTHS[0]]
    assert np.abs(strange - progress).max() > 1e-5


def test_other_labels_are_not_overwritten(
    labelled_sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = copy_of(labelled_sources / "image", tmp_path / "image")
    path = dataset / "sarm_progress.parquet"
    assert label(labelled_sources, dataset) == 0
    before = path.read_bytes()
    assert label(labelled_sources, dataset) == 0
    assert "already labelled" in capsys.readouterr().out
    assert label(labelled_sources, dataset, "cameras={front: frnt}") == 1  # which no overwriting helps
    assert "cameras: 'frnt' is not in" in capsys.readouterr().err
    moved = copy_of(labelled_sources / "run", tmp_path / "other")  # a path says nothing of what lies there
    assert main(["label", f"model={moved}", f"dataset={dataset}", f"rabc.chunk={CHUNK}"]) == 0
    assert "already labelled" in capsys.readouterr().out
    shutil.rmtree(moved)
    other = copy_of(labelled_sources / "run", tmp_path / "other")
    meta = json.loads((other / "model.json").read_text())
    (other / "model.json").write_text(json.dumps({**meta, "version": "another"}))
    again = ["label", f"model={other}", f"dataset={dataset}", f"rabc.chunk={CHUNK}"]
    assert main(again) == 1
    assert "has other labels: model_version was" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert main([*again, "overwrite=true"]) == 0
    assert path.read_bytes() != before
    # Trained again in the same place, by the same process, it is the new one that is asked.
    said = pq.read_table(path).to_pandas()
    colder = {**meta["calibration"], "stage_temperature": 9.0}
    (other / "model.json").write_text(json.dumps({**meta, "version": "third", "calibration": colder}))
    assert main([*again, "overwrite=true"]) == 0
    now = pq.read_table(path).to_pandas()
    assert not np.allclose(now.select_dtypes("number"), said.select_dtypes("number"), equal_nan=True)
    path.write_bytes(b"nothing of ours")
    assert label(labelled_sources, dataset) == 1
    assert "cannot read" in capsys.readouterr().err
    assert label(labelled_sources, dataset, f"out={tmp_path}") == 1
    assert "choose another out" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["image", "other"]  # and no work folder is left


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["rabc.chunk=0"], "rabc.chunk is 0"),
        (["pool.workers=0"], "workers is 0"),
        (["shaping.discount=2"], "discount"),
        (["out=SET"], "is the dataset itself: say in_place=true"),
    ],
)
def test_wrong_options_are_told_whatever_labels_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    """Beside labels they were answered with overwrite=true, which would not have helped."""
    given = [option.replace("SET", str(tmp_path / "set")) for option in options]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / FILE).write_bytes(b"labels")
    assert main(["label", "model=none", f"dataset={tmp_path / 'set'}", *given]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert "overwrite" not in err


def test_a_changed_success_is_noticed(
    labelled_sources: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says where the last shaping of an episode ends."""
    dataset = copy_of(labelled_sources / "image", tmp_path / "image")
    assert label(labelled_sources, dataset) == 0
    path = dataset / "data/chunk-000/file-000.parquet"
    table = pq.ParquetFile(path).read()
    at = table.column_names.index("next.success")
    flipped = pa.array([not done for done in table["next.success"].to_pylist()])
    pq.write_table(table.set_column(at, "next.success", flipped), path)
    assert label(labelled_sources, dataset) == 1
    assert "has other labels: dataset_fingerprint was" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(labelled_sources: Path, tmp_path: Path) -> None:
    dataset = copy_of(labelled_sources / "video", tmp_path / "set")
    command = [
        *(sys.executable, "-m", "robo_reward.cli.main", "label", f"model={labelled_sources / 'run'}"),
        *(f"dataset={dataset}", f"rabc.chunk={CHUNK}", "lanes=1", "chunk=1", "in_place=true"),
    ]
    parts = tmp_path / ".set.labelling"
    process = subprocess.Popen(command, env=environment(tmp_path), stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(parts.glob("parts-*/episode_*.parquet")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    left = {path: path.stat().st_mtime_ns for path in parts.glob("parts-*/episode_*.parquet")}
    assert 0 < len(left) < len(LENGTHS)
    assert not (dataset / "sarm_progress.parquet").exists()
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=True)
    assert f"{len(left)} episodes were estimated before" in done.stdout
    whole = copy_of(labelled_sources / "video", tmp_path / "whole")
    assert label(labelled_sources, whole) == 0
    resumed, straight = (pq.ParquetFile(root / "sarm_progress.parquet").read() for root in (dataset, whole))
    for name in ("progress_sparse", "rabc_weight", "shaping"):
        np.testing.assert_allclose(resumed[name].to_numpy(), straight[name].to_numpy(), atol=1e-5)
    assert not parts.exists()


@pytest.mark.slow
def test_a_ray_cluster_does_the_work() -> None:
    pytest.importorskip("ray", reason="no ray here: pip install 'robo-reward[scale]'")
    code = """
from robo_reward.errors import DataError
from robo_reward_data.label.pools import Ray

def work(number):
    if number == 9:
        raise DataError("episode 9 is broken")
    return 2 * number

assert sorted(Ray(workers=2).run(work, [1, 2, 3])) == [2, 4, 6]
try:
    list(Ray(workers=1).run(work, [9]))
except DataError as error:
    assert str(error) == "episode 9 is broken"
else:
    raise AssertionError("an error of a worker was swallowed")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
