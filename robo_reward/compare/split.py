"""Split discipline: training, calibration and test episodes share no recording and no (task, seed)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from robo_reward.errors import DataError
from robo_reward.schema import EpisodeInfo, EpisodeReader
from robo_reward.train.config import HoldoutConfig
from robo_reward.train.split import make_split

__all__ = ["check_disjoint", "hold_out"]


def check_disjoint(parts: Mapping[str, Sequence[EpisodeReader]]) -> None:
    """Refuse stores that overlap; `parts` are stores by what they are used for.

    Raises:
        DataError: naming the recording or the task and seed that two of them share.
    """
    for (first, a), (second, b) in combinations(parts.items(), 2):
        names = {reader.info.uid: reader.info.name for reader in a}
        for reader in b:
            if reader.info.uid in names:
                raise DataError(
                    f"recording {reader.info.uid} is in {first} ({names[reader.info.uid]}) and in {second} "
                    f"({reader.info.name}): no method may be judged on what it learned from"
                )
        shared = sorted(_series(a) & _series(b))
        if shared:
            task, seed = shared[0]
            raise DataError(
                f"{first} and {second} both hold task '{task}' with seed {seed}"
                + (f" (and {len(shared) - 1} more)" if len(shared) > 1 else "")
                + ": record one of them with another seed"
            )


def _series(readers: Sequence[EpisodeReader]) -> set[tuple[str, str]]:
    """(task, seed) of every episode that names its seed; recordings of real robots have none."""
    return {
        (_task(reader.info), str(reader.info.source["seed"]))
        for reader in readers
        if reader.info.source.get("seed") is not None
    }


def _task(info: EpisodeInfo) -> str:
    return str(info.source.get("env") or info.instruction)


def hold_out(
    readers: Sequence[EpisodeReader], holdout: HoldoutConfig, seed: int
) -> tuple[tuple[EpisodeReader, ...], tuple[EpisodeReader, ...]]:
    """Training and calibration episodes of one store, split as `robo-reward train` splits them.

    Raises:
        DataError: too few episodes to keep whole ones back.
    """
    if len(readers) < holdout.episodes:
        raise DataError(
            f"{len(readers)} training episodes: a comparison needs {holdout.episodes} or more to keep whole "
            "ones back for calibration (or calibration=STORE)"
        )
    split = make_split([reader.info for reader in readers], holdout, seed)
    train = tuple(r for r, mask in zip(readers, split.train, strict=True) if mask.all())
    kept = tuple(r for r, mask in zip(readers, split.calibration, strict=True) if mask.all())
    if not train:
        raise DataError(
            "every training episode is the only one of its task: a comparison keeps whole episodes back for "
            "calibration, so record another of each (or give calibration=STORE)"
        )
    return train, kept
