"""The `import` command: recordings from elsewhere into an episode store, resumable."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from robo_reward.errors import ConfigError, DataError
from robo_reward.imports import instantiate
from robo_reward.schema import EpisodeInfo, Outcome
from robo_reward_data.importers.base import OUTCOMES, Importer, Options, Recording
from robo_reward_data.importers.video import resize
from robo_reward_data.store import EpisodeStore

__all__ = ["ImportConfig", "ImportResult", "import_recordings", "run"]


@dataclass(frozen=True)
class ImportConfig:
    """The keys of `configs/import.yaml`, which says what each means."""

    source: dict[str, Any]
    path: str
    out: str
    cameras: list[str] | None = None
    fps: float | None = 10.0
    size: list[int] | None = None
    outcome: str = "auto"
    reached: int | None = None
    on_error: str = "stop"


@dataclass(frozen=True)
class ImportResult:
    """Names of the episodes imported now, those there before, and by name why others were left out.

    taken_for   how many of those imported now count as what, though their recordings do not say
    stageless   how many of them have no stages
    """

    imported: tuple[str, ...]
    already: tuple[str, ...]
    left_out: Mapping[str, str]
    taken_for: Mapping[str, int]
    stageless: int


def run(config: ImportConfig) -> None:
    """Import as the config says, and print what came of it.

    Raises:
        ConfigError: a value out of range.
        DataError: bad input, or a store that was made with other options.
    """
    options = _options(config)
    importer: Importer = instantiate(config.source)
    result = import_recordings(
        importer,
        Path(config.path),
        Path(config.out),
        options,
        skip_errors=config.on_error == "skip",
        source=config.source,
    )
    for name, reason in result.left_out.items():
        sys.stdout.write(f"left out {name}: {reason}\n")
    sys.stdout.write(
        f"{len(result.imported)} imported, {len(result.already)} there before, "
        f"{len(result.left_out)} left out: {config.out}\n"
    )
    for outcome, count in result.taken_for.items():
        sys.stdout.write(
            f"note: nothing says how {count} of them ended: {outcome}, by outcome={config.outcome} "
            "(another outcome= needs another store)\n"
        )
    if result.stageless:
        sys.stdout.write(
            f"note: {result.stageless} of them have no stages: robo-reward annotate data={config.out}\n"
        )


def import_recordings(
    importer: Importer,
    path: Path,
    out: Path,
    options: Options,
    skip_errors: bool = False,
    source: Mapping[str, Any] | None = None,
) -> ImportResult:
    """Import every recording below `path` into the store at `out`, which is made if need be.

    Recordings that the store has are skipped, so a run that was interrupted goes on where it stopped.

    Args:
        importer: What finds and reads the recordings.
        path: Where they lie.
        out: Folder of the store.
        options: Cameras, frame rate, image size, and how recordings ended that do not say.
        skip_errors: Leave out what cannot be imported, and note it in the store's attributes as `left_out`.
        source: The importer's own options, which all episodes of a store share.

    Raises:
        DataError: a recording that cannot be imported (with `skip_errors`: where none can), or a store made
            with other options.
    """
    recordings = importer.recordings(path)
    own = {key: value for key, value in (source or {}).items() if key != "_target_"}
    store, is_new = _open_store(out, options, source or {})
    imported: list[EpisodeInfo] = []
    already: list[str] = []
    left_out: dict[str, str] = {}
    with _progress() as bar:
        task = bar.add_task("importing", total=sum(recording.cost for recording in recordings))
        for recording in recordings:
            began = time.monotonic()
            try:
                if _is_stored(store, recording, own):
                    already.append(recording.name)
                    bar.advance(task, recording.cost)
                    continue
                info = _import_one(
                    store,
                    recording,
                    options,
                    own,
                    lambda share, cost=recording.cost: bar.advance(task, share * cost),
                )
            except DataError as error:
                if recording.name in store and _is_stored(store, recording, own):
                    already.append(recording.name)  # by another process, which was quicker
                    continue
                if not skip_errors:
                    if is_new:
                        store.remove_if_empty()
                    raise
                left_out[recording.name] = str(error)
                continue
            imported.append(info)
            bar.console.print(f"{recording.name}: {info.length} frames, {time.monotonic() - began:.1f} s")
    if left_out and not imported and not already:
        if is_new:
            store.remove_if_empty()
        name, reason = next(iter(left_out.items()))
        raise DataError(f"none of {len(left_out)} recordings in {path} can be imported; {name}: {reason}")
    _note_left_out(store, recordings, left_out)
    assumed = [info for info in imported if info.source.get("outcome_from", "recording") != "recording"]
    return ImportResult(
        tuple(info.name for info in imported),
        tuple(already),
        left_out,
        Counter(str(info.outcome) for info in assumed),
        sum(info.boundaries is None for info in imported),
    )


def _import_one(
    store: EpisodeStore,
    recording: Recording,
    options: Options,
    own: Mapping[str, Any],
    advance: Callable[[float], None],
) -> EpisodeInfo:
    prepared = recording.prepare(options)
    found = prepared.info
    sizes = {camera: options.size or found.image_sizes[camera] for camera in found.cameras}
    unmarked = found.outcome is Outcome.FAILURE and found.boundaries is None and found.truth is None
    info = dataclasses.replace(
        found,
        image_sizes=sizes,
        reached=None if not unmarked else found.reached if options.reached is None else options.reached,
        source={**found.source, "labels": recording.labels(), "asked": dict(own)},
    )
    step = 1.0 / (info.length * len(info.cameras))
    with store.draft(info.name) as draft:
        for camera in info.cameras:
            writer = draft.camera(camera, info.length, sizes[camera])
            for frame in prepared.streams[camera]():
                writer.append(resize(frame, options.size))
                advance(step)
        draft.commit(info, prepared.proprio, prepared.actions)
    return info


def _is_stored(store: EpisodeStore, recording: Recording, own: Mapping[str, Any]) -> bool:
    if recording.name not in store:
        return False
    stored = store[recording.name]
    if stored.uid != recording.uid():
        raise DataError(
            f"the store has another recording named '{recording.name}' (from {_origin(stored.attributes)}), "
            f"not that of {recording.place}: import it into another store"
        )
    if stored.attributes["source"].get("labels") != recording.labels():
        raise DataError(
            f"the instruction, success or annotations of {recording.place} have changed since "
            f"'{recording.name}' was imported: import into another store, or annotate the stored episode"
        )
    before = stored.attributes["source"].get("asked", {})  # one of before does not say
    for key in sorted(own.keys() & before.keys()):
        if own[key] != before[key]:
            raise DataError(
                f"'{recording.name}' was imported with {_spell({f'source.{key}': before[key]})}, this import "
                f"asks for {_spell({f'source.{key}': own[key]})}: import into another store"
            )
    return True


def _origin(attributes: Mapping[str, Any]) -> str:
    return str(attributes["source"].get("path", "elsewhere"))


def _open_store(out: Path, options: Options, source: Mapping[str, Any]) -> tuple[EpisodeStore, bool]:
    asked: dict[str, Any] = {
        "cameras": None if options.cameras is None else list(options.cameras),
        "fps": options.fps,
        "size": None if options.size is None else list(options.size),
        "outcome": options.outcome,
        "reached": options.reached,
    }
    # Recordings of other robots may join a store; half of one without positions would go unnoticed.
    own = {f"source.{key}": source[key] and "..." for key in ("proprio", "actions") if key in source}
    is_new = not (out / "zarr.json").exists()
    store = EpisodeStore.create(out, {"import": {**asked, **own}, "left_out": []}, exist_ok=True)
    made = cast("dict[str, Any] | None", store.attrs.get("import"))
    if made is None:
        raise DataError(f"{store.path} was not made by import: choose another out")
    # As it was before there was a choice. A store of before does not say what its importer was asked.
    made = {**made, "outcome": made.get("outcome", "auto"), "reached": made.get("reached")}
    asked |= {key: value for key, value in own.items() if key in made}
    made = {key: value for key, value in made.items() if key in asked}
    if made != asked:
        same = [key for key, value in asked.items() if key in own and made[key] == value]
        made, asked = ({k: v for k, v in options.items() if k not in same} for options in (made, asked))
        raise DataError(
            f"{store.path} was made with {_spell(made)}; this import asks for {_spell(asked)}: "
            "choose another out, or the same options"
        )
    return store, is_new


def _spell(options: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={'null' if value is None else value}" for key, value in options.items())


def _note_left_out(store: EpisodeStore, recordings: Any, left_out: Mapping[str, str]) -> None:
    seen = {recording.name for recording in recordings}
    places = {recording.name: recording.place for recording in recordings}
    before = cast("list[dict[str, str]]", store.attrs.get("left_out", []))
    notes = [note for note in before if note["episode"] not in seen]
    notes += [{"episode": name, "path": places[name], "reason": reason} for name, reason in left_out.items()]
    if notes != before:
        store.update_attrs({"left_out": notes})


def _progress() -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def _options(config: ImportConfig) -> Options:
    if config.on_error not in ("stop", "skip"):
        raise ConfigError(f"on_error is '{config.on_error}': choose stop or skip")
    if config.outcome not in OUTCOMES:
        raise ConfigError(f"outcome is '{config.outcome}': choose {', '.join(OUTCOMES)}")
    if config.reached is not None and config.reached < 0:
        raise ConfigError(f"reached is {config.reached}: it must be the index of a stage, from 0, or null")
    if config.fps is not None and not config.fps > 0:
        raise ConfigError(f"fps is {config.fps}: it must be more than 0, or null for the recording's own")
    if config.size is not None and (len(config.size) != 2 or min(config.size) < 1):
        raise ConfigError(f"size is {config.size}: it must be [height,width] in pixels, or null")
    if config.cameras is not None and (not config.cameras or len(set(config.cameras)) != len(config.cameras)):
        raise ConfigError(f"cameras is {config.cameras}: name one or more, each once, or null for all")
    return Options(
        cameras=None if config.cameras is None else tuple(config.cameras),
        fps=config.fps,
        size=None if config.size is None else (config.size[0], config.size[1]),
        outcome=config.outcome,
        reached=config.reached,
    )
