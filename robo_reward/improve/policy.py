"""The policy that a run of `robo-reward improve` leaves, as a robot's control loop uses it."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from robo_reward.api import RewardModel, load
from robo_reward.checkpoint import write_atomic
from robo_reward.errors import CheckpointError, ConfigError, DataError
from robo_reward.improve.networks import Policy
from robo_reward.improve.observer import FROM_MODEL, MAP, Observer, joined

__all__ = ["POLICY_FILE", "LearnedPolicy", "load_policy", "save_policy"]

POLICY_FILE = "policy.pt"
_FACTS = ("observe", "low", "high", "instruction", "proprio", "decision_ns", "model", "model_version")


def save_policy(
    folder: Path,
    policy: Policy,
    observe: tuple[str, ...],
    bounds: tuple[np.ndarray, np.ndarray],
    instruction: str,
    proprio: int,
    decision_ns: int,
    model: tuple[str, str],
) -> None:
    """Write `policy.pt` into a run's folder: the network, and what there is to know to use it.

    Args:
        folder: of the run.
        policy: the network.
        observe: the parts of an observation that it sees.
        bounds: f64[a] least and largest actions of the environment.
        instruction: of the task.
        proprio: numbers of proprioception in an observation.
        decision_ns: time between two decisions.
        model: path (absolute, or from the run's folder) and version of the reward model; "" for none.
    """
    buffer = io.BytesIO()
    low, high = (limit.tolist() for limit in bounds)
    facts = (list(observe), low, high, instruction, proprio, decision_ns, *model)
    torch.save({"policy": policy.state_dict(), **dict(zip(_FACTS, facts, strict=True))}, buffer)
    write_atomic(folder / POLICY_FILE, buffer.getvalue())


def load_policy(path: str | Path, model: str | Path | None = None, device: str = "cpu") -> LearnedPolicy:
    """The policy of a run folder of `robo-reward improve`.

    Args:
        path: the folder.
        model: run folder of the reward model whose features the policy sees; where it was, if None.
        device: where that model goes; the policy itself is small and stays on the CPU.

    Raises:
        CheckpointError: no policy there or a broken one, or the reward model is missing or another one.
        ConfigError: a policy that sees the simulator's state.
    """
    file = Path(path) / POLICY_FILE
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True)
        facts = {name: stored[name] for name in _FACTS}
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no {POLICY_FILE} in '{path}': give the out= of a finished robo-reward improve"
        ) from error
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"'{file}' is damaged, or of another version ({error}): improve anew"
        ) from error
    if not all(bool(weight.isfinite().all()) for weight in stored["policy"].values()):
        raise CheckpointError(
            f"'{file}' has weights that are not finite, so would its actions be: improve anew, with another "
            "out="
        )
    if "privileged" in facts["observe"]:
        raise ConfigError(
            f"'{file}' sees the simulator's own state, which no robot has: improve with privileged=false"
        )
    found: RewardModel | None = None
    if FROM_MODEL & set(facts["observe"]):
        where = Path(model) if model is not None else Path(path) / facts["model"]
        if not where.is_dir():
            raise CheckpointError(
                f"the reward model that '{file}' looks through is not at '{where}': say where, model=RUN"
            )
        found = load(where, device)
        assert found is not None
        if found.version != facts["model_version"]:
            raise CheckpointError(
                f"'{where}' is reward model {found.version}, '{file}' looks through "
                f"{facts['model_version']}: their features mean different things"
            )
    return LearnedPolicy(stored["policy"], facts, found)


class LearnedPolicy:
    """From camera images and proprioception to actions, one episode after another.

    Example:
        >>> policy = robo_reward.load_policy("runs/improve")                       # doctest: +SKIP
        >>> policy.reset()                                                         # doctest: +SKIP
        >>> action = policy.act({"front": rgb}, stamp_ns, joints)                  # doctest: +SKIP
    """

    def __init__(
        self, weights: Mapping[str, torch.Tensor], facts: Mapping[str, Any], model: RewardModel | None
    ) -> None:
        """What `save_policy` wrote, and the reward model that it looks through."""
        reads = "read.weight" in weights
        map_width, map_size = weights["read.weight"].shape if reads else (64, 0)
        self._policy = Policy(
            len(weights["mean"]),
            len(weights["bias3"]),
            len(weights["bias2"]),
            torch.Generator(),
            map_size,
            map_width,
        )
        self._policy.load_state_dict(dict(weights))
        self._policy.requires_grad_(False)
        self._low, self._high = np.array(facts["low"]), np.array(facts["high"])
        self.instruction: str = facts["instruction"]
        self.decision_ns: int = facts["decision_ns"]
        self.proprio_size: int = facts["proprio"]
        self.model = model
        stream, stages = None, 0
        if model is not None:
            stream = model.stream(self.instruction, maps=MAP in facts["observe"])
            stages = len(model.stage_names(self.instruction))
        self._observer = Observer(facts["observe"], stream, stages)
        self._observer.begin()

    @property
    def cameras(self) -> tuple[str, ...]:
        """The cameras that it looks through; none where it sees proprioception alone."""
        return self.model.cameras if self.model is not None else ()

    @property
    def action_size(self) -> int:
        """Numbers in an action."""
        return len(self._low)

    def reset(self) -> None:
        """An episode begins."""
        self._observer.begin()

    def act(
        self,
        images: Mapping[str, UInt8[np.ndarray, "_h _w 3"]],
        stamp_ns: int,
        proprio: Float32[np.ndarray, " p"],
    ) -> Float32[np.ndarray, " a"]:
        """The next action, in the environment's units.

        Args:
            images: RGB by camera name, {} where it looks through none.
            stamp_ns: of this moment, later than the last one's; `decision_ns` after it as in training.
            proprio: as in training.

        Raises:
            DataError: images that do not fit or cannot be seen (none, another type, a stamp that is not after
                the last), or proprioception of another length or that is not finite. What to do then is the
                control loop's to say: to act on what was seen before is not what this does. One camera of
                several that is gone holds what it showed last.
        """
        if not self._takes(proprio):
            raise DataError(
                f"the policy takes proprioception of {self.proprio_size} finite numbers, this is {proprio}"
            )
        if self.cameras and not set(images) & set(self.cameras):
            raise DataError(
                f"the policy looks through {', '.join(self.cameras)}, this moment has "
                f"{', '.join(images) or 'no image'}"
            )
        moment = self._observer.see({"images": images, "proprio": proprio}, stamp_ns, None)
        if moment.estimate is not None and not moment.estimate.valid:
            raise DataError(f"the policy cannot see this moment: {moment.estimate.reason}")
        seen = joined(moment.parts)
        if len(seen) != len(self._policy.mean):
            raise DataError(
                f"the policy takes {len(self._policy.mean)} numbers, this moment makes {len(seen)}: give it "
                f"the cameras {list(self.cameras)}"
            )
        with torch.inference_mode():
            unit = self._policy(torch.from_numpy(seen)[None])[0].numpy().astype(np.float64)
        return (self._low + (unit + 1) / 2 * (self._high - self._low)).astype(np.float32)

    def _takes(self, proprio: object) -> bool:
        """Whether this is as many finite numbers as there are in an episode that it has learned from."""
        try:
            numbers = np.asarray(proprio)
        except (TypeError, ValueError):  # rows of several lengths, a tensor elsewhere
            return False
        fits = numbers.shape == (self.proprio_size,) and numbers.dtype.kind in "buif"
        return fits and bool(np.isfinite(numbers).all())
