"""Streams through ONNX Runtime: what `robo-reward export` wrote, live, without PyTorch.

    model = load_onnx("exported")
    stream = model.stream("open the drawer")
    estimate = stream.push({"front": rgb}, stamp_ns=t)

Everything but the network is the code of `robo_reward.stream`: sorting of what arrives, calibration, fusion
of perspectives, and the answers to bad input. Imports NumPy, OpenCV and ONNX Runtime only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

from robo_reward.calibration import Calibration
from robo_reward.errors import CheckpointError, ConfigError
from robo_reward.live import Arrived, LiveBatch, LiveStream, Said
from robo_reward.model.config import ModelConfig
from robo_reward.readout import Readout, Seen, all_finite, known_hops

__all__ = ["EXPORT_VERSION", "STEP_INPUTS", "STEP_OUTPUTS", "OnnxModel", "load_onnx"]

EXPORT_VERSION = 1

_CACHE = ("keys", "values", "time_s", "filled", "position")
STEP_INPUTS = (
    "features",  # f32[n, v, d] embeddings of the views, 0 where there is none
    "camera",  # i64[n, v] 1 + index in the training cameras, 0 for others
    "mask",  # bool[n, v] which views there are
    "first",  # f32[n, d] state of the episode's first moment
    "fresh",  # bool[n] this is it
    "goal",  # f32[n, d] state of the goal picture
    "goal_mask",  # bool[n] there is one
    "text",  # i64[n] row of "texts" of reward.json
    "task",  # i64[n] index of the task
    "last",  # f32[n, d] state of the moment before
    "seconds",  # f64[n] since the episode's first moment
    "live",  # bool[n] something was seen
    "temperature",  # f32[] of the stages: calibration.stage_temperature
    "keys",  # f32[layers, n, window, heads, d / heads] the ring cache; all zero at the beginning
    "values",  # as keys
    "time_s",  # f64[n, window] when each slot was written
    "filled",  # bool[n, window]
    "position",  # i64[n] the slot to write next
)
"""Inputs of step.onnx in order; and "proprio" f32[n, p], NaN where missing, where the model takes it."""

STEP_OUTPUTS = (
    "state",  # f32[n, d] fused embedding
    "share",  # f32[n, v] each view's share of the attention
    "stage_probs",  # f32[n, k]
    "stage_tau",  # f32[n, k] progress within each stage
    "progress",  # f32[n] of the direct perspective, uncalibrated
    "spread",  # f32[n] its raw standard deviation
    "success_logit",  # f32[n]
    "hops",  # f32[n, 3, 4] moments of the hops from the moment before, the first and the goal
    "distance",  # f32[n] of the embedding from familiar ones
    *(f"new_{name}" for name in _CACHE),
)
"""Outputs of step.onnx in order; the last are the ring cache for the next step."""


def load_onnx(folder: str | Path, threads: int | None = None) -> OnnxModel:
    """An exported model.

    Args:
        threads: CPU threads of ONNX Runtime; its own choice by default.

    Raises:
        CheckpointError: no export there, or one of another version.
        ConfigError: ONNX Runtime is not installed.
    """
    return OnnxModel(Path(folder), threads)


class OnnxModel:
    """An exported progress model, ready to run."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        """See `load_onnx`."""
        facts = _read_facts(folder)
        self.config = ModelConfig.from_json(facts["model"])
        self.calibration = Calibration.from_json(facts["calibration"])
        self.version = str(facts["version"])
        self.texts: list[str] = facts["texts"]
        self.memory: tuple[int, ...] | None = None if facts["memory"] is None else tuple(facts["memory"])
        names = ("encode", "step") if self.memory is None else ("remember", "encode", "step")
        self._sessions = {name: _session(folder / f"{name}.onnx", threads) for name in names}

    @property
    def cameras(self) -> tuple[str, ...]:
        """Cameras the model was trained on; it takes any others too."""
        return self.config.cameras

    @property
    def proprio_size(self) -> int:
        """How many numbers of proprioception it was trained with; 0: none. They may be missing."""
        return self.config.proprio_dim

    @property
    def instructions(self) -> tuple[str, ...]:
        """The first text of each task it knows."""
        return tuple(task.instructions[0] for task in self.config.tasks)

    def stage_names(self, instruction: str) -> tuple[str, ...]:
        """Names of the stages of a task."""
        return self.config.tasks[self.config.resolve(instruction)].stage_names

    def stream(self, instruction: str | None = None) -> LiveStream:
        """Live estimates of one episode; the instruction may be left out where there is one task."""
        return LiveStream(self.batch_stream(1, instruction))

    def batch_stream(self, streams: int, instruction: str | Sequence[str] | None = None) -> LiveBatch:
        """Live estimates of several episodes in step; as `robo_reward.api.RewardModel.batch_stream`.

        Args:
            streams: how many.
            instruction: one for all of them, or one for each; may be left out where there is one task.

        Raises:
            ConfigError: no stream, not as many instructions as streams, none and several tasks, or a wording
                whose embedding was not exported.
            DataError: an instruction that a model of several tasks does not know.
        """
        return LiveBatch(_OnnxEngine(self, self.config.instructions_of(streams, instruction)))

    def call(self, graph: str, **inputs: np.ndarray) -> list[np.ndarray]:
        """Outputs of one graph."""
        return self._sessions[graph].run(None, inputs)

    def text_row(self, instruction: str) -> int:
        """Row of an instruction in the graph's table.

        Raises:
            ConfigError: a wording whose embedding only the sentence encoder, in PyTorch, could tell.
        """
        if instruction in self.texts:
            return self.texts.index(instruction)
        if "" in self.texts:
            return self.texts.index("")
        known = ", ".join(repr(text) for text in self.texts)
        raise ConfigError(
            f"the exported model has no embedding of {instruction!r} (its sentence encoder stays behind): "
            f"use one of {known}"
        )


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / "reward.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"no exported model at '{folder}' ({error.strerror}): robo-reward export model=RUN out={folder}"
        ) from error
    except json.JSONDecodeError as error:
        raise CheckpointError(f"'{path}' is not JSON ({error}): copy the export again") from error
    if facts.get("export_version") != EXPORT_VERSION:
        raise CheckpointError(
            f"'{path}' has export version {facts.get('export_version')}, this package reads "
            f"{EXPORT_VERSION}: export the model again"
        )
    return facts


def _session(path: Path, threads: int | None) -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ConfigError(
            "an exported model needs onnxruntime: pip install onnxruntime (or 'robo-reward[onnx]')"
        ) from error
    if not path.is_file():
        raise CheckpointError(f"'{path}' is missing: copy the export again")
    options = onnxruntime.SessionOptions()
    # Threads that spin while they wait take cores away from the rest of a robot.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no base of their own
        raise CheckpointError(f"'{path}' is damaged ({error}): copy the export again") from error


class _OnnxEngine:
    """The exported network of n streams; see `robo_reward.live.Engine`."""

    def __init__(self, model: OnnxModel, instructions: Sequence[str]) -> None:
        self._model, self.config, self.version = model, model.config, model.version
        config, streams = model.config, len(instructions)
        self.tasks = [config.resolve(text) for text in instructions]
        heads = (config.layers, streams, config.window, config.heads, config.width // config.heads)
        self._cache: dict[str, np.ndarray] = {
            "keys": np.zeros(heads, np.float32),
            "values": np.zeros(heads, np.float32),
            "time_s": np.zeros((streams, config.window), np.float64),
            "filled": np.zeros((streams, config.window), np.bool_),
            "position": np.zeros(streams, np.int64),
        }
        self._fixed: dict[str, np.ndarray] = {
            "text": np.array([model.text_row(text) for text in instructions], np.int64),
            "task": np.array(self.tasks, np.int64),
            "temperature": np.array(model.calibration.stage_temperature, np.float32),
        }
        self._first, self._goal, self._last = np.zeros((3, streams, config.width), np.float32)
        self._goal_mask = np.zeros(streams, np.bool_)
        self._last_s = np.full(streams, np.nan)
        self._readout = Readout(model.calibration, len(config.cameras), streams)
        self._names: list[str] = []
        self._known = np.zeros((streams, 0), np.bool_)
        self._memory = np.zeros((streams, 0, *(model.memory or ())), np.float32)

    def forget(self, index: int) -> None:
        self._known[index] = False
        self._goal_mask[index] = False
        self._cache["filled"][index] = False
        self._cache["position"][index] = 0
        self._last_s[index] = np.nan
        self._readout.reset(index)

    def set_goal(self, index: int, views: Mapping[str, np.ndarray]) -> None:
        rows: list[Mapping[str, np.ndarray]] = [{} for _ in self.tasks]
        rows[index] = views
        nothing = np.zeros(len(rows), np.bool_)
        state = self._step(rows, nothing, nothing, np.zeros(len(rows)), None)["state"]
        self._goal[index], self._goal_mask[index] = state[index], True

    def say(self, arrived: Arrived) -> Said:
        """One step of encoder, trunk, heads and fusion."""
        found = self._step(arrived.views, arrived.fresh, arrived.live, arrived.seconds, arrived.body)
        self._cache = {name: found[f"new_{name}"] for name in _CACHE}
        self._first[arrived.fresh] = found["state"][arrived.fresh]
        seen = self._seen(found, arrived.seconds - self._last_s)
        kept = arrived.live & seen.finite[:, 0]
        self._last[kept], self._last_s[kept] = found["state"][kept], arrived.seconds[kept]
        estimates = self._readout.estimates(
            seen, arrived.live[:, None], arrived.counts[:, None], arrived.reasons
        )
        return Said(estimates, found["state"], self._shares(found["share"], arrived.views))

    def _step(
        self,
        views: Sequence[Mapping[str, np.ndarray]],
        fresh: Bool[np.ndarray, " n"],
        live: Bool[np.ndarray, " n"],
        seconds: Float64[np.ndarray, " n"],
        body: Float32[np.ndarray, "n p"] | None,
    ) -> dict[str, np.ndarray]:
        """All outputs of step.onnx; nothing but the cameras' first images is remembered."""
        features, mask = self._encode(views, fresh)
        if self.config.proprio_dim:
            missing = np.full((len(views), self.config.proprio_dim), np.nan, np.float32)
            body_input = {"proprio": missing if body is None else body}
        else:
            body_input = {}
        found = self._model.call(
            "step",
            features=features,
            camera=np.broadcast_to(self._ids(), mask.shape).copy(),
            mask=mask,
            first=self._first,
            fresh=fresh,
            goal=self._goal,
            goal_mask=self._goal_mask,
            last=self._last,
            seconds=seconds,
            live=live,
            **self._fixed,
            **self._cache,
            **body_input,
        )
        return dict(zip(STEP_OUTPUTS, found, strict=True))

    def _encode(
        self, views: Sequence[Mapping[str, np.ndarray]], fresh: Bool[np.ndarray, " n"]
    ) -> tuple[Float32[np.ndarray, "n v d"], Bool[np.ndarray, "n v"]]:
        """Embeddings f32[n, v, d] of every camera seen so far, and which of them there are now."""
        self._learn(views)
        mask = np.array([[name in given for name in self._names] for given in views])
        images = np.stack([given[name] for given in views for name in self._names if name in given])
        known = (self._known | fresh[:, None])[mask]
        inputs: dict[str, np.ndarray] = {}
        if self._model.memory is not None:
            inputs["memory"] = self._beside(images, mask, fresh)
        self._known |= mask & fresh[:, None]
        ids = np.broadcast_to(self._ids(), mask.shape)[mask]
        found = self._model.call("encode", images=images, camera=ids, known=known, **inputs)[0]
        features = np.zeros((*mask.shape, self.config.width), np.float32)
        features[mask] = found
        return features, mask

    def _beside(
        self,
        images: UInt8[np.ndarray, "m h w 3"],
        mask: Bool[np.ndarray, "n v"],
        fresh: Bool[np.ndarray, " n"],
    ) -> Float32[np.ndarray, "m ..."]:
        """What is remembered of each image's camera; of the image itself where that is nothing yet."""
        memory = self._memory[mask]
        unknown = ~(self._known & ~fresh[:, None])[mask]
        if unknown.any():
            memory[unknown] = self._model.call("remember", images=images[unknown])[0]
            begins = mask & fresh[:, None]
            self._memory[begins] = memory[begins[mask]]
        return memory

    def _learn(self, views: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Make room for cameras that are new."""
        new = [n for n in dict.fromkeys(name for given in views for name in given) if n not in self._names]
        if new:
            self._names.extend(new)
            more = (len(self.tasks), len(new))
            self._known = np.concatenate([self._known, np.zeros(more, np.bool_)], axis=1)
            empty = np.zeros((*more, *self._memory.shape[2:]), np.float32)
            self._memory = np.concatenate([self._memory, empty], axis=1)

    def _ids(self) -> Int64[np.ndarray, " v"]:
        known = {name: index + 1 for index, name in enumerate(self.config.cameras)}
        return np.array([known.get(name, 0) for name in self._names], np.int64)

    def _seen(self, found: Mapping[str, np.ndarray], elapsed_s: Float64[np.ndarray, " n"]) -> Seen:
        """Outputs of the graph as moments [n, 1, ...]."""
        elapsed = elapsed_s[:, None]
        hops = np.full((len(elapsed), 1, 3, 4), np.nan)
        if self._model.calibration.fusion.fuses:
            hops = known_hops(found["hops"][:, None].astype(np.float64), elapsed, self._goal_mask)
        finite = all_finite(
            found["progress"], found["spread"], found["success_logit"], found["stage_probs"]
        ) & np.isfinite(found["state"].sum(axis=-1))
        return Seen(
            stage_probs=found["stage_probs"][:, None],
            stage_tau=found["stage_tau"][:, None],
            progress=found["progress"][:, None],
            spread=found["spread"][:, None],
            success_logit=found["success_logit"][:, None],
            hops=hops,
            distance=found["distance"][:, None].astype(np.float64),
            elapsed_s=np.where(np.isfinite(elapsed), elapsed, 0.0),
            finite=finite[:, None],
        )

    def _shares(
        self, share: Float32[np.ndarray, "n v"], views: Sequence[Mapping[str, np.ndarray]]
    ) -> Float32[np.ndarray, "n v"]:
        """Each view's share, in the order in which it came."""
        padded = np.zeros((len(views), max(len(self._names), 1)), np.float32)
        for row, given in enumerate(views):
            padded[row, : len(given)] = [share[row, self._names.index(name)] for name in given]
        return padded
