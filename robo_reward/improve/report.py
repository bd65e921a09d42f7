"""The report of an improvement run: learning curves, where the reward was wrong, rollouts as they were."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from robo_reward.evaluate.report import Chart, Curve, Report, ReportEpisode, TextTable, write_report
from robo_reward.improve.rollouts import Rollout, load_rollout

__all__ = ["outcome_curve", "wilson", "write_improve_report"]

_WINDOW = 20


def wilson(successes: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a success rate (Wilson 1927)."""
    if count == 0:
        return 0.0, 1.0
    rate = successes / count
    center = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    return float(max(center - half, 0.0)), float(min(center + half, 1.0))


def outcome_curve(success: Sequence[bool], window: int = _WINDOW) -> Float64[np.ndarray, " n"]:
    """Success rate of the last `window` rollouts, or of all there are so far, after each of them."""
    done = np.asarray(success, np.float64)
    total = np.concatenate([[0.0], np.cumsum(done)])
    after = np.arange(1, len(done) + 1)
    before = np.maximum(after - window, 0)
    return (total[after] - total[before]) / (after - before)


def write_improve_report(folder: Path, path: Path) -> None:
    """Write the report of the finished run in `folder`."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    rollouts = [_without_maps(load_rollout(file)) for file in sorted((folder / "rollouts").glob("*.npz"))]
    filed = sorted((folder / "evaluations").glob("*.npz"))
    evaluations = {file.stem: _without_maps(load_rollout(file)) for file in filed}
    filmed = [(f"rollout {r.source['index']:04d}", "with exploration", r) for r in rollouts if r.images]
    filmed += [(_title(name), _when(name), r) for name, r in evaluations.items()]
    report = Report(
        title=f"Improvement: {metrics['arm']}, seed {metrics['seed']}",
        facts=_facts(metrics),
        metrics={},
        dropout={},
        by_kind={},
        calibration=None,
        episodes=tuple(_episode(name, kind, rollout) for name, kind, rollout in filmed),
        notes=_notes(metrics),
        charts=_charts(metrics),
        tables=(_wrong(rollouts),) if any(np.isfinite(r.progress).any() for r in rollouts) else (),
    )
    write_report(report, path)


def _without_maps(rollout: Rollout) -> Rollout:
    """A rollout as far as it is shown: maps of all of them, and of all looks, are gigabytes."""
    said = {name: part for name, part in rollout.parts.items() if name == "estimate"}
    return dataclasses.replace(rollout, parts=said, looks=())


def _title(name: str) -> str:
    _, rollouts, index = name.split("_")
    return f"after {int(rollouts)} rollouts, episode {int(index)}"


def _when(name: str) -> str:
    return "before" if int(name.split("_")[1]) == 0 else "after"


def _facts(metrics: Mapping[str, Any]) -> dict[str, str]:
    return {
        "arm": str(metrics["arm"]),
        "seed": str(metrics["seed"]),
        "policy sees": ", ".join(metrics["observe"]),
        "success from": str(metrics["success_source"]).rpartition(".")[2],
        "reward model": str(metrics["model_version"] or "none"),
        "rollouts": str(metrics["rollouts"]),
        "robot time": f"{metrics['robot_minutes']:.1f} min",
        "wall-clock time": f"{metrics['wall_seconds'] / 60:.1f} min",
        "updates": str(metrics["updates"]),
    }


def _notes(metrics: Mapping[str, Any]) -> tuple[str, ...]:
    notes: list[str] = []
    if metrics["privileged"]:
        notes.append("PRIVILEGED: the policy sees the simulator's own state, which no robot has")
    if metrics["arm"] == "oracle":
        notes.append("the potential is the simulator's true progress: an upper bound, not a method")
    if any(metrics["rollout_aborted"]):
        notes.append(f"{sum(metrics['rollout_aborted'])} rollouts were given up early and count as failures")
    if any(metrics["rollout_started_after"]):
        count = sum(n > 0 for n in metrics["rollout_started_after"])
        notes.append(
            f"{count} rollouts started at a promising moment of an earlier one, not at the beginning"
        )
    if helped := [count for count in metrics["rollout_intervened_decisions"] if count]:
        total = sum(metrics["rollout_decisions"])
        notes.append(f"a person took over in {len(helped)} rollouts, for {sum(helped)} of {total} decisions")
    if metrics["policy_success"]:
        success = metrics["policy_success"]
        low, high = wilson(sum(success), len(success))
        notes.append(
            f"left is the policy after {metrics['policy_after']} rollouts, whose evaluation was the best; "
            f"in other scenes it succeeds in {np.mean(success):.2f} [{low:.2f}, {high:.2f}] of {len(success)}"
        )
    return tuple(notes)


def _charts(metrics: Mapping[str, Any]) -> tuple[Chart, ...]:
    minutes = np.cumsum(metrics["rollout_seconds"]) / 60
    helped = [count > 0 for count in metrics["rollout_intervened_decisions"]]
    alone = [done and not aid for done, aid in zip(metrics["rollout_success"], helped, strict=True)]
    rate = outcome_curve(alone)
    count = np.arange(1, len(rate) + 1, dtype=np.float64)
    title = f"rollouts, with exploration (last {_WINDOW})"
    curves = [Curve(title, count, rate)]
    if metrics["evaluations"]:
        after = np.array([rollouts for rollouts, _ in metrics["evaluations"]], np.float64)
        bands = np.array([wilson(sum(done), len(done)) for _, done in metrics["evaluations"]])
        judged = np.array([np.mean(done) for _, done in metrics["evaluations"]])
        curves.insert(0, Curve("evaluations, without noise", after, judged, bands[:, 0], bands[:, 1]))
    note = "Bands: 95 % intervals." + (" A success with help is none of the policy's." if any(helped) else "")
    charts = [
        Chart("Success over rollouts", note, "rollouts", "share of successes", tuple(curves)),
        Chart(
            "Success over robot time",
            "",
            "minutes of robot time",
            "share of successes",
            (Curve(title, minutes, rate),),
        ),
    ]
    if any(helped):
        calls = Curve(f"rollouts with help (last {_WINDOW})", count, outcome_curve(helped))
        charts.append(Chart("Calls for a person", "", "rollouts", "share of rollouts", (calls,)))
    return tuple(charts)


def _wrong(rollouts: Sequence[Rollout]) -> TextTable:
    """The rollouts in which the estimate said another thing than the outcome, the worst first."""
    rows: list[tuple[float, tuple[str, ...]]] = []
    for rollout in rollouts:
        known = rollout.progress[:-1][np.isfinite(rollout.progress[:-1])]
        if not len(known):
            continue
        best = float(known.max())
        wrong = 1.0 - best if rollout.succeeded else best
        error = np.abs(rollout.progress - rollout.truth)
        measured = float(np.nanmean(error)) if np.isfinite(error).any() else None
        row = (
            f"rollout {rollout.source.get('index', 0):04d}",
            "below" if rollout.images else "no images kept",
            "success" if rollout.succeeded else "aborted" if rollout.aborted else "failure",
            f"{best:.2f}",
            f"{float(np.nanmax(rollout.truth)):.2f}" if np.isfinite(rollout.truth).any() else "unknown",
            "unknown" if measured is None else f"{measured:.3f}",
        )
        rows.append((measured if measured is not None else wrong, row))
    rows.sort(key=lambda item: -item[0])
    return TextTable(
        "Where the reward was wrong",
        "The ten rollouts whose estimated progress is furthest from the truth (from the outcome, where no "
        "truth is known). Progress is the highest before the last moment.",
        ("rollout", "to be seen", "outcome", "highest estimate", "highest truth", "mean error"),
        tuple(row for _, row in rows[:10]),
    )


def _episode(name: str, kind: str, rollout: Rollout) -> ReportEpisode:
    count = len(rollout.stamp_ns)
    half = 1.645 * rollout.std
    valid = np.isfinite(rollout.progress)
    said = rollout.parts.get("estimate")
    error = np.abs(rollout.progress - rollout.truth)
    return ReportEpisode(
        name=name,
        kind=kind,
        outcome="success" if rollout.succeeded else "failure",
        instruction="",
        time_s=(rollout.stamp_ns - rollout.stamp_ns[0]) * 1e-9,
        progress=rollout.progress,
        low=np.clip(rollout.progress - half, 0, 1).astype(np.float32),
        high=np.clip(rollout.progress + half, 0, 1).astype(np.float32),
        stage=np.full(count, -1, np.int64) if said is None else said[:, 2:].argmax(axis=1).astype(np.int64),
        success_prob=np.full(count, np.nan, np.float32) if said is None else said[:, 1],
        valid=valid,
        reasons=tuple("" if good else "no estimate of this moment" for good in valid),
        stage_names=() if said is None else tuple(f"stage {i + 1}" for i in range(said.shape[1] - 2)),
        truth_progress=rollout.truth if np.isfinite(rollout.truth).any() else None,
        truth_stage=None,
        truth_stage_names=(),
        truth_success=rollout.success,
        seen=None,
        mae=float(np.nanmean(error)) if np.isfinite(error).any() else None,
        views={camera: tuple(frames) for camera, frames in rollout.images.items()},
    )
