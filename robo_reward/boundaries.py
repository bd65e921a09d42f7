"""Where stages end, learned from other tasks in which that is marked.

Change points can be found in motion alone (`robo_reward.stages`), but which of them bound a stage is a matter
of definition, and whoever has marked other tasks of the robot has said it. A small net learns from them the
probability p_t that a stage ends at frame t, from the features around it: that the first one does (a hand has
arrived), and that a later one does. With the shares of an episode that their stages take, log-normal, the
boundaries b of k + 1 stages of an episode of n frames are those with the least

    sum_q -log p_q(b_q) + sum_i ((log((b_{i+1} - b_i) / n) - m) / d)^2 / 2

(exact, by dynamic programming). Demonstrations of one task share their steps: in a few more rounds a boundary
is also drawn to where it lies in the others, and to moments that look as it does there.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import nn

from robo_reward.errors import DataError
from robo_reward.landmarks import surroundings

__all__ = ["StageEnds"]

_REACH = 4  # frames to each side that the net looks at
_STEPS, _BATCH, _WIDTH = 800, 256, 64  # of the net and its training: some seconds on one core
_MEMBERS = 3  # nets whose log-probabilities are averaged: one alone depends on its first weights
_NOISE, _DROPOUT = 0.1, 0.2  # other tasks are few: nothing may be learned by heart
_SHORTEST = 2  # frames in a stage
_ROUNDS = 6
_ALIKE = 4.0  # weight of the squared distance from what a boundary looks like in the other demonstrations
_PLACE_WEIGHT, _PLACE_SPREAD, _FAR = 0.3, 0.15, 9.0  # ... and from where it lies there, in shares

Sequences = Sequence[Float64[np.ndarray, "_t d"]]


@dataclass(frozen=True)
class StageEnds:
    """What is known of stages from other tasks.

    nets                       features around a frame, f32[n, w d], to the log-odds of the first boundary and
                               of a later one, f32[n, 2]
    mean, spread               f64[w d]: of those features
    share_mean, share_spread   of the log share of an episode that a stage takes
    """

    nets: tuple[nn.Module, ...]
    mean: Float64[np.ndarray, " wd"]
    spread: Float64[np.ndarray, " wd"]
    share_mean: float
    share_spread: float

    @classmethod
    def learn(cls, sequences: Sequences, marks: Sequence[Int64[np.ndarray, " _k"]], seed: int) -> StageEnds:
        """From features of marked episodes of other tasks and the frames i64[k] of their inner boundaries.

        Raises:
            DataError: no boundary in any of them.
        """
        if not sum(len(mark) for mark in marks):
            raise DataError("no stage boundary is marked in the other tasks: there is nothing to learn from")
        x = np.concatenate([_windows(sequence) for sequence in sequences])
        y = np.concatenate(
            [
                np.stack([_near(len(x), mark[:1]), _near(len(x), mark[1:])], axis=1)
                for x, mark in zip(sequences, marks, strict=True)
            ]
        )
        mean, spread = x.mean(axis=0), x.std(axis=0) + 1e-6
        inputs, targets = torch.from_numpy((x - mean) / spread).float(), torch.from_numpy(y).float()
        generator = torch.Generator().manual_seed(seed)
        with _one_thread():
            nets = tuple(_train(inputs, targets, generator) for _ in range(_MEMBERS))
        shares = np.concatenate(
            [np.log(_stage_lengths(mark, len(x)) / len(x)) for x, mark in zip(sequences, marks, strict=True)]
        )
        return cls(nets, mean, spread, float(shares.mean()), float(max(shares.std(), 0.1)))

    def find(self, sequences: Sequences, stages: int) -> list[Int64[np.ndarray, " q"]]:
        """The inner boundaries, i64[stages - 1] frames, of each demonstration of one task.

        Raises:
            DataError: a demonstration too short for so many stages.
        """
        for sequence in sequences:
            if len(sequence) < stages * _SHORTEST:
                raise DataError(f"{len(sequence)} frames cannot have {stages} stages of {_SHORTEST} or more")
        count = stages - 1
        if not count:
            return [np.empty(0, np.int64) for _ in sequences]
        kinds = np.minimum(np.arange(count), 1)
        plain = [self.log_probability(sequence)[kinds] for sequence in sequences]
        around = [_windows(sequence) for sequence in sequences]
        found = [self._placed(scores) for scores in plain]
        for _ in range(_ROUNDS if len(sequences) > 1 else 0):
            shared = _shared(around, found)
            again = [self._placed(s + _drawn(x, *shared)) for s, x in zip(plain, around, strict=True)]
            if all((a == b).all() for a, b in zip(again, found, strict=True)):
                break
            found = again
        return found

    def log_probability(self, sequence: Float64[np.ndarray, "t d"]) -> Float64[np.ndarray, "2 t"]:
        """Of the first boundary at each frame, and of a later one."""
        x = torch.from_numpy((_windows(sequence) - self.mean) / self.spread).float()
        with torch.inference_mode(), _one_thread():
            odds = torch.stack([net(x).T for net in self.nets])
        return nn.functional.logsigmoid(odds).mean(dim=0).double().numpy()

    def _placed(self, scores: Float64[np.ndarray, "q t"]) -> Int64[np.ndarray, " q"]:
        """The best frames in order, each boundary by its own scores, stages by how long they last."""
        count, frames = scores.shape
        lasts = np.full(frames + 1, -np.inf)
        shares = np.log(np.arange(_SHORTEST, frames + 1) / frames)
        lasts[_SHORTEST:] = -0.5 * ((shares - self.share_mean) / self.share_spread) ** 2
        place = np.arange(frames)
        between = lasts[np.maximum(place[None, :] - place[:, None], 0)]
        best = scores[0] + lasts[place]
        origins: list[Int64[np.ndarray, " t"]] = []
        for index in range(1, count):
            total = best[:, None] + between
            origins.append(np.argmax(total, axis=0))
            best = np.max(total, axis=0) + scores[index]
        found = [int(np.argmax(best + lasts[frames - place]))]
        for origin in reversed(origins):
            found.append(int(origin[found[-1]]))
        return np.array(found[::-1], np.int64)


def _shared(
    around: Sequence[Float64[np.ndarray, "_t w"]], found: Sequence[Int64[np.ndarray, " q"]]
) -> tuple[Float64[np.ndarray, "q w"], Float64[np.ndarray, " q"]]:
    """What each boundary looks like and at which share it lies, the medians over demonstrations."""
    looks = np.median([x[marks] for x, marks in zip(around, found, strict=True)], axis=0)
    places = np.median([marks / len(x) for x, marks in zip(around, found, strict=True)], axis=0)
    return looks, places


def _drawn(
    around: Float64[np.ndarray, "t w"],
    looks: Float64[np.ndarray, "q w"],
    places: Float64[np.ndarray, " q"],
) -> Float64[np.ndarray, "q t"]:
    """How much each boundary is drawn to each frame by the other demonstrations; 0 at most."""
    apart = ((around[None] - looks[:, None]) ** 2).mean(axis=2)
    shares = np.arange(len(around)) / len(around)
    aside = np.minimum(((shares[None] - places[:, None]) / _PLACE_SPREAD) ** 2, _FAR)
    return -_ALIKE * apart - _PLACE_WEIGHT * aside


def _stage_lengths(marks: Int64[np.ndarray, " k"], frames: int) -> Int64[np.ndarray, " n"]:
    """Frames in each stage, 1 or more."""
    return np.maximum(np.diff(np.concatenate([[0], marks, [frames]])), 1)


def _near(frames: int, marks: Int64[np.ndarray, " k"]) -> Float64[np.ndarray, " t"]:
    """1 at a boundary, falling off over a frame or two: nobody marks to the frame."""
    apart = np.abs(np.arange(frames)[:, None] - marks[None]).min(axis=1, initial=frames)
    return np.exp(-0.5 * apart.astype(np.float64) ** 2)


def _windows(x: Float64[np.ndarray, "t d"]) -> Float64[np.ndarray, "t w"]:
    return surroundings(x, _REACH).reshape(len(x), -1)


@contextmanager
def _one_thread() -> Generator[None]:
    """Matrices as small as these gain nothing by more, and threads that wait for a busy core lose seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train(x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        layers = [nn.Linear(x.shape[1], _WIDTH), nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, 2)]
        net = nn.Sequential(
            layers[0],
            nn.ReLU(),
            nn.Dropout(_DROPOUT),
            layers[1],
            nn.ReLU(),
            nn.Dropout(_DROPOUT),
            layers[2],
        )
        optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.05)
        for _ in range(_STEPS):
            rows = torch.randint(len(x), (_BATCH,))
            noisy = x[rows] + _NOISE * torch.randn(_BATCH, x.shape[1])
            loss = nn.functional.binary_cross_entropy_with_logits(net(noisy), y[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return net.eval()
