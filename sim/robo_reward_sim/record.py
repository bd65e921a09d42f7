"""The command `record`: demonstrations of a simulated task, good and bad, into an episode store."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gymnasium

from robo_reward.errors import ConfigError, DataError, RoboRewardError
from robo_reward.imports import import_object
from robo_reward.workers import worker_pool
from robo_reward_sim.demonstrators import DEMONSTRATORS, demonstrator
from robo_reward_sim.envs import named_cameras
from robo_reward_sim.gl import require_graphics
from robo_reward_sim.rollout import demonstrate, episode_uid
from robo_reward_sim.tasks import TASKS
from robo_reward_sim.variation import Variation

__all__ = ["DEFAULT_MIX", "RecordConfig", "kinds_of", "record"]

DEFAULT_MIX: Mapping[str, float] = {
    "expert": 0.34,
    "noisy": 0.08,
    "suboptimal": 0.08,
    "fail_retry": 0.1,
    "near_miss": 0.1,
    "empty_handed": 0.1,
    "astray": 0.06,
    "random_tail": 0.05,
    "aborted": 0.05,
    "wrong_task": 0.04,
}
"""Share of each kind of episode where the config names no mix."""

_RECIPE = 12  # raise it where the same options and seed begin to give other episodes
_LIGHT_RECIPE = 2  # ... and this one where only those with variation.light are others
# ... and these where only those of one task are
_TASK_RECIPES = {"robo_reward/ShelfPlace-v0": 2, "robo_reward/Assembly-v0": 3}


@dataclass(frozen=True)
class RecordConfig:
    """What to record; see configs/record.yaml."""

    out: Path
    env: str = "robo_reward/PegInsertSide-v0"
    episodes: int = 60
    seed: int = 0
    mix: dict[str, float] | None = None
    cameras: list[str] = field(default_factory=lambda: ["left", "right", "wrist"])
    image_size: list[int] = field(default_factory=lambda: [84, 84])
    action_repeat: int = 5
    max_decisions: int = 90
    success_hold: int = 16
    variation: Variation = field(default_factory=Variation)
    workers: int | None = None
    writer: str = "robo_reward_data.store.EpisodeStore"


def record(config: RecordConfig) -> None:
    """Record episodes into a store, in parallel, and go on where an interrupted run stopped.

    Episode i depends only on the options, the seed and i: not on the workers, nor on how many there are.

    Raises:
        ConfigError: an option that makes no sense.
        DataError: `out` holds a store that was recorded with other options, or something else.
        GraphicsError: cameras cannot be rendered here.
    """
    kinds = _checked(config)
    options = _options(config)
    store = _open_store(config, options)
    present = {episode.info.uid for episode in store.episodes}
    jobs = [
        _Job(index, kind, episode_uid({**options, "index": index, "kind": kind}))
        for index, kind in enumerate(kinds)
    ]
    missing = [job for job in jobs if job.uid not in present]
    workers = min(config.workers or len(os.sched_getaffinity(0)), max(len(missing), 1))
    started = time.monotonic()
    results: list[_Result] = []
    with _progress(len(missing)) as advance:
        for result in _run(config, missing, workers):
            results.append(result)
            advance()
    _report(config, len(jobs) - len(missing), results, time.monotonic() - started)


def kinds_of(mix: Mapping[str, float], count: int) -> list[str]:
    """The kind of each episode: at every point of the series the one that lags its share of `mix` the most.

    So every beginning of the series has about the shares of `mix`, and the kind of episode i does not depend
    on `count`.

    Args:
        mix: weight of each kind, 0 or more; they need not sum to 1.
        count: how many episodes.

    Raises:
        ConfigError: an unknown kind, a negative weight, or weights that are all zero.
    """
    for kind, weight in mix.items():
        demonstrator(kind)
        if not weight >= 0:
            raise ConfigError(f"mix.{kind}={weight}: a share must be 0 or more")
    total = sum(mix.values())
    if not total > 0:
        raise ConfigError(f"mix={dict(mix)} asks for no episodes: give at least one kind a positive share")
    made = Counter[str]()
    kinds: list[str] = []
    for index in range(count):
        kind = max(mix, key=lambda kind: mix[kind] / total * (index + 1) - made[kind])
        made[kind] += 1
        kinds.append(kind)
    return kinds


@dataclass(frozen=True, slots=True)
class _Job:
    index: int
    kind: str
    uid: str


@dataclass(frozen=True, slots=True)
class _Result:
    kind: str
    outcome: str
    frames: int


class _Recorder:
    """What one process needs to record: an environment and the open store."""

    def __init__(self, config: RecordConfig) -> None:
        self._config = config
        self._env = _make_env(config)
        self._store = import_object(config.writer).open(config.out)

    def run(self, job: _Job) -> _Result:
        """Record one episode and write it."""
        episode = demonstrate(self._env, job.kind, self._config.seed, job.index, uid=job.uid)
        self._store.write(episode)
        return _Result(job.kind, str(episode.info.outcome), episode.info.length)

    def close(self) -> None:
        """Free the environment."""
        self._env.close()


_recorders: list[_Recorder] = []  # of this process: one from its first job on, kept for the next jobs


def _run_job(config: RecordConfig, job: _Job) -> _Result:
    if not _recorders:
        # Processes share the cores: the software renderer must not start a thread a core in each of them.
        os.environ.setdefault("LP_NUM_THREADS", "1")
        _recorders.append(_Recorder(config))
    return _recorders[0].run(job)


def _run(config: RecordConfig, jobs: Sequence[_Job], workers: int) -> Iterator[_Result]:
    if not jobs:
        return
    if workers == 1:
        recorder = _Recorder(config)
        try:
            for job in jobs:
                yield recorder.run(job)
        finally:
            recorder.close()
        return
    pool = worker_pool(workers)
    try:
        for done in as_completed([pool.submit(_run_job, config, job) for job in jobs]):
            yield done.result()
    except BrokenProcessPool as error:
        raise RoboRewardError(
            "a recording process died (out of memory, or its renderer crashed): run the same command again "
            "to go on where it stopped; with workers=1 the cause is shown"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _make_env(config: RecordConfig) -> gymnasium.Env[Any, Any]:
    return gymnasium.make(
        config.env,
        max_episode_steps=config.max_decisions,
        cameras=tuple(config.cameras),
        image_size=(config.image_size[0], config.image_size[1]),
        action_repeat=config.action_repeat,
        success_hold=config.success_hold,
        variation=config.variation,
    )


def _checked(config: RecordConfig) -> list[str]:
    """The kind of every episode, once every option has been found sound."""
    known = [task.env_id for task in TASKS.values()]
    if config.env not in known:
        raise ConfigError(f"no simulated environment '{config.env}': choose one of {', '.join(known)}")
    for name in ("episodes", "max_decisions", "action_repeat", "success_hold"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name}={getattr(config, name)}: must be 1 or more")
    if config.workers is not None and config.workers < 1:
        raise ConfigError(f"workers={config.workers}: must be 1 or more, or null for one a core")
    if config.seed < 0:
        raise ConfigError(f"seed={config.seed}: must be 0 or more")
    if len(config.image_size) != 2 or min(config.image_size) < 1:
        raise ConfigError(f"image_size={list(config.image_size)}: must be [height, width] in pixels")
    if not config.cameras:
        raise ConfigError("cameras=[]: demonstrations need at least one camera")
    named_cameras(config.cameras)
    writer = import_object(config.writer)
    if lacking := [name for name in ("create", "open") if not callable(getattr(writer, name, None))]:
        raise ConfigError(
            f"writer={config.writer} has no {' and no '.join(lacking)}: a writer makes a store with create "
            f"and opens it with open, as {RecordConfig.writer} does"
        )
    require_graphics()
    return kinds_of(DEFAULT_MIX if config.mix is None else config.mix, config.episodes)


def _options(config: RecordConfig) -> dict[str, Any]:
    """What an episode depends on, besides its number and kind."""
    lit = {"light_recipe": _LIGHT_RECIPE} if config.variation.light else {}
    own = {"task_recipe": _TASK_RECIPES[config.env]} if config.env in _TASK_RECIPES else {}
    return {
        "recipe": _RECIPE,
        **lit,
        **own,
        "env": config.env,
        "seed": config.seed,
        "cameras": list(config.cameras),
        "image_size": list(config.image_size),
        "action_repeat": config.action_repeat,
        "max_decisions": config.max_decisions,
        "success_hold": config.success_hold,
        "variation": asdict(config.variation),
    }


def _open_store(config: RecordConfig, options: Mapping[str, Any]) -> Any:
    mix = dict(DEFAULT_MIX if config.mix is None else config.mix)
    shares = {kind: float(mix[kind]) for kind in DEMONSTRATORS if mix.get(kind)}
    # Where two kinds lag alike, the one that the mix names first comes first.
    wanted = {**options, "mix": shares, "mix_order": [kind for kind in mix if mix[kind]]}
    store = import_object(config.writer).create(config.out, attrs={"record": wanted}, exist_ok=True)
    found = store.attrs.get("record")
    if found is None:
        raise DataError(f"{config.out} is a store that 'record' did not write: choose another out=...")
    found = {"mix_order": wanted["mix_order"], **found}  # stores of earlier versions do not say
    differing = [key for key in wanted if found.get(key) != wanted[key]]
    if differing:
        key = differing[0]
        raise DataError(
            f"{config.out} was recorded with {key}={found.get(key)}, not {key}={wanted[key]}: choose another "
            "out=..., or record with the same options"
        )
    return store


@contextmanager
def _progress(total: int) -> Generator[Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("recording"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr)) as bar:
        task = bar.add_task("recording", total=total)
        yield lambda: bar.advance(task)


def _report(config: RecordConfig, skipped: int, results: Sequence[_Result], seconds: float) -> None:
    frames = sum(result.frames for result in results)
    successes = sum(result.outcome == "success" for result in results)
    kinds = Counter(result.kind for result in results)
    listed = ", ".join(f"{kind} {kinds[kind]}" for kind in DEMONSTRATORS if kinds[kind])
    kept = f"; {skipped} were there already" if skipped else ""
    made = f"{len(results)} episodes, {frames} frames, {successes} successes, {seconds:.1f} s"
    sys.stdout.write(f"{config.out}: {made}{f' ({listed})' if listed else ''}{kept}\n")
