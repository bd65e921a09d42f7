"""A small world for the tests of improvement: a dot that has to reach a mark, seen by one camera."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

from robo_reward.schema import Episode, EpisodeInfo, Outcome, ProgressLabel
from robo_reward.testing import MemoryReader

REACH = 0.15
STEP = 0.12
SIZE = 32


class Dot(gymnasium.Env[dict[str, Any], np.ndarray]):
    """Reach the mark. `proprio` is the dot's place; the mark is only in the image and in the truth."""

    decision_ns = 100_000_000

    def __init__(self, limit: int = 25, cameras: tuple[str, ...] = ("top",)) -> None:
        parts: dict[str, spaces.Space[Any]] = {"proprio": spaces.Box(-2, 2, (2,), np.float32)}
        if cameras:
            image = spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
            parts["images"] = spaces.Dict(dict.fromkeys(cameras, image))
        self.observation_space = spaces.Dict(parts)
        self.action_space = spaces.Box(-2.0, 2.0, (2,), np.float32)  # twice the policy's units
        self.limit, self.cameras = limit, tuple(cameras)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.place = np.zeros(2)
        angle = self.np_random.uniform(-0.6, 0.6)
        self.mark = np.array([np.cos(angle), np.sin(angle)])
        self.far = float(np.linalg.norm(self.mark - self.place))
        self.time = 0
        return self._seen(), {"success": False}

    def step(self, action: np.ndarray) -> Any:
        self.time += 1
        self.place = np.clip(self.place + STEP * np.clip(action, -2, 2) / 2, -1.5, 1.5)
        done = self.apart() < REACH
        return self._seen(), float(done), done, self.time >= self.limit, {"success": done}

    def apart(self) -> float:
        return float(np.linalg.norm(self.mark - self.place))

    def oracle(self) -> Any:
        return SimpleNamespace(progress=float(np.clip(1 - self.apart() / self.far, 0, 1)))

    def privileged_state(self) -> np.ndarray:
        return np.concatenate([self.place, self.mark])

    def get_state(self) -> Any:
        return (self.place.copy(), self.mark.copy(), self.time)

    def set_state(self, state: Any) -> Any:
        self.place, self.mark, self.time = state[0].copy(), state[1].copy(), 0
        return self._seen(), {"success": False}

    def _seen(self) -> dict[str, Any]:
        seen: dict[str, Any] = {"proprio": self.place.astype(np.float32)}
        if self.cameras:
            image = np.zeros((SIZE, SIZE, 3), np.uint8)
            for point, color in ((self.mark, (255, 80, 0)), (self.place, (0, 120, 255))):
                row, column = ((point + 1.5) / 3 * (SIZE - 3)).astype(int)
                image[row : row + 3, column : column + 3] = color
            seen["images"] = dict.fromkeys(self.cameras, image)
        return seen


class Endless(Dot):
    """A world that says when the mark is reached, and goes on all the same."""

    def step(self, action: np.ndarray) -> Any:
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, False, truncated, info


class Fixed(Dot):
    """A world of one's own: its cameras are not chosen, and it says nothing of its task."""

    def __init__(self, limit: int = 6) -> None:
        super().__init__(limit=limit)


class Held(Fixed):
    """A robot with a clock of its own and somebody in between, which is stopped after three decisions."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "one_robot": True}

    def step(self, action: np.ndarray) -> Any:
        if self.time == 3:
            return self._seen(), 0.0, False, True, {"success": False, "reason": "the stop is held"}
        applied = np.array([0.5, 0.0])
        *seen, info = super().step(applied)
        return *seen, {**info, "applied_action": applied, "elapsed_ns": self.time * 11 * 10**7}


class Recorded(Endless):
    """A robot that wants to know when an episode is over, and how."""

    told: ClassVar[list[bool | None]] = []

    def end_episode(self, success: bool | None) -> None:
        self.told.append(success)


class Silent(Fixed):
    """It does not say what succeeds, under the name that is asked for."""

    def step(self, action: np.ndarray) -> Any:
        *seen, _ = super().step(action)
        return *seen, {"is_success": False}


class Interrupted(Dot):
    """A robot that breaks episodes off: after `stops[i]` decisions of the i-th that is begun."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "one_robot": True}
    stops: ClassVar[dict[int, int]] = {}
    begun: ClassVar[int] = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        Interrupted.begun += 1
        return super().reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> Any:
        if self.time == self.stops.get(self.begun - 1):
            return self._seen(), 0.0, False, True, {"success": False, "reason": "the stop is held"}
        return super().step(action)


class Faulty(Dot):
    """A robot that loses readings: `faults[i]` says what of the i-th episode, and after how many decisions.

    proprio   what it gives then is nan, after 0 decisions in its reset;  state: of the simulator
    applied   what it says it did
    """

    faults: ClassVar[dict[int, tuple[str, int]]] = {}
    begun: ClassVar[int] = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        Faulty.begun += 1
        return super().reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> Any:
        assert np.isfinite(action).all(), "a robot was told to go to nan"
        *seen, info = super().step(action)
        applied = [0.5, np.nan] if self.lost("applied") else action
        return *seen, {**info, "applied_action": applied}

    def privileged_state(self) -> np.ndarray:
        return np.where([False, False, self.lost("state"), False], np.nan, super().privileged_state())

    def lost(self, what: str) -> bool:
        return self.faults.get(self.begun - 1) == (what, self.time)

    def _seen(self) -> dict[str, Any]:
        seen = super()._seen()
        return {**seen, "proprio": seen["proprio"] * (np.nan if self.lost("proprio") else 1.0)}


class Live(Dot):
    """A simulator that hands out the very arrays that it lives in, and lives on in those that it is given."""

    def step(self, action: np.ndarray) -> Any:
        place = self.place
        result = super().step(action)
        place[:] = self.place
        self.place = place
        return result

    def get_state(self) -> Any:
        return {"place": self.place, "mark": self.mark}

    def set_state(self, state: Any) -> Any:
        self.place, self.mark, self.time = state["place"], state["mark"], 0
        return self._seen(), {"success": False}


class Stranger(Dot):
    """A world as its owner had it: no argument `cameras`, a frame rate, and a word for how an episode ends.

    `layout` says where its images are; `off`, from where on the dot has fallen, which ends the episode.
    """

    decision_ns = None
    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self, limit: int = 25, layout: str = "images", key: str = "success", off: float = 9.0
    ) -> None:
        super().__init__(limit)
        self.layout, self.key, self.off = layout, key, off
        inner = dict(self.observation_space.spaces)
        image = spaces.Box(0, 255, (3, SIZE, SIZE), np.uint8)
        if layout == "flat":
            inner["top"] = inner.pop("images")["top"]
        elif layout == "chw":
            inner["images"] = spaces.Dict({"top": image})
        elif layout == "other":
            inner["images"] = spaces.Dict({"side": inner["images"]["top"]})
        elif layout == "state":
            inner = {"state": inner["proprio"]}
        self.observation_space = spaces.Dict(inner)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        observation, info = super().reset(seed=seed, options=options)
        return observation, {self.key: info["success"]}

    def step(self, action: np.ndarray) -> Any:
        observation, reward, done, truncated, info = super().step(action)
        fallen = bool(self.place[0] < -self.off or abs(self.place[1]) > self.off)
        told = {self.key: info["success"]}
        if done or fallen or truncated:
            told["reason"] = "success" if done else "a fall" if fallen else "time limit"
        return observation, reward, done or fallen, truncated, told

    def _seen(self) -> dict[str, Any]:
        seen = super()._seen()
        if self.layout == "flat":
            seen["top"] = seen.pop("images")["top"]
        elif self.layout == "chw":
            seen["images"] = {"top": seen["images"]["top"].transpose(2, 0, 1).copy()}
        elif self.layout == "other":
            seen["images"] = {"side": seen["images"]["top"]}
        elif self.layout == "state":
            seen = {"state": seen["proprio"]}
        return seen


def expert(env: Dot) -> np.ndarray:
    """Straight to the mark."""
    return np.clip((env.mark - env.place) / STEP * 2, -1.6, 1.6).astype(np.float32)


class Helper:
    """A person who goes straight to the mark, slowly."""

    def begin(self, env: Any) -> None:
        self.env = env

    def answer(self, observation: Any, *, asked: bool) -> np.ndarray | None:
        way = self.env.mark - self.env.place
        return (way / np.linalg.norm(way)).astype(np.float32) if asked else None


class Wild:
    """A person whose device says nothing that is a number, or too few of them."""

    needs_model = False

    def __init__(self, says: tuple[float, ...]) -> None:
        self.says = says

    def begin(self, env: Any) -> None:
        """It is there from the start."""

    def action(self, observation: Any, estimate: Any) -> np.ndarray | None:
        return np.array(self.says)


class Leading:
    """A person who, in every other episode, leads to the mark from the first decision on."""

    needs_model = False

    def __init__(self) -> None:
        self.episodes = 0

    def begin(self, env: Any) -> None:
        self.env = env
        self.episodes += 1

    def action(self, observation: Any, estimate: Any) -> np.ndarray | None:
        return expert(self.env) if self.episodes % 2 else None


def demonstration(index: int, aim: bool = True) -> Episode:
    """One episode of the expert, or of one that goes the other way."""
    env = Dot()
    observation, _ = env.reset(seed=1000 + index)
    seen, actions, progress, done = [observation], [], [env.oracle().progress], False
    while not done:
        actions.append(expert(env) if aim else -expert(env))
        observation, _, terminated, truncated, _ = env.step(actions[-1])
        seen.append(observation)
        progress.append(1.0 if terminated else env.oracle().progress)
        done = terminated or truncated
    length = len(seen)
    success = np.zeros(length, np.bool_)
    success[-1] = aim
    stage = (np.array(progress) >= 0.5).astype(np.int64)
    info = EpisodeInfo(
        name=f"dot_{index:03d}",
        uid=hashlib.sha256(f"dot {index} {aim}".encode()).hexdigest()[:32],
        cameras=("top",),
        image_sizes={"top": (SIZE, SIZE)},
        stamp_ns=np.arange(length, dtype=np.int64) * Dot.decision_ns,
        instruction="go to the mark",
        stage_names=("leave", "arrive"),
        truth=ProgressLabel(
            stage, np.clip(np.array(progress) * 2 - stage, 0, 1).astype(np.float32), np.ones(length, np.bool_)
        ),
        success=success,
        outcome=Outcome.SUCCESS if aim else Outcome.FAILURE,
        kind="expert" if aim else "aborted",
        source={"mark": env.mark.tolist(), "reset_seed": 1000 + index},
    )
    return Episode(
        info=info,
        frames={"top": np.stack([item["images"]["top"] for item in seen])},
        proprio=np.stack([item["proprio"] for item in seen]),
        actions=np.array([*actions, np.zeros(2)], np.float32),
    )


def hardly_trained(folder: Path, steps: int) -> Path:
    """A reward model of this world after `steps` steps, in a new folder: its store is beside it."""
    from robo_reward.cli.main import run_command
    from robo_reward_data.store import EpisodeStore

    store = EpisodeStore.create(folder / "store")
    for index in range(6):
        store.write(demonstration(20 + index, aim=index < 5))
    network = ["network.encoder.channels=[4,4,8,8]", "network.encoder.bottleneck=4", "network.width=16"]
    options = ["network.heads=2", "windows.frames=4", "batch_size=4", "threads=1", "accelerator=cpu"]
    where = [f"data={folder / 'store'}", f"out={folder / 'model'}", "augment=sim", f"steps={steps}"]
    run_command("train", [*where, *network, *options, "precision=32-true"])
    return folder / "model"


class Demos:
    """Episodes in memory: the last one fails."""

    def __init__(self, path: Path) -> None:
        self.episodes = [MemoryReader(demonstration(i)) for i in range(4)]
        self.episodes.append(MemoryReader(demonstration(9, aim=False)))
        self.fingerprint = "dots"


def state(env: Any) -> np.ndarray:
    """The simulator's state now."""
    return env.privileged_state()


def privileged(env: Any, reader: Any) -> np.ndarray:
    """The simulator's state along a demonstration."""
    proprio = reader.read_proprio()
    return np.concatenate([proprio, np.tile(reader.info.source["mark"], (len(proprio), 1))], axis=1)


class Lying:
    """A progress source that calls everything but the beginning nearly done."""

    needs_model = False
    needs_truth = False

    def __call__(self, rollout: Any) -> tuple[np.ndarray, np.ndarray]:
        """0.9 from the second moment on, and sure of it."""
        said = np.full(len(rollout.truth), 0.9, np.float32)
        said[0] = 0.0
        return said, np.zeros_like(said)
