"""`robo-reward run_policy`: rollouts of a policy in an environment, and how many succeed.

A LeRobot policy comes with its own processors and sees what `to_lerobot` wrote of such an environment: the
cameras that it was trained on, at their size, and proprioception. A policy of `robo-reward improve` sees what
it saw there. Rollout i depends on the policy, the options and `seed + i` alone, so policies that ran with one
seed met the same scenes. Any environment will do whose observations have `images` by camera and `proprio`,
and whose `info` says `success`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
from jaxtyping import Float32
from rich.console import Console
from rich.progress import track

from robo_reward.errors import ConfigError, DataError
from robo_reward.imports import import_object
from robo_reward.improve.observer import check_proprio, found_in, usable_cameras
from robo_reward.improve.policy import POLICY_FILE, load_policy
from robo_reward.improve.report import wilson
from robo_reward.improve.worker import open_environment
from robo_reward.intake import resize_frames
from robo_reward.metrics import Metric
from robo_reward.pace import check_same_pace, step_ns
from robo_reward.schema import Episode, Outcome
from robo_reward_data._files import encode_json, lock, replace_file
from robo_reward_data.rollout import rollout
from robo_reward_data.store import EpisodeStore

__all__ = ["ImprovedPolicy", "LeRobotPolicy", "RunPolicyConfig", "run"]

_IMAGES, _STATE, _ACTION = "observation.images.", "observation.state", "action"
_WITH_TRUTH = "robo_reward_sim.rollout.rollout"
_METRICS, _ROLLOUTS = "metrics.json", "rollouts.jsonl"


@dataclass(frozen=True)
class RunPolicyConfig:
    """The keys of `configs/run_policy.yaml`, which says what each means."""

    policy: str
    env: Any
    out: str
    episodes: int = 20
    seed: int = 1_000_000
    model: str | None = None
    instruction: str | None = None
    store: str | None = None
    kind: str = "policy"
    action_steps: int | None = None
    device: str = "cpu"
    threads: int | None = None
    plugins: tuple[str, ...] = ("robo_reward_sim",)
    policy_plugins: tuple[str, ...] = ("robo_reward_data.lerobot_plugin",)
    env_args: dict[str, Any] | None = None
    step_s: float | None = None
    rollout: str | None = None
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class RolloutResult:
    """How one rollout went.

    seed       of its scene
    success    the task was done when it ended
    decisions  that it took
    progress   true progress at its end, None where nobody knows
    """

    seed: int
    success: bool
    decisions: int
    progress: float | None


class LeRobotPolicy:
    """A policy in a folder that LeRobot wrote, with the processors that lie beside it."""

    def __init__(
        self,
        folder: str | Path,
        device: str = "cpu",
        action_steps: int | None = None,
        plugins: Sequence[str] = RunPolicyConfig.policy_plugins,
    ) -> None:
        """Load it. `plugins` are packages with policies that are not LeRobot's own.

        Raises:
            ConfigError: no LeRobot here, a device that is none, a plug-in that does not import, a type of
                policy that nobody registers, more `action_steps` than it predicts, or inputs other than
                cameras and state.
            DataError: no whole policy there.
        """
        import torch

        from robo_reward.checkpoint import check_device

        check_device(device)
        self.folder = policy_folder(Path(folder))
        parts = _lerobot(plugins)
        try:
            # LeRobot tells of loading on stdout, which is for results.
            with contextlib.redirect_stdout(sys.stderr):
                settings = parts.config.from_pretrained(self.folder)
                settings.device = device
                if action_steps is not None:
                    _shorten(settings, action_steps)
                self._policy = parts.policy_class(settings.type).from_pretrained(self.folder, config=settings)
                self._before, self._after = parts.processors(
                    settings,
                    pretrained_path=str(self.folder),
                    preprocessor_overrides={"device_processor": {"device": device}},
                )
        except ValueError as error:
            raise ConfigError(f"{self.folder} does not load: {error}") from error
        except FileNotFoundError as error:
            raise DataError(f"{self.folder} is no whole LeRobot policy: {error}") from error
        self._prepare, self._device = parts.prepare, torch.device(device)
        self.action_size = int(settings.output_features[_ACTION].shape[0])
        self.state_size: int | None = None
        self.image_sizes: dict[str, tuple[int, int]] = {}
        for key, feature in settings.input_features.items():
            if key.startswith(_IMAGES):
                self.image_sizes[key.removeprefix(_IMAGES)] = (int(feature.shape[1]), int(feature.shape[2]))
            elif key == _STATE:
                self.state_size = int(feature.shape[0])
            else:
                raise ConfigError(f"the policy wants '{key}': only {_IMAGES}<camera> and {_STATE} are given")

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras that it was trained on."""
        return tuple(self.image_sizes)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of their images in pixels; None where there are none.

        Raises:
            ConfigError: they have different ones.
        """
        sizes = sorted(set(self.image_sizes.values()))
        if len(sizes) > 1:
            raise ConfigError(
                f"the policy wants images of different sizes ({sizes}): environments here have one"
            )
        return sizes[0] if sizes else None

    def reset(self) -> None:
        """An episode begins: forget what was planned."""
        self._policy.reset()
        self._before.reset()
        self._after.reset()

    def act(self, observation: Mapping[str, Any], instruction: str) -> Float32[np.ndarray, " a"]:
        """The action for an observation with `images` u8[h, w, 3] by camera and `proprio` f32[p]."""
        import torch

        seen = {
            f"{_IMAGES}{camera}": resize_frames(np.array(observation["images"][camera])[None], size)[0]
            for camera, size in self.image_sizes.items()
        }
        if self.state_size is not None:
            seen[_STATE] = np.array(observation["proprio"])
        with torch.inference_mode():
            batch = self._before(self._prepare(seen, self._device, instruction))
            action = self._after(self._policy.select_action(batch))
        return action[0].float().cpu().numpy()


class ImprovedPolicy:
    """The policy in a run folder of `robo-reward improve`."""

    def __init__(self, folder: Path, model: str | None, device: str) -> None:
        """Load it; `model` is the reward model that it looks through, if not where it was.

        Raises:
            CheckpointError, ConfigError: see `load_policy`.
        """
        self.folder, self._policy = folder, load_policy(folder, model, device)
        self.cameras, self.image_size = self._policy.cameras, None
        self.action_size, self.state_size = self._policy.action_size, self._policy.proprio_size
        self.decision_ns, self.instruction = self._policy.decision_ns, self._policy.instruction
        self._clock = 0

    def reset(self) -> None:
        """An episode begins."""
        self._policy.reset()
        self._clock = 0

    def act(self, observation: Mapping[str, Any], instruction: str) -> Float32[np.ndarray, " a"]:
        """The action for the next observation.

        Raises:
            ConfigError: another task than it has learned.
        """
        if instruction != self._policy.instruction:
            raise ConfigError(f"the policy has learned '{self._policy.instruction}', not '{instruction}'")
        stamp_ns, self._clock = self._clock, self._clock + self.decision_ns
        return self._policy.act(observation.get("images", {}), stamp_ns, observation["proprio"])


def _open_policy(config: RunPolicyConfig, folder: Path) -> ImprovedPolicy | LeRobotPolicy:
    """The policy that lies in a folder."""
    if _is_improved(folder):
        return ImprovedPolicy(folder, config.model, config.device)
    return LeRobotPolicy(folder, config.device, config.action_steps, config.policy_plugins)


def _is_improved(folder: Path) -> bool:
    return (folder / POLICY_FILE).is_file()


def run(config: RunPolicyConfig) -> None:
    """Run what is missing of the rollouts, and write `metrics.json`.

    Raises:
        ConfigError: a plug-in, policy or environment that is not there, or that do not fit each other.
        DataError: no policy there, or `out` or `store` hold something else.
    """
    import torch

    if config.episodes < 1 or config.seed < 0:
        raise ConfigError(f"episodes={config.episodes} and seed={config.seed}: at least 1, and 0 or more")
    if config.threads:
        torch.set_num_threads(config.threads)
    folder = policy_folder(Path(config.policy))
    if _is_improved(folder) and config.action_steps is not None:
        raise ConfigError("action_steps is for policies that predict chunks: leave it out")
    if not _is_improved(folder) and config.model is not None:
        raise ConfigError("model is for policies of robo-reward improve: leave it out")
    keys = ("env", "seed", "instruction", "action_steps", "env_args", "rollout")
    identity = {"policy_version": policy_version(folder), **{key: getattr(config, key) for key in keys}}
    identity |= {} if config.step_s is None else {"step_s": config.step_s}
    out, seeds = Path(config.out), [config.seed + index for index in range(config.episodes)]
    out.mkdir(parents=True, exist_ok=True)
    with lock(out / ".lock"):
        done = _found(out, identity, config.overwrite)
        store = _open_store(config.store, {**identity, "kind": config.kind})
        if missing := [seed for seed in seeds if seed not in done or not _is_kept(store, config, seed)]:
            _run_missing(config, identity, store, missing, done)
        results = [done[seed] for seed in seeds]
        metrics = summarize(results)
        body = {
            "policy": str(folder),
            **identity,
            **{name: metric.to_json() for name, metric in metrics.items()},
            "rollouts": [dataclasses.asdict(result) for result in results],
        }
        replace_file(out / _METRICS, encode_json(body, _METRICS))
    rate, wins = metrics["success"], sum(result.success for result in results)
    sys.stdout.write(
        f"{config.env}: {wins} of {len(results)} rollouts succeed, {rate.value:.3f} "
        f"[{rate.low:.3f}, {rate.high:.3f}]: {out / _METRICS}\n"
    )


def policy_folder(folder: Path) -> Path:
    """Where the policy lies in what `lerobot-train` or `robo-reward improve` made, or `folder` itself.

    Raises:
        DataError: nowhere.
    """
    if _is_improved(folder):
        return folder.resolve()
    for candidate in (folder, folder / "pretrained_model", folder / "checkpoints/last/pretrained_model"):
        if (candidate / "config.json").is_file():
            return candidate.resolve()
    raise DataError(
        f"no policy in {folder}: give the output_dir of lerobot-train, a pretrained_model folder, or the out "
        "of a finished robo-reward improve"
    )


def policy_version(folder: Path) -> str:
    """16 hexadecimal digits of a digest of all that a policy in a folder is loaded from."""
    if _is_improved(folder):
        return hashlib.sha256((folder / POLICY_FILE).read_bytes()).hexdigest()[:16]
    digest = hashlib.sha256()
    names = sorted(path.name for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
    for name in names:
        if name != "train_config.json":  # says where it was trained, not what it does
            digest.update(name.encode())
            digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]


def summarize(results: list[RolloutResult]) -> dict[str, Metric]:
    """Success with its 95 % Wilson interval; mean decisions, and true progress at the end where known."""
    wins, count = sum(result.success for result in results), len(results)
    known = [result.progress for result in results if result.progress is not None]
    return {
        "success": Metric(wins / count, *wilson(wins, count), count),
        "decisions": Metric.exact(float(np.mean([result.decisions for result in results])), count),
        "final_progress": Metric.exact(float(np.mean(known)), len(known)) if known else Metric.undefined(),
    }


def _run_missing(
    config: RunPolicyConfig,
    identity: Mapping[str, Any],
    store: EpisodeStore | None,
    seeds: list[int],
    done: dict[int, RolloutResult],
) -> None:
    """Run these rollouts, add them to `done`, and note each in the file as it ends.

    What was there of another policy or with other options goes only once there is nothing left to refuse.
    """
    console = Console(stderr=True)
    policy = _open_policy(config, policy_folder(Path(config.policy)))
    source = {"env": config.env, "policy": str(policy.folder), "policy_version": identity["policy_version"]}
    with _environment(config, policy) as env:
        _begin(Path(config.out), identity, done)
        with (Path(config.out) / _ROLLOUTS).open("a") as file:
            for seed in track(seeds, "rollouts", console=console, disable=not console.is_terminal):
                episode = _roll(config, policy, env, seed, source)
                if store is not None and not _is_kept(store, config, seed):
                    store.write(episode)
                done[seed] = _result(episode, seed)
                file.write(_line(dataclasses.asdict(done[seed])))
                file.flush()


def _name(config: RunPolicyConfig, seed: int) -> str:
    return f"{config.kind}_{seed:09d}"


def _is_kept(store: EpisodeStore | None, config: RunPolicyConfig, seed: int) -> bool:
    """Whether a rollout is where it is to be kept."""
    return store is None or _name(config, seed) in store


def _roll(
    config: RunPolicyConfig,
    policy: ImprovedPolicy | LeRobotPolicy,
    env: _Watched,
    seed: int,
    source: Mapping[str, Any],
) -> Episode:
    """One rollout. Policies that draw lots draw them from torch's generator: it is seeded, and put back."""
    import torch

    bounds, told = cast("Any", env.action_space), _instruction(config, policy, env)
    policy.reset()

    def act(_: object) -> Float32[np.ndarray, " a"]:
        return np.clip(policy.act(env.observation, told), bounds.low, bounds.high)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _runner(config, env, told)(
            env,
            act,
            seed=seed,
            name=_name(config, seed),
            kind=config.kind,
            source=source,
        )


def _instruction(config: RunPolicyConfig, policy: ImprovedPolicy | LeRobotPolicy, env: _Watched) -> str:
    """What the policy is told: as the config says, the environment, or the policy itself."""
    said = (
        config.instruction,
        getattr(getattr(env.unwrapped, "task", None), "instruction", None),
        getattr(policy, "instruction", None),
    )
    told = next((text for text in said if text is not None), None)
    if told is None:
        raise ConfigError(f"{config.env} does not say what its task is: say instruction=")
    return told


def _runner(config: RunPolicyConfig, env: _Watched, told: str) -> Callable[..., Episode]:
    """What runs an episode: as the config says, or with the truth in a world of robo_reward_sim."""
    if config.rollout is not None:
        return import_object(config.rollout)
    ours = sys.modules.get("robo_reward_sim.envs")  # an environment of a package that is not imported is none
    if ours is not None and isinstance(env.unwrapped, ours.ManipulationEnv):
        return import_object(_WITH_TRUTH)
    cameras = usable_cameras(env.observation_space)
    return partial(rollout, cameras=cameras, instruction=told, taken_ns=step_ns(env, config.step_s))


def _result(episode: Episode, seed: int) -> RolloutResult:
    info = episode.info
    progress = None
    if info.truth is not None and info.truth.valid[-1]:
        progress = float(info.truth.stage[-1] + info.truth.tau[-1]) / len(info.stage_names)
    return RolloutResult(seed, info.outcome is Outcome.SUCCESS, info.length - 1, progress)


class _Watched(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Remembers what was last observed."""

    observation: Mapping[str, Any]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """As the environment does."""
        self.observation, info = self.env.reset(seed=seed, options=options)
        return self.observation, info

    def step(self, action: Any) -> Any:
        """As the environment does."""
        self.observation, *rest = self.env.step(action)
        return (self.observation, *rest)


@contextlib.contextmanager
def _environment(config: RunPolicyConfig, policy: ImprovedPolicy | LeRobotPolicy) -> Generator[_Watched]:
    """The environment with the policy's cameras at their size, closed in the end.

    Raises:
        ConfigError: a plug-in or environment that is not there, or one that the policy does not fit.
    """
    arguments: dict[str, Any] = dict(config.env_args or {})
    if policy.cameras:  # one that looks through none leaves the environment its own: an episode has some
        arguments.setdefault("cameras", policy.cameras)
    if policy.image_size is not None:
        arguments.setdefault("image_size", policy.image_size)
    try:
        opened = open_environment(config.env, config.plugins, arguments)
    except ConfigError as error:
        # Not every environment lets its cameras be chosen; `_check_fit` sees what it has.
        if not isinstance(error.__cause__, TypeError) or arguments == (config.env_args or {}):
            raise
        opened = open_environment(config.env, config.plugins, config.env_args or {})
    env = _Watched(opened)
    try:
        _check_fit(config, policy, env)
        yield env
    finally:
        env.close()


def _check_fit(
    config: RunPolicyConfig, policy: ImprovedPolicy | LeRobotPolicy, env: gymnasium.Env[Any, Any]
) -> None:
    space = cast("Any", env.observation_space)
    check_proprio(str(config.env), space)
    shown = usable_cameras(space)
    lacking = next((camera for camera in policy.cameras if camera not in shown), None if shown else "any")
    if lacking is not None:
        raise ConfigError(
            f"{config.env} shows no camera '{lacking}', observation['images'][camera], uint8(h, w, 3), which "
            f"the policy or a rollout's record needs: it gives {found_in(space)}"
        )
    actions, proprio = env.action_space.shape, space["proprio"].shape
    if actions != (policy.action_size,):
        raise ConfigError(
            f"the policy has actions of {policy.action_size} numbers, the environment {actions}"
        )
    if policy.state_size is not None and proprio != (policy.state_size,):
        raise ConfigError(
            f"the policy sees a state of {policy.state_size} numbers, the environment has {proprio}"
        )
    if isinstance(policy, ImprovedPolicy):  # LeRobot's do not say
        check_same_pace(
            "the policy",
            float(policy.decision_ns),
            str(config.env),
            step_ns(env, config.step_s),
            "give env_args={...} as it was trained, or, where it is wrong about itself, step_s=SECONDS",
        )


# --- what is there already -----------------------------------------------------------------------------


def _line(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts) + "\n"


def _found(out: Path, identity: Mapping[str, Any], overwrite: bool) -> dict[int, RolloutResult]:
    """The rollouts by seed that an earlier run left; the first line of their file says what they are of.

    Raises:
        DataError: `out` holds something else.
    """
    names = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    if strangers := [name for name in names if name not in (_METRICS, _ROLLOUTS)]:
        raise DataError(f"'{out}' holds other files ({strangers[0]}): choose another out=")
    path = out / _ROLLOUTS
    # What a killed run was about to write has no line end yet.
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    was, now = _now(json.loads(lines[0])) if lines else {}, json.loads(_line(identity))
    ours = was == now
    if lines and not ours and not overwrite:
        key = next(key for key in (*now, *was) if was.get(key) != now.get(key))
        raise DataError(
            f"'{out}' has rollouts with {key}={was.get(key)}, not {now.get(key)}: choose another out=, or "
            "overwrite=true replaces them"
        )
    results = [RolloutResult(**json.loads(line)) for line in (lines[1:] if ours else [])]
    return {result.seed: result for result in results}


def _now(identity: dict[str, Any]) -> dict[str, Any]:
    """What rollouts are of, as it is said now: what ran them was always named before there was a choice."""
    return {**identity, "rollout": None} if identity.get("rollout") == _WITH_TRUTH else identity


def _begin(out: Path, identity: Mapping[str, Any], done: Mapping[int, RolloutResult]) -> None:
    """Leave in `out` what is done of these rollouts, and nothing else."""
    if not done:
        (out / _METRICS).unlink(missing_ok=True)
    lines = [_line(identity), *(_line(dataclasses.asdict(result)) for result in done.values())]
    replace_file(out / _ROLLOUTS, "".join(lines))


def _open_store(path: str | None, identity: Mapping[str, Any]) -> EpisodeStore | None:
    """The store to keep rollouts in: a new one, or that of an earlier run of the same.

    Raises:
        DataError: something else is there.
    """
    if path is None:
        return None
    store = EpisodeStore.create(path, attrs={"run_policy": identity}, exist_ok=True)
    found = store.attrs.get("run_policy")
    if found is None:
        raise DataError(f"{path} is a store of other episodes: choose another store=")
    found = {"kind": identity["kind"], **_now(found)}  # stores of earlier versions do not say
    if differing := [key for key in (*identity, *found) if found.get(key) != identity.get(key)]:
        key = differing[0]
        raise DataError(
            f"{path} has rollouts with {key}={found.get(key)}, not {identity.get(key)}: choose another store="
        )
    return store


# --- LeRobot -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _LeRobot:
    """What is used of LeRobot, whose import takes seconds."""

    config: Any
    policy_class: Any
    processors: Any
    prepare: Any


def _lerobot(plugins: Sequence[str]) -> _LeRobot:
    """LeRobot, and the plug-ins' policies known to it.

    Raises:
        ConfigError: it is not installed, or a plug-in does not import.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # policies come from folders
    try:
        from lerobot.configs import PreTrainedConfig
        from lerobot.configs.parser import PluginLoadError, load_plugin
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors
        from lerobot.policies.utils import prepare_observation_for_inference
    except ModuleNotFoundError as error:
        raise ConfigError(f"no {error.name} here: pip install 'robo-reward[data]'") from error
    for plugin in plugins:
        try:
            load_plugin(plugin)
        except PluginLoadError as error:
            raise ConfigError(f"policy_plugins has '{plugin}': {error}") from error
    return _LeRobot(
        PreTrainedConfig, get_policy_class, make_pre_post_processors, prepare_observation_for_inference
    )


def _shorten(settings: Any, steps: int) -> None:
    """Have a policy carry out fewer actions of what it predicts.

    Raises:
        ConfigError: it predicts no chunks, or shorter ones.
    """
    longest = getattr(settings, "chunk_size", None) or getattr(settings, "horizon", None)
    if not hasattr(settings, "n_action_steps") or longest is None:
        raise ConfigError(f"a policy of type '{settings.type}' predicts no chunks: leave action_steps=null")
    if not 1 <= steps <= longest:
        raise ConfigError(
            f"action_steps={steps}: the policy predicts {longest} actions, choose 1 to {longest}"
        )
    settings.n_action_steps = steps
