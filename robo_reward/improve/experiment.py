"""`robo-reward improve +experiment=one_demo`: tasks by arms by seeds, from one demonstration each.

Every cell is a run of `improve` in a folder of its own, so an experiment that is killed goes on where it was.
Arms of one seed share the demonstration, the reward model, the first policy and the evaluation episodes: they
are paired.
"""

from __future__ import annotations

import dataclasses
import json
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from robo_reward.adapt import AdaptConfig
from robo_reward.adapt import run as adapt
from robo_reward.checkpoint import load_checkpoint, write_atomic
from robo_reward.errors import ConfigError, DataError, RoboRewardError
from robo_reward.evaluate.report import Chart, Curve, Report, TextTable, write_report
from robo_reward.imports import import_object, instantiate
from robo_reward.improve.config import ImproveConfig, ShapingConfig, check_config, observed_parts
from robo_reward.improve.demonstrations import choose_demonstrations
from robo_reward.improve.observer import FROM_MODEL
from robo_reward.improve.run import improve
from robo_reward.improve.summary import Cell, area_under, cell_of, paired, reached_at, t_interval
from robo_reward.train.config import device_options
from robo_reward.workers import worker_pool

__all__ = ["ExperimentConfig", "run", "summarize"]

_LEVELS = (0.8, 0.95)
_REFERENCE = "sparse"


@dataclass(frozen=True)
class ExperimentConfig(ImproveConfig):
    """See `configs/experiment/one_demo.yaml`; the other keys are those of `improve`, for every cell."""

    tasks: dict[str, Any] = field(default_factory=dict)
    task_names: tuple[str, ...] | None = None
    arms: dict[str, Any] = field(default_factory=dict)
    arm_names: tuple[str, ...] = ()
    arm_tasks: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    stores: dict[str, str] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    recorder: str = ""
    miss_recorder: str = ""
    base_model: str | None = None
    models: dict[str, str] = field(default_factory=dict)
    adapt_minutes: float = 3.0
    adapt_steps: int | None = None
    older: Any = None
    misses: dict[str, Any] = field(default_factory=dict)
    jobs: int = 1


@dataclass(frozen=True)
class _Failed:
    """A cell that did not finish, and why."""

    name: str
    error: Exception

    @property
    def why(self) -> str:
        """In a line."""
        return f"{self.name}: {self.error if isinstance(self.error, RoboRewardError) else repr(self.error)}"


def run(config: ExperimentConfig) -> None:
    """Run every cell that is not there yet, then write `results.json` and `report.html`.

    A cell that fails stops no other one.

    Raises:
        RoboRewardError: cells that failed, by name; the results of the others are written.
    """
    from rich.console import Console

    console = Console(stderr=True)
    _check(config)
    cells: list[Cell] = []
    failed: list[_Failed] = []
    total = len(config.seeds) * sum(len(arms_of(config, task)) for task in chosen_tasks(config))
    for done, (task, found) in enumerate(_run_cells(_plan(config), config.jobs), 1):
        if isinstance(found, _Failed):
            failed.append(found)
            console.print(f"[{done}/{total}] failed: {_traced(found)}", markup=False)
        else:
            cells.append(cell_of(task, found))
            last = cells[-1]
            console.print(
                f"[{done}/{total}] {task}, {last.arm}, seed {last.seed}: success "
                f"{last.success[-1]:.2f}, area {area_under(last.rollouts, last.success):.3f}",
                markup=False,
            )
        if cells:
            results = summarize(cells)
            write_atomic(Path(config.out) / "results.json", json.dumps(results, indent=1).encode())
            _report(config, cells, results, failed)
    report = Path(config.out) / "report.html"
    if failed:
        rest = f"the others are in {report}" if cells else "there is nothing to report"
        raise RoboRewardError(
            f"{len(failed)} of {total} cells failed, {rest} (the same command goes on with what is missing): "
            + "; ".join(cell.why for cell in failed)
        ) from failed[0].error
    console.print(f"report: {report}")


def _traced(cell: _Failed) -> str:
    """Why it failed, and where, unless the error is one that tells the user what to do."""
    if isinstance(cell.error, RoboRewardError):
        return cell.why
    return f"{cell.why}\n{''.join(traceback.format_exception(cell.error))}"


def _check(config: ExperimentConfig) -> None:
    if not config.tasks or not config.arm_names or not config.seeds:
        raise ConfigError("the experiment needs tasks={...}, arm_names=[...] and seeds=[...]")
    if unknown := [name for name in chosen_tasks(config) if name not in config.tasks]:
        raise ConfigError(f"no task '{unknown[0]}': choose from {', '.join(config.tasks)}")
    for key, named in (("stores", config.stores), ("models", config.models)):
        if unknown := [name for name in named if name not in config.tasks]:
            raise ConfigError(f"{key} has no task '{unknown[0]}': choose from {', '.join(config.tasks)}")
    if unknown := [name for name in config.arm_tasks if name not in config.arms]:
        raise ConfigError(f"arm_tasks has no arm '{unknown[0]}': choose from {', '.join(config.arms)}")
    if unknown := [name for name in config.arm_names if name not in config.arms]:
        raise ConfigError(f"no arm '{unknown[0]}': choose from {', '.join(config.arms)}")
    if len(set(config.seeds)) < len(config.seeds):
        raise ConfigError(f"seeds={list(config.seeds)}: each seed once")
    if not (config.evaluate_every and config.evaluate_episodes):
        raise ConfigError("an experiment is judged by its evaluations: evaluate_every and _episodes above 0")
    if (readers := _model_readers(config)) and config.base_model is None:
        for task in chosen_tasks(config):
            if task not in config.models:
                raise ConfigError(
                    f"{' and '.join(readers)} {'reads' if len(readers) == 1 else 'read'} a reward model for "
                    f"'{task}': give base_model=RUN (trained on other tasks, adapted here), or "
                    f"models.{task}=RUN"
                )
    if config.jobs < 1:
        raise ConfigError(f"jobs={config.jobs}: must be 1 or more")
    for arm in config.arm_names:  # now, not when its first cell begins
        check_config(_cell(config, "", "", "", None, arm, 0))


def chosen_tasks(config: ExperimentConfig) -> tuple[str, ...]:
    """The tasks to run."""
    return tuple(config.tasks) if config.task_names is None else config.task_names


def arms_of(config: ExperimentConfig, task: str) -> tuple[str, ...]:
    """The arms that run on a task."""
    return tuple(arm for arm in config.arm_names if task in config.arm_tasks.get(arm, (task,)))


def _plan(config: ExperimentConfig) -> Iterator[tuple[str, ImproveConfig]]:
    """Every cell, one seed of all tasks after the other: what is there when time runs out is balanced.

    A reward model is made just before the first cell that reads it.
    """
    for seed in config.seeds:
        for task in chosen_tasks(config):
            env = config.tasks[task]
            store = _demonstrations(config, task, env)
            model = _model(config, task, store, seed)
            for arm in arms_of(config, task):
                yield task, _cell(config, task, env, store, model, arm, seed)


def _demonstrations(config: ExperimentConfig, task: str, env: Any) -> str:
    """The store of a task's demonstrations: the given one, or one recorded now."""
    if task in config.stores:
        return config.stores[task]
    out = Path(config.out) / "demonstrations" / task
    target = import_object(str(config.record["_target_"]))
    options = {key: value for key, value in config.record.items() if key != "_target_"}
    episodes = max(config.seeds) + 1
    import_object(config.recorder)(target(out=out, env=env, episodes=episodes, **options))
    return str(out)


def _model_readers(config: ExperimentConfig) -> list[str]:
    """What reads the reward model, as a worker would find; nothing where none is needed."""
    found = [f"observe's '{name}'" for name in observed_parts(config) if name in FROM_MODEL]
    if _needs_model(config.success):
        found.append("the success source")
    for arm in config.arm_names:
        cell = _cell(config, "", "", "", None, arm, 0)
        if _needs_model(cell.shaping.progress):
            found.append(f"the progress of arm '{arm}'")
        if cell.intervention and _needs_model(cell.intervention):
            found.append(f"the intervention of arm '{arm}'")
    return found


def _needs_model(part: Mapping[str, Any]) -> bool:
    """Whether a component reads the reward model: by its class where that says so, so that none is made."""
    said = getattr(import_object(str(part.get("_target_", ""))), "needs_model", None)
    return said if isinstance(said, bool) else bool(instantiate(part).needs_model)


def _model(config: ExperimentConfig, task: str, store: str, seed: int) -> str | None:
    """The reward model of a task and seed: the given one, or `base_model` adapted from the one demonstration.

    Raises:
        DataError: the base model knows the task already: that is no adaptation from one demonstration.
    """
    # One that is given goes along unread, as it always did: a run would not know itself again without.
    if not _model_readers(config) and (config.privileged or task not in config.models):
        return None
    if task in config.models:
        return config.models[task].format(task=task, seed=seed)
    assert config.base_model is not None
    cell = dataclasses.replace(config, demos=store, demonstrations=1, demo_offset=seed)
    (reader,) = choose_demonstrations(cell)
    known = load_checkpoint(config.base_model).model.config.task_of(reader.info.instruction)
    if known is not None:
        raise DataError(
            f"base_model={config.base_model} was trained on '{reader.info.instruction}' already: train one "
            "on other tasks alone"
        )
    one = {
        "_target_": "robo_reward.improve.experiment.one_episode",
        "reader": str(config.reader["_target_"]),
        "name": reader.info.name,
    }
    misses = _misses(config, task, store, seed, one)
    out = Path(config.out) / "models" / task / f"seed_{seed}"
    adapt(
        AdaptConfig(
            model=config.base_model,
            demos=store,
            out=str(out),
            minutes=None if config.adapt_steps else config.adapt_minutes,
            steps=config.adapt_steps,
            seed=seed,
            reader=one,
            older=config.older,
            older_reader=dict(config.reader),
            misses=misses,
            **(device_options(config.device) if config.device != "cpu" else {}),
        )
    )
    return str(out)


def _misses(config: ExperimentConfig, task: str, store: str, seed: int, one: Mapping[str, Any]) -> str | None:
    """A store of the one demonstration played back beside the objects, where that is asked for."""
    if not config.misses.get("episodes"):
        return None
    out = Path(config.out) / "misses" / task / f"seed_{seed}"
    make = import_object(config.miss_recorder)
    target = import_object(str(config.misses["_target_"]))
    options = {key: value for key, value in config.misses.items() if key != "_target_"}
    own: dict[str, Any] = {
        "env": config.tasks[task],
        "demos": store,
        "out": str(out),
        "seed": seed,
        "reader": dict(one),
    }
    if config.step_s is not None:
        own["step_s"] = config.step_s
    make(target(**own, env_args=config.env_args, **options))
    return str(out)


class _OneEpisode:
    """A source of a single episode of another source."""

    def __init__(self, source: Any, name: str) -> None:
        self.episodes = [episode for episode in source.episodes if episode.info.name == name]
        self.fingerprint = "+".join(episode.info.uid for episode in self.episodes)


def one_episode(path: Path, reader: str, name: str) -> _OneEpisode:
    """A source with the episode `name` of the store at `path`, opened by the import path `reader`."""
    return _OneEpisode(import_object(reader)(path), name)


def _cell(
    config: ExperimentConfig, task: str, env: Any, store: str, model: str | None, arm: str, seed: int
) -> ImproveConfig:
    chosen = config.arms[arm]
    own = {f.name: getattr(config, f.name) for f in dataclasses.fields(ImproveConfig)}
    own |= {
        "env": env,
        "demos": store,
        "out": str(Path(config.out) / "runs" / task / arm / f"seed_{seed}"),
        "model": model,
        "arm_name": arm,
        "seed": seed,
        "demonstrations": 1,
        "demo_offset": seed,
        "shaping": ShapingConfig(**chosen["shaping"]),
        "savings": dataclasses.replace(config.savings, **chosen.get("savings", {})),
        "learner": dataclasses.replace(config.learner, **chosen.get("learner", {})),
        "intervention": chosen.get("intervention", config.intervention),
    }
    return ImproveConfig(**own)


def _run_cells(
    planned: Iterable[tuple[str, ImproveConfig]], jobs: int
) -> Iterator[tuple[str, dict[str, Any] | _Failed]]:
    """Each task with the numbers of a run in it, or with how that failed.

    Raises:
        Exception: whatever kept a later cell from being planned, once those before it are told.
    """
    if jobs == 1:
        for task, config in planned:
            yield task, _outcome(task, config, lambda config=config: improve(config))
        return
    broken: Exception | None = None
    runs: deque[tuple[str, ImproveConfig, Future[dict[str, Any]]]] = deque()
    with worker_pool(jobs) as pool:
        try:
            for task, config in planned:
                # No more than there are processes: what waits in a pool begins even after an interruption.
                while len(busy := [future for _, _, future in runs if not future.done()]) >= jobs:
                    wait(busy, return_when=FIRST_COMPLETED)
                while runs and runs[0][2].done():
                    first, cell, future = runs.popleft()
                    yield first, _outcome(first, cell, future.result)
                runs.append((task, config, pool.submit(improve, config)))
        except Exception as error:  # of recordings and reward models, which are made while cells run
            broken = error
        for task, config, future in runs:
            yield task, _outcome(task, config, future.result)
    if broken is not None:
        raise broken


def _outcome(
    task: str, config: ImproveConfig, result: Callable[[], dict[str, Any]]
) -> dict[str, Any] | _Failed:
    """The numbers of a cell, or how it failed: whatever that is, the other cells go on."""
    try:
        return result()
    except Exception as error:
        return _Failed(f"{task}, {config.arm_name}, seed {config.seed}", error)


# --- results -------------------------------------------------------------------------------------------


def summarize(cells: Sequence[Cell]) -> dict[str, Any]:
    """What is reported, by task and arm: means over seeds with 95 % intervals, and paired differences.

    A level that a run never reached has no time: `reached` counts the runs that did; the mean is theirs.
    """
    found: dict[str, Any] = {}
    for (task, arm), members in _groups(cells).items():
        reference = _groups(cells).get((task, _REFERENCE), [])
        entry: dict[str, Any] = {
            "seeds": [cell.seed for cell in members],
            "area": t_interval([area_under(c.rollouts, c.success) for c in members]).to_json(),
            "final_success": t_interval([float(c.success[-1]) for c in members]).to_json(),
            "wall_minutes": t_interval([c.wall_seconds / 60 for c in members]).to_json(),
            "person_seconds": [round(float(60 * c.person[-1]), 1) for c in members],
            "area_minus_sparse": paired(members, reference).to_json() if arm != _REFERENCE else None,
            "curve": {
                "rollouts": members[0].rollouts.tolist(),
                "success": [cell.success.tolist() for cell in members],
            },
        }
        for level in _LEVELS:
            rollouts = [reached_at(c.rollouts, c.success, level) for c in members]
            minutes = [reached_at(c.minutes, c.success, level) for c in members]
            entry[f"to_{round(100 * level)}"] = {
                "reached": int(np.isfinite(rollouts).sum()),
                "runs": len(members),
                "rollouts": t_interval(rollouts).to_json(),
                "minutes": t_interval(minutes).to_json(),
            }
        found.setdefault(task, {})[arm] = entry
    return found


def _groups(cells: Sequence[Cell]) -> dict[tuple[str, str], list[Cell]]:
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.task, cell.arm), []).append(cell)
    return groups


def _report(
    config: ExperimentConfig, cells: Sequence[Cell], results: Mapping[str, Any], failed: Sequence[_Failed]
) -> None:
    charts = tuple(_chart(task, cells) for task in results)
    notes = ["intervals are Student's, over seeds; differences are paired by seed"]
    if config.privileged:
        notes.insert(0, "PRIVILEGED: the policy sees the simulator's own state, which no robot has")
    if "oracle" in config.arm_names:
        notes.append("oracle: the simulator's true progress as potential, an upper bound and not a method")
    notes += [f"failed, and in no number here: {cell.why}" for cell in failed]
    report = Report(
        title="Improvement from one demonstration",
        facts={
            "tasks": ", ".join(chosen_tasks(config)),
            "arms": ", ".join(config.arm_names),
            "seeds": ", ".join(str(seed) for seed in config.seeds),
            "rollouts": str(config.rollouts),
            "policy sees": ", ".join(config.privileged_parts if config.privileged else config.observe),
            "evaluation": f"{config.evaluate_episodes} episodes every {config.evaluate_every} rollouts",
        },
        metrics={},
        dropout={},
        by_kind={},
        calibration=None,
        episodes=(),
        notes=tuple(notes),
        charts=charts,
        tables=tuple(_table(task, arms) for task, arms in results.items()),
    )
    write_report(report, Path(config.out) / "report.html")


def _chart(task: str, cells: Sequence[Cell]) -> Chart:
    curves: list[Curve] = []
    for (name, arm), members in _groups(cells).items():
        if name != task:
            continue
        stacked = np.stack([cell.success for cell in members])
        bands = [t_interval(column.tolist()) for column in stacked.T]
        curves.append(
            Curve(
                f"{arm} ({len(members)} seeds)",
                members[0].rollouts,
                stacked.mean(axis=0),
                np.clip([band.low for band in bands], 0, 1),
                np.clip([band.high for band in bands], 0, 1),
            )
        )
    return Chart(task, "Bands: 95 % intervals over seeds.", "rollouts", "share of successes", tuple(curves))


def _table(task: str, arms: Mapping[str, Any]) -> TextTable:
    columns = (
        "arm",
        "area under the curve",
        "minus sparse",
        "success at the end",
        *(f"{what} to {round(100 * level)} %" for level in _LEVELS for what in ("rollouts", "minutes")),
        "seconds by a person",
        "wall-clock minutes",
    )
    rows = [
        (
            arm,
            _shown(entry["area"], 3),
            _shown(entry["area_minus_sparse"], 3),
            _shown(entry["final_success"], 2),
            *(
                f"{_shown(entry[key][what], 1)} ({entry[key]['reached']} of {entry[key]['runs']})"
                for key in (f"to_{round(100 * level)}" for level in _LEVELS)
                for what in ("rollouts", "minutes")
            ),
            f"{np.mean(entry['person_seconds']):.0f}",
            _shown(entry["wall_minutes"], 1),
        )
        for arm, entry in arms.items()
    ]
    text = "Means over seeds and 95 % intervals; in brackets, how many runs reached the level."
    return TextTable(task, text, columns, tuple(rows))


def _shown(metric: Mapping[str, Any] | None, digits: int) -> str:
    if metric is None or metric["value"] is None:
        return "–"
    value = f"{metric['value']:.{digits}f}"
    if metric["low"] is None:
        return value
    return f"{value} [{metric['low']:.{digits}f}, {metric['high']:.{digits}f}]"
