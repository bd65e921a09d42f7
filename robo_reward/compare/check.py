"""The conformance check of methods; users find it as `robo_reward.testing.check_method`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from robo_reward.compare.cost import GrowingEpisode
from robo_reward.compare.judge import check_prediction
from robo_reward.compare.method import Budget, CheckedMethod, Method, MethodPrediction, TrainingData
from robo_reward.compare.views import ShownEpisode, blinded, reworded
from robo_reward.errors import DataError
from robo_reward.schema import EpisodeReader

__all__ = ["check_method"]

_TOLERANCE = 2e-4  # sums over other batch sizes round otherwise


def check_method(
    make: Callable[[], Method],
    data: TrainingData,
    episodes: Sequence[EpisodeReader],
    workdir: Path,
    budget: Budget | None = None,
    seed: int = 0,
) -> None:
    """A method: honest about causality and failure, the same when asked twice, fitted once.

    Args:
        make: builds the method, unfitted, as its config would.
        data: a few short episodes to learn from.
        episodes: others to be asked about, of tasks that `data` has.
        workdir: an empty folder.
        budget: what it may train; two steps by default.
    """
    budget, method = budget or Budget(steps=2), make()
    assert isinstance(method, Method), f"{type(method).__name__} lacks part of Method"
    json.dumps(dict(method.recipe))
    if isinstance(method, CheckedMethod):
        method.check(data)
    method.fit(data, budget, seed, workdir)
    again = make()
    before = _contents(workdir)
    again.fit(data, budget, seed, workdir)
    assert _contents(workdir) == before, "a second fit in the same folder changes what the first one left"
    for reader in episodes:
        shown = blinded(reader)
        cameras, count = reader.info.cameras, reader.info.length
        found = method.predict(shown, cameras)
        check_prediction(found, count, reader.info.name)
        _same(found, method.predict(shown, cameras), "asked twice")
        _same(found, again.predict(blinded(reader), cameras), "fitted anew from what was kept")
        for camera in cameras:
            _answers(method, shown, [camera])
        _answers(method, reworded(reader, "an instruction that nobody ever gave"), cameras)
        if method.causal:
            _check_causal(method, reader, found)


def _check_causal(method: Method, reader: EpisodeReader, found: MethodPrediction) -> None:
    """Changing a frame after t never changes the estimate at t, and neither does its not being there yet."""
    count, cameras = reader.info.length, reader.info.cameras
    cut = count // 2
    other = method.predict(_Spoiled(blinded(reader), cut), cameras)
    assert np.allclose(found.progress[:cut], other.progress[:cut], atol=_TOLERANCE, equal_nan=True), (
        f"changing frames from {cut} on changes earlier estimates: the method is not causal"
    )
    growing = GrowingEpisode(blinded(reader), count)
    for index in range(count):
        growing.grow()
        now = method.predict(growing, cameras).progress
        assert np.allclose(now[index], found.progress[index], atol=_TOLERANCE, equal_nan=True), (
            f"at frame {index}, before the rest has come, the estimate is {now[index]}; "
            f"with the whole episode it is {found.progress[index]}"
        )


class _Spoiled:
    """An episode whose images are inverted from some frame on."""

    def __init__(self, source: ShownEpisode, start: int) -> None:
        self._source, self._start = source, start
        self.info = source.info

    def read_frames(self, camera: str, indices: np.ndarray) -> UInt8[np.ndarray, "n h w 3"]:
        frames = self._source.read_frames(camera, indices).copy()
        late = np.asarray(indices) >= self._start
        frames[late] = 255 - frames[late]
        return frames

    def read_proprio(self) -> np.ndarray | None:
        return self._source.read_proprio()

    def read_actions(self) -> None:
        return None


def _answers(method: Method, reader: EpisodeReader, cameras: Sequence[str]) -> None:
    """A prediction, or a refusal that says why."""
    try:
        found = method.predict(reader, cameras)
    except DataError as error:
        found = MethodPrediction.invalid(reader.info.length, str(error))
    check_prediction(found, reader.info.length, reader.info.name)


def _same(first: MethodPrediction, second: MethodPrediction, how: str) -> None:
    for name in ("progress", "std", "success_prob", "stage"):
        a, b = getattr(first, name), getattr(second, name)
        assert (a is None) == (b is None), f"{how}, {name} is there once and once not"
        assert a is None or np.array_equal(a, b, equal_nan=a.dtype.kind == "f"), f"{how}, {name} differs"


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
