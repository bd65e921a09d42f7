"""`robo-reward misses`: the robot does what it did in a demonstration, beside where the objects are.

A reward model that knows one demonstration of a task has never seen the hand move without the object, and
takes the motion for progress. So the demonstrated actions are played back after a step aside. Of such an
episode it is said that it never gets beyond the stage `reached`, and it needs no other label than that. Where
the environment tells the true stage, as simulators do, one that gets further is thrown away and another step
aside tried; so is one that succeeds, while one that ends in a failure of its own, such as a fall, is a miss
like others. On a robot a person must see to it: where the hand takes the object along after all, the label is
false, and where nothing is moved, there is nothing to put back between two episodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
from jaxtyping import Float32
from rich.console import Console
from rich.progress import track

from robo_reward.errors import ConfigError, DataError
from robo_reward.improve.observer import check_proprio, found_in, usable_cameras
from robo_reward.improve.worker import broken_off, open_environment
from robo_reward.pace import check_same_pace, step_ns, typical_step
from robo_reward.schema import Episode, EpisodeInfo, EpisodeReader, Outcome
from robo_reward.sources import open_sources
from robo_reward_data._files import lock
from robo_reward_data.rollout import Tape
from robo_reward_data.store import EpisodeStore

__all__ = ["MissesConfig", "run"]

_RECIPE = 2  # raise it where the same options begin to give other misses
_ATTEMPTS = 20  # of a door, which the hand catches easily, about half are thrown away
_LEAST = 0.6  # of the longest step aside that the options allow


@dataclass(frozen=True)
class MissesConfig:
    """The keys of `configs/misses.yaml`, which says what each means."""

    env: Any
    demos: Any
    out: str
    episodes: int = 12
    seed: int = 0
    reached: int = 0
    aside_low: tuple[float, ...] = (-1.0, -1.0, 0.0)
    aside_high: tuple[float, ...] = (1.0, 1.0, 1.0)
    aside_decisions: int = 2
    same_scene: bool = True
    plugins: tuple[str, ...] = ("robo_reward_sim",)
    env_args: dict[str, Any] = field(default_factory=dict)
    step_s: float | None = None
    reader: dict[str, Any] = field(default_factory=dict)


def run(config: MissesConfig) -> None:
    """Record the misses that are not there yet.

    Raises:
        ConfigError: options that do not fit each other or the environment.
        DataError: no demonstration with actions, one that gets beyond `reached` whatever the step aside, or
            `out` holds something else.
    """
    _check(config)
    demos = _demonstrations(config)
    identity = {
        "recipe": _RECIPE,
        "env": config.env,
        "env_args": dict(config.env_args),
        "same_scene": config.same_scene,
        "seed": config.seed,
        "reached": config.reached,
        "demonstrations": [demo.info.uid for demo in demos],
        "aside": [list(config.aside_low), list(config.aside_high), config.aside_decisions],
        **({} if config.step_s is None else {"step_s": config.step_s}),
    }
    store = EpisodeStore.create(config.out, attrs={"misses": identity}, exist_ok=True)
    found = store.attrs.get("misses")
    if found is not None and found.get("recipe") != _RECIPE:
        raise DataError(
            f"{config.out} has misses of another version of robo-reward, which made them otherwise: choose "
            "another out="
        )
    if found != identity:
        raise DataError(f"{config.out} is a store of other episodes: choose another out=")
    with lock(Path(config.out) / ".misses.lock"):
        if missing := [index for index in range(config.episodes) if _name(index) not in store]:
            _record(config, demos, store, missing)
    Console(stderr=True).print(f"{config.episodes} misses: {config.out}", markup=False)


def _record(
    config: MissesConfig, demos: Sequence[EpisodeReader], store: EpisodeStore, missing: Sequence[int]
) -> None:
    console = Console(stderr=True)
    env = open_environment(config.env, config.plugins, config.env_args)
    try:
        _check_fit(config, env, demos)
        if not hasattr(env.unwrapped, "oracle"):
            console.print(
                f"{config.env} does not tell the true stage: watch that nothing gets beyond stage "
                f"{config.reached} in a miss, or give a higher reached=",
                markup=False,
            )
        for index in track(missing, "misses", console=console, disable=not console.is_terminal):
            store.write(_miss(config, env, demos[index % len(demos)], index))
    finally:
        env.close()


def _miss(config: MissesConfig, env: gymnasium.Env[Any, Any], demo: EpisodeReader, index: int) -> Episode:
    """One episode that does not get beyond `reached`, as far as the environment can tell."""
    actions = _actions(demo)
    space = cast("gymnasium.spaces.Box", env.action_space)
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng((config.seed, index, attempt))
        aside = _aside(config, rng)
        first = np.repeat(actions[:1], config.aside_decisions, axis=0)
        first[:, : len(aside)] = aside
        plan = np.clip(np.concatenate([first, actions[:-1]]), space.low, space.high)
        scene = demo.info.source.get("reset_seed") if config.same_scene else None
        begin = int(rng.integers(2**31)) if scene is None else int(scene)
        tape = _play(env, plan, begin, config.reached, step_ns(env, config.step_s))
        if tape is not None:
            source = {"demonstration": demo.info.uid, "aside": aside.round(3).tolist()}
            return _episode(tape, demo.info, config.reached, _name(index), source)
    raise DataError(
        f"{demo.info.name} gets beyond stage {config.reached} after a step aside too, {_ATTEMPTS} times: "
        "step further (aside_low, aside_high, aside_decisions), or give a higher reached="
    )


def _play(
    env: gymnasium.Env[Any, Any], plan: Float32[np.ndarray, "t a"], seed: int, reached: int, taken_ns: int
) -> Tape | None:
    """The plan carried out as far as it goes, or None where the task gets beyond the stage `reached` by it.

    A step takes `taken_ns`, where the environment has no clock of its own.

    Raises:
        DataError: the environment breaks off at once.
    """
    why: str | None = None
    observation, info = env.reset(seed=seed)
    tape = Tape(observation, info, taken_ns)
    for action in plan:
        observation, _, terminated, truncated, info = env.step(action)
        stage = _true_stage(env)
        # Where nothing says whether it has succeeded, an end of its own may be that.
        succeeded = info.get("success", terminated and stage is None)
        if succeeded or (stage is not None and stage > reached):
            return None
        if (why := broken_off(env, bool(terminated), info)) is not None:
            break
        tape.add(action, observation, info)
        if terminated or truncated:
            break
    if not tape.actions:
        raise DataError(f"the environment broke off at the first action: {why}")
    if why is not None:
        Console(stderr=True).print(
            f"a miss was cut off after {len(tape.actions)} actions: {why}", highlight=False, markup=False
        )
    return tape


def _true_stage(env: gymnasium.Env[Any, Any]) -> int | None:
    """The stage that the task is in now, None where the environment does not tell."""
    base: Any = env.unwrapped
    return getattr(base.oracle(), "stage", None) if hasattr(base, "oracle") else None


def _episode(tape: Tape, demo: EpisodeInfo, reached: int, name: str, source: Mapping[str, Any]) -> Episode:
    return tape.episode(
        demo.cameras,
        name=name,
        instruction=demo.instruction,
        paraphrases=demo.paraphrases,
        stage_names=_stages(demo),
        success=np.zeros(len(tape.actions) + 1, np.bool_),
        outcome=Outcome.FAILURE,
        reached=reached,
        kind="miss",
        source=dict(source),
    )


def _stages(demo: EpisodeInfo) -> tuple[str, ...]:
    count = 0 if demo.boundaries is None else len(demo.boundaries) - 1
    return demo.stage_names or tuple(f"stage {index + 1}" for index in range(count))


def _actions(demo: EpisodeReader) -> Float32[np.ndarray, "t a"]:
    actions = demo.read_actions()
    assert actions is not None  # only such demonstrations were chosen
    return actions


def _aside(config: MissesConfig, rng: np.random.Generator) -> Float32[np.ndarray, " n"]:
    """A step that is not too small to matter."""
    low, high = np.array(config.aside_low), np.array(config.aside_high)
    reach = float(np.abs(np.concatenate([low, high])).max())
    while True:
        step = rng.uniform(low, high)
        if np.abs(step).max() >= _LEAST * reach:
            return step.astype(np.float32)


def _name(index: int) -> str:
    return f"miss_{index:06d}"


def _demonstrations(config: MissesConfig) -> list[EpisodeReader]:
    readers, _ = open_sources(config.reader, config.demos)
    good = [r for r in readers if r.info.outcome is Outcome.SUCCESS and r.read_actions() is not None]
    if not good:
        raise DataError(f"{config.demos} has no successful episode with actions: nothing to play back")
    for demo in good:
        if config.reached >= len(_stages(demo.info)):
            raise ConfigError(
                f"reached={config.reached}: {demo.info.name} has stages 0..{len(_stages(demo.info)) - 1} "
                "(annotate it first where it has none)"
            )
    return good


def _check(config: MissesConfig) -> None:
    if config.episodes < 1 or config.seed < 0 or config.reached < 0 or config.aside_decisions < 1:
        raise ConfigError("episodes and aside_decisions must be 1 or more, seed and reached 0 or more")
    low, high = config.aside_low, config.aside_high
    if len(low) != len(high) or not low or any(a > b for a, b in zip(low, high, strict=True)):
        raise ConfigError(
            f"aside_low={list(low)} and aside_high={list(high)}: as many axes each, low not above high"
        )
    if not any(low) and not any(high):
        raise ConfigError("aside_low and aside_high are 0: a demonstration played back as it was may succeed")


def _check_fit(config: MissesConfig, env: gymnasium.Env[Any, Any], demos: Sequence[EpisodeReader]) -> None:
    shape = env.action_space.shape or (0,)
    seen = env.observation_space
    cameras = usable_cameras(seen)
    check_proprio(str(config.env), seen)
    for demo in demos:
        count = _actions(demo).shape[1:]
        if shape != count:
            raise ConfigError(
                f"{demo.info.name} has actions of {count[0]} numbers, {config.env} takes {shape}"
            )
        if absent := [camera for camera in demo.info.cameras if camera not in cameras]:
            raise ConfigError(
                f"{config.env} has no camera '{absent[0]}', which {demo.info.name} has: it is to be "
                f"observation['images']['{absent[0]}'], uint8(h, w, 3), and the environment gives "
                f"{found_in(seen)}"
            )
        check_same_pace(
            demo.info.name,
            typical_step(demo.info.stamp_ns),
            str(config.env),
            step_ns(env, config.step_s),
            "give env_args={...} as it was recorded, or, where it is wrong about itself, say what its step "
            "takes (step_s=SECONDS)",
        )
    if len(config.aside_low) > shape[0]:
        raise ConfigError(f"aside_low has {len(config.aside_low)} axes, an action of {config.env} {shape[0]}")
