"""Markers in a bag, and the episodes that they bound.

Markers are std_msgs/String messages: `start: <instruction>`, `stage: <name>`,
`end: success|failure|truncated`, and `discard`, which leaves the episode out. A bag without markers is one
episode. Markers before the first `start` are of an episode that had begun before the recording, and pass.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from robo_reward.errors import DataError
from robo_reward.schema import Outcome
from robo_reward_data.bags import Bag

__all__ = ["MarkedEpisode", "marked_episodes"]


@dataclass(frozen=True, slots=True)
class MarkedEpisode:
    """An episode between markers, in times of receipt, the end exclusive.

    start_ns, end_ns  its messages were received from start_ns up to end_ns
    instruction       of the start marker, "" without one
    stages            (name, when it began), in order
    outcome           of the end marker
    ended             whether there was an end marker, or another start or the end of the bag cut it off
    """

    start_ns: int
    end_ns: int
    instruction: str = ""
    stages: tuple[tuple[str, int], ...] = ()
    outcome: Outcome = Outcome.UNKNOWN
    ended: bool = False


def marked_episodes(bag: Bag, topic: str | None) -> list[MarkedEpisode]:
    """The episodes of a bag by the markers on `topic`; the whole bag where there are none.

    Raises:
        DataError: a marker that is not one, or in the wrong place.
    """
    start_ns, end_ns = bag.span_ns
    if topic is None or topic not in bag.topics:
        return [MarkedEpisode(start_ns, end_ns)]
    bag.check(topic, ("std_msgs/msg/String",), "markers")
    found: list[MarkedEpisode] = []
    current: MarkedEpisode | None = None
    began, early = False, ""
    for message in bag.messages(topic, start_ns, end_ns):
        word, rest = _parse(bag.path, str(message.content.data))
        now = message.received_ns
        if word == "start":
            if current is not None:
                found.append(replace(current, end_ns=now))
            current, began = MarkedEpisode(now, end_ns, instruction=rest), True
        elif not began:
            early = early or word
        elif current is None:
            raise DataError(f"{bag.path}: marker '{word}' on '{topic}' has no 'start' before it")
        elif word == "stage":
            current = replace(current, stages=(*current.stages, (rest, now)))
        else:
            if word == "end":
                outcome = Outcome.UNKNOWN if rest == "truncated" else Outcome(rest)
                found.append(replace(current, end_ns=now, outcome=outcome, ended=True))
            current = None
    if early and not began:
        raise DataError(f"{bag.path}: marker '{early}' on '{topic}' comes before any 'start'")
    if current is not None:
        found.append(current)
    return found


def _parse(path: Path, text: str) -> tuple[str, str]:
    word, _, rest = text.partition(":")
    word, rest = word.strip(), rest.strip()
    good = {
        "start": True,
        "stage": bool(rest),
        "end": rest in ("success", "failure", "truncated"),
        "discard": True,
    }
    if not good.get(word, False):
        raise DataError(
            f"{path}: marker '{text}' must be 'start: <instruction>', 'stage: <name>', "
            "'end: success|failure|truncated' or 'discard'"
        )
    return word, rest
