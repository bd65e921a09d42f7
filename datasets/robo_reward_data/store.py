"""The episode store: demonstrations on disk, for many readers and several writers at once.

A store is a Zarr v3 group. `episodes/<name>/` is one episode: `frames/<camera>` u8[t, h, w, 3], `stamp_ns`,
and where known `proprio`, `actions`, `success`, `truth_stage`, `truth_tau`, `truth_valid`; every other field
is an attribute of the episode's group. An episode is written in a hidden folder and becomes visible, whole,
by one rename: a writer that is killed leaves nothing that a reader can see.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self
from urllib.parse import quote, unquote

import numpy as np
import zarr
from jaxtyping import Float32, Int64, UInt8
from zarr.storage import LocalStore

from robo_reward.errors import DataError
from robo_reward.schema import Episode, EpisodeInfo, Outcome, ProgressLabel
from robo_reward_data._files import WorkFolder, encode_json, lock, read_json, replace_file
from robo_reward_data._frames import FrameReader, FrameWriter
from robo_reward_data._validate import check_info, check_names, check_table

__all__ = ["SCHEMA_VERSION", "EpisodeDraft", "EpisodeStore", "StoredEpisode"]

SCHEMA_VERSION = 1
_KEY = "robo_reward"
_EPISODES = "episodes"
_WORK = ".writing"
_LONGEST = 255  # bytes of a file's name
_CUT = "%~"  # stands for the rest of a longer name, before a digest of the whole: no encoded name has it


class StoredEpisode:
    """One episode of a store: an `EpisodeReader`. Safe in threads, after a fork, and to pickle.

    What it has read of the metadata stays as it was: take a new one from the store to see new annotations.
    """

    def __init__(self, path: Path) -> None:
        """Refer to the episode in the folder `path`; nothing is read before it is asked for."""
        self._path = path
        self._name = unquote(path.name)
        self._lock = threading.Lock()
        self._attributes: dict[str, Any] | None = None
        self._info: EpisodeInfo | None = None
        self._cameras: dict[str, FrameReader] = {}

    def __reduce__(self) -> tuple[type[StoredEpisode], tuple[Path]]:
        """Pickle as a path: workers open their own files."""
        return (type(self), (self._path,))

    def __repr__(self) -> str:
        """Name and place."""
        return f"StoredEpisode({self._name!r}, {str(self._path)!r})"

    @property
    def name(self) -> str:
        """Its name, unique in the store."""
        return str(self.attributes["name"]) if _CUT in self._path.name else self._name

    @property
    def uid(self) -> str:
        """What identifies the recording wherever it is copied."""
        return str(self.attributes["uid"])

    @property
    def attributes(self) -> Mapping[str, Any]:
        """The stored fields that are not arrays.

        Raises:
            DataError: the episode is damaged, or its schema is newer than this version knows.
        """
        if self._attributes is None:
            who = f"episode '{self._name}'"
            self._attributes = _read_attributes(self._path, who)
            absent = [key for key in ("name", "uid", "cameras", "outcome") if key not in self._attributes]
            if absent:
                raise DataError(f"{who} in {self._path} is damaged: it has no {', '.join(absent)}")
        return self._attributes

    @property
    def info(self) -> EpisodeInfo:
        """Metadata, without touching any image.

        Raises:
            DataError: the episode is damaged, or its schema is newer than this version knows.
        """
        if self._info is None:
            self._info = self._load_info()
        return self._info

    def read_frames(self, camera: str, indices: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w 3"]:
        """The frames of one camera at any indices in 0..t-1, in the order given (repeats allowed).

        Raises:
            DataError: no such camera or frame, or a damaged file.
        """
        return self._frames(camera).read(indices)

    def read_proprio(self) -> Float32[np.ndarray, "t p"] | None:
        """Proprioception of the whole episode, or None."""
        return self._array("proprio")

    def read_actions(self) -> Float32[np.ndarray, "t a"] | None:
        """Actions of the whole episode, or None."""
        return self._array("actions")

    def load(self) -> Episode:
        """The whole episode in memory."""
        everything = np.arange(self.info.length)
        frames = {camera: self.read_frames(camera, everything) for camera in self.info.cameras}
        return Episode(self.info, frames, self.read_proprio(), self.read_actions())

    def _frames(self, camera: str) -> FrameReader:
        with self._lock:
            reader = self._cameras.get(camera)
            if reader is None:
                known = self.attributes["cameras"]
                if camera not in known:
                    raise DataError(
                        f"episode '{self._name}' has no camera '{camera}': choose one of {', '.join(known)}"
                    )
                label = f"episode '{self._name}', camera '{camera}'"
                reader = FrameReader(self._path / "frames" / _file_name(camera), label)
                self._cameras[camera] = reader
        return reader

    def _array(self, name: str) -> Any:
        if name not in self.attributes["arrays"]:
            return None
        try:
            array: Any = zarr.open_array(
                LocalStore(self._path / name, read_only=True), mode="r", config={"read_missing_chunks": False}
            )
            return np.asarray(array[...])
        except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:  # zarr's and its codecs'
            raise DataError(
                f"episode '{self._name}': {self._path / name} is damaged ({error}): store the episode again"
            ) from error

    def _load_info(self) -> EpisodeInfo:
        stored = self.attributes
        cameras = tuple(stored["cameras"])
        stage, tau, valid = (self._array(f"truth_{part}") for part in ("stage", "tau", "valid"))
        boundaries = stored["boundaries"]
        info = EpisodeInfo(
            name=stored["name"],
            uid=stored["uid"],
            cameras=cameras,
            image_sizes={camera: self._frames(camera).shape[1:3] for camera in cameras},
            stamp_ns=self._array("stamp_ns"),
            instruction=stored["instruction"],
            paraphrases=tuple(stored["paraphrases"]),
            stage_names=tuple(stored["stage_names"]),
            boundaries=None if boundaries is None else np.array(boundaries, np.int64),
            truth=None if stage is None else ProgressLabel(stage, tau, valid),
            success=self._array("success"),
            outcome=Outcome(stored["outcome"]),
            reached=stored.get("reached"),
            proprio_names=tuple(stored.get("proprio_names", ())),
            action_names=tuple(stored.get("action_names", ())),
            kind=stored["kind"],
            source=stored["source"],
        )
        check_info(info)
        return info


class EpisodeDraft:
    """An episode being written, frame by frame; get one from `EpisodeStore.draft`."""

    def __init__(self, name: str, work: WorkFolder, store: EpisodeStore) -> None:
        """Write in the folder of `work`."""
        self._name = name
        self._work = work
        self._store = store
        self._cameras: dict[str, FrameWriter] = {}
        self._sizes: dict[str, tuple[int, int]] = {}

    def camera(self, camera: str, length: int, size: tuple[int, int]) -> FrameWriter:
        """Where the `length` frames of one camera go, in order; `size` is (h, w) in pixels."""
        label = f"episode '{self._name}', camera '{camera}'"
        if length < 1 or min(size) < 1:
            raise DataError(f"{label} has no images: {length} frames of {size[0]}x{size[1]} pixels")
        if camera in self._cameras:
            raise DataError(f"{label} is written twice")
        path = self._work.path / "frames" / _file_name(camera)
        writer = self._cameras[camera] = FrameWriter(path, length, *size, label)
        self._sizes[camera] = size
        return writer

    def commit(
        self,
        info: EpisodeInfo,
        proprio: Float32[np.ndarray, "t p"] | None = None,
        actions: Float32[np.ndarray, "t a"] | None = None,
    ) -> StoredEpisode:
        """Check the episode against `info` and make it visible, whole.

        Raises:
            DataError: naming the episode, the field or camera, and the values; nothing is stored.
        """
        self._check(info, proprio, actions)
        for writer in self._cameras.values():
            writer.close()
        arrays: dict[str, Any] = {"stamp_ns": info.stamp_ns, "success": info.success}
        arrays |= {"proprio": proprio, "actions": actions}
        if info.truth is not None:
            arrays |= {f"truth_{part}": getattr(info.truth, part) for part in ("stage", "tau", "valid")}
        arrays = {name: values for name, values in arrays.items() if values is not None}
        for name, values in arrays.items():
            # An empty chunk of all zeros is written too: a missing file always means damage.
            zarr.create_array(
                LocalStore(self._work.path / name),
                data=values,
                chunks=tuple(max(1, n) for n in values.shape),
                config={"write_empty_chunks": True},
            )
        _write_group(self._work.path / "frames")
        _write_group(self._work.path, _attributes_of(info, arrays))
        return self._store._publish(self._work, info)  # pyright: ignore[reportPrivateUsage]

    def _check(self, info: EpisodeInfo, proprio: Any, actions: Any) -> None:
        who = f"episode '{self._name}'"
        if info.name != self._name:
            raise DataError(f"{who} was started under that name, but its info says '{info.name}'")
        check_info(info)
        if set(self._cameras) != set(info.cameras):
            raise DataError(
                f"{who}: info names cameras {sorted(info.cameras)}, frames came from {sorted(self._cameras)}"
            )
        for camera, writer in self._cameras.items():
            if writer.count != info.length:
                raise DataError(
                    f"{who}: camera '{camera}' has {writer.count} frames for {info.length} stamps: "
                    "every camera must cover the episode"
                )
            if tuple(info.image_sizes[camera]) != self._sizes[camera]:
                raise DataError(
                    f"{who}: camera '{camera}' has images of {self._sizes[camera]}, "
                    f"info says {tuple(info.image_sizes[camera])}"
                )
        check_table(who, "proprio", proprio, info.length)
        check_names(who, "proprio_names", info.proprio_names, proprio)
        check_table(who, "actions", actions, info.length)
        check_names(who, "action_names", info.action_names, actions)


class EpisodeStore:
    """Episodes in a folder: an `EpisodeSource`. Cheap to open; safe in threads and to pickle.

    Several processes may write different episodes to one store at once.
    """

    def __init__(self, path: Path, attrs: Mapping[str, Any]) -> None:
        """Use `create` or `open` instead."""
        self._path = path
        self._attrs = attrs
        self._lock = threading.Lock()
        self._known: dict[str, tuple[tuple[int, int], StoredEpisode]] = {}

    @classmethod
    def create(cls, path: str | Path, attrs: Mapping[str, Any] | None = None, exist_ok: bool = False) -> Self:
        """A new store; `attrs` are JSON-able facts about all of it (frame rate, image size, options).

        With `exist_ok`, a store that is already there is opened as it is, its own attributes unchanged.

        Raises:
            DataError: the folder holds something else, or a store and not `exist_ok`.
        """
        root = Path(path).resolve()
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot make a store at {root}: {error.strerror}") from error
        with _locked(root):
            if (root / "zarr.json").exists():
                if not exist_ok:
                    raise DataError(f"{root} is a store already: open it, or choose another folder")
                return cls.open(root)
            others = sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))
            if others and others != [_EPISODES]:
                shutil.rmtree(root / _WORK)
                raise DataError(f"{root} is not empty ({', '.join(others[:3])}): choose another folder")
            _write_group(root / _EPISODES)
            _write_group(root, {"schema_version": SCHEMA_VERSION, "attrs": dict(attrs or {})})
        return cls.open(root)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """The store at `path`.

        Raises:
            DataError: there is none, it is damaged, or its schema is newer than this version knows.
        """
        root = Path(path).resolve()
        if not root.is_dir():
            raise DataError(f"no episode store at {root}: there is no such folder")
        if not (root / "zarr.json").exists():
            raise DataError(
                f"{root} is not an episode store (no zarr.json): make one with robo-reward record or import"
            )
        stored = _read_attributes(root, "episode store")
        if not isinstance(stored.get("attrs"), dict):
            raise DataError(f"{root} is damaged: its zarr.json has no attrs")
        return cls(root, MappingProxyType(stored["attrs"]))

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        """Pickle as a path."""
        return (type(self).open, (self._path,))

    def __repr__(self) -> str:
        """Its place."""
        return f"EpisodeStore({str(self._path)!r})"

    @property
    def path(self) -> Path:
        """The folder."""
        return self._path

    @property
    def attrs(self) -> Mapping[str, Any]:
        """JSON-able facts about the whole store, as they were when it was opened (read-only)."""
        return self._attrs

    def update_attrs(self, changes: Mapping[str, Any]) -> None:
        """Set some of `attrs`, for every process."""
        with _locked(self._path):
            attrs = {**_read_attributes(self._path, "episode store")["attrs"], **changes}
            _write_group(self._path, {"schema_version": SCHEMA_VERSION, "attrs": attrs})
        self._attrs = MappingProxyType(attrs)

    @property
    def episodes(self) -> Sequence[StoredEpisode]:
        """Every complete episode, in order of name: a list of the moment, take it once and keep it."""
        found: list[StoredEpisode] = []
        with self._lock:
            known: dict[str, tuple[tuple[int, int], StoredEpisode]] = {}
            for folder in (self._path / _EPISODES).iterdir():
                if folder.name.startswith(".") or not folder.is_dir():
                    continue
                version = _version(folder)
                old = self._known.get(folder.name)
                episode = old[1] if old is not None and old[0] == version else StoredEpisode(folder)
                known[folder.name] = (version, episode)
                found.append(episode)
            self._known = known
        return sorted(found, key=lambda episode: episode.name)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the uid and the annotations of each episode: it changes whenever the content does."""
        digest = hashlib.sha256()
        for episode in self.episodes:
            digest.update(encode_json(episode.attributes, repr(episode)).encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        """Number of complete episodes."""
        return len(self.episodes)

    def __iter__(self) -> Iterator[StoredEpisode]:
        """Episodes in order of name."""
        return iter(self.episodes)

    def __contains__(self, name: object) -> bool:
        """Whether an episode of that name is stored."""
        return isinstance(name, str) and bool(name) and self._folder(name).is_dir()

    def __getitem__(self, name: str) -> StoredEpisode:
        """The episode of that name.

        Raises:
            DataError: where there is none.
        """
        if name not in self:
            raise DataError(f"no episode '{name}' in {self._path} ({len(self)} episodes)")
        return StoredEpisode(self._folder(name))

    def write(self, episode: Episode) -> StoredEpisode:
        """Store a whole episode.

        Raises:
            DataError: it breaks a promise of the schema, or its name or uid is stored already.
        """
        check_info(episode.info)
        with self.draft(episode.info.name) as draft:
            for camera, frames in episode.frames.items():
                who = f"episode '{episode.info.name}', camera '{camera}'"
                if frames.ndim != 4 or frames.shape[3] != 3:
                    raise DataError(f"{who}: frames must be u8[t, h, w, 3], got {list(frames.shape)}")
                if len(frames) != episode.info.length:
                    raise DataError(f"{who} has {len(frames)} frames for {episode.info.length} stamps")
                draft.camera(camera, len(frames), (frames.shape[1], frames.shape[2])).extend(frames)
            return draft.commit(episode.info, episode.proprio, episode.actions)

    @contextlib.contextmanager
    def draft(self, name: str) -> Generator[EpisodeDraft]:
        """Write an episode piece by piece: what is not committed when the block ends is thrown away.

        Raises:
            DataError: where the name is stored already.
        """
        if not name:
            raise DataError("an episode needs a name")
        if name in self:
            raise DataError(f"episode '{name}' is stored in {self._path} already: choose another name")
        with _locked(self._path):
            WorkFolder.clean(self._path / _WORK)
            work = WorkFolder(self._path / _WORK)
        try:
            yield EpisodeDraft(name, work, self)
        finally:
            work.discard()

    def annotate(
        self, name: str, stage_names: Sequence[str], boundaries: Int64[np.ndarray, " n"] | None
    ) -> StoredEpisode:
        """Replace the stages of a stored episode: names of k stages, boundaries i64[k+1] or None.

        Where nobody said how the recording ended, one with stages counts as a success, as where it is
        imported with them: the end of the last stage is the end of the task.

        Raises:
            DataError: no such episode, boundaries that do not fit it, or one whose truth is known frame by
                frame: that wins over boundaries, so they would change nothing.
        """
        info = self[name].info
        names = tuple(stage_names)
        if info.truth is not None:
            raise DataError(
                f"episode '{name}' knows its stage at every frame, which wins over boundaries: "
                "leave it as it is"
            )
        # All of it, as reading does: what cannot be read any more could not be annotated again either.
        outcome = info.outcome
        if info.source.get("outcome_from") == "outcome=auto":
            outcome = Outcome.UNKNOWN if boundaries is None else Outcome.SUCCESS
        check_info(dataclasses.replace(info, stage_names=names, boundaries=boundaries, outcome=outcome))
        with _locked(self._path):
            stored = _read_attributes(self._folder(name), f"episode '{name}'")
            stored["stage_names"] = list(names)
            stored["boundaries"] = None if boundaries is None else boundaries.tolist()
            stored["outcome"] = str(outcome)
            _write_group(self._folder(name), stored)
        return self[name]

    def remove_if_empty(self) -> bool:
        """Remove the store's folder where it has no episodes and nobody is writing one; whether it did."""
        with _locked(self._path):
            WorkFolder.clean(self._path / _WORK)
            busy = any(path.is_dir() for path in (self._path / _WORK).iterdir())
            if busy or len(self):
                return False
            shutil.rmtree(self._path)
        return True

    def _folder(self, name: str) -> Path:
        return self._path / _EPISODES / _file_name(name)

    def _publish(self, work: WorkFolder, info: EpisodeInfo) -> StoredEpisode:
        target = self._folder(info.name)
        with _locked(self._path):
            twin = next((other.name for other in self.episodes if other.uid == info.uid), None)
            if twin is not None:
                raise DataError(
                    f"episode '{info.name}' is the recording '{info.uid}', stored in {self._path} "
                    f"already as '{twin}'"
                )
            try:
                work.publish(target)
            except FileExistsError as error:
                raise DataError(
                    f"episode '{info.name}' is stored in {self._path} already: choose another name"
                ) from error
        return StoredEpisode(target)


@contextlib.contextmanager
def _locked(root: Path) -> Generator[None]:
    """Hold the store at `root` against every other writer.

    The lock file is the metadata of a hidden Zarr group, so that the store stays a clean Zarr hierarchy.
    """
    lock_path = root / _WORK / "zarr.json"
    lock_path.parent.mkdir(exist_ok=True)
    with lock(lock_path):
        if not lock_path.stat().st_size:
            lock_path.write_text(_group_text(lock_path), encoding="utf-8")
        yield


def _attributes_of(info: EpisodeInfo, arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "name": info.name,
        "uid": info.uid,
        "cameras": list(info.cameras),
        "arrays": sorted(arrays),
        "instruction": info.instruction,
        "paraphrases": list(info.paraphrases),
        "stage_names": list(info.stage_names),
        "boundaries": None if info.boundaries is None else info.boundaries.tolist(),
        "outcome": str(info.outcome),
        **({} if info.reached is None else {"reached": info.reached}),
        **({"proprio_names": list(info.proprio_names)} if info.proprio_names else {}),
        **({"action_names": list(info.action_names)} if info.action_names else {}),
        "kind": info.kind,
        "source": dict(info.source),
    }


def _write_group(folder: Path, attributes: Mapping[str, Any] | None = None) -> None:
    """The `zarr.json` of a group, replaced as one."""
    folder.mkdir(exist_ok=True)
    replace_file(folder / "zarr.json", _group_text(folder, attributes))


def _group_text(folder: Path, attributes: Mapping[str, Any] | None = None) -> str:
    stored = {} if attributes is None else {_KEY: dict(attributes)}
    return encode_json({"zarr_format": 3, "node_type": "group", "attributes": stored}, str(folder))


def _read_attributes(folder: Path, who: str) -> dict[str, Any]:
    try:
        stored = read_json(folder / "zarr.json", who)["attributes"][_KEY]
        version = int(stored["schema_version"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{who}: {folder} was not written by robo_reward, or is damaged") from error
    if version > SCHEMA_VERSION:
        raise DataError(
            f"{who}: {folder} has schema version {version}, this robo_reward reads up to {SCHEMA_VERSION}: "
            "install a newer one"
        )
    return stored


def _version(folder: Path) -> tuple[int, int]:
    try:
        status = (folder / "zarr.json").stat()
    except FileNotFoundError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_ino)


def _file_name(name: str) -> str:
    """A folder name for any text: what file systems or zarr forbid is percent-encoded or cut off."""
    encoded = quote(name, safe=" +,=@()[]")
    encoded = f"%2E{encoded[1:]}" if encoded.startswith(".") else encoded
    encoded = f"%5F{encoded[1:]}" if encoded.startswith("__") else encoded
    if len(encoded) <= _LONGEST:
        return encoded
    return f"{encoded[:200]}{_CUT}{hashlib.sha256(name.encode()).hexdigest()[:16]}"
