"""A LeRobot dataset with something added: as a copy, or in the place of the old one by a single exchange.

The new dataset is written beside its place, under a hidden name, and made durable; what does not change is
copied (for a dataset in place: linked, so that videos take no time and no room). A killed run leaves the old
dataset as it was; the next one takes over what had been copied.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from robo_reward.errors import DataError
from robo_reward_data._files import encode_json, read_json, sync_folder, sync_tree

__all__ = ["Change", "rewrite_dataset"]

Columns = Mapping[str, pa.Array]


def _nothing(_: pa.Table) -> Columns:
    return {}


@dataclass(frozen=True)
class Change:
    """What to add; a column or feature of the same name is replaced.

    features         entries of `info.json`, by column
    data_columns     from rows of the data tables (`data_needs` of their columns): the new columns
    episode_columns  from a table of `meta/episodes`: its new columns
    stats            entries of `meta/stats.json`, by feature
    files            other files, by their path below the root: their content, or the file that has it
    """

    features: Mapping[str, Any] = field(default_factory=dict)
    data_columns: Callable[[pa.Table], Columns] = _nothing
    episode_columns: Callable[[pa.Table], Columns] = _nothing
    stats: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes | Path] = field(default_factory=dict)


def rewrite_dataset(root: Path, out: Path | None, change: Change) -> None:
    """Write the changed dataset to `out`, or in the place of `root` where that is None.

    Raises:
        DataError: `out` exists, or the file system cannot exchange two folders.
    """
    root = root.resolve()
    target = root if out is None else out.absolute()
    if out is not None and target.exists():
        raise DataError(f"{target} exists: choose another out")
    files = _files(root, in_place=out is None)
    draft = target.with_name(f".{target.name}.rewriting")
    _remember_source(draft, root)
    place = _copy if out is not None else _link
    for relative in sorted(files - {Path(name) for name in change.files}):
        make = _maker(relative, change)
        (draft / relative).parent.mkdir(parents=True, exist_ok=True)
        if make is None:
            place(root / relative, draft / relative)
        else:
            make(root / relative, draft / relative, change)
    for name, content in change.files.items():
        (draft / name).parent.mkdir(parents=True, exist_ok=True)
        (draft / name).unlink(missing_ok=True)  # never write into a file that is linked to the old dataset's
        if isinstance(content, Path):
            shutil.copyfile(content, draft / name)
        else:
            (draft / name).write_bytes(content)
    added = {Path(".source"), *map(Path, change.files)}
    for path in [path for path in draft.rglob("*") if path.is_file()]:
        if path.relative_to(draft) not in files | added:
            path.unlink()
    sync_tree(draft)
    _publish(draft, target, in_place=out is None)


def _files(root: Path, in_place: bool) -> set[Path]:
    """Every file below `root`, by its path there, also behind links to folders."""
    found: set[Path] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        place = Path(folder)
        linked = [name for name in folders if (place / name).is_symlink()]
        if linked and in_place:
            link = place / linked[0]
            raise DataError(
                f"{link} is a link to {link.resolve()}: in place, it would become a folder of its own; "
                "write to out=FOLDER instead"
            )
        found |= {(place / name).relative_to(root) for name in names if (place / name).is_file()}
    return found


def _remember_source(draft: Path, root: Path) -> None:
    """Keep what an earlier run copied only if it came from the same dataset."""
    note = draft / ".source"
    if draft.exists() and (not note.exists() or note.read_text(encoding="utf-8") != str(root)):
        shutil.rmtree(draft)
    draft.mkdir(parents=True, exist_ok=True)
    note.write_text(str(root), encoding="utf-8")


def _maker(relative: Path, change: Change) -> Callable[[Path, Path, Change], None] | None:
    """What writes the changed form of a file, or None where it stays as it is."""
    if relative == Path("meta/info.json"):
        return _write_info
    if relative == Path("meta/stats.json"):
        return _write_stats
    if relative.suffix == ".parquet" and relative.parts[0] == "data" and change.data_columns is not _nothing:
        return _write_data
    is_episodes = relative.suffix == ".parquet" and relative.parts[:2] == ("meta", "episodes")
    return _write_episodes if is_episodes and change.episode_columns is not _nothing else None


def _write_info(source: Path, target: Path, change: Change) -> None:
    info = read_json(source, "LeRobot dataset")
    info["features"] = {**info["features"], **change.features}
    _replace(target, json.dumps(info, indent=4).encode())


def _write_stats(source: Path, target: Path, change: Change) -> None:
    stats = {**read_json(source, "LeRobot dataset"), **change.stats}
    _replace(target, encode_json(stats, "meta/stats.json").encode())


def _write_data(source: Path, target: Path, change: Change) -> None:
    """Row group by row group: a group is an episode, and images may fill the file."""
    file = pq.ParquetFile(source)
    with _ParquetDraft(target) as draft:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            draft.write(_with_columns(table, change.data_columns(table), change.features))


def _write_episodes(source: Path, target: Path, change: Change) -> None:
    table = pq.ParquetFile(source).read()
    with _ParquetDraft(target) as draft:
        draft.write(_with_columns(table, change.episode_columns(table), {}))


class _ParquetDraft:
    """A Parquet file that appears under its name when it is complete, with the schema of its first table."""

    def __init__(self, path: Path) -> None:
        self._path, self._draft = path, path.with_name(f".{path.name}.draft")
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> _ParquetDraft:
        return self

    def write(self, table: pa.Table) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._draft, table.schema)
        self._writer.write_table(table.cast(self._writer.schema))

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._writer is not None:
            self._writer.close()
            if kind is None:
                self._path.unlink(missing_ok=True)
                self._draft.replace(self._path)


def _with_columns(table: pa.Table, columns: Columns, features: Mapping[str, Any]) -> pa.Table:
    """The table with columns added or replaced, and said so to `datasets`, which reads its own metadata."""
    metadata = dict(table.schema.metadata or {})
    for name, column in columns.items():
        if name in table.column_names:
            table = table.set_column(table.column_names.index(name), name, column)
        else:
            table = table.append_column(name, column)
    if b"huggingface" in metadata:
        said = json.loads(metadata[b"huggingface"])
        known = {
            name: {"dtype": features[name]["dtype"], "_type": "Value"} for name in columns if name in features
        }
        if any(features[name]["dtype"] == "language" for name in known):
            metadata.pop(b"huggingface")
        else:
            said["info"]["features"].update(known)
            metadata[b"huggingface"] = json.dumps(said).encode()
    return table.replace_schema_metadata(metadata or None)


def _replace(path: Path, content: bytes) -> None:
    """Never write into a file: it may be linked to the old dataset's."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(content)
    draft.replace(path)


def _copy(source: Path, target: Path) -> None:
    """Copy what is not there yet, size and time being the witnesses; times are set when all is copied."""
    there = target.stat() if target.exists() else None
    wanted = source.stat()
    if there is None or (there.st_size, there.st_mtime_ns) != (wanted.st_size, wanted.st_mtime_ns):
        shutil.copy2(source, target)


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _publish(draft: Path, target: Path, in_place: bool) -> None:
    (draft / ".source").unlink()
    if in_place:
        _exchange(draft, target)
        shutil.rmtree(draft)
    else:
        draft.rename(target)
    sync_folder(target.parent)


def _exchange(first: Path, second: Path) -> None:
    """Two folders swap their names in one step, which no reader and no crash can see half of (Linux)."""
    current_folder, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    paths = os.fsencode(first), os.fsencode(second)
    failed = call is None or call(current_folder, paths[0], current_folder, paths[1], exchange)
    if failed:
        code = ctypes.get_errno() or errno.ENOSYS
        shutil.rmtree(first)
        raise DataError(
            f"{second} cannot be replaced in one step here ({os.strerror(code)}): write a copy with out=DIR"
        )
