"""What RA-BC weights gain: one LeRobot policy cloned from mixed demonstrations with and without them.

The whole road, by the commands that a user types, for each task of `--tasks`: demonstrations good and bad as
a LeRobot dataset, import them, find their stages, train a reward model, label the dataset, then for each of
`--seeds` train a small ACT with `lerobot-train`, once on every frame alike (plain), once on the episodes that
succeeded alone (successes: what needs no reward model), and once with our weights (weighted), and run each in
the environment, in the same scenes. All arms have the same steps, batches and initial weights.

Stages are bounded as those of other tasks are that are marked (`--like`, stores of `robo-reward record`, of
which that of the task itself is left out; the number of stages is chosen). Of its own task the reward model
knows what a dataset says: pictures, states, and when each episode succeeded. `--stages oracle` trains it on
the simulator's stages of all frames, those of failures included, instead.

Everything is kept in `--out`: started again, it goes on where it was. Prints what weight each kind of
demonstration got, success with 95 % Wilson intervals by training seed and over all of them, differences
with their intervals over scenes (each the mean of the training seeds), and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from robo_reward.improve.report import wilson
from robo_reward.metrics import paired_difference
from robo_reward.schema import Outcome
from robo_reward_data.store import EpisodeStore

ARMS = ("plain", "successes", "weighted")
MIXES = {
    "mixed": "{expert: 5, suboptimal: 2, near_miss: 5, wrong_task: 5, random_tail: 3}",
    "poor": "{expert: 3, noisy: 1, suboptimal: 1, random_tail: 5, astray: 5, empty_handed: 5}",
}
UNSEEN = 1_000_000  # seed of the first scene that policies are judged in
POLICY = {
    "type": "weighted_act",  # LeRobot's ACT: without weights its loss is ACT's own
    "device": "cpu",
    "push_to_hub": "false",
    "pretrained_backbone_weights": "null",
    "conv_channels": "[24,32,64,128]",
    "dim_model": 128,
    "n_heads": 4,
    "dim_feedforward": 256,
    "n_encoder_layers": 2,
    "use_vae": "false",
    "optimizer_lr": 3e-4,
    "optimizer_lr_backbone": 3e-4,
}
# `lerobot-train` as it is, but each frame is read once: decoding the same images again and again took two
# thirds of the time of a step.
TRAIN = """
import functools
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.scripts import lerobot_train

LeRobotDataset.__getitem__ = functools.cache(LeRobotDataset.__getitem__)
lerobot_train.main()
"""


@dataclass(frozen=True)
class Road:
    """One task on its way, in a folder of its own."""

    folder: Path
    env: str
    options: argparse.Namespace

    def prepare(self) -> None:
        """Demonstrations, reward model, dataset, labels."""
        at, asked = self.folder, self.options
        command(
            *("record", f"env={self.env}", f"out={at / 'store'}", f"episodes={asked.episodes}"),
            *(f"mix={MIXES[asked.mix]}", f"image_size=[{asked.image},{asked.image}]"),
            *("cameras=[left,right]", "workers=1"),
        )
        if not (at / "dataset").exists():
            command("to_lerobot", f"data={at / 'store'}", f"out={at / 'dataset'}")
        data = at / "store" if asked.stages == "oracle" else self._with_found_stages()
        command(
            *("train", f"data={data}", f"out={at / 'model'}", f"steps={asked.reward_steps}"),
            *("minutes=null", "augment=sim", "threads=1"),
        )
        command(
            *("label", f"model={at / 'model'}", f"dataset={at / 'dataset'}", "threads=1"),
            *(f"rabc.chunk={asked.chunk}", f"rabc.kappa={asked.kappa}"),
        )

    def _with_found_stages(self) -> Path:
        """The dataset as a store, whose successes have stages."""
        out, name = self.folder / "imported", self.env.removeprefix("robo_reward/").removesuffix("-v0")
        like = [str(path.absolute()) for path in self.options.like if not path.name.endswith(name)]
        command(
            *("import", "source=lerobot", f"path={self.folder / 'dataset'}", f"out={out}"),
            *("fps=null", "size=null"),
        )
        command("annotate", f"data={out}", f"like=[{','.join(like)}]", "hand=[0,1,2]", "overwrite=true")
        return out

    def clone(self, arm: str, seed: int) -> Path:
        """A policy of this arm."""
        out, asked = self.folder / f"{arm}_{seed}", self.options
        if (out / "checkpoints").exists():
            return out
        draft = out.with_name(f".{out.name}")
        shutil.rmtree(draft, ignore_errors=True)
        policy = {**POLICY, "chunk_size": asked.chunk, "n_action_steps": asked.action_steps}
        weighting = (
            ["type=rabc", "head_mode=robo_reward", f"kappa={asked.kappa}"] if arm == "weighted" else []
        )
        own = [f"--dataset.episodes={self._successes()}"] if arm == "successes" else []
        python(
            *("-c", TRAIN, "--dataset.repo_id=local/episodes", f"--output_dir={draft}"),
            f"--dataset.root={self.folder / 'dataset'}",
            "--ext.discover_packages_path=robo_reward_data.lerobot_plugin",
            *(f"--policy.{key}={value}" for key, value in policy.items()),
            *(f"--sample_weighting.{item}" for item in weighting),
            *own,
            *(f"--steps={asked.steps}", f"--batch_size={asked.batch}", f"--seed={seed}", "--num_workers=0"),
            f"--save_freq={asked.steps}",
        )
        draft.rename(out)
        return out

    def judge(self, arm: str, seed: int) -> list[bool]:
        """Success by scene."""
        out = self.folder / f"{arm}_{seed}_rollouts"
        command(
            *("run_policy", f"policy={self.clone(arm, seed)}", f"env={self.env}", f"out={out}"),
            *(f"episodes={self.options.rollouts}", f"seed={UNSEEN}", "threads=1"),
        )
        return [row["success"] for row in json.loads((out / "metrics.json").read_text())["rollouts"]]

    def _successes(self) -> list[int]:
        """Episodes of the dataset that succeeded: it has the store's order."""
        infos = [episode.info for episode in EpisodeStore.open(self.folder / "store").episodes]
        return [index for index, info in enumerate(infos) if info.outcome is Outcome.SUCCESS]

    def weights(self) -> dict[str, float]:
        """Mean weight of the frames of each kind of demonstration: the dataset has the store's order."""
        table = pq.read_table(
            self.folder / "dataset/sarm_progress.parquet", columns=["episode_index", "rabc_weight"]
        )
        episode, weight = (table[name].to_numpy() for name in ("episode_index", "rabc_weight"))
        kinds = np.array([item.info.kind for item in EpisodeStore.open(self.folder / "store").episodes])
        return {kind: float(np.nanmean(weight[kinds[episode] == kind])) for kind in sorted(set(kinds))}


def command(*arguments: str) -> None:
    """Run `robo-reward` with these."""
    python("-m", "robo_reward.cli.main", *arguments)


def python(*arguments: str) -> None:
    """Run Python on one thread; what it prints goes to stderr, and an error ends the measurement."""
    sys.stderr.write(f"== {' '.join(arguments)}\n")
    subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=sys.stderr,
        check=True,
    )


def claim(out: Path, asked: dict[str, str]) -> None:
    """Keep what the results in `out` depend on beside them; another measurement needs another folder."""
    path = out / "options.json"
    if path.exists() and (found := json.loads(path.read_text())) != asked:
        key = next(key for key in asked if found.get(key) != asked[key])
        raise SystemExit(
            f"{out} was measured with {key}={found.get(key)}, not {asked[key]}: choose another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asked))


def summary(name: str, road: Road, found: dict[str, list[list[bool]]]) -> dict[str, Any]:
    """Numbers of a task whose arms have success by training seed and scene."""
    means = {arm: np.array(rows, np.float64).mean(axis=0) for arm, rows in found.items()}
    gains = {
        arm: paired_difference(means["weighted"], means[arm], np.random.default_rng(0))
        for arm in ("plain", "successes")
    }
    return {
        "task": name,
        "weights": road.weights(),
        "success": {
            arm: {
                "by_seed": [rate(row) for row in rows],
                "all": rate([success for row in rows for success in row]),
            }
            for arm, rows in found.items()
        },
        "gain over": {arm: gain.to_json() for arm, gain in gains.items()},
    }


def rate(success: Sequence[bool]) -> dict[str, float]:
    """A success rate with its Wilson interval."""
    low, high = wilson(sum(success), len(success))
    return {"value": sum(success) / len(success), "low": low, "high": high, "n": len(success)}


def shown(value: dict[str, float]) -> str:
    """A number with its interval."""
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def print_table(row: dict[str, Any], seeds: Sequence[int]) -> None:
    """A task."""
    weights = ", ".join(f"{kind} {weight:.2f}" for kind, weight in row["weights"].items())
    sys.stdout.write(f"{row['task']}: mean weight of a frame by kind: {weights}\n")
    sys.stdout.write(
        f"  {'arm':<10}{'all seeds':<24}" + "".join(f"{f'seed {seed}':<24}" for seed in seeds) + "\n"
    )
    for arm in ARMS:
        said = row["success"][arm]
        sys.stdout.write(f"  {arm:<10}" + "".join(f"{shown(v):<24}" for v in (said["all"], *said["by_seed"])))
        sys.stdout.write("\n")
    for arm, gain in row["gain over"].items():
        sys.stdout.write(f"  weighted - {arm}, over {gain['n']} scenes: {shown(gain)}\n")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench_lerobot"))
    parser.add_argument("--tasks", nargs="+", default=["ButtonPress"], help="robo_reward/<task>-v0")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of training a policy")
    parser.add_argument("--stages", choices=["found", "oracle"], default="found")
    parser.add_argument("--like", nargs="*", type=Path, default=[], help="marked stores, named <any>_<task>")
    parser.add_argument("--mix", choices=[*MIXES], default="mixed", help="shares of demonstrators")
    parser.add_argument("--episodes", type=int, default=100, help="demonstrations")
    parser.add_argument("--image", type=int, default=64, help="height and width of both cameras, in pixels")
    parser.add_argument("--reward-steps", type=int, default=400, help="of training the reward model")
    parser.add_argument("--chunk", type=int, default=8, help="actions that the policy predicts")
    parser.add_argument("--action-steps", type=int, default=4, help="of which it carries out so many")
    parser.add_argument("--kappa", type=float, default=0.05, help="progress of a chunk with full weight")
    parser.add_argument("--steps", type=int, default=1500, help="of training a policy")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rollouts", type=int, default=40, help="of each policy, in unseen scenes")
    options = parser.parse_args()
    if options.stages == "found" and not options.like:
        raise SystemExit("--like: name stores of other tasks, or say --stages oracle")
    free = ("out", "tasks", "seeds", "rollouts")  # more of these may be asked for later
    asked = {key: str(value) for key, value in vars(options).items() if key not in free}
    claim(options.out, {**asked, "kinds": MIXES[options.mix], "policy": str(POLICY)})
    rows: list[dict[str, Any]] = []
    for name in options.tasks:
        road = Road(options.out.absolute() / name, f"robo_reward/{name}-v0", options)
        road.prepare()
        found: dict[str, list[list[bool]]] = {arm: [] for arm in ARMS}
        for seed in options.seeds:  # all arms of a seed first: what is there of a cut run can be compared
            for arm in ARMS:
                found[arm].append(road.judge(arm, seed))
        rows.append(summary(name, road, found))
        print_table(rows[-1], options.seeds)
    sys.stdout.write(json.dumps({"bench": "lerobot", **asked, "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
