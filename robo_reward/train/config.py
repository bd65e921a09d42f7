"""What `robo-reward train` can be told."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from robo_reward.errors import ConfigError

__all__ = [
    "HoldoutConfig",
    "OptimizerConfig",
    "ReorderConfig",
    "TrainConfig",
    "WindowConfig",
    "device_options",
]


_SHARES = (
    *("end_share", "anchor_random", "anchor_drop", "goal_share"),
    *("text_drop", "camera_drop", "proprio_drop"),
)


@dataclass(frozen=True)
class WindowConfig:
    """How training windows are drawn.

    frames          moments in a window
    strides         a window skips frames by one of these, drawn evenly
    end_share       share of windows that end on the last frame of an episode (done or not)
    anchor_random   share whose anchor is a random earlier frame (robots do not always start at the start)
    anchor_drop     share without an anchor
    goal_share      share with a picture of the goal, from a successful episode of the task
    text_drop       share whose instruction is withheld
    camera_drop     share of views whose name is withheld, so that unknown cameras work
    """

    frames: int = 6
    strides: tuple[int, ...] = (1,)
    end_share: float = 0.1
    anchor_random: float = 0.25
    anchor_drop: float = 0.15
    goal_share: float = 0.2
    text_drop: float = 0.1
    camera_drop: float = 0.1
    proprio_drop: float = 0.3


@dataclass(frozen=True)
class OptimizerConfig:
    """Warm-up, cosine decay to zero, gradient clipping and an average of the weights.

    muon          step of weight matrices (`robo_reward.train.optimizer`) in learning rates; 0: AdamW for them
                  too, which is what runs of before were trained with
    backbone_lr   learning rate of a pretrained backbone that is not frozen, in those of the rest; 1: the
                  same, which is what runs of before were trained with
    """

    lr: float = 1e-3
    muon: float = 0.0
    backbone_lr: float = 1.0
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip: float = 1.0
    ema: float = 0.998


@dataclass(frozen=True)
class HoldoutConfig:
    """What training never sees.

    calibration   share of the data kept for fitting uncertainty and the success detector
    test          share kept for `robo-reward evaluate` (0: you bring another store)
    episodes      with fewer episodes than this, contiguous segments are held out of each instead of episodes
    segments      segments of each kind per episode
    """

    calibration: float = 0.1
    test: float = 0.0
    episodes: int = 5
    segments: int = 4


@dataclass(frozen=True)
class ReorderConfig:
    """Other orders of the same work, for tasks whose pieces can come in any (`robo_reward.train.reorder`).

    stages    stages that make up one piece of work (2: reach for a thing, put it away); 0: none are made
    orders    how many are made of each episode
    share     of the windows that is drawn from them
    cameras   that see the scene from a fixed place; None: found

    Stages then count pieces of work ("the third thing"), whatever their names say.
    """

    stages: int = 0
    orders: int = 12
    share: float = 0.6
    cameras: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse what no episode can be made from.

        Raises:
            ConfigError: naming the key.
        """
        _check("reorder.stages", self.stages, "0 (off) or more", self.stages >= 0)
        _check("reorder.orders", self.orders, "1 or more", self.orders >= 1)
        _check("reorder.share", self.share, "between 0 and 1", 0.0 < self.share < 1.0)


@dataclass(frozen=True)
class TrainConfig:
    """See `configs/train.yaml` for what each key means."""

    data: Any
    out: str
    minutes: float | None = 10.0
    steps: int | None = None
    practice: Any = None
    practice_share: float = 0.1
    seed: int = 0
    network: dict[str, Any] = field(default_factory=dict)
    reader: dict[str, Any] = field(default_factory=dict)
    timeline: dict[str, Any] = field(default_factory=dict)
    pixels: dict[str, Any] = field(default_factory=dict)
    windows: WindowConfig = field(default_factory=WindowConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    holdout: HoldoutConfig = field(default_factory=HoldoutConfig)
    reorder: ReorderConfig = field(default_factory=ReorderConfig)
    stage_weights: str = "equal"
    image_size: tuple[int, int] | None = None
    cameras: tuple[str, ...] | None = None
    proprio: bool = False
    batch_size: int = 12
    success_weight: float = 0.3
    hop_weight: float = 0.2
    other_weight: float = 0.0  # which runs of before, whose windows were told other tasks instead, go on with
    progress_weight: float = 2.0
    precision: str = "auto"
    accelerator: str = "auto"
    devices: Any = 1  # how many, or which: (0, 2)
    threads: int | None = None
    cache_gb: float = 4.0
    loaders: int = 1
    checkpoint_every_s: float = 60.0
    log_every: int = 20
    resume: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with.

        Raises:
            ConfigError: naming the key, its value and what it may be.
        """
        if self.minutes is None and self.steps is None:
            raise ConfigError("train needs minutes=... or steps=...")
        _check("minutes", self.minutes, "above 0", self.minutes is None or self.minutes > 0)
        _check("steps", self.steps, "1 or more", self.steps is None or self.steps >= 1)
        _check("seed", self.seed, "0 or more, below 2**32", 0 <= self.seed < 2**32)
        shares = self.practice_share * bool(self.practice) + self.reorder.share * bool(self.reorder.stages)
        fits = 0.0 < self.practice_share < 1.0 and shares < 1.0
        _check("practice_share", self.practice_share, "a share that leaves windows of the data", fits)
        # Not 16-mixed: its loss scale would have to live through a kill, and hear of steps that are skipped.
        known = ("auto", "32-true", "bf16-mixed")
        weights = ("success_weight", "hop_weight", "progress_weight", "other_weight")
        for key in weights:
            _check(key, value := getattr(self, key), "0 (off) or more", 0 <= value < math.inf)
        _check("precision", self.precision, "auto, 32-true or bf16-mixed", self.precision in known)
        _check("batch_size", self.batch_size, "2 or more", self.batch_size >= 2)
        _check("windows.frames", self.windows.frames, "2 or more", self.windows.frames >= 2)
        strides = self.windows.strides
        _check("windows.strides", strides, "1 or more each", bool(strides) and min(strides) >= 1)
        size = self.image_size
        _check(
            "image_size",
            size,
            "[height,width], 16 or more",
            size is None or (len(size) == 2 and min(size) >= 16),
        )
        held = self.holdout
        fits = min(held.calibration, held.test) >= 0 and held.calibration + held.test < 1
        _check("holdout", (held.calibration, held.test), "shares that sum below 1", fits)
        step = self.optimizer
        for key in ("lr", "muon", "weight_decay"):
            value = getattr(step, key)
            _check(f"optimizer.{key}", value, "0 (off) or more", 0 <= value < math.inf)
        _check("optimizer.clip", step.clip, "above 0 (a large one does nothing)", step.clip > 0)
        _check("optimizer.warmup", step.warmup, "a share of the steps", 0 <= step.warmup <= 1)
        _check("optimizer.ema", step.ema, "0 (off) or more, below 1", 0 <= step.ema < 1)
        for key in _SHARES:
            value = getattr(self.windows, key)
            _check(f"windows.{key}", value, "a share, in [0, 1]", 0 <= value <= 1)
        _check(
            "cameras",
            self.cameras,
            "each named once",
            len(set(self.cameras or ())) == len(self.cameras or ()),
        )
        for key in ("cache_gb", "checkpoint_every_s"):
            _check(key, value := getattr(self, key), "0 or more", value >= 0)
        factor = self.optimizer.backbone_lr
        _check("optimizer.backbone_lr", factor, "above 0", factor > 0)
        object.__setattr__(self, "devices", _read_devices(self.devices))
        which = self.accelerator == "cpu" and not isinstance(self.devices, int)
        _check("devices", self.devices, "a number with accelerator=cpu, which has no indices", not which)
        _check("loaders", self.loaders, "1 or more", self.loaders >= 1)
        _check("threads", self.threads, "1 or more, or null", self.threads is None or self.threads >= 1)
        _check("log_every", self.log_every, "1 or more", self.log_every >= 1)
        _check(
            "stage_weights",
            self.stage_weights,
            "equal or duration",
            self.stage_weights in ("equal", "duration"),
        )

    @property
    def device_count(self) -> int:
        """How many devices train together."""
        return self.devices if isinstance(self.devices, int) else len(self.devices)

    @property
    def tunes_backbone(self) -> bool:
        """Whether the encoder begins with published weights and goes on learning."""
        encoder = self.network.get("encoder") or {}
        published = encoder.get("pretrained", True) or encoder.get("weights")
        return bool(published) and not encoder.get("frozen", True)


def device_options(device: str) -> dict[str, Any]:
    """`accelerator` and `devices` of a training on one device: cpu, cuda or cuda:N.

    Raises:
        ConfigError: a name of no device.
    """
    import torch

    from robo_reward.checkpoint import check_device

    check_device(device)
    which = torch.device(device)
    if which.type != "cuda":
        return {"accelerator": "cpu", "devices": 1}
    return {"accelerator": "gpu", "devices": (which.index,) if ":" in device else 1}


def _read_devices(given: Any) -> int | tuple[int, ...]:
    """How many devices, or which of them: a command line gives either as text.

    Raises:
        ConfigError: no number from 1 on, and no list of indices.
    """
    listed = isinstance(given, list | tuple)
    texts = [str(one).strip() for one in given] if listed else [str(given).strip()]
    numbers = tuple(int(text) for text in texts if text.isdecimal())
    fits = len(numbers) == len(texts) == len(set(numbers))
    fits = fits and (bool(numbers) if listed else min(numbers) >= 1)
    _check("devices", given, "1 or more, or a list of indices, such as [1]", fits)
    return numbers if listed else numbers[0]


def _check(key: str, value: object, wanted: str, good: bool) -> None:
    if not good:
        raise ConfigError(f"{key}={value}: must be {wanted}")
