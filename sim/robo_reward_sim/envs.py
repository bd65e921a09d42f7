"""Gymnasium environments: what a robot would see and know as observation, the truth apart from it."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Float64, UInt8

from robo_reward.errors import ConfigError
from robo_reward_sim.gl import choose_backend
from robo_reward_sim.oracles import OracleReading, reading
from robo_reward_sim.rendering import CAMERAS, FixedCamera, FreeCamera, SceneRenderer
from robo_reward_sim.states import SimState, restore, save
from robo_reward_sim.tasks import TASKS, SimTask
from robo_reward_sim.variation import Look, Variation, look_of

__all__ = ["ManipulationEnv", "named_cameras"]


class ManipulationEnv(gymnasium.Env[dict[str, Any], np.ndarray]):
    """A Meta-World task as a robot would meet it: camera images and its own joints, no object state.

    Observation: `images`, u8[h, w, 3] by camera name, and `proprio`, f32[4]: the position of the end effector
    in meters and the opening of the gripper in [0, 1]. Without cameras there are no images, and nothing is
    rendered. Only where asked for by `privileged_observation`: `privileged`, f32[39], the true state.
    Action: f32[4] in [-1, 1], three displacements of the end effector and the grip (-1 opens, 1 closes),
    repeated over `action_repeat` control steps of 12.5 ms.
    Reward: 1 on the decision that ends the episode in success, else 0.
    `terminated` once the simulator has called the task done for `success_hold` decisions in a row, so that
    the last frames show it done. The step limit (`truncated`) is gymnasium's own, set by `gymnasium.make`;
    this environment truncates only where the physics fails, with `info["physics_error"]` True.
    `info["success"]` says whether the task is done now.

    The truth is apart: `env.unwrapped.oracle()` and `env.unwrapped.privileged_state()`.
    `get_state()` and `set_state(...)` save and restore a moment exactly; `reset(options={"state": ...})`
    begins an episode there.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 16}

    def __init__(
        self,
        task: str,
        image_size: tuple[int, int] = (84, 84),
        cameras: Sequence[str] | Mapping[str, FreeCamera | FixedCamera] = ("left", "right", "wrist"),
        action_repeat: int = 5,
        success_hold: int = 2,
        privileged_info: bool = False,
        render_mode: str | None = None,
        privileged_observation: bool = False,
        flat: bool = False,
        variation: Variation | None = None,
    ) -> None:
        """Build the simulated scene.

        Args:
            task: name of a task in `robo_reward_sim.tasks.TASKS`.
            image_size: (height, width) of every camera, in pixels.
            cameras: names in `robo_reward_sim.rendering.CAMERAS`, or cameras by names of your own. With ()
                the observation has no `images`, and nothing is rendered.
            action_repeat: control steps for each decision.
            success_hold: decisions for which the task must stay done before the episode ends.
            privileged_info: put the truth into `info` too, as `oracle` and `privileged_state`.
            render_mode: None, or "rgb_array" for `render()`.
            privileged_observation: put the true state into the observation, for learners that need no pixels.
            flat: name images `images/left` and so on at the top of the observation instead of in a
                dictionary of their own, for libraries that know no nested spaces (Stable-Baselines3).
            variation: how much the look of the scene varies from episode to episode; None: not at all. The
                scene itself is the one that the same seed gives without.

        Raises:
            ConfigError: no such task or camera, or a number that is out of range.
            GraphicsError: cameras are wanted and cannot be rendered here.
        """
        if task not in TASKS:
            raise ConfigError(f"no simulated task '{task}': choose one of {', '.join(TASKS)}")
        if action_repeat < 1 or success_hold < 1 or min(image_size) < 1:
            raise ConfigError(
                f"action_repeat={action_repeat}, success_hold={success_hold} and image_size={image_size} "
                "must be 1 or more"
            )
        self.task = TASKS[task]
        self.cameras = named_cameras(cameras, self.task)
        self.variation = variation or Variation()
        self.look: Look | None = None
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.render_mode = render_mode
        self._repeat, self._hold, self._privileged = action_repeat, success_hold, privileged_info
        rendered = bool(self.cameras) or render_mode is not None
        self._sim = _make_simulator(self.task.metaworld, rendered=rendered)
        self._start = (self._sim.model.body_pos.copy(), self._sim.model.site_pos.copy())
        self._oracle = self.task.oracle()
        self._renderer: SceneRenderer | None = None
        self._images: dict[str, np.ndarray] = {}
        self._held = 0
        self._truth = OracleReading(0, 0.0, False, 0.0)

        self._flat, self._observes_truth = flat, privileged_observation
        self._low = np.array((-2.0, -2.0, -2.0, 0.0), np.float32)
        self._high = np.array((2.0, 2.0, 2.0, 1.0), np.float32)
        self.observation_space = self._space()
        self.action_space = spaces.Box(-1.0, 1.0, (4,), np.float32)

    def _space(self) -> spaces.Dict:
        image = spaces.Box(0, 255, (*self.image_size, 3), np.uint8)
        parts: dict[str, spaces.Space[Any]] = {"proprio": spaces.Box(self._low, self._high)}
        if self._observes_truth:
            parts["privileged"] = spaces.Box(-_FAR, _FAR, (39,), np.float32)
        if self._flat:
            return spaces.Dict({**{f"images/{name}": image for name in self.cameras}, **parts})
        views = {"images": spaces.Dict(dict.fromkeys(self.cameras, image))} if self.cameras else {}
        return spaces.Dict({**views, **parts})

    @property
    def decision_ns(self) -> int:
        """Simulated time of one decision, in nanoseconds."""
        return round(self._sim.dt * self._repeat * 1e9)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode; `seed` fixes everything in it, the places of goal and objects included.

        With `options={"state": state}`, from `get_state()`, it begins at that moment instead.
        """
        super().reset(seed=seed, options=options)
        if options is not None and "state" in options:
            generator = self.np_random.bit_generator.state
            restored = self.set_state(options["state"])
            self.np_random.bit_generator.state = generator  # later episodes are as varied as ever
            return restored
        sim = self._sim
        # A task moves bodies of the model at reset. Put them back first: the hand settles among them, and
        # what the last episode left there must not reach into this one.
        sim.model.body_pos[:], sim.model.site_pos[:] = self._start
        scene = int(self.np_random.integers(2**31))
        sim.seed(scene)
        sim.reset()
        self._state = self._settled_state()
        self._clear_warnings()
        self._oracle.begin(sim)
        self._held = 0
        self._truth = self._read(success=False, before=0)
        # Seeded by the scene, not drawn from the generator: variation changes no scene.
        self._wear(look_of(self.variation, scene, sim))
        return self._observe(), self._info(physics_error=False)

    def step(
        self, action: Float64[np.ndarray, " 4"]
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Make one decision. Where the physics fails, the observation is the last good one."""
        command = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        state, success = self._state, False
        for _ in range(self._repeat):
            state, _, _, _, facts = self._sim.step(command)
            success = bool(facts["success"])
            if self._physics_failed(state):
                self._truth = replace(self._truth, success=False)
                return copy.deepcopy(self._last), 0.0, False, True, self._info(physics_error=True)
        self._state = state
        self._truth = self._read(success=success, before=self._truth.stage)
        self._held = self._held + 1 if success else 0
        done = self._held >= self._hold
        return self._observe(), float(done), done, False, self._info(physics_error=False)

    def oracle(self) -> OracleReading:
        """The true stage and progress of this moment."""
        return self._truth

    def get_state(self) -> SimState:
        """This moment: physics, scene, episode, look, and random generators. It can be pickled.

        Step limits of wrappers are not part of it.
        """
        episode = {name: copy.deepcopy(getattr(self, name)) for name in _EPISODE_FIELDS}
        generator = copy.deepcopy(self.np_random)
        return SimState(self.task.name, save(self._sim), {**episode, "generator": generator})

    def set_state(self, state: SimState) -> tuple[dict[str, Any], dict[str, Any]]:
        """Go back to a moment of an environment of the same task: the same actions lead to the same images.

        Returns:
            What `reset` returns: the observation and info of that moment.

        Raises:
            ConfigError: the state is of another task.
        """
        if state.task != self.task.name:
            raise ConfigError(f"a state of task '{state.task}' cannot be restored in '{self.task.name}'")
        restore(self._sim, state.scene)
        for name in _EPISODE_FIELDS:
            setattr(self, name, copy.deepcopy(state.episode[name]))
        self.np_random = copy.deepcopy(state.episode["generator"])
        self._clear_warnings()
        self._wear(self.look)
        return self._observe(), self._info(physics_error=False)

    def privileged_state(self) -> Float64[np.ndarray, " 39"]:
        """Meta-World's whole observation of this moment: hand, objects, the step before, and the goal."""
        return self._state.copy()

    def render(self) -> UInt8[np.ndarray, "h w 3"] | None:
        """The views of this moment side by side, or None without a render mode.

        Where the observation has no cameras, one view is rendered for this call only.
        """
        if self.render_mode != "rgb_array":
            return None
        if not self.cameras:
            self._renderer = self._renderer or self._make_renderer(named_cameras(("right",), self.task))
            self._renderer.dress(self.look)
            return self._renderer.render(self._sim.data)["right"]
        return np.concatenate(list(self._images.values()), axis=1)

    def close(self) -> None:
        """Free the OpenGL context."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _settled_state(self) -> Float64[np.ndarray, " 39"]:
        # Meta-World moves bodies of the model at reset and observes before kinematics has followed.
        mujoco: Any = import_module("mujoco")
        mujoco.mj_forward(self._sim.model, self._sim.data)
        now = self._sim._get_curr_obs_combined_no_goal()
        self._sim._prev_obs = now
        return np.concatenate((now, now, self._sim._get_pos_goal()))

    def _read(self, *, success: bool, before: int) -> OracleReading:
        potential = self._oracle.potential(self._sim)
        return reading(potential, len(self.task.stage_names), success, before)

    def _wear(self, look: Look | None) -> None:
        self.look = look
        if self.cameras and self._renderer is None:
            self._renderer = self._make_renderer(self.cameras)
        if self.cameras and self._renderer is not None:
            self._renderer.dress(look)

    def _make_renderer(self, cameras: Mapping[str, FreeCamera | FixedCamera]) -> SceneRenderer:
        return SceneRenderer(self._sim.model, cameras, self.image_size, show_sites=self.task.show_sites)

    def _observe(self) -> dict[str, Any]:
        if self.cameras and self._renderer is not None:
            self._images = self._renderer.render(self._sim.data)
        parts = {"proprio": np.clip(self._state[:4], self._low, self._high).astype(np.float32)}
        if self._observes_truth:
            parts["privileged"] = np.clip(self._state, -_FAR, _FAR).astype(np.float32)
        views: dict[str, Any] = {"images": dict(self._images)} if self.cameras else {}
        if self._flat:
            views = {f"images/{name}": image for name, image in self._images.items()}
        self._last = {**views, **parts}
        return self._last

    def _info(self, *, physics_error: bool) -> dict[str, Any]:
        info: dict[str, Any] = {"success": self._truth.success, "physics_error": physics_error}
        if self._privileged:
            info |= {"oracle": self.oracle(), "privileged_state": self.privileged_state()}
        return info

    def _clear_warnings(self) -> None:
        for kind in _UNSTABLE:
            self._sim.data.warning[kind].number = 0

    def _physics_failed(self, state: np.ndarray) -> bool:
        # MuJoCo resets a scene that has become unstable on its own, so the state alone can look fine.
        return not np.isfinite(state).all() or any(self._sim.data.warning[kind].number for kind in _UNSTABLE)


_EPISODE_FIELDS = ("_state", "_truth", "_held", "_oracle", "look")
_FAR = 5.0  # meters; nothing that matters is further away
_UNSTABLE = (4, 5, 6)  # mjWARN_BADQPOS, mjWARN_BADQVEL, mjWARN_BADQACC


def named_cameras(
    cameras: Sequence[str] | Mapping[str, FreeCamera | FixedCamera], task: SimTask | None = None
) -> dict[str, FreeCamera | FixedCamera]:
    """Cameras by the names that their images get; a task may have better places for those that have a name.

    Raises:
        ConfigError: a name that is not in `robo_reward_sim.rendering.CAMERAS`, or there twice.
    """
    if isinstance(cameras, Mapping):
        return dict(cameras)
    unknown = [name for name in cameras if name not in CAMERAS]
    if unknown:
        raise ConfigError(
            f"no camera '{unknown[0]}': choose from {', '.join(CAMERAS)}, or give FreeCamera(...)"
        )
    if len(set(cameras)) < len(cameras):
        raise ConfigError(f"cameras=[{', '.join(cameras)}]: name each camera once")
    places = CAMERAS if task is None else {**CAMERAS, **task.cameras}
    return {name: places[name] for name in cameras}


def _make_simulator(name: str, *, rendered: bool) -> Any:
    if rendered:
        choose_backend()  # before MuJoCo is first imported: it reads MUJOCO_GL only then
    try:
        environments: Any = import_module("metaworld.env_dict").ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the simulated tasks need '{error.name}': install it with pip install 'robo-reward[sim]'"
        ) from error
    _log_simulator_warnings()
    sim: Any = environments[f"{name}-goal-observable"](seed=0)
    sim._freeze_rand_vec = False  # goals and objects vary from episode to episode
    sim.seeded_rand_vec = True  # ... and come from the seed, not from numpy's global state
    sim.max_path_length = sys.maxsize  # the step limit is gymnasium's
    return sim


def _log_simulator_warnings() -> None:
    # MuJoCo's own handler prints, and leaves MUJOCO_LOG.TXT in whatever folder the process runs in.
    mujoco: Any = import_module("mujoco")
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(logging.getLogger(__name__).info)
