"""What `--help` prints: the commands, and the keys, defaults and options of one, read from its config."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["command_help", "key_names", "overview"]

_WIDTH = 110
_LINE = re.compile(r"(?P<indent> *)(?P<key>[\w]+):(?: +(?P<value>[^#\s][^#]*?))? *(?:#(?P<comment>.*))?")


@dataclass(frozen=True, slots=True)
class _Key:
    """One key of a config file: its dotted name, its default as written ("" for a section), its comment."""

    name: str
    value: str
    comment: str


def overview(descriptions: Mapping[str, str]) -> str:
    """The text of `robo-reward --help`, from one-line descriptions by command."""
    width = max(len(name) for name in descriptions)
    rows = [f"  {name:<{width}}  {text}" for name, text in descriptions.items()]
    return "\n".join(
        [
            "usage: robo-reward <command> [key=value ...] [--debug]",
            "",
            "commands:",
            *rows,
            "",
            "robo-reward <command> --help lists a command's keys and their defaults.",
            "",
        ]
    )


def command_help(command: str, root: Path, chosen: Mapping[str, str] | None = None) -> str:
    """The text of `robo-reward <command> --help`, from the config tree at `root`.

    `chosen` names an option of a group, as in `robo-reward import source=rosbag --help`: its keys follow.
    """
    text = (root / f"{command}.yaml").read_text(encoding="utf-8")
    groups = {
        key.name.removeprefix("defaults."): key for key in _keys(text) if key.name.startswith("defaults.")
    }
    keys = [key for key in _keys(text) if key.value and not key.name.startswith(("_target_", "defaults."))]
    lines = [
        f"usage: robo-reward {command} [key=value ...] [--debug]",
        "",
        text.splitlines()[0].lstrip("# ").strip(),
        "",
        "keys and their defaults (--some-key value works too):",
        *_table([(_shown(key), _explained(key)) for key in keys]),
    ]
    for name, key in groups.items():
        options = [(f"{name}={path.stem}", _described(path)) for path in sorted((root / name).glob("*.yaml"))]
        which = "required" if key.value == "???" else f"default: {key.value}"
        lines += ["", f"{name} ({which}), a set of further keys:", *_table(options)]
        path = root / name / f"{(chosen or {}).get(name, '')}.yaml"
        if path.is_file():
            further = _further(path, name) or [("none", "")]
            lines += ["", f"keys of {name}={path.stem} and their defaults:", *_table(further)]
        elif options:
            lines.append(f"  the keys of one: robo-reward {command} {options[0][0]} --help")
    return "\n".join(lines) + "\n"


def key_names(command: str, root: Path) -> list[str]:
    """Every key of a command and of the options of its groups, and the groups, as they are typed."""
    keys = list(_keys((root / f"{command}.yaml").read_text(encoding="utf-8")))
    groups = [key.name.removeprefix("defaults.") for key in keys if key.name.startswith("defaults.")]
    own = [key.name for key in keys if key.value and not key.name.startswith(("_target_", "defaults."))]
    further = [
        shown.partition("=")[0]
        for group in groups
        for path in sorted((root / group).glob("*.yaml"))
        for shown, _ in _further(path, group)
    ]
    return [*own, *groups, *further]


def options_with(key: str, command: str, root: Path) -> list[str]:
    """Options of a command's groups that have a key which the command itself has not, as they are typed."""
    keys = list(_keys((root / f"{command}.yaml").read_text(encoding="utf-8")))
    if any(own.name == key for own in keys):
        return []
    groups = [own.name.removeprefix("defaults.") for own in keys if own.name.startswith("defaults.")]
    return [
        f"{group}={path.stem}"
        for group in groups
        for path in sorted((root / group).glob("*.yaml"))
        if key in {shown.partition("=")[0] for shown, _ in _further(path, group)}
    ]


def _further(path: Path, group: str) -> list[tuple[str, str]]:
    """The keys of an option, by the names that they have on the command line."""
    text = path.read_text(encoding="utf-8")
    package = re.search(r"^# @package (\S+)", text, re.MULTILINE)
    place = package[1] if package else group
    prefix = "" if place == "_global_" else f"{place}."
    body = re.sub(r"\A(#.*\n)+", "\n", text)  # what stands above the first key describes the option
    keys = [key for key in _keys(body) if key.value and key.name != "_target_"]
    return [(f"{prefix}{_shown(key)}", _explained(key)) for key in keys]


def _keys(text: str) -> Iterator[_Key]:
    """Every key of a config file, in order. A comment on lines of its own explains the key after it."""
    path: list[tuple[int, str]] = []
    above: list[str] = []
    for line in text.splitlines()[1:]:
        # An entry of a list (`- network: tiny` in the defaults) reads as a key of that list.
        found = _LINE.fullmatch(line.replace("- ", "  ", 1) if line.lstrip().startswith("- ") else line)
        if found is None:
            above = [*above, line.strip().lstrip("# ")] if line.lstrip().startswith("#") else []
            continue
        indent = len(found["indent"])
        path = [(depth, name) for depth, name in path if depth < indent] + [(indent, found["key"])]
        comment = " ".join([*above, (found["comment"] or "").strip()]).strip()
        yield _Key(".".join(name for _, name in path), found["value"] or "", comment)
        above = []


def _shown(key: _Key) -> str:
    return f"{key.name}={'...' if key.value == '???' else key.value}"


def _explained(key: _Key) -> str:
    return f"required: {key.comment}" if key.value == "???" else key.comment


def _described(path: Path) -> str:
    """The first comment line of an option's file that is none of Hydra's own."""
    comments = [
        line.lstrip("# ") for line in path.read_text(encoding="utf-8").splitlines() if line[:1] == "#"
    ]
    return next((comment for comment in comments if not comment.startswith("@package")), "")


def _table(rows: list[tuple[str, str]]) -> list[str]:
    """Two columns; what is too long for the second is wrapped inside it."""
    width = min(max((len(name) for name, _ in rows), default=0), 32)
    lines: list[str] = []
    for name, text in rows:
        wrapped = textwrap.wrap(text, _WIDTH - width - 4)
        if len(name) > width or not wrapped:
            lines.append(f"  {name}")
            name = ""
        lines += [
            f"  {name if index == 0 else '':<{width}}  {part}".rstrip() for index, part in enumerate(wrapped)
        ]
    return lines
