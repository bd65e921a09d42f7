"""Is a model trained on found stages as good as one trained on the simulator's?

Run with: python tests/bench/bench_found_stages.py --train STORE [...] --test STORE [...] --out DIR
(a test store for each training store, of other seeds). Of each training store the successes that pass every
stage once and in order are kept, without the simulator's truth, and given stages in five ways: the oracle's
boundaries, those that follow one or three marked demonstrations (`annotate mode=spread`), automatic ones
(`mode=auto` with the number of stages given), and automatic ones that end as the stages of `--like` do,
stores of other tasks with the oracle's (`annotate like=`). A model is trained on each and judged against the
simulator's truth on the successes of the test store. Prints one JSON object for each task; goes on where it
was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robo_reward.cli.main import run_command
from robo_reward_data.annotate.auto import StageSettings, find_stages
from robo_reward_data.annotate.like import find_stages_like, marked_demonstrations
from robo_reward_data.annotate.spread import spread_marks
from robo_reward_data.store import EpisodeStore, StoredEpisode

Boundaries = dict[str, np.ndarray]


def whole(store: Path) -> list[StoredEpisode]:
    """Successes that pass every stage once, in order."""
    found = [e for e in EpisodeStore.open(store).episodes if e.info.boundaries is not None]
    return [episode for episode in found if episode.info.outcome == "success"]


def copy(episodes: Sequence[StoredEpisode], out: Path, boundaries: Boundaries | None) -> Path:
    """Episodes with these boundaries and no truth, or, with None, as they are."""
    store = EpisodeStore.create(out, {"bench": "found stages"}, exist_ok=True)
    for episode in episodes:
        if episode.name in store:
            continue
        info = episode.info
        if boundaries is not None:
            info = dataclasses.replace(info, truth=None, boundaries=boundaries.get(episode.name))
        with store.draft(info.name) as draft:
            for camera in info.cameras:
                writer = draft.camera(camera, info.length, info.image_sizes[camera])
                writer.extend(episode.read_frames(camera, np.arange(info.length)))
            draft.commit(info, episode.read_proprio(), episode.read_actions())
    return out


def oracle(episodes: list[StoredEpisode], seed: int) -> Boundaries:
    return {e.name: e.info.boundaries for e in episodes if e.info.boundaries is not None}


def followed(count: int) -> Callable[[list[StoredEpisode], int], Boundaries]:
    """Boundaries that follow those of `count` episodes, drawn by the seed, which keep the oracle's."""

    def find(episodes: list[StoredEpisode], seed: int) -> Boundaries:
        order = np.random.default_rng(seed).permutation(len(episodes))
        marked, others = ([episodes[i] for i in part] for part in (order[:count], order[count:]))
        found = spread_marks(marked, others)
        told = {e.name: b for e, b in zip(others, found.boundaries, strict=True) if b is not None}
        return oracle(marked, seed) | told

    return find


def automatic(episodes: list[StoredEpisode], seed: int) -> Boundaries:
    found = find_stages(episodes, StageSettings(stages=len(episodes[0].info.stage_names), seed=seed))
    return {e.name: b for e, b in zip(episodes, found.boundaries, strict=True) if b is not None}


def like(others: Sequence[Path]) -> Callable[[list[StoredEpisode], int], Boundaries]:
    """Boundaries that end as the stages of other tasks do, learned from their stores."""

    def find(episodes: list[StoredEpisode], seed: int) -> Boundaries:
        marked = [r for path in others for r in marked_demonstrations(EpisodeStore.open(path).episodes)]
        settings = StageSettings(stages=len(episodes[0].info.stage_names), seed=seed)
        found = find_stages_like(episodes, marked, (0, 1, 2), settings)
        return {e.name: b for e, b in zip(episodes, found.boundaries, strict=True) if b is not None}

    return find


WAYS = {"oracle": oracle, "spread_1": followed(1), "spread_3": followed(3), "auto": automatic}


def measure(train: Path, test: Path, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Progress error of the models, by how their stages were had."""
    episodes = whole(train)
    judged = copy(whole(test), out / "test", None)
    ways = {**WAYS, "like": like([path for path in options.like if path.resolve() != train.resolve()])}
    row: dict[str, Any] = {"task": train.name, "train_episodes": len(episodes)}
    for name in options.ways:
        for seed in options.seeds:
            folder = out / f"{name}_{seed}"
            store = copy(episodes, folder / "store", ways[name](episodes, seed))
            if not (folder / "evaluation" / "metrics.json").is_file():
                steps = [f"steps={options.steps}", f"seed={seed}", f"threads={options.threads}"]
                run_command("train", [f"data={store}", f"out={folder / 'model'}", "augment=sim", *steps])
                where = [f"data={judged}", f"model={folder / 'model'}", f"out={folder / 'evaluation'}"]
                run_command("evaluate", where)
            metrics = json.loads((folder / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
            for metric in ("progress_mae", "voc_mean", "stage_accuracy"):
                value = metrics["metrics"][metric] if "metrics" in metrics else metrics[metric]
                row.setdefault(f"{name} {metric}", []).append(round(value["value"], 4))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", nargs="+", type=Path, required=True)
    parser.add_argument("--test", nargs="+", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=[*WAYS, "like"])
    parser.add_argument(
        "--like", nargs="+", type=Path, default=[], help="stores of other tasks, for the way like"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    for train, test in zip(options.train, options.test, strict=True):
        row = measure(train, test, options.out / train.name, options)
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
