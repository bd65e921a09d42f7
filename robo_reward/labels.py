"""Progress labels: stages and in-stage progress from keyframes, task progress from both, and hops.

An episode has keyframes `k_0 < k_1 < ... < k_N` that bound N stages. In stage `i`

    tau_t = (t - k_i) / (k_{i+1} - k_i),          Phi_t = W_i + w_i tau_t,          W_i = sum_{j<i} w_j

with stage weights `w` that sum to one: equal ones (Robo-Dopamine, arXiv 2512.23703), or the mean share of
an episode that each stage takes (SARM, arXiv 2509.25358). Progress is never the raw frame index over the
whole episode: durations vary, and that is what stages fix.

The hop from moment p to moment q (Robo-Dopamine) is progress relative to what was left, or to what there was:

    hop(p, q) = (Phi_q - Phi_p) / (1 - Phi_p)   if Phi_q >= Phi_p,   else   (Phi_q - Phi_p) / Phi_p
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from robo_reward.errors import DataError
from robo_reward.schema import EpisodeInfo, Outcome, ProgressLabel

__all__ = [
    "apply_hop",
    "check_boundaries",
    "duration_stage_weights",
    "equal_stage_weights",
    "hop",
    "label_ceiling",
    "label_episode",
    "label_from_boundaries",
    "label_success",
    "plain_stages",
    "same_stages",
    "stages_begin",
    "task_progress",
    "work_end",
]


def check_boundaries(boundaries: Int64[np.ndarray, " n"], length: int, name: str) -> None:
    """Refuse stage boundaries that are not `0 <= k_0 < k_1 < ... < k_N <= length`, N >= 1.

    Raises:
        DataError: naming the episode `name`, the boundary and its neighbour.
    """
    if boundaries.ndim != 1 or len(boundaries) < 2:
        raise DataError(f"{name}: needs at least two stage boundaries, has {boundaries.size}")
    if boundaries[0] < 0 or boundaries[-1] > length:
        raise DataError(
            f"{name}: stage boundaries {boundaries[0]}..{boundaries[-1]} leave the episode's {length} frames"
        )
    steps = np.diff(boundaries)
    if np.any(steps <= 0):
        at = int(np.argmax(steps <= 0))
        raise DataError(
            f"{name}: stage boundary {at + 1} (frame {boundaries[at + 1]}) "
            f"must come after boundary {at} (frame {boundaries[at]})"
        )


def label_from_boundaries(
    boundaries: Int64[np.ndarray, " n"], length: int, finished: bool = True
) -> ProgressLabel:
    """Stage i64[t] and tau f32[t] of every frame.

    Before `k_0` nothing has begun (stage 0, tau 0); from `k_N` on all is done (last stage, tau 1). Where the
    last stage was not `finished`, nobody knows how far it got: its frames, and all later ones, are not valid.
    """
    check_boundaries(boundaries, length, "episode")
    frames = np.arange(length)
    stage = np.clip(np.searchsorted(boundaries, frames, side="right") - 1, 0, len(boundaries) - 2)
    start, end = boundaries[stage], boundaries[stage + 1]
    tau = np.clip((frames - start) / (end - start), 0.0, 1.0).astype(np.float32)
    return ProgressLabel(stage.astype(np.int64), tau, finished | (frames < boundaries[-2]))


def label_episode(info: EpisodeInfo) -> ProgressLabel | None:
    """The true progress of an episode: its oracle's where it has one, its keyframes' otherwise.

    None where it is known of no frame. Keyframes say that every stage was carried out, unless a recorded
    failure says that the last one was not.
    """
    label = info.truth
    if label is None and info.boundaries is not None:
        finished = info.outcome is not Outcome.FAILURE
        label = label_from_boundaries(info.boundaries, info.length, finished)
    return label if label is not None and label.valid.any() else None


_COUNTED = re.compile(r"(stage|subtask)\d+")
"""Names that say which one a stage is and not what it is: those of tools where nobody gave any."""


def plain_stages(names: Sequence[str]) -> list[str]:
    """Stage names as they are compared: without case, spaces and underscores, "" for one that only counts."""
    plain = [re.sub(r"[\s_]+", "", name).casefold() for name in names]
    return ["" if _COUNTED.fullmatch(name) else name for name in plain]


def same_stages(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two lists of stage names may be of the same stages; so may any list and an empty one.

    They are not where they are of different length, where a name of one is elsewhere in the other, or where
    none agrees. A name that only counts (stage_1) goes with any. Where some agree, the others are wordings.
    """
    if not names or not others:
        return True
    if len(names) != len(others):
        return False
    pairs = _named_by_both(names, others)
    unlike = [(a, b) for a, b in pairs if a != b]
    moved = {a for a, _ in unlike} & {b for _, b in unlike}
    return not unlike or (len(unlike) < len(pairs) and not moved)


def _named_by_both(names: Sequence[str], others: Sequence[str]) -> list[tuple[str, str]]:
    """The plain names of the stages, from the first on, for which both lists have one."""
    return [(a, b) for a, b in zip(plain_stages(names), plain_stages(others), strict=False) if a and b]


def stages_begin(info: EpisodeInfo, count: int, names: Sequence[str], whole: int) -> bool:
    """Whether the `count` stages of an episode are the first of its task's `whole` ones, called `names`.

    All of them (`same_stages`), or, of one that did not succeed, those that it got to. Stages that are fewer
    must be called the same; without names only a recorded failure may have fewer.
    """
    if count == whole:
        return same_stages(info.stage_names, names)
    if count > whole or info.outcome is Outcome.SUCCESS:
        return False
    pairs = _named_by_both(info.stage_names, names)
    return all(a == b for a, b in pairs) if pairs else info.outcome is Outcome.FAILURE


def label_ceiling(info: EpisodeInfo) -> int | None:
    """The stage that no frame of the episode is beyond, where nothing else is known of its stages.

    It is what a person says of a failure at a glance ("it never had the peg"), or what is true of one by the
    way it was made. None where the stages are known, or nothing is.
    """
    return info.reached if label_episode(info) is None else None


def label_success(info: EpisodeInfo) -> tuple[Bool[np.ndarray, " t"], Bool[np.ndarray, " t"]]:
    """Whether the task is done at each frame: (success bool[t], known bool[t]).

    Known from the source where it says so; where that has the last frame alone, which tells the end of the
    recording and not of the work, a `k_N` before it says more. Else a failed episode is never done; a
    successful one is done from `k_N` on (its last frame where `k_N` is its end), and before `k_N` it is not;
    without keyframes only its last frame is known.
    """
    length = info.length
    if info.success is not None:
        marked = length if info.boundaries is None else int(info.boundaries[-1])
        if info.success.sum() == 1 and info.success[-1] and marked < length:
            return np.arange(length) >= marked, np.ones(length, dtype=np.bool_)
        return info.success, np.ones(length, dtype=np.bool_)
    success = np.zeros(length, dtype=np.bool_)
    known = np.zeros(length, dtype=np.bool_)
    if info.outcome is Outcome.FAILURE:
        known[:] = True
    elif info.outcome is Outcome.SUCCESS:
        done = length - 1 if info.boundaries is None else min(int(info.boundaries[-1]), length - 1)
        success[done:] = True
        known[:] = info.boundaries is not None
        known[-1] = True
    return success, known


def work_end(length: int, success: Bool[np.ndarray, " t"] | None) -> int:
    """The frame at which the last stage of a demonstration of `length` frames ends, its last boundary.

    It is the first of those at the end that show the task done, or, where nothing says which, the end of the
    episode: what is done holds still or leaves, and is progress of 1.
    """
    if success is None or not success[-1]:
        return length
    done = length - int(np.argmin(np.append(success[::-1], False)))
    return done or length  # done from the first frame on: that tells nothing


def equal_stage_weights(stages: int) -> Float32[np.ndarray, " k"]:
    """Every stage counts the same, whatever its length: `w_i = 1/N` (Robo-Dopamine)."""
    return np.full(stages, 1.0 / stages, dtype=np.float32)


def duration_stage_weights(
    boundaries: Iterable[Int64[np.ndarray, " n"]],
) -> Float32[np.ndarray, " k"]:
    """`w_i = mean_e(L_{e,i} / T_e)`: the mean share of time a stage takes over the demonstrations (SARM).

    Raises:
        DataError: where there are no boundaries, or demonstrations differ in their number of stages.
    """
    shares = [np.diff(b) / (b[-1] - b[0]) for b in boundaries]
    if not shares:
        raise DataError(
            "stage_weights=duration needs episodes with stage boundaries; use stage_weights=equal"
        )
    counts = sorted({len(share) for share in shares})
    if len(counts) > 1:
        raise DataError(f"demonstrations have different numbers of stages: {counts}")
    return np.mean(shares, axis=0).astype(np.float32)


def task_progress(
    stage: Int64[np.ndarray, " t"], tau: Float[np.ndarray, " t"], weights: Float32[np.ndarray, " k"]
) -> Float32[np.ndarray, " t"]:
    """`Phi = W_stage + w_stage * tau`, f32[t] in [0, 1]."""
    before = np.concatenate([np.zeros(1), np.cumsum(weights, dtype=np.float64)[:-1]])
    return np.clip(before[stage] + weights[stage] * tau, 0.0, 1.0).astype(np.float32)


def hop(start: Float[np.ndarray, "*shape"], end: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Relative progress from `start` to `end` (both in [0, 1]), in [-1, 1]; 0 where they are equal."""
    change = end - start
    room = np.where(change >= 0, 1.0 - start, start)
    return np.divide(change, room, out=np.zeros_like(change), where=room > 0)


def apply_hop(
    start: Float[np.ndarray, "*shape"], hops: Float[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape"]:
    """The progress that a hop leads to: `start + (1 - start) h` if `h >= 0`, else `start + start h`."""
    return start + np.where(hops >= 0, 1.0 - start, start) * hops
