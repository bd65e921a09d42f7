"""Self-contained HTML pages: the parts that every report shares.

A page needs no network, no server and no framework: styles, scripts, numbers and images are inlined, and its
content security policy forbids it to load anything else. All text is data (JSON whose `<`, `>` and `&` are
escaped), put into the page as text nodes: no name or instruction can become markup.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from robo_reward.metrics import Metric

__all__ = [
    "glossary",
    "json_tag",
    "metrics_json",
    "numbers",
    "read_asset",
    "scripts",
    "styles",
    "write_page",
]

_ASSETS = "robo_reward.evaluate:_report"


def write_page(path: Path, template: str, fill: Mapping[str, Callable[[], Iterator[str]]]) -> None:
    """Write a page whose `{{name}}` are filled by `fill`, whole or not at all.

    It is written in pieces, so that what fills it is never in memory twice.
    """
    # Split first, fill later: text that is put in is never searched for places to fill.
    pieces = re.split(r"\{\{(\w+)\}\}", template)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            for i, piece in enumerate(pieces):
                file.writelines(fill[piece]() if i % 2 else (piece,))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_asset(name: str, home: str = _ASSETS) -> str:
    """The text of a file that ships with the package; `home` is `package:folder`."""
    package, folder = home.split(":")
    return (resources.files(package) / folder / name).read_text(encoding="utf-8")


def styles(names: Sequence[str], home: str = _ASSETS) -> Iterator[str]:
    """Style sheets, inlined."""
    return (f"<style>\n{read_asset(name, home)}</style>\n" for name in names)


def scripts(names: Sequence[str], home: str = _ASSETS) -> Iterator[str]:
    """Scripts, inlined."""
    return (f"<script>\n{read_asset(name, home)}</script>\n" for name in names)


def json_tag(name: str, value: Any) -> str:
    """Data as a script element that no text in it can close."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{name}">{text}</script>\n'


def glossary() -> dict[str, Any]:
    """What each metric is called, means, and which direction is better."""
    return json.loads(read_asset("glossary.json"))


def metrics_json(metrics: Mapping[str, Metric]) -> list[tuple[str, dict[str, float | int | None]]]:
    """Metrics in order."""
    return [(name, metric.to_json()) for name, metric in metrics.items()]


def numbers(values: np.ndarray) -> list[float | None]:
    """Four decimals are finer than any pixel of a page; what is not finite becomes null."""
    return [round(value, 4) if math.isfinite(value) else None for value in values.tolist()]
