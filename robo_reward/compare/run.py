"""`robo-reward compare`: several reward models on the same episodes in one run."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from robo_reward.checkpoint import write_atomic
from robo_reward.compare.cost import Cost, measure_cost
from robo_reward.compare.judge import Judged, judge, load_judged, save_judged
from robo_reward.compare.method import Budget, CheckedMethod, Method, TrainingData
from robo_reward.compare.ours import Ours
from robo_reward.compare.report import write_comparison
from robo_reward.compare.results import episode_results, fit_calibration, truths
from robo_reward.compare.split import check_disjoint, hold_out
from robo_reward.compare.summary import (
    comparison_json,
    loss_notes,
    terminal_tables,
    validity_notes,
    write_predictions,
)
from robo_reward.compare.table import compare_methods
from robo_reward.compare.views import through
from robo_reward.errors import CheckpointError, ConfigError, DataError, RoboRewardError
from robo_reward.imports import instantiate
from robo_reward.labels import label_episode
from robo_reward.metrics import Metric
from robo_reward.model.config import TaskConfig
from robo_reward.schema import EpisodeReader
from robo_reward.sources import command_line, open_sources, spell_sources
from robo_reward.train.config import HoldoutConfig, OptimizerConfig, TrainConfig, WindowConfig, device_options
from robo_reward.train.vocabulary import make_tasks

__all__ = ["CompareConfig", "run"]

_FILES = {"metrics.json", "predictions.parquet", "report.html", "methods", "predictions", "costs"}


@dataclass(frozen=True)
class CompareConfig:
    """See `configs/compare.yaml` for what each key means."""

    train: Any
    test: Any
    out: str
    calibration: Any = None
    practice: Any = None
    practice_share: float = 0.1
    methods: dict[str, Any] = field(default_factory=dict)
    reference: str | None = None
    steps: int | None = None
    minutes: float | None = 5.0
    fitted: str | None = None
    seed: int = 0
    samples: int = 1000
    curves: int = 8
    costs: bool = True
    cost_frames: int = 60
    threads: int | None = None
    device: str = "cpu"
    overwrite: bool = False
    batch_size: int = 12
    other_weight: float = 0.1
    image_size: tuple[int, int] | None = None
    cameras: tuple[str, ...] | None = None
    stage_weights: str = "equal"
    cache_gb: float = 4.0
    precision: str = "auto"
    network: dict[str, Any] = field(default_factory=dict)
    timeline: dict[str, Any] = field(default_factory=dict)
    pixels: dict[str, Any] = field(default_factory=dict)
    windows: WindowConfig = field(default_factory=WindowConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    holdout: HoldoutConfig = field(default_factory=HoldoutConfig)
    reader: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot be compared.

        Raises:
            ConfigError: naming the key and what it may be.
        """
        if not self.methods:
            raise ConfigError("no method to compare: method=[ours,...]")
        if self.reference is not None and self.reference not in self.methods:
            raise ConfigError(
                f"reference='{self.reference}' is not among the methods: {', '.join(self.methods)}"
            )
        if self.steps is None and self.minutes is None:
            raise ConfigError("compare needs minutes=... or steps=... for the methods that train")
        if self.samples < 100:
            raise ConfigError(f"samples={self.samples}: an interval needs 100 resamples or more")
        for key, least in (("seed", 0), ("curves", 0), ("cost_frames", 1)):
            if getattr(self, key) < least:
                raise ConfigError(f"{key}={getattr(self, key)}: it is {least} or more")
        if self.holdout.test or not 0 < self.holdout.calibration < 1:
            raise ConfigError(
                f"holdout.calibration={self.holdout.calibration}, holdout.test={self.holdout.test}: "
                "a comparison keeps a share for calibration, and brings its test episodes as test=STORE"
            )

    @property
    def judged_against(self) -> str:
        """The method that all others are compared with."""
        if self.reference is not None:
            return self.reference
        return "ours" if "ours" in self.methods else next(iter(self.methods))


@dataclass(frozen=True)
class _Episodes:
    """The data of a comparison."""

    data: TrainingData
    test: tuple[EpisodeReader, ...]
    test_fingerprint: str
    blind: tuple[str, ...] = ()


def run(config: CompareConfig) -> None:
    """Fit, judge and measure every method; write `metrics.json`, `predictions.parquet` and `report.html`.

    Raises:
        CheckpointError: `out` holds something else.
        DataError: stores that overlap or cannot be used.
        RoboRewardError: methods that cannot be built or fitted, all of them named, before any is fitted.
    """
    import torch

    if config.threads:
        torch.set_num_threads(config.threads)
    console, errors = Console(), Console(stderr=True)
    methods = _for_each(config.methods, _build)
    episodes = _open(config)
    folder = Path(config.out)
    _check_folder(folder, config.overwrite)
    budget = Budget(config.steps, None if config.steps is not None else config.minutes)
    tasks = {
        text: task
        for task in make_tasks([r.info for r in episodes.data.train], config.stage_weights)
        for text in task.instructions
    }
    calibration_truth = truths(tasks, episodes.data.calibration)
    test_truth = truths(tasks, episodes.test)
    workdirs = _for_each(methods, lambda method: _workdir(config, method, episodes.data, budget))
    paths = {name: _judged_paths(config, name, episodes, folder, workdirs[name].name) for name in methods}
    unjudged = {name: method for name, method in methods.items() if not _are_whole(paths[name])}
    unfitted = {name: method for name, method in unjudged.items() if not _is_fitted(workdirs[name])}
    _for_each(unfitted, lambda method: _check(method, episodes, tasks))
    folder.mkdir(parents=True, exist_ok=True)
    results, judged, calibrations, costs = {}, {}, {}, {}
    seconds: dict[str, float] = {}
    for place, (name, method) in enumerate(methods.items(), 1):
        workdir = workdirs[name]
        errors.print(f"[bold]{place}/{len(methods)} {name}[/bold]: fit")
        with _named(name):
            seconds[name] = _fit(method, episodes, budget, config.seed, workdir)
            _check_held_out(method, episodes)
            kept = _judge_all(name, method, episodes, paths[name], config.seed, errors)
        calibrations[name] = fit_calibration(kept[0], episodes.data.calibration, calibration_truth)
        judged[name] = kept[1]
        results[name] = episode_results(kept[1], episodes.test, test_truth, calibrations[name])
        if config.costs:
            spec = config.methods[name]
            costs[name] = _costs(config, name, spec, episodes, budget, workdir, folder)
    errors.print(
        f"measure {len(results)} methods on {len(episodes.test)} episodes, {config.samples} bootstrap draws: "
        "minutes where they are many"
    )
    comparison = compare_methods(
        results, judged, calibrations, costs, config.judged_against, config.samples, config.seed
    )
    notes = _notes(episodes, methods) + validity_notes(comparison) + loss_notes(comparison)
    facts = _facts(config, episodes)
    write_predictions(folder / "predictions.parquet", comparison)
    write_comparison(
        comparison,
        facts,
        notes,
        config.curves,
        {n: m.causal for n, m in methods.items()},
        folder / "report.html",
    )
    body = comparison_json(comparison, facts, notes, seconds)
    write_atomic(folder / "metrics.json", json.dumps(body, indent=1).encode())
    for table in terminal_tables(comparison, console.width):
        console.print(table)
    for note in notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"report: {folder / 'report.html'}", markup=False)


# --- data ----------------------------------------------------------------------------------------------


def _open(config: CompareConfig) -> _Episodes:
    blind: list[str] = []
    train, fingerprint = _open_seen(config, "train", blind)
    test, test_fingerprint = _open_seen(config, "test", blind)
    parts = {"train": train, "test": test}
    calibration: tuple[EpisodeReader, ...] = ()
    if config.calibration is not None:
        own, mark = _open_seen(config, "calibration", blind)
        parts["calibration"], calibration, fingerprint = own, tuple(own), f"{fingerprint}/{mark}"
    practice: tuple[EpisodeReader, ...] = ()
    if config.practice is not None:
        own, mark = _open_seen(config, "practice", blind)
        parts["practice"], practice, fingerprint = own, tuple(own), f"{fingerprint}+{mark}"
    check_disjoint(parts)
    fitting: tuple[EpisodeReader, ...] = tuple(train)
    if config.calibration is None:
        fitting, calibration = hold_out(train, config.holdout, config.seed)
    _check_tasks(config, fitting, practice)
    return _Episodes(
        TrainingData(
            fitting, calibration, _options(config), config.calibration is None, fingerprint, practice
        ),
        tuple(test),
        test_fingerprint,
        tuple(blind),
    )


def _open_seen(config: CompareConfig, part: str, blind: list[str]) -> tuple[list[EpisodeReader], str]:
    """Episodes as `cameras` have seen them, for every method alike, and their fingerprint.

    What none of these saw is left out, and how much that is of which part is added to `blind`.

    Raises:
        DataError: none has any of the cameras.
    """
    stores = getattr(config, part)
    opened, mark = open_sources(config.reader, stores)
    if not config.cameras:
        return list(opened), mark
    seen = [through(r, config.cameras) for r in opened if set(r.info.cameras) & set(config.cameras)]
    if not seen:
        available = dict.fromkeys(camera for reader in opened for camera in reader.info.cameras)
        raise DataError(
            f"{spell_sources(stores)}: no episode has any of cameras={list(config.cameras)}: they have "
            f"{', '.join(available)}"
        )
    if missing := len(opened) - len(seen):
        blind.append(f"{missing} of {len(opened)} episodes of {part}")
    return seen, mark


def _check_tasks(
    config: CompareConfig, train: Sequence[EpisodeReader], practice: Sequence[EpisodeReader]
) -> None:
    """Refuse to practise what no method learns."""
    known = {
        t for task in make_tasks([r.info for r in train], config.stage_weights) for t in task.instructions
    }
    for reader in practice:
        if reader.info.instruction not in known:
            raise DataError(
                f"practice: {reader.info.name} is of a task of which train has no episode with stages "
                f"('{reader.info.instruction}'): leave it out, or add some to train"
            )


def _options(config: CompareConfig) -> TrainConfig:
    """What all methods that train share, as `robo-reward train` would be told it.

    Raises:
        ConfigError: a device that is none.
    """
    return TrainConfig(
        data=config.train,
        practice=config.practice,
        practice_share=config.practice_share,
        out=config.out,
        minutes=config.minutes,
        steps=config.steps,
        seed=config.seed,
        network=config.network,
        reader=config.reader,
        timeline=config.timeline,
        pixels=config.pixels,
        windows=config.windows,
        optimizer=config.optimizer,
        holdout=config.holdout,
        other_weight=config.other_weight,
        stage_weights=config.stage_weights,
        image_size=config.image_size,
        cameras=config.cameras,
        batch_size=config.batch_size,
        precision=config.precision,
        **device_options(config.device),
        threads=config.threads,
        cache_gb=config.cache_gb,
    )


def _check_folder(folder: Path, overwrite: bool) -> None:
    if folder.is_dir():
        present = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        if strangers := sorted(present - _FILES):
            raise CheckpointError(f"'{folder}' holds other files ({strangers[0]}): choose another out=")
        if "metrics.json" in present and not overwrite:
            raise CheckpointError(
                f"'{folder}' holds a comparison: overwrite=true measures again (what was fitted and "
                "predicted there is used), or choose another out="
            )


# --- methods -------------------------------------------------------------------------------------------


def _for_each[A, B](given: Mapping[str, A], do: Callable[[A], B]) -> dict[str, B]:
    """What `do` makes of every method; all that it refuses are refused at once, before anything is trained.

    Raises:
        RoboRewardError: of the first one's class, naming every method and what is wrong with it.
    """
    done: dict[str, B] = {}
    refused: dict[str, list[str]] = {}
    first: RoboRewardError | None = None
    for name, value in given.items():
        try:
            done[name] = do(value)
        except RoboRewardError as error:
            first = first or error
            refused.setdefault(str(error), []).append(f"'{name}'")
    if first is not None:
        said = "; ".join(f"method {', '.join(names)}: {problem}" for problem, names in refused.items())
        raise type(first)(f"{said} (nothing was trained; method=[...] chooses others)") from first
    return done


def _build(spec: Mapping[str, Any]) -> Method:
    method = instantiate(spec)
    if not isinstance(method, Method):
        raise ConfigError(f"a {type(method).__name__}, which lacks part of Method")
    return method


def _check(method: Method, episodes: _Episodes, tasks: Mapping[str, TaskConfig]) -> None:
    """Refuse now what the method would refuse once others have been trained."""
    if isinstance(method, CheckedMethod):
        method.check(episodes.data)
    if isinstance(method, Ours):
        _check_unseen(method, episodes)
        _check_scale(method, tasks)


def _is_fitted(workdir: Path) -> bool:
    """What was learned is there, and loaded: where a network's first weights came from may be gone by now."""
    return (workdir / "network.json").is_file() or (workdir / "run" / "model.json").is_file()


def _workdir(config: CompareConfig, method: Method, data: TrainingData, budget: Budget) -> Path:
    """Where a method keeps what it learned: named by all that it depends on, so that nothing is mixed up."""
    ignored = {"out", "data", "threads", "cache_gb", "loaders", "accelerator", "reader"}
    if not isinstance(method, Ours):
        # Others have negatives and weights of their own.
        ignored |= {"timeline", "other_weight"}
    options = {key: value for key, value in vars(data.options).items() if key not in ignored}
    options["devices"] = data.options.device_count  # which of them it is does not matter
    options["practice"] = None  # the fingerprint says which episodes they are, not where they lie
    if not data.options.tunes_backbone:
        # It changes nothing then, and what was fitted before there was such an option is found again.
        tuned = vars(data.options.optimizer)
        options["optimizer"] = {key: value for key, value in tuned.items() if key != "backbone_lr"}
    recipe = dict(method.recipe)
    depends: dict[str, Any] = {
        "recipe": recipe,
        "budget": [budget.steps, budget.minutes],
        "seed": config.seed,
        "data": data.fingerprint,
        "options": options,
    }
    held = [*data.train, *data.calibration]
    if data.options.cameras or any(label_episode(reader.info) is None for reader in held):
        # Which episodes are held out has changed once; the fingerprint says nothing of it.
        depends["calibration"] = sorted(reader.info.uid for reader in data.calibration)
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True, default=_plain).encode()).hexdigest()[:12]
    name = str(recipe.get("method", type(method).__name__))
    return Path(config.fitted or Path(config.out) / "methods") / f"{name}-{digest}"


def _plain(value: Any) -> Any:
    return vars(value)


@contextmanager
def _named(name: str) -> Generator[None]:
    """Whatever goes wrong in here is said of the method.

    Raises:
        RoboRewardError: a method that refuses, or fails as nobody expected.
    """
    way_out = "what was done for the others is kept; without it go on by leaving it out of method="
    try:
        yield
    except RoboRewardError as error:
        who = f"method '{name}'"
        said = str(error) if str(error).startswith(who) else f"{who}: {error}"
        raise type(error)(f"{said} ({way_out})") from error
    except OSError:  # a full disk, say, which has a message of its own
        raise
    except Exception as error:
        what = f"unexpected {type(error).__name__}: {error}"
        raise RoboRewardError(f"method '{name}': {what} ({way_out}; --debug shows where)") from error


def _fit(method: Method, episodes: _Episodes, budget: Budget, seed: int, workdir: Path) -> float:
    begin = time.monotonic()
    workdir.mkdir(parents=True, exist_ok=True)
    method.fit(episodes.data, budget, seed, workdir)
    return time.monotonic() - begin


def _check_held_out(method: Method, episodes: _Episodes) -> None:
    """What was trained here has not learned from what all are calibrated on."""
    if not isinstance(method, Ours) or method.recipe["run"]:
        return
    learned = method.seen("train")
    for reader in episodes.data.calibration:
        if reader.info.uid in learned:
            raise CheckpointError(
                f"it was trained on {reader.info.name}, which all are calibrated on: choose another fitted= "
                "(or out=) to train it again"
            )


def _check_unseen(method: Ours, episodes: _Episodes) -> None:
    """A run that was brought along may have learned from other stores than this comparison's."""
    seen = method.seen("train", "calibration")
    for reader in episodes.test:
        if reader.info.uid in seen:
            raise DataError(
                f"the run has learned from {reader.info.name} (recording {reader.info.uid}), "
                "which is in test: judge it on other episodes"
            )


def _check_scale(method: Ours, tasks: Mapping[str, TaskConfig]) -> None:
    """A run that was brought along may count progress in other stages, or weigh them otherwise."""
    model = method.config
    for text, task in tasks.items():
        index = None if model is None else model.task_of(text)
        if model is None or index is None:
            continue
        weighed = model.tasks[index].stage_weights
        # Weighed by duration, they differ a little with the episodes that are held out.
        if len(weighed) != len(task.stage_weights) or not np.allclose(weighed, task.stage_weights, atol=0.02):
            own, ours = _rounded(weighed), _rounded(task.stage_weights)
            raise DataError(
                f"the run weighs the stages of '{text}' by {own}, this comparison by {ours}: say the "
                "stage_weights= that it was trained with"
            )


def _rounded(weights: Sequence[float]) -> list[float]:
    return [round(weight, 3) for weight in weights]


def _judged_paths(
    config: CompareConfig, name: str, episodes: _Episodes, folder: Path, fitted: str
) -> list[Path]:
    """Where a method's predictions on calibration and test episodes are kept.

    What is fitted says what a method learned, its options how it is read out.
    """
    seen = [] if config.cameras is None else [list(config.cameras)]
    mark = _digest(fitted, config.methods[name], episodes.test_fingerprint, config.seed, *seen)
    return [folder / "predictions" / f"{name}-{part}-{mark}.npz" for part in ("calibration", "test")]


def _digest(*facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=_plain).encode()).hexdigest()[:12]


def _are_there(paths: Sequence[Path]) -> bool:
    return all(path.is_file() for path in paths)


def _are_whole(paths: Sequence[Path]) -> bool:
    """Predictions are there, and none of them is to be asked for again."""
    return _are_there(paths) and not any(one.may_pass for path in paths for one in load_judged(path))


def _judge_all(
    name: str, method: Method, episodes: _Episodes, paths: Sequence[Path], seed: int, console: Console
) -> tuple[list[Judged], list[Judged]]:
    """Predictions on calibration and test episodes; from disk where they are there."""
    before: list[Judged] = []
    if _are_there(paths):
        before = [*load_judged(paths[0]), *load_judged(paths[1])]
    wrong = _wrong_instructions(episodes, seed)
    work = [(r, None, False) for r in episodes.data.calibration]
    work += [(r, text, True) for r, text in zip(episodes.test, wrong, strict=True)]
    asked = [i for i in range(len(work)) if not before or before[i].may_pass]
    shown = track(asked, f"  {name}: judge", console=console, disable=not console.is_terminal)
    said = {index: judge(method, name, *work[index]) for index in shown}
    done = [said.get(index) or before[index] for index in range(len(work))]
    split = len(episodes.data.calibration)
    if missing := sum(one.may_pass for one in done):
        console.print(f"  {name}: no answer on {missing} episodes; overwrite=true asks about them again")
    if not said:
        return done[:split], done[split:]
    save_judged(paths[0], done[:split])
    save_judged(paths[1], done[split:])
    return done[:split], done[split:]


def _wrong_instructions(episodes: _Episodes, seed: int) -> list[str | None]:
    """Another task's instruction for each test episode, the same for every method."""
    texts = list(dict.fromkeys(r.info.instruction for r in episodes.data.train))
    rng = np.random.default_rng([seed, 0xBAD])
    chosen: list[str | None] = []
    for reader in episodes.test:
        others = [text for text in texts if text != reader.info.instruction]
        chosen.append(str(rng.choice(others)) if others else None)
    return chosen


def _costs(
    config: CompareConfig,
    name: str,
    spec: Mapping[str, Any],
    episodes: _Episodes,
    budget: Budget,
    workdir: Path,
    folder: Path,
) -> dict[str, Metric]:
    """Latency and memory, measured once."""
    mark = _digest(spec, config.device, config.threads, config.cost_frames, episodes.test_fingerprint)
    path = folder / "costs" / f"{name}-{workdir.name}-{mark}.json"
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        cost = Cost(tuple(stored["latency_ms"]), float(stored["peak_mib"] or math.nan))
    else:
        reader = max(episodes.test, key=lambda r: r.info.length)
        cost = measure_cost(
            spec, episodes.data, budget, config.seed, workdir, reader, config.cost_frames, config.threads
        )
        peak = cost.peak_mib if math.isfinite(cost.peak_mib) else None
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps({"latency_ms": cost.latency_ms, "peak_mib": peak}).encode())
    p50, p99 = np.percentile(cost.latency_ms, [50, 99])
    count = len(cost.latency_ms)
    return {
        "latency_ms_p50": Metric.exact(float(p50), count),
        "latency_ms_p99": Metric.exact(float(p99), count),
        "peak_mib": Metric.exact(cost.peak_mib, 1),
    }


def _facts(config: CompareConfig, episodes: _Episodes) -> dict[str, str]:
    budget: dict[str, object] = {"minutes": config.minutes}
    if config.steps is not None:
        budget = {"steps": config.steps}
    ((unit, amount),) = budget.items()
    return {
        "train": f"{spell_sources(config.train)}: {len(episodes.data.train)} episodes",
        "calibration": f"{len(episodes.data.calibration)} episodes",
        **_practised(config, episodes),
        "test": f"{spell_sources(config.test)}: {len(episodes.test)} episodes, "
        f"{sum(r.info.length for r in episodes.test)} frames",
        "budget": f"{amount} {unit} each, seed {config.seed}",
        "command": command_line(
            "compare",
            {"train": config.train, "test": config.test}
            | ({} if config.practice is None else {"practice": config.practice}),
            out=config.out,
            **budget,
            seed=config.seed,
        ),
        "methods": ", ".join(config.methods),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _practised(config: CompareConfig, episodes: _Episodes) -> dict[str, str]:
    if config.practice is None:
        return {}
    count, share = len(episodes.data.practice), config.practice_share
    return {"practice": f"{spell_sources(config.practice)}: {count} episodes, {share:.0%} of the windows"}


def _notes(episodes: _Episodes, methods: Mapping[str, Method]) -> list[str]:
    notes: list[str] = []
    if episodes.blind:
        notes.append(f"left out, as none of cameras= has seen them: {', '.join(episodes.blind)}")
    if episodes.data.held_out:
        notes.append(
            "calibration episodes are kept back from the training stores, whole, the same for every method"
        )
    for name, method in methods.items():
        if not method.causal:
            notes.append(f"{name} looks ahead: its estimates use later frames")
        if isinstance(method, Ours) and method.recipe["run"]:
            notes.append(
                f"{name} is a run trained before, on its own data and budget: {method.recipe['run']}"
            )
            if method.config is not None and method.config.proprio_dim:
                notes.append(
                    f"{name} sees proprioception where an episode has it; the other methods see pixels alone"
                )
            learned = method.seen("train")
            known = sum(reader.info.uid in learned for reader in episodes.data.calibration)
            if known:
                notes.append(
                    f"{name} was trained on {known} of the {len(episodes.data.calibration)} calibration "
                    "episodes: its bands and success calls are too sure (train it with the same seed= and "
                    "holdout, or bring calibration=STORE)"
                )
    return notes
