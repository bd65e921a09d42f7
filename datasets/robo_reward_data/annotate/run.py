"""The command `annotate`: gives the episodes of a store their stages."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from robo_reward.errors import ConfigError, DataError
from robo_reward.schema import EpisodeReader, Outcome
from robo_reward_data.annotate.auto import FoundStages, StageSettings, find_stages, long_enough
from robo_reward_data.annotate.copies import copy_so_far, copy_without_truth
from robo_reward_data.annotate.exports import read_keyframes, write_keyframes, write_lerobot
from robo_reward_data.annotate.features import told_length
from robo_reward_data.annotate.journal import Marks
from robo_reward_data.annotate.like import FEWEST_STAGES, find_stages_like, marked_demonstrations
from robo_reward_data.annotate.session import Finder, Session, check_marks, default_names
from robo_reward_data.annotate.spread import note_spread, spread_before, spread_marks
from robo_reward_data.store import EpisodeStore, StoredEpisode

__all__ = ["AnnotateConfig", "run"]


@dataclass(frozen=True)
class AnnotateConfig:
    """The keys of `configs/annotate.yaml`, which says what each means."""

    data: str
    mode: str = "auto"
    out: str | None = None
    stages: int | None = None
    names: list[str] | None = None
    overwrite: bool = False
    model: str | None = None
    proprio: bool = True
    like: tuple[str, ...] = ()
    hand: tuple[int, ...] = ()
    most_stages: int = 6
    least_gain: float = 0.1
    least_stability: float = 0.6
    least_chance: float = 0.2
    lead: float = 0.045
    fit_episodes: int = 20
    resamples: int = 6
    seed: int = 0
    host: str = "127.0.0.1"
    port: int = 8710
    files: str | None = None
    recordings: str | None = None
    lerobot: str | None = None
    lerobot_out: str | None = None


@dataclass(frozen=True, slots=True)
class Stages:
    """The stages of one episode: k names, or () for none, and i64[k+1] boundaries; None takes them away."""

    names: tuple[str, ...]
    boundaries: Int64[np.ndarray, " n"] | None


def run(config: AnnotateConfig) -> None:
    """Annotate as the config says, and print what came of it.

    Raises:
        ConfigError: a value out of range, or keys that do not go together.
        DataError: episodes that cannot be annotated, or have boundaries already.
    """
    modes: dict[str, Callable[[AnnotateConfig], None]] = {
        "auto": _find,
        "spread": _spread,
        "web": _serve,
        "read": _read,
        "write": _export,
    }
    if config.mode not in modes:
        raise ConfigError(f"mode={config.mode}: choose one of {', '.join(modes)}")
    _check(config)
    modes[config.mode](config)


def _check(config: AnnotateConfig) -> None:
    for name in ("most_stages", "fit_episodes", "resamples"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name}={getattr(config, name)}: must be 1 or more")
    if config.stages is not None and config.stages < 1:
        raise ConfigError(f"stages={config.stages}: must be 1 or more, or null to have it chosen")
    if not 0 <= config.lead < 0.5:
        raise ConfigError(f"lead={config.lead}: must be a share of the episode, 0 or more and below 0.5")
    if not 0 <= config.port < 2**16:
        raise ConfigError(f"port={config.port}: must be 0 to 65535")
    if config.like and config.mode not in ("auto", "web"):
        raise ConfigError(f"mode={config.mode}: like goes with mode=auto and mode=web")
    if config.like and not config.proprio:
        raise ConfigError("like looks at proprioception: leave proprio=false out")
    if config.like and config.model is not None and config.mode == "auto":
        raise ConfigError("like looks at proprioception alone: leave model out")
    if config.hand and not config.like:
        raise ConfigError(f"hand={list(config.hand)}: hand says what like looks at, name its stores too")
    if config.names is not None and len(set(config.names)) != len(config.names):
        raise ConfigError(f"names={config.names}: name each stage once")
    if config.lerobot not in (None, "language", "sparse", "dense"):
        raise ConfigError(f"lerobot={config.lerobot}: choose language, sparse or dense")
    if config.mode in ("read", "write") and config.files is None and config.lerobot is None:
        raise ConfigError(
            f"mode={config.mode} needs files=FOLDER" + (" or lerobot=FORM" * (config.mode == "write"))
        )


def _source(config: AnnotateConfig) -> EpisodeStore:
    source = EpisodeStore.open(config.data)
    if not source.episodes:
        raise DataError(f"{config.data} has no episodes: record or import some first")
    return source


def _open(config: AnnotateConfig) -> EpisodeStore:
    source = _source(config)
    return source if config.out is None else copy_without_truth(source, Path(config.out))


def _to_be(config: AnnotateConfig) -> tuple[list[StoredEpisode], EpisodeStore | None]:
    """The episodes as they are to be annotated, and the store that has them so far.

    With `out`, those that are in the copy already, the others as they are in `data`: the copy itself is made
    when there is something to write into it. The store is then the copy, None where it is not begun.
    """
    source = _source(config)
    if config.out is None:
        return list(source.episodes), source
    target = copy_so_far(source, Path(config.out))
    episodes = {episode.name: episode for episode in source.episodes}
    episodes |= {} if target is None else {episode.name: episode for episode in target.episodes}
    return [episodes[name] for name in sorted(episodes)], target


def _demonstrations(episodes: Sequence[StoredEpisode]) -> dict[str, list[StoredEpisode]]:
    """By instruction, the episodes that did not fail."""
    tasks: dict[str, list[StoredEpisode]] = {}
    for episode in episodes:
        if episode.info.outcome is not Outcome.FAILURE:
            tasks.setdefault(episode.info.instruction, []).append(episode)
    return tasks


def _is_marked(episode: StoredEpisode) -> bool:
    """Whether somebody gave it stages; what a simulator's truth gives nobody has marked."""
    return episode.info.boundaries is not None and episode.info.truth is None


def _find(config: AnnotateConfig) -> None:
    model, (episodes, _) = _model(config), _to_be(config)
    tasks = _demonstrations(episodes)
    if not tasks:
        raise DataError(f"{config.data} has no successful episodes: stages are found in those")
    if config.out is None:
        _refuse_truth([episode for episodes in tasks.values() for episode in episodes])
    find = _finder(config) or (lambda readers: find_stages(readers, _settings(config), model))
    stages: dict[str, Stages] = {}
    for instruction, readers in _without_stages(config, tasks).items():
        found = find(readers)
        names = _names(config.names, len(found.stability) + 1)
        stages |= _by_name(names, readers, found.boundaries)
        _report(instruction, readers, found)
        _tell_short(readers, stages)
        # Old stages beside new ones would be of another number: replacing them takes these away.
        old = [r.name for r in readers if config.overwrite and r.name not in stages and _is_marked(r)]
        stages |= dict.fromkeys(old, Stages((), None))
    _write(config, stages)


def _by_name(
    names: tuple[str, ...],
    readers: Sequence[EpisodeReader],
    boundaries: Sequence[Int64[np.ndarray, " n"] | None],
) -> dict[str, Stages]:
    """The stages of those episodes that got boundaries."""
    pairs = zip(readers, boundaries, strict=True)
    return {r.info.name: Stages(names, bounds) for r, bounds in pairs if bounds is not None}


def _tell_short(readers: Sequence[EpisodeReader], stages: Mapping[str, Stages]) -> None:
    """Name those that got no stages."""
    short = [told_length(reader.info) for reader in readers if reader.info.name not in stages]
    if short:
        sys.stdout.write(f"left out, too short: {', '.join(short)}\n")


def _without_stages(
    config: AnnotateConfig, tasks: Mapping[str, list[StoredEpisode]]
) -> dict[str, list[StoredEpisode]]:
    """The tasks to find stages of: those of which nothing is marked, or with `overwrite` all that can be.

    Raises:
        DataError: some of a task is marked, or nothing can be done of what is left to do.
    """
    todo: dict[str, list[StoredEpisode]] = {}
    lone: list[str] = []
    for task, episodes in tasks.items():
        # What is too short never gets stages: without them the others are all there is.
        kept = list(itertools.compress(episodes, _long_enough(config, episodes)))
        marked = sum(map(_is_marked, kept))
        alone = len(kept) < (1 if config.like else 2)
        if kept and marked == len(kept) and (alone or not config.overwrite):
            told = "" if alone else ": overwrite=true finds their stages anew and replaces these"
            sys.stdout.write(
                f"'{task}': left as it is, {marked} of {marked} demonstrations have stages already{told}\n"
            )
        elif alone:
            lone.append(_why_lone(config, task, episodes, kept))
        elif marked and not config.overwrite:
            raise DataError(
                f"{marked} of {len(kept)} demonstrations of '{task}' have stages already: mode=spread "
                "gives the others the same (overwrite=true would replace those that are there)"
            )
        else:
            todo[task] = episodes
    if lone and not todo:
        raise DataError(lone[0])
    for why in lone:
        sys.stdout.write(f"left out: {why}\n")
    return todo


def _long_enough(config: AnnotateConfig, episodes: Sequence[StoredEpisode]) -> list[bool]:
    return long_enough(episodes, _settings(config), FEWEST_STAGES if config.like else 1)


def _why_lone(
    config: AnnotateConfig, task: str, episodes: Sequence[StoredEpisode], kept: Sequence[StoredEpisode]
) -> str:
    short = [told_length(episode.info) for episode in episodes if episode not in kept]
    besides = f" (too short: {', '.join(short)})" if short else ""
    count = "one alone" if kept else "none long enough"
    fewer = ", ask for fewer stages" if short and config.stages else ""
    return (
        f"stages are what demonstrations share, and there is {count} of '{task}'{besides}: record another "
        f"one{fewer}, or mark it by hand with mode=web"
    )


def _settings(config: AnnotateConfig) -> StageSettings:
    names = [f.name for f in dataclasses.fields(StageSettings) if hasattr(config, f.name)]
    return StageSettings(**{name: getattr(config, name) for name in names})


def _finder(config: AnnotateConfig) -> Finder | None:
    """What finds stages that end as those of the tasks of `like` do; None where there are none."""
    if not config.like:
        return None
    others = [r for path in config.like for r in marked_demonstrations(EpisodeStore.open(path).episodes)]
    return lambda readers: find_stages_like(readers, others, config.hand, _settings(config))


def _spread(config: AnnotateConfig) -> None:
    model, (everything, store) = _model(config), _to_be(config)
    before: set[str] = set() if store is None else spread_before(store)
    stages: dict[str, Stages] = {}
    short: list[str] = []
    for instruction, episodes in _demonstrations(everything).items():
        marked = [e for e in episodes if _is_marked(e) and e.name not in before]
        others = [e for e in episodes if not _is_marked(e) or e.name in before]
        if not marked or not others:
            continue
        if config.out is None:
            _refuse_truth(others)
        found = spread_marks(marked, others, model=model, proprio=config.proprio)
        follow = _by_name(_spread_names(config.names, marked), others, found.boundaries)
        stages |= follow
        left = [e for e in others if e.name not in follow]
        stages |= {e.name: Stages((), None) for e in left if e.name in before}  # of fewer stages than by now
        short += [told_length(episode.info) for episode in left]
        told = "mark a second one to learn how well that goes"
        if np.isfinite(found.agreement):
            told = (
                f"told from each other, {found.agreement:.0%} of the marked boundaries are found within 5 %"
            )
        sys.stdout.write(f"'{instruction}': {len(marked)} marked, {len(follow)} follow; {told}\n")
        _tell_short(others, follow)
    if not stages and short:
        raise DataError(
            f"{config.data}: every demonstration that is not marked is too short for the stages of those "
            f"that are: {', '.join(short)}. There is nothing to mark"
        )
    if not stages:
        raise DataError(
            f"{config.data}: no task has both marked demonstrations and others: mark one or more of each "
            "first (mode=web or mode=read)"
        )
    _write(config, stages, spread=before)


def _spread_names(given: Sequence[str] | None, marked: Sequence[EpisodeReader]) -> tuple[str, ...]:
    """Those of the marked episodes; `given` ones where these have none."""
    names = next((e.info.stage_names for e in marked if e.info.stage_names), ())
    if given is None or tuple(given) == names:
        return names
    if names:
        raise ConfigError(
            f"names={list(given)}: stages that follow are named as the marked ones are, {list(names)}: "
            "leave names out"
        )
    bounds = marked[0].info.boundaries
    assert bounds is not None
    if len(given) != len(bounds) - 1:
        raise ConfigError(f"names has {len(given)} stages, {len(bounds) - 1} are marked")
    return tuple(given)


def _names(given: Sequence[str] | None, count: int) -> tuple[str, ...]:
    if given is None:
        return default_names(count)
    if len(given) != count:
        raise ConfigError(f"names has {len(given)} stages, {count} were found: set stages={len(given)}")
    return tuple(given)


def _report(instruction: str, readers: Sequence[EpisodeReader], found: FoundStages) -> None:
    pairs = zip(found.boundaries, readers, strict=True)
    each = [bounds / reader.info.length for bounds, reader in pairs if bounds is not None]
    shares = np.mean(each, axis=0)
    scores = ", ".join(f"{score:.2f}" for score in found.stability.tolist()) or "none to judge"
    tried = ", ".join(f"{count}: {least:.2f}" for count, least in found.considered.items())
    sys.stdout.write(
        f"'{instruction}': {len(found.stability) + 1} stages in {len(each)} episodes, from "
        f"{', '.join(f'{share:.0%}' for share in shares.tolist()[:-1])} of the episode on; "
        f"stability of the boundaries: {scores} (the least, by number of stages: {tried})\n"
    )


def _read(config: AnnotateConfig) -> None:
    store = _source(config)
    said = read_keyframes(store, Path(str(config.files)), _recordings(config))
    if config.out is None:
        _refuse_truth([store[name] for name in said])
    _write(
        config, {name: Stages(names, boundaries) for name, (names, boundaries) in said.items()}, export=False
    )


def _export(config: AnnotateConfig) -> None:
    _write_elsewhere(config, _open(config))


def _serve(config: AnnotateConfig) -> None:
    from robo_reward_data.annotate.server import serve

    store = _open(config)
    session = Session(store, _model(config), config.names or (), _finder(config))
    serve(session, config.host, config.port)
    _write_elsewhere(config, store)


def _refuse_truth(episodes: Sequence[StoredEpisode]) -> None:
    known = [episode.name for episode in episodes if episode.info.truth is not None]
    if known:
        raise DataError(
            f"{len(known)} episodes ({known[0]}, ...) know their stage at every frame, and that wins over "
            "boundaries: name out=FOLDER for an annotated copy without it"
        )


def _write(
    config: AnnotateConfig,
    stages: Mapping[str, Stages],
    export: bool = True,
    spread: Collection[str] | None = None,
) -> None:
    """Write stages into the store (or its copy), all or, where one would be replaced unasked, none.

    Where they are `spread`, that is noted; it names the episodes that were so before, and may be so again.
    """
    store = _open(config)
    marks = {
        name: Marks() if said.boundaries is None else Marks(said.names, tuple(said.boundaries.tolist()))
        for name, said in stages.items()
    }
    differing = [
        name for name, said in stages.items() if name not in (spread or ()) and _differs(store[name], said)
    ]
    if differing and not config.overwrite:
        raise DataError(
            f"{len(differing)} episodes ({differing[0]}, ...) have other boundaries already: "
            "say overwrite=true to replace them, or out=FOLDER for a copy"
        )
    for name, said in marks.items():
        check_marks(store[name].info, said)
    if spread is not None:
        note_spread(store, marks)
    unknown = {name for name in stages if store[name].info.outcome is Outcome.UNKNOWN}
    done = [store.annotate(name, said.names, said.boundaries) for name, said in stages.items()]
    count = sum(said.boundaries is not None for said in stages.values())
    sys.stdout.write(f"{count} episodes annotated: {store.path}\n")
    if assumed := sum(
        episode.name in unknown and episode.info.outcome is Outcome.SUCCESS for episode in done
    ):
        sys.stdout.write(
            f"{assumed} of them do not say how they ended: with stages they count as successes "
            "(import with outcome=failure or outcome=unknown says otherwise)\n"
        )
    if export:
        _write_elsewhere(config, store)


def _differs(episode: StoredEpisode, said: Stages) -> bool:
    there = episode.info.boundaries
    if there is None:
        return False
    same = said.boundaries is not None and there.tolist() == said.boundaries.tolist()
    return not same or episode.info.stage_names != said.names


def _write_elsewhere(config: AnnotateConfig, store: EpisodeStore) -> None:
    if config.files is not None:
        paths = write_keyframes(store, Path(config.files), config.overwrite, _recordings(config))
        sys.stdout.write(f"{len(paths)} files of keyframes: {config.files}\n")
    if config.lerobot is not None:
        out = None if config.lerobot_out is None else Path(config.lerobot_out)
        for root, count in write_lerobot(store, config.lerobot, out, _recordings(config)).items():
            sys.stdout.write(f"stages of {count} episodes as {config.lerobot} subtasks: {out or root}\n")


def _recordings(config: AnnotateConfig) -> Path | None:
    return None if config.recordings is None else Path(config.recordings)


def _model(config: AnnotateConfig) -> Any:
    if config.model is None:
        return None
    import robo_reward

    return robo_reward.load(config.model)
