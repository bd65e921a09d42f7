"""One episode of an environment under a demonstrator, with its truth, in memory."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
from jaxtyping import Bool, Float32, Int64

from robo_reward.errors import ConfigError
from robo_reward.labels import work_end
from robo_reward.schema import Episode, EpisodeInfo, Outcome, ProgressLabel
from robo_reward_sim.demonstrators import EpisodePlan, Moment, demonstrator
from robo_reward_sim.envs import ManipulationEnv
from robo_reward_sim.oracles import OracleReading

__all__ = ["demonstrate", "episode_uid", "rollout"]

Act = Callable[[Moment], Float32[np.ndarray, " 4"] | None]

_ATTEMPTS_AT_A_SPEED = 10
_SLOWER = 0.6


def rollout(
    env: gymnasium.Env[Any, Any],
    act: Act,
    *,
    seed: int,
    max_steps: int | None = None,
    name: str = "episode",
    uid: str = "",
    kind: str = "",
    source: Mapping[str, Any] | None = None,
) -> Episode:
    """Run one episode and keep everything: images, proprioception, actions, and the true progress.

    Args:
        env: an environment of this package, wrapped or not.
        act: the action f32[4] for a moment, or None to stop there.
        seed: of the environment's reset: fixes where goal and objects are.
        max_steps: stop after so many decisions even where the environment would go on.
        name: see EpisodeInfo.
        uid: see EpisodeInfo; made from the content where empty.
        kind: see EpisodeInfo.
        source: see EpisodeInfo.

    Returns:
        An episode with one frame more than decisions: the last frame shows what the last action led to, and
        its own action is zero. Stamps are simulated time from 0. `boundaries` are known where the episode
        succeeds and passes through every stage in order. An episode that the physics breaks off ends with its
        last good frame; `source["physics_error"]` says so. `source["reset_seed"]` is `seed`, and
        `source["look"]` what the scene looks like where that varies.
    """
    base = _manipulation(env)
    observation, _ = env.reset(seed=seed)
    tape = _Tape([observation], [base.oracle()])
    last = np.zeros(4, np.float32)
    broken = False
    while max_steps is None or len(tape.actions) < max_steps:
        moment = Moment(len(tape.actions), base.privileged_state(), tape.truths[-1], last)
        action = act(moment)
        if action is None:
            break
        last = np.asarray(action, np.float32)
        observation, _, terminated, truncated, info = env.step(last)
        if broken := bool(info["physics_error"]):
            break
        tape.actions.append(last)
        tape.observations.append(observation)
        tape.truths.append(base.oracle())
        if terminated or truncated:
            break
    facts = {**(source or {}), "reset_seed": seed, "physics_error": broken}
    if base.look is not None:
        facts["look"] = base.look.facts()
    return tape.episode(base, name=name, uid=uid, kind=kind, source=facts)


def demonstrate(
    env: gymnasium.Env[Any, Any],
    kind: str,
    seed: int,
    index: int,
    *,
    uid: str = "",
    max_steps: int | None = None,
    attempts: int = 40,
) -> Episode:
    """Episode `index` of a series, by the demonstrator `kind`. Depends on nothing but the arguments.

    Where an attempt ends or gets where its kind must not, another is made: ten at most for a kind that must
    succeed. One that must not goes on, after every ten more gently: what coasts on by itself, as a sliding
    window does, cannot be stopped short of success at full speed. After the last attempt the episode is kept
    as it is, with the outcome that it had.

    Args:
        env: an environment of this package.
        kind: a key of `robo_reward_sim.demonstrators.DEMONSTRATORS`.
        seed: of the series.
        index: of the episode in the series, 0 or more.
        uid: see EpisodeInfo; made from the content where empty.
        max_steps: see `rollout`.
        attempts: how many times to try for the outcome that the kind wants.

    Raises:
        ConfigError: no such kind, or the environment is of another package.
    """
    make_plan = demonstrator(kind)
    task = _manipulation(env).task
    episode: Episode | None = None
    for attempt in range(attempts):
        # The task is in the key: else all tasks' series draw the same choices, and luck is not averaged out.
        rng = np.random.default_rng((seed, zlib.crc32(task.env_id.encode()), index, attempt))
        plan: EpisodePlan = make_plan(task, rng)
        source = {
            "env": task.env_id,
            "seed": seed,
            "index": index,
            "attempt": attempt,
            "plan": dict(plan.facts),
        }
        act = plan.act
        if attempt >= _ATTEMPTS_AT_A_SPEED:
            if plan.success is not False:
                break
            source["speed"] = speed = _SLOWER ** (attempt // _ATTEMPTS_AT_A_SPEED)
            act = _slowed(act, speed)
        scene = int(rng.integers(2**31))
        episode = rollout(
            env,
            act,
            seed=scene,
            max_steps=max_steps,
            name=f"episode_{index:06d}",
            uid=uid,
            kind=kind,
            source=source,
        )
        fits = plan.success is None or plan.success == _succeeded(episode, ever=not plan.success)
        if fits and _furthest(episode) < plan.furthest:
            break
    assert episode is not None
    return episode


def _slowed(act: Act, speed: float) -> Act:
    """The same hand with shorter steps."""

    def gentle(moment: Moment) -> Float32[np.ndarray, " 4"] | None:
        action = act(moment)
        return None if action is None else np.append(speed * action[:3], action[3]).astype(np.float32)

    return gentle


def episode_uid(facts: Mapping[str, Any]) -> str:
    """A stable identifier, 32 hexadecimal digits, from JSON-able facts that identify a recording."""
    text = json.dumps(dict(facts), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _furthest(episode: Episode) -> float:
    truth = episode.info.truth
    assert truth is not None
    return float((truth.stage + truth.tau).max()) / len(episode.info.stage_names)


def _succeeded(episode: Episode, *, ever: bool) -> bool:
    """Whether the task is done at the end, or with `ever` was done at any time: a miss must never succeed."""
    if not ever:
        return episode.info.outcome is Outcome.SUCCESS
    assert episode.info.success is not None
    return bool(episode.info.success.any())


@dataclass
class _Tape:
    """What an episode has shown so far."""

    observations: list[Mapping[str, Any]]
    truths: list[OracleReading]
    actions: list[Float32[np.ndarray, " 4"]] = field(default_factory=list)

    def episode(
        self, env: ManipulationEnv, *, name: str, uid: str, kind: str, source: Mapping[str, Any]
    ) -> Episode:
        """The tape as an episode."""
        length = len(self.truths)
        stage = np.array([truth.stage for truth in self.truths], np.int64)
        success = np.array([truth.success for truth in self.truths], np.bool_)
        proprio = np.stack([item["proprio"] for item in self.observations]).astype(np.float32)
        actions = np.zeros((length, 4), np.float32)
        if self.actions:
            actions[:-1] = self.actions
        done = bool(success[-1])
        stages = len(env.task.stage_names)
        info = EpisodeInfo(
            name=name,
            uid=uid or episode_uid({"actions": actions.tolist(), "proprio": proprio.tolist(), **source}),
            cameras=tuple(env.cameras),
            image_sizes=dict.fromkeys(env.cameras, env.image_size),
            stamp_ns=np.arange(length, dtype=np.int64) * env.decision_ns,
            instruction=env.task.instruction,
            paraphrases=env.task.paraphrases,
            stage_names=env.task.stage_names,
            boundaries=_boundaries(stage, stages, success),
            truth=ProgressLabel(
                stage=stage,
                tau=np.array([truth.tau for truth in self.truths], np.float32),
                valid=np.ones(length, np.bool_),
            ),
            success=success,
            outcome=Outcome.SUCCESS if done else Outcome.FAILURE,
            kind=kind,
            source=dict(source),
        )
        frames = {
            name: np.stack([item["images"][name] for item in self.observations]) for name in env.cameras
        }
        return Episode(info=info, frames=frames, proprio=proprio, actions=actions)


def _boundaries(
    stage: Int64[np.ndarray, " t"], stages: int, success: Bool[np.ndarray, " t"]
) -> Int64[np.ndarray, " n"] | None:
    """First frame of each stage, and of what is done in the end.

    None unless it is done in the end, and the stages come once each and in order.
    """
    first = [int(np.argmax(stage == index)) for index in range(stages)]
    in_order = bool((np.diff(stage) >= 0).all()) and len(np.unique(stage)) == stages
    end = work_end(len(stage), success)
    return np.array([*first, end], np.int64) if in_order and success[-1] and end > first[-1] else None


def _manipulation(env: gymnasium.Env[Any, Any]) -> ManipulationEnv:
    base = env.unwrapped
    if not isinstance(base, ManipulationEnv):
        raise ConfigError(
            f"{type(base).__name__} has no oracle: demonstrations need an environment of robo_reward_sim"
        )
    return base
