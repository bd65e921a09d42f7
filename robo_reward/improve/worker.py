"""Runs rollouts: one environment, one stream of the reward model, one policy. Knows nothing of learning."""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import cv2
import gymnasium
import numpy as np
import torch
from jaxtyping import Float32, Float64
from rich.console import Console

from robo_reward.abort import AbortRule
from robo_reward.api import RewardModel, load
from robo_reward.errors import ConfigError, DataError, RoboRewardError
from robo_reward.imports import import_object, instantiate
from robo_reward.improve.config import ImproveConfig, observed_parts
from robo_reward.improve.help import Intervention
from robo_reward.improve.looks import Looks
from robo_reward.improve.observer import (
    FROM_MODEL,
    MAP,
    Moment,
    Observer,
    broken_number,
    check_proprio,
    found_in,
    joined,
    usable_cameras,
)
from robo_reward.improve.rollouts import Rollout, stacked
from robo_reward.pace import step_ns
from robo_reward.stream import Stream

__all__ = ["PHYSICS", "Order", "RolloutResult", "Start", "Worker", "broken_off", "open_environment"]

PHYSICS = "the physics failed"
"""What `broken_off` says of a simulator."""


@dataclass(frozen=True)
class Start:
    """Where a rollout starts if not at the beginning: a saved state of the environment, and what led to it.

    state     what the environment's `get_state` gave
    first     the first images of that episode: the reward model sees every image beside them
    reached   decisions made until then
    place     which of the remembered places it is
    """

    state: Any
    first: Mapping[str, np.ndarray]
    reached: int
    place: int


@dataclass(frozen=True)
class Order:
    """One rollout to run; nothing but this, the policy and the reward model decides what happens in it.

    With `estimates` False nobody will look at what the reward model says of it: where neither policy nor
    success does, the model and its cameras are left out. With `learned_from` False, in evaluations, nobody
    takes over and no other looks are made of it.
    """

    index: int
    seed: int
    noise: float
    film: bool = False
    abort: AbortRule | None = None
    start: Start | None = None
    keep_states: bool = False
    estimates: bool = True
    learned_from: bool = True


@dataclass(frozen=True)
class RolloutResult:
    """A rollout, and what an order with `keep_states` asks for beside it.

    states  the environment's state at every moment
    first   the first images of the episode
    """

    rollout: Rollout
    states: tuple[Any, ...] = ()
    first: Mapping[str, np.ndarray] = field(default_factory=dict)


def blind_environment(
    config: ImproveConfig, seeing: gymnasium.Env[Any, Any] | None = None
) -> gymnasium.Env[Any, Any]:
    """The environment with its `blind_args`: nothing looks at its cameras, so nothing needs to be rendered.

    One that does not take them is had without, and that is said on the console.

    Args:
        config: says which.
        seeing: the environment without them, where it is open already.

    Raises:
        ConfigError: a plugin or environment that is not there, or arguments that do not fit.
    """
    if not config.blind_args:
        return seeing or open_environment(config.env, config.plugins, config.env_args)
    try:
        return open_environment(config.env, config.plugins, {**config.env_args, **config.blind_args})
    except Exception as error:  # whatever a constructor says of arguments that it does not know
        env = seeing or open_environment(config.env, config.plugins, config.env_args)
        Console(stderr=True).print(
            f"env={config.env} does not take blind_args={dict(config.blind_args)}: its cameras are rendered "
            f"where nothing looks at them, too; blind_args={{}} says so without trying ({error})",
            highlight=False,
            markup=False,
        )
        return env


def broken_off(env: gymnasium.Env[Any, Any], terminated: bool, info: Mapping[str, Any]) -> str | None:
    """Why the moment that a step led to is not real, None where it is.

    That is where the physics failed (`info["physics_error"]`), and where the environment is a robot, which
    its `metadata["one_robot"]` says, and gives an `info["reason"]`: it fell silent, or was stopped. What
    others tell by a reason is theirs. A step that ends the task, or shows it done, is always real.

    Args:
        env: the environment, in whatever wrappers.
        terminated: of the step.
        info: of the step.
    """
    if terminated or info.get("success"):
        return None
    if env.metadata.get("one_robot") and info.get("reason"):
        return str(info["reason"])
    return PHYSICS if info.get("physics_error") else None


def import_plugins(plugins: Sequence[str]) -> None:
    """Import packages that register environments.

    Raises:
        ConfigError: one that is not there.
    """
    for plugin in plugins:
        try:
            import_module(plugin)
        except ModuleNotFoundError as error:
            raise ConfigError(f"plugins has '{plugin}', which does not import: {error}") from error


def open_environment(
    env: Any, plugins: Sequence[str], arguments: Mapping[str, Any]
) -> gymnasium.Env[Any, Any]:
    """The environment of a gymnasium id, after importing the plugins that register it, or of a `_target_`.

    Raises:
        ConfigError: a plugin or environment that is not there, or arguments that do not fit.
    """
    import_plugins(plugins)
    if not isinstance(env, str):
        return instantiate(env, **arguments)
    try:
        return gymnasium.make(env, **arguments)
    except gymnasium.error.Error as error:
        raise ConfigError(
            f"env={env}: {error} (the package that registers it belongs in plugins=[...])"
        ) from error
    except TypeError as error:
        raise ConfigError(f"env={env} does not take {dict(arguments)}: {error}") from error


class Worker:
    """Runs one rollout after another."""

    def __init__(self, config: ImproveConfig, instruction: str) -> None:
        """Open the environment, and the reward model where something reads it."""
        torch.set_num_threads(config.threads)
        self._config = config
        self._parts = observed_parts(config)
        self._progress = instantiate(config.shaping.progress)
        self._success = instantiate(config.success)
        self._person: Intervention | None = instantiate(config.intervention) if config.intervention else None
        seen = FROM_MODEL & set(self._parts)
        helped = self._person is not None and self._person.needs_model
        uses_model = self._progress.needs_model or self._success.needs_model or helped or bool(seen)
        if uses_model and config.model is None:
            raise ConfigError("this arm or observation reads the reward model: give model=RUN")
        self.model: RewardModel | None = (
            load(config.model, config.device) if uses_model and config.model else None
        )
        self.env = (
            blind_environment(config)
            if self.model is None
            else open_environment(config.env, config.plugins, config.env_args)
        )
        self._check_environment(config)
        self._decision_ns = step_ns(self.env, config.step_s)
        self._checked = False  # what it shows, by its first observation
        space = getattr(self.env, "observation_space", None)
        if space is not None:
            self._check_seen(space)
        self._state = import_object(config.privileged_state) if config.privileged else None
        stream, stages = None, 0
        if self.model is not None:
            stream, stages = self._stream(self.model, instruction), len(self.model.stage_names(instruction))
        self.observer = Observer(self._parts, stream, stages)
        self.looks = Looks(config.looks)
        self._policy: torch.nn.Module | None = None
        self._needs_estimates = self._success.needs_model or bool(seen)
        self._blind_env: gymnasium.Env[Any, Any] | None = None  # opened once it is needed

    def _check_environment(self, config: ImproveConfig) -> None:
        space = self.env.action_space
        if not isinstance(space, gymnasium.spaces.Box) or not space.is_bounded():
            raise ConfigError(f"env={config.env}: the learner needs bounded continuous actions, not {space}")
        base = self.env.unwrapped
        if self._progress.needs_truth and not hasattr(base, "oracle"):
            raise ConfigError(
                f"env={config.env} has no oracle(): it is no simulator that knows the truth, so choose "
                "another arm"
            )
        if config.savings.promising_resets > 0:
            for call in ("get_state()", "set_state(state)"):
                if not hasattr(base, call.split("(")[0]):
                    raise ConfigError(
                        f"env={config.env} has no {call}, and savings.promising_resets="
                        f"{config.savings.promising_resets} goes back to moments by get_state() and "
                        "set_state(state): give it both, or choose savings.promising_resets=0 (and another "
                        "arm where the arm says so)"
                    )
        self._low, self._high = np.asarray(space.low, np.float64), np.asarray(space.high, np.float64)

    def _check_seen(self, seen: Any) -> None:
        """Refuse an environment by an observation of it, or by the space of them, that shows too little.

        Raises:
            ConfigError: no proprioception; no image that can be seen, where a reward model looks, or where
                its maps are observed, none of its cameras.
        """
        where = f"env={self._config.env}"
        check_proprio(where, seen)
        if self.model is None:
            return
        known, usable = self.model.cameras, usable_cameras(seen)
        if not usable or (MAP in self._parts and not set(usable) & set(known)):
            raise ConfigError(
                f"{where} shows the reward model nothing: it looks through {', '.join(known)}, each "
                f"observation['images'][camera], uint8(h, w, 3), and the environment gives {found_in(seen)}; "
                "wrap it so that it does, or do without a reward model (arm=sparse, "
                "observe=[proprio,motion])"
            )

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras that the environment promises, as far as they can be seen."""
        return usable_cameras(getattr(self.env, "observation_space", None))

    def privileged(self, base: Any) -> Float32[np.ndarray, " s"] | None:
        """The simulator's state of this moment as the policy gets it, None where it gets none."""
        return None if self._state is None else np.asarray(self._state(base), np.float32)

    @property
    def action_bounds(self) -> tuple[Float64[np.ndarray, " a"], Float64[np.ndarray, " a"]]:
        """The least and the largest action of the environment."""
        return self._low, self._high

    @property
    def decision_ns(self) -> int:
        """Time between two decisions, in nanoseconds."""
        return self._decision_ns

    @property
    def action_size(self) -> int:
        """Numbers in an action."""
        return len(self._low)

    @property
    def proprio_size(self) -> int | None:
        """Numbers in the environment's proprioception, None where its observation space does not say."""
        space = self.env.observation_space
        if not isinstance(space, gymnasium.spaces.Dict) or "proprio" not in space.spaces:
            return None
        shape = space["proprio"].shape
        return shape[0] if shape is not None and len(shape) == 1 else None

    def unit_actions(self, actions: Float32[np.ndarray, "t a"]) -> Float32[np.ndarray, "t a"]:
        """The environment's actions on the scale of the policy, clipped to [-1, 1]."""
        unit = 2 * (actions - self._low) / (self._high - self._low) - 1
        return np.clip(unit, -1.0, 1.0).astype(np.float32)

    def set_policy(self, policy: torch.nn.Module) -> None:
        """Act with this from now on: observations f32[b, d] to actions f32[b, a] in [-1, 1]."""
        self._policy = policy

    def set_model(self, folder: str, instruction: str) -> None:
        """Estimate progress with the (refreshed) model in `folder` from now on."""
        model: RewardModel = load(folder)
        self.model = model
        stages = len(model.stage_names(instruction))
        self.observer = Observer(self._parts, self._stream(model, instruction), stages)

    def _stream(self, model: RewardModel, instruction: str) -> Stream:
        return model.stream(instruction, maps=MAP in self._parts)

    def alive(self) -> bool:
        """Whether it still answers."""
        return True

    def run_with(self, order: Order, policy: torch.nn.Module) -> RolloutResult:
        """One rollout with this policy."""
        self.set_policy(policy)
        return self.run(order)

    def run(self, order: Order) -> RolloutResult:
        """One rollout with the policy that was set."""
        if order.estimates or self._needs_estimates or self.model is None:
            return self._run(order)
        with self._blind():
            return self._run(order)

    @contextmanager
    def _blind(self) -> Generator[None]:
        """Rollouts in here are seen by no reward model, and by no camera where `blind_args` are taken."""
        if self._blind_env is None:
            self._blind_env = blind_environment(self._config, self.env)
        kept = self.env, self.observer, self.model
        self.env, self.observer, self.model = self._blind_env, Observer(self._parts, None, 0), None
        try:
            yield
        finally:
            self.env, self.observer, self.model = kept

    def _run(self, order: Order) -> RolloutResult:
        rng = np.random.default_rng((order.seed, 1))
        observation, info = self._reset(order)
        if not self._checked and self.model is not None:
            self._check_seen(observation)
            self._checked = True
        tape = _Tape(self, order, observation)
        if (wrong := tape.unusable(observation, "the reset")) is not None:
            raise DataError(
                f"env={self._config.env}: {wrong} (rollout {order.index}): an episode begins with "
                "numbers that are finite (once that is mended, the same command goes on from there)"
            )
        self._success.begin(self.model.checkpoint.calibration.detector if self.model else None)
        person = self._person if order.learned_from else None
        if person is not None:
            person.begin(self.env.unwrapped)
        first = tape.see(observation, info, success=False)
        terminated, over, aborted, cut = False, False, False, ""
        while not (over or aborted):
            at = f"decision {len(tape.actions) + 1}"
            action, intervened = self._act(tape.moments[-1], observation, person, order.noise, rng, at)
            observation, _, ended, truncated, info = self.env.step(self._in_units(action))
            why = broken_off(self.env, bool(ended), info) or tape.unusable(observation, at)
            if why is not None:
                cut = "" if why == PHYSICS else why  # a simulator's failure is the policy's own
                break
            if "applied_action" in info:  # a person or a limit between the policy and the robot
                action = self._given("info['applied_action']", info["applied_action"], at)
                intervened = intervened or bool(info.get("intervention"))
            moment = tape.see(observation, info, success=False)
            verdict = self._success.judge(info, moment.estimate, bool(ended), bool(ended or truncated))
            # Where the environment stops and nobody says what that was, values go on: it is no failure.
            terminated = verdict.ends or (bool(ended) and verdict.failed)
            over = terminated or bool(ended) or bool(truncated)
            tape.decide(action, intervened, verdict.success, paid=verdict.ends)
            aborted = not (terminated or ended) and self._hopeless(order, tape)
        rollout = tape.rollout(terminated=terminated, aborted=aborted, cut=cut)
        self._say_it_ended(rollout, failed=terminated and not rollout.succeeded)
        if order.learned_from and order.start is None and self._wants_looks(rollout):
            images = [moment.images for moment in tape.moments]
            rollout = self.looks.added(rollout, images, self.observer, rng)
        return RolloutResult(rollout, tuple(tape.states), first.images if order.keep_states else {})

    def _say_it_ended(self, rollout: Rollout, *, failed: bool) -> None:
        """Tell a robot that wants to know: whoever records it would go on until the next reset."""
        end = getattr(self.env.unwrapped, "end_episode", None)
        if end is not None:
            end(True if rollout.succeeded else False if failed else None)

    def _wants_looks(self, rollout: Rollout) -> bool:
        """What is imitated does; with values all do, since a look must not tell how an episode ended."""
        values = self._config.learner.value_weight > 0
        return values or rollout.succeeded or bool(rollout.intervened.any())

    def _reset(self, order: Order) -> tuple[Any, dict[str, Any]]:
        self.observer.begin()
        beginning = self.env.reset(seed=order.seed)
        if order.start is None:
            return beginning
        base: Any = self.env.unwrapped
        # A copy: an environment may go on in the very arrays that it is given.
        found = base.set_state(copy.deepcopy(order.start.state))
        if not (isinstance(found, tuple) and [isinstance(part, Mapping) for part in found] == [True, True]):
            raise ConfigError(
                f"env={self._config.env}: set_state(state) returned {type(found).__name__}, it must return "
                "(observation, info) as reset does: correct it, or choose savings.promising_resets=0"
            )
        return found

    def _act(
        self,
        moment: Moment,
        observation: Any,
        person: Intervention | None,
        noise: float,
        rng: np.random.Generator,
        at: str,
    ) -> tuple[Float32[np.ndarray, " a"], bool]:
        """The next action on the policy's scale, and whether a person acts; `at` says when in errors."""
        if person is not None:
            taken = person.action(observation, moment.estimate)
            if taken is not None:
                return self._given("the person's action", taken, at), True
        if self._policy is None:
            raise ConfigError("the worker has no policy yet: call set_policy first")
        with torch.inference_mode():
            action = self._policy(torch.from_numpy(joined(moment.parts))[None])[0].numpy()
        if (wrong := broken_number("the policy's action", at, action)) is not None:
            for name, part in moment.parts.items():
                if (seen := broken_number(f"'{name}'", at, part)) is not None:
                    raise DataError(f"{seen}: what a policy sees must be finite, leave it out of observe")
            raise RoboRewardError(
                f"{wrong}, though what it sees is finite: the learner has broken its weights, so nothing is "
                "sent to the robot; begin anew with another out= (and smaller learner.lr, learner.actor_lr)"
            )
        noisy = action + noise * rng.standard_normal(len(action))
        return np.clip(noisy, -1.0, 1.0).astype(np.float32), False

    def _given(self, whose: str, action: Any, at: str) -> Float32[np.ndarray, " a"]:
        """An action that somebody gave in the environment's units, on the scale of the policy.

        Raises:
            DataError: it is no action of this environment, or not finite.
        """
        given = np.asarray(action, np.float32)
        wrong = broken_number(whose, at, given)
        if given.shape != self._low.shape:
            wrong = f"{whose} has shape {given.shape} at {at}"
        if wrong is not None:
            raise DataError(
                f"env={self._config.env}: {wrong}: an action is {self.action_size} finite numbers (once "
                "that is mended, the same command goes on from there)"
            )
        return self.unit_actions(given[None])[0]

    def _in_units(self, action: Float32[np.ndarray, " a"]) -> Float32[np.ndarray, " a"]:
        return (self._low + (action.astype(np.float64) + 1) / 2 * (self._high - self._low)).astype(np.float32)

    def _hopeless(self, order: Order, tape: _Tape) -> bool:
        """Whether the rule says to give up; judged by the progress that the arm may look at."""
        if order.abort is None:
            return False
        rollout = tape.rollout(terminated=False, aborted=False)
        previous, now = rollout.stamp_ns[-2:] * 1e-9
        return order.abort.aborts(float(previous), float(now), float(self._progress(rollout)[0][-1]))

    def close(self) -> None:
        """Free the environments."""
        self.env.close()
        if self._blind_env is not None and self._blind_env is not self.env:
            self._blind_env.close()


class _Tape:
    """What a rollout has shown so far."""

    def __init__(self, worker: Worker, order: Order, observation: Mapping[str, Any]) -> None:
        base: Any = worker.env.unwrapped
        self._base, self._order = base, order
        self._observer, self._know = worker.observer, worker.privileged
        self._action_size = worker.action_size
        self._decision_ns = worker.decision_ns
        self._version = worker.model.version if worker.model is not None else ""
        self._clock = 0
        self._stamps: list[int] = []
        self.moments: list[Moment] = []
        self.actions: list[np.ndarray] = []
        self.intervened: list[bool] = []
        self.success: list[bool] = []
        self.paid: list[float] = []
        self.truth: list[float] = []
        self.images: dict[str, list[bytes]] = {}
        self.states: list[Any] = []
        if order.start is not None:
            # The reward model compares with the first image of an episode: show it that one first.
            known = self._know(base)
            self._observer.see({**observation, "images": order.start.first}, self._clock, known)
            self._clock += self._decision_ns

    def unusable(self, observation: Mapping[str, Any], where: str) -> str | None:
        """Why the moment `where` cannot be learned from, None where it can: a NaN is soon in every weight."""
        proprio = observation.get("proprio")
        told = None if proprio is None else broken_number("proprio", where, np.asarray(proprio, np.float32))
        known = self._know(self._base)
        return told or (None if known is None else broken_number("the privileged state", where, known))

    def see(self, observation: Mapping[str, Any], info: Mapping[str, Any], *, success: bool) -> Moment:
        """Take in a new moment."""
        known = self._know(self._base)
        self._clock = int(info.get("elapsed_ns", self._clock))  # a robot's own clock, where it has one
        self._stamps.append(self._clock)
        moment = self._observer.see(observation, self._clock, known)
        self._clock += self._decision_ns
        self.moments.append(moment)
        truth = self._base.oracle().progress if hasattr(self._base, "oracle") else np.nan
        self.truth.append(float(truth))
        if not self.success:
            self.success.append(success)
        if self._order.film:
            for camera, rgb in moment.images.items():
                self.images.setdefault(camera, []).append(_jpeg(rgb))
        if self._order.keep_states:
            # What it hands out may be what it lives in: without a copy every moment were the last one.
            self.states.append(copy.deepcopy(self._base.get_state()))
        return moment

    def decide(self, action: np.ndarray, intervened: bool, success: bool, *, paid: bool) -> None:
        """Take in the decision that led to the last moment, and what it earned."""
        self.actions.append(action)
        self.intervened.append(intervened)
        self.success.append(success)
        self.paid.append(float(paid))

    def rollout(self, *, terminated: bool, aborted: bool, cut: str = "") -> Rollout:
        """The tape as a rollout; `cut` says what broke it off."""
        moments, order = self.moments, self._order
        estimates = [moment.estimate for moment in moments]
        return Rollout(
            parts=stacked([moment.parts for moment in moments]),
            actions=np.array(self.actions, np.float32).reshape(-1, self._action_size),
            task_reward=np.array(self.paid, np.float32),
            intervened=np.array(self.intervened, np.bool_),
            progress=np.array([np.nan if e is None else e.progress for e in estimates], np.float32),
            std=np.array([np.nan if e is None else e.std for e in estimates], np.float32),
            truth=np.array(self.truth, np.float32),
            embedding=np.stack([moment.embedding for moment in moments]),
            first=moments[0].first,
            proprio=np.stack([moment.proprio for moment in moments]),
            success=np.array(self.success, np.bool_),
            stamp_ns=np.array(self._stamps, np.int64) - self._stamps[0],
            terminated=terminated,
            aborted=aborted,
            model_version=self._version,
            source={
                "index": order.index,
                "seed": order.seed,
                "noise": order.noise,
                "started_after": order.start.reached if order.start else 0,
                **({"watched": True} if order.abort is not None else {}),  # by a rule that may give up
                **({"cut": cut} if cut else {}),
            },
            images=self.images,
        )


def _jpeg(rgb: np.ndarray) -> bytes:
    ok, data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    if not ok:
        raise DataError(f"cannot encode an image of shape {rgb.shape}")
    return data.tobytes()
