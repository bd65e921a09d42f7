"""Marks made by hand, safe from the moment they are made: a journal on disk beside the store.

Every change is a line that is on disk before it is answered. Whoever opens the store next finds the
last state of every episode, whatever was killed when; a line that was half written is left out.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self, cast

from robo_reward.errors import DataError
from robo_reward_data._files import replace_file

__all__ = ["Entry", "Journal", "Marks"]


@dataclass(frozen=True, slots=True)
class Marks:
    """What is said about an episode: frames that bound stages, in order, and the stages' names.

    Fewer than two boundaries are the beginning of an annotation, not one yet.
    """

    names: tuple[str, ...] = ()
    boundaries: tuple[int, ...] = ()

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        """From JSON."""
        return cls(tuple(map(str, value["names"])), tuple(map(int, value["boundaries"])))


@dataclass(frozen=True, slots=True)
class Entry:
    """One change: the episode, its marks after it, and what the store said before it."""

    episode: str
    marks: Marks
    before: Marks


class Journal:
    """The journal of one store; one process at a time has it."""

    def __init__(self, folder: Path) -> None:
        """Open or make it in `folder`, and read what it holds.

        Raises:
            DataError: another process has it, or it cannot be written.
        """
        try:
            folder.mkdir(exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise DataError(f"cannot keep a journal in {folder}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise DataError(
                f"{folder.parent} is being annotated by another process: use its page, or stop it first"
            ) from error
        path = folder / "journal.jsonl"
        self.last = _read(path)
        # Only the last state of each episode matters from here on, and a torn line must not be appended to.
        replace_file(path, "".join(_line(entry) for entry in self.last.values()))
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def append(self, entry: Entry) -> None:
        """Add a change; it is on disk when this returns."""
        os.write(self._file, _line(entry).encode())
        os.fsync(self._file)
        self.last[entry.episode] = entry

    def forget(self, episode: str) -> None:
        """Drop what is known of an episode: the store says otherwise by now."""
        self.last.pop(episode, None)

    def close(self) -> None:
        """Free the journal for other processes."""
        os.close(self._file)
        os.close(self._lock)


def _line(entry: Entry) -> str:
    return json.dumps(asdict(entry), separators=(",", ":")) + "\n"


def _read(path: Path) -> dict[str, Entry]:
    """The last entry of each episode, up to the first line that is no entry."""
    found: dict[str, Entry] = {}
    if not path.exists():
        return found
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            value = cast("dict[str, Any]", json.loads(line))
            entry = Entry(str(value["episode"]), Marks.of(value["marks"]), Marks.of(value["before"]))
        except (ValueError, KeyError, TypeError):
            break
        if not line.endswith(b"\n"):
            break
        found[entry.episode] = entry
    return found
