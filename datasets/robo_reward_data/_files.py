"""File operations that survive a crash: atomic replacement, fsync, locks that die with their process."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from robo_reward.errors import DataError

__all__ = ["WorkFolder", "encode_json", "lock", "publish_file", "read_json", "replace_file", "sync_tree"]


def encode_json(value: Any, what: str) -> str:
    """`value` as JSON text; NumPy scalars and arrays become numbers and lists, paths become strings.

    Raises:
        DataError: where `value` cannot be JSON, naming `what`.
    """
    try:
        return json.dumps(value, indent=1, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} cannot be stored as JSON: {error}") from error


def read_json(path: Path, what: str) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: where the file is missing or is not JSON, naming `what` and the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except OSError as error:
        raise DataError(f"{what}: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{what}: {path} is not JSON ({error})") from error


def replace_file(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader, or a crash, sees the old text or the new, no mixture."""
    with _replacing(path) as file:
        file.write(text.encode())


def publish_file(made: Path, path: Path) -> None:
    """Put a finished file in its place, whole or not at all, from another file system too."""
    with made.open("rb") as source, _replacing(path) as file:
        shutil.copyfileobj(source, file)
    made.unlink()


@contextlib.contextmanager
def _replacing(path: Path) -> Generator[BinaryIO]:
    """A draft that takes the place of `path` once it is on disk, and is gone where anything fails."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(root: Path) -> None:
    """Make every file below `root`, and its name, durable."""
    for folder, _, names in os.walk(root):
        for name in names:
            descriptor = os.open(Path(folder) / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(folder))


@contextlib.contextmanager
def lock(path: Path) -> Generator[None]:
    """Hold `path` against every other thread and process; the system frees it if this process dies."""
    descriptor = _open_lock(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class WorkFolder:
    """A hidden folder to write in, that becomes visible by one rename or not at all.

    Beside it lies a lock file held for as long as this process lives: a work folder whose lock is free
    was left by a writer that died, and `clean` removes it.
    """

    def __init__(self, parent: Path) -> None:
        """Make a new work folder in `parent`; call with the parent locked: `clean` must not see half."""
        name = uuid.uuid4().hex
        self.path = parent / name
        self._lock_path = parent / f"{name}.lock"
        self._descriptor: int | None = _open_lock(self._lock_path)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        self.path.mkdir()

    def publish(self, target: Path) -> None:
        """Make the folder durable, then give it its final name.

        Raises:
            FileExistsError: where the name is taken.
        """
        sync_tree(self.path)
        try:
            self.path.rename(target)
        except OSError as error:
            if target.exists():
                raise FileExistsError(str(target)) from error
            raise
        sync_folder(target.parent)
        self.discard()

    def discard(self) -> None:
        """Remove what is left of the folder; harmless a second time."""
        if self._descriptor is None:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock_path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None

    @staticmethod
    def clean(parent: Path) -> list[str]:
        """Remove the work folders of dead writers and return their names; call with the parent locked."""
        removed: list[str] = []
        for lock_path in parent.glob("*.lock"):
            descriptor = _open_lock(lock_path)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            else:
                shutil.rmtree(parent / lock_path.stem, ignore_errors=True)
                lock_path.unlink(missing_ok=True)
                removed.append(lock_path.stem)
            finally:
                os.close(descriptor)
        return removed


def _open_lock(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DataError(f"cannot write in {path.parent}: {error.strerror}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} {value!r} is not a number, text, list or mapping")
