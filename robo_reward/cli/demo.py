"""`robo-reward demo`: the main job from nothing, one step after the other, each of them resumable."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from robo_reward.api import RewardModel, load
from robo_reward.cli.main import run_command
from robo_reward.imports import import_object
from robo_reward.schema import LiveMoment

__all__ = ["DemoConfig", "run", "stream_live"]


@dataclass(frozen=True)
class DemoConfig:
    """See `configs/demo.yaml` for what each key means."""

    out: str = "runs/demo"
    env: str = "robo_reward/PegInsertSide-v0"
    train_episodes: int = 200
    test_episodes: int = 60
    train_seed: int = 0
    test_seed: int = 1_000_000
    minutes: float = 6.0
    steps: int | None = None
    live: str = "robo_reward_sim.live.live_episode"
    live_kind: str = "fail_retry"


Live = Callable[[str, str, int], Iterator[LiveMoment]]
"""(environment id, kind of demonstrator, seed) to the moments of one episode."""


def run(config: DemoConfig) -> None:
    """Record, train, evaluate on unseen seeds, stream one more episode, say where the report is."""
    console, begin = Console(stderr=True), time.monotonic()
    root = Path(config.out)

    def step(text: str) -> None:
        console.print(f"[bold]\\[{time.monotonic() - begin:4.0f} s][/bold] {text}")

    step(
        f"1/4 record {config.train_episodes} + {config.test_episodes} episodes of {config.env}, good and bad"
    )
    sets = {
        "train": (config.train_episodes, config.train_seed),
        "test": (config.test_episodes, config.test_seed),
    }
    for name, (episodes, seed) in sets.items():
        run_command(
            "record", [f"env={config.env}", f"out={root / name}", f"episodes={episodes}", f"seed={seed}"]
        )
    budget = f"minutes={config.minutes}" if config.steps is None else f"steps={config.steps}"
    step(f"2/4 train a model from scratch ({budget})")
    run_command("train", [f"data={root / 'train'}", f"out={root / 'model'}", "augment=sim", budget])
    step("3/4 evaluate on the unseen seeds, failures included")
    places = [f"model={root / 'model'}", f"data={root / 'test'}", f"out={root / 'evaluation'}"]
    run_command("evaluate", [*places, "overwrite=true"])
    step(f"4/4 stream one more unseen episode live: the robot fails and tries again ({config.live_kind})")
    stream_live(load(root / "model"), config, console)
    metrics = json.loads((root / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    console.print(_summary(metrics))
    step(f"done. The report: {(root / 'evaluation' / 'report.html').resolve()}")


def stream_live(model: RewardModel, config: DemoConfig, console: Console) -> None:
    """Run an episode and print what the model says at each decision, beside the truth it does not see."""
    episode: Live = import_object(config.live)
    stream = model.stream()
    names = model.stage_names(model.instructions[0])
    spent: list[float] = []
    for moment in episode(config.env, config.live_kind, config.test_seed + 999):
        begin = time.perf_counter()
        estimate = stream.push(moment.images, stamp_ns=moment.stamp_ns)
        spent.append(1e3 * (time.perf_counter() - begin))
        if not estimate.valid:
            console.print(f"{moment.stamp_ns * 1e-9:5.2f} s  no estimate: {estimate.reason}", markup=False)
            continue
        bar = "█" * round(30 * estimate.progress)
        low, high = estimate.interval
        console.print(
            f"{moment.stamp_ns * 1e-9:5.2f} s  {bar:<30} {estimate.progress:.2f} [{low:.2f}, {high:.2f}]  "
            f"true {moment.true_progress:.2f}  {names[estimate.stage]:<8} "
            f"success {estimate.success_prob:.2f}",
            highlight=False,
            markup=False,
        )
    console.print(f"one decision, all cameras: median {np.median(spent):.1f} ms")


def _summary(metrics: Mapping[str, Any]) -> str:
    shown = ("progress_mae", "voc_mean", "stage_accuracy", "success_f1", "coverage_90")
    parts = [f"{name} {metrics[name]['value']:.3f}" for name in shown if metrics[name]["value"] is not None]
    return "unseen seeds: " + ", ".join(parts)
