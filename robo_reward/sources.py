"""Open datasets of episodes by the import path of their reader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robo_reward.errors import DataError
from robo_reward.imports import import_object
from robo_reward.schema import EpisodeReader

__all__ = ["open_sources"]


def open_sources(reader: Mapping[str, Any], paths: str | Sequence[str]) -> tuple[list[EpisodeReader], str]:
    """Every episode of one or several stores, and a fingerprint of them all.

    Raises:
        DataError: an empty store, or one recording that appears twice.
    """
    opened = import_object(str(reader["_target_"]))
    rest = {key: value for key, value in reader.items() if key != "_target_"}
    sources = [opened(Path(path), **rest) for path in ([paths] if isinstance(paths, str) else paths)]
    readers = [episode for source in sources for episode in source.episodes]
    if not readers:
        raise DataError(f"'{paths}' has no episodes: record or import some first")
    uids = [episode.info.uid for episode in readers]
    if len(set(uids)) < len(uids):
        twice = next(uid for uid in uids if uids.count(uid) > 1)
        raise DataError(f"recording {twice} is in the data twice ({paths}): name each store once")
    return readers, "+".join(source.fingerprint for source in sources)
