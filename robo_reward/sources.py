"""Open datasets of episodes by the import path of their reader, and say which they were."""

from __future__ import annotations

import shlex
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from robo_reward.errors import ConfigError, DataError
from robo_reward.imports import import_object
from robo_reward.schema import EpisodeReader

__all__ = ["command_line", "name_sources", "open_sources", "spell_sources", "typed_command"]

_typed: ContextVar[tuple[str, ...]] = ContextVar("typed", default=())


def open_sources(reader: Mapping[str, Any], paths: str | Sequence[str]) -> tuple[list[EpisodeReader], str]:
    """Every episode of one or several stores, and a fingerprint of them all.

    Raises:
        ConfigError: a path that is empty, or several written as one.
        DataError: an empty store, or one recording that appears twice.
    """
    for path in [paths] if isinstance(paths, str) else paths:
        if not path:
            raise ConfigError(f"an empty path among the data ({spell_sources(paths)}): name a store")
        if "," in path and not Path(path).exists():
            raise ConfigError(f"no store '{path}': several are written [{path}]")
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


def spell_sources(paths: str | Sequence[str]) -> str:
    """One or several stores as the command line takes them: A, or [A,B]."""
    return paths if isinstance(paths, str) else f"[{','.join(map(str, paths))}]"


def name_sources(paths: str | Sequence[str]) -> str:
    """One or several stores in a title, which has no room for many."""
    few = isinstance(paths, str) or len(paths) <= 3
    return spell_sources(paths) if few else f"{len(paths)} stores"


def command_line(command: str, sources: Mapping[str, str | Sequence[str]], **keys: object) -> str:
    """What to type into a shell for a command: what was typed, else these stores and other keys."""
    typed = _typed.get()
    if typed[:1] == (command,):
        return shlex.join(["robo-reward", *typed])
    said = {**{name: spell_sources(paths) for name, paths in sources.items()}, **keys}
    return shlex.join(["robo-reward", command, *(f"{key}={value}" for key, value in said.items())])


@contextmanager
def typed_command(command: str, overrides: Sequence[str]) -> Generator[None]:
    """While it runs, `command_line` answers with these words: reports say how to make them again."""
    token = _typed.set((command, *overrides))
    try:
        yield
    finally:
        _typed.reset(token)
