"""What `robo-reward improve` is told: see `configs/improve.yaml` for what each key means."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from robo_reward.checkpoint import check_device
from robo_reward.errors import ConfigError
from robo_reward.imports import import_object
from robo_reward.improve.learner import LearnerConfig
from robo_reward.improve.sources import NoProgress

__all__ = ["ImproveConfig", "LooksConfig", "SavingsConfig", "ShapingConfig", "check_config", "observed_parts"]


@dataclass(frozen=True)
class ShapingConfig:
    """How progress becomes reward; set by the arm."""

    progress: dict[str, Any] = field(default_factory=dict)
    potential: dict[str, Any] = field(default_factory=dict)
    rule: dict[str, Any] = field(default_factory=dict)
    kappa: float = 1.0
    outcome_trust: bool = False


@dataclass(frozen=True)
class SavingsConfig:
    """What else progress is good for: less robot time. Each can be switched alone."""

    abort: bool = False
    reset_s: float = 0.0
    priority: float = 0.0
    promising_resets: float = 0.0


@dataclass(frozen=True)
class LooksConfig:
    """Other looks of what is imitated: how many of each episode, and the pixel transforms that make one."""

    copies: int = 0
    pixels: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ImproveConfig:
    """The whole run."""

    env: Any
    demos: str
    out: str
    model: str | None = None
    arm_name: str = "learned"
    rollouts: int = 150
    seed: int = 0
    plugins: tuple[str, ...] = ()
    env_args: dict[str, Any] = field(default_factory=dict)
    blind_args: dict[str, Any] = field(default_factory=dict)
    step_s: float | None = None
    demonstrations: int | None = None
    demo_offset: int = 0
    demo_hold: int = 2
    demo_kinds: tuple[str, ...] | None = None
    observe: tuple[str, ...] = ("proprio", "motion", "map")
    privileged: bool = False
    privileged_state: str = ""
    privileged_demos: str = ""
    privileged_parts: tuple[str, ...] = ("privileged",)
    success: dict[str, Any] = field(default_factory=dict)
    intervention: dict[str, Any] = field(default_factory=dict)
    shaping: ShapingConfig = field(default_factory=ShapingConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    savings: SavingsConfig = field(default_factory=SavingsConfig)
    looks: LooksConfig = field(default_factory=LooksConfig)
    refresh_every: int = 0
    refresh_steps: int = 200
    evaluate_every: int = 25
    evaluate_episodes: int = 20
    keep_best: bool = True
    film_every: int = 25
    reader: dict[str, Any] = field(default_factory=dict)
    workers: int = 0
    threads: int = 1
    device: str = "cpu"
    resume: bool = True


def observed_parts(config: ImproveConfig) -> tuple[str, ...]:
    """What the policy sees. The simulator's state only where the flag says so."""
    return tuple(config.privileged_parts if config.privileged else config.observe)


def check_config(config: ImproveConfig) -> None:
    """Refuse what cannot be meant.

    Raises:
        ConfigError: naming the key, its value and the way out.
    """
    for key in ("rollouts", "evaluate_every", "evaluate_episodes", "film_every", "refresh_every", "workers"):
        if getattr(config, key) < 0:
            raise ConfigError(f"{key}={getattr(config, key)}: must be 0 or more")
    if config.seed < 0:
        raise ConfigError(f"seed={config.seed}: must be 0 or more")
    check_device(config.device)
    if config.refresh_every and config.device != "cpu":
        raise ConfigError(
            f"refresh_every={config.refresh_every} with device={config.device}: a reward model is refreshed "
            "on the CPU alone; choose device=cpu, or refresh_every=0"
        )
    least = 1 if config.refresh_every else 0
    if config.refresh_steps < least:
        raise ConfigError(
            f"refresh_steps={config.refresh_steps} with refresh_every={config.refresh_every}: must be "
            f"{least} or more"
        )
    if config.threads < 1:
        raise ConfigError(f"threads={config.threads}: must be 1 or more")
    parts = observed_parts(config)
    if not parts or len(set(parts)) != len(parts):
        key = "privileged_parts" if config.privileged else "observe"
        raise ConfigError(f"{key}={list(parts)}: name what the policy sees, each part once")
    if "privileged" in config.observe:
        raise ConfigError("observe has 'privileged': the simulator's state needs privileged=true instead")
    if config.privileged and not (config.privileged_state and config.privileged_demos):
        raise ConfigError(
            "privileged=true needs the simulator's state, now and along the demonstrations: name what gives "
            "it, privileged_state=package.module.function and privileged_demos=package.module.function"
        )
    if config.savings.reset_s < 0:
        raise ConfigError(f"savings.reset_s={config.savings.reset_s}: must be 0 or more")
    if config.looks.copies < 0:
        raise ConfigError(f"looks.copies={config.looks.copies}: must be 0 or more")
    if config.demo_hold < 1:
        raise ConfigError(f"demo_hold={config.demo_hold}: must be 1 or more")
    learner = config.learner
    for group in ("learner", "shaping", "savings"):
        for name, value in vars(getattr(config, group)).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{group}.{name}={value}: must be a finite number")
    for key in (
        *("lr", "actor_lr", "clone_lr", "clone_steps", "clone_weight", "clone_noise", "value_weight"),
        *("target_noise", "scale_floor", "noise_start", "noise_end", "noise_rollouts"),
    ):
        if getattr(learner, key) < 0:
            raise ConfigError(f"learner.{key}={getattr(learner, key)}: must be 0 or more")
    if config.shaping.kappa < 0:
        raise ConfigError(f"shaping.kappa={config.shaping.kappa}: must be 0 or more")
    if not 0.0 < learner.tau <= 1.0:
        raise ConfigError(f"learner.tau={learner.tau}: choose one in (0, 1]")
    if not 0.0 < learner.discount < 1.0:
        raise ConfigError(f"learner.discount={learner.discount}: choose one in (0, 1)")
    if not 1 <= learner.subset <= learner.critics:
        raise ConfigError(
            f"learner.subset={learner.subset} of learner.critics={learner.critics}: choose 1 to all of them"
        )
    if not 0.0 <= learner.demo_share <= 1.0:
        raise ConfigError(f"learner.demo_share={learner.demo_share}: a share is in [0, 1]")
    for key in ("width", "map_width", "batch_size", "updates_per_decision", "actor_every", "n_step"):
        if getattr(learner, key) < 1:
            raise ConfigError(f"learner.{key}={getattr(learner, key)}: must be 1 or more")
    if not 0.0 <= config.savings.promising_resets < 1.0:
        raise ConfigError(
            f"savings.promising_resets={config.savings.promising_resets}: a share in [0, 1), some rollouts "
            "must start at the beginning"
        )
    _check_progress(config)


def _check_progress(config: ImproveConfig) -> None:
    """Refuse uses of progress where there is none: they would do nothing, and the report would name them."""
    savings = config.savings
    uses = [
        ("savings.abort", savings.abort, "abort"),
        ("savings.promising_resets", savings.promising_resets, "resets"),
        ("savings.priority", savings.priority, "priority"),
        ("shaping.outcome_trust", config.shaping.outcome_trust, "learned"),
    ]
    used = [use for use in uses if use[1]]
    target = config.shaping.progress.get("_target_")
    if used and target and import_object(str(target)) is NoProgress:
        key, value, arm = used[0]
        raise ConfigError(
            f"{key}={str(value).lower()} with arm={config.arm_name}, whose progress is unknown throughout "
            f"({target}): it would do nothing, choose arm={arm}"
        )
