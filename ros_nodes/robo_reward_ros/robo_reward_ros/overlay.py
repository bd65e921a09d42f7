"""A picture of what the model sees and says: views side by side, the curve of progress, the stage."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import cv2
import numpy as np
from jaxtyping import UInt8

from robo_reward_ros.episode import Moment

__all__ = ["Overlay"]

_CURVE_HEIGHT = 96
_TEXT_HEIGHT = 24
_INK, _QUIET, _CURVE, _BAND, _BAD = (
    (235, 235, 235),
    (110, 110, 110),
    (90, 200, 250),
    (50, 80, 100),
    (250, 90, 90),
)


class Overlay:
    """Draws moments of one episode after another; the curve reaches back over the last `length` moments."""

    def __init__(self, length: int = 200) -> None:
        """Keep so many moments."""
        self._past: deque[tuple[float, float, float]] = deque(maxlen=length)

    def clear(self) -> None:
        """Forget the curve."""
        self._past.clear()

    def note(self, moment: Moment) -> None:
        """Add a moment to the curve; an invalid one leaves a gap."""
        low, high = moment.estimate.interval
        self._past.append((moment.estimate.progress, low, high))

    def draw(
        self, moment: Moment, images: Mapping[str, UInt8[np.ndarray, "_h _w 3"]], height: int
    ) -> UInt8[np.ndarray, "h w 3"]:
        """The picture, with views of this height."""
        views = [self._view(name, image, height) for name, image in images.items()]
        top = np.hstack(views) if views else np.zeros((height, 2 * height, 3), np.uint8)
        return np.vstack([top, self._curve(top.shape[1]), self._text(moment, top.shape[1])])

    @staticmethod
    def _view(name: str, image: UInt8[np.ndarray, "_h _w 3"], height: int) -> UInt8[np.ndarray, "h w 3"]:
        width = max(1, round(image.shape[1] * height / image.shape[0]))
        view = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        return cv2.putText(view, name, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, _INK, 1, cv2.LINE_AA)

    def _curve(self, width: int) -> UInt8[np.ndarray, "h w 3"]:
        canvas = np.full((_CURVE_HEIGHT, width, 3), 24, np.uint8)
        xs = np.linspace(0, width - 1, self._past.maxlen or 2).astype(int)[: len(self._past)]
        last: tuple[int, int] | None = None
        for x, (progress, low, high) in zip(xs.tolist(), self._past, strict=True):
            if not np.isfinite(progress):
                last = None
                continue
            cv2.line(canvas, (x, self._row(low)), (x, self._row(high)), _BAND, 2)
            point = (x, self._row(progress))
            cv2.line(canvas, last or point, point, _CURVE, 2, cv2.LINE_AA)
            last = point
        return canvas

    @staticmethod
    def _row(progress: float) -> int:
        return round((1.0 - float(np.clip(progress, 0, 1))) * (_CURVE_HEIGHT - 3)) + 1

    @staticmethod
    def _text(moment: Moment, width: int) -> UInt8[np.ndarray, "h w 3"]:
        canvas = np.zeros((_TEXT_HEIGHT, width, 3), np.uint8)
        found = moment.estimate
        if found.valid:
            stage = moment.stage_name or f"stage {found.stage}"
            percent = [round(100 * value) for value in (found.progress, found.std, found.success_prob)]
            text = "{}  {} % +-{}  done {} %".format(stage, *percent)
        else:
            text = f"invalid: {found.reason}"
        color = _BAD if not found.valid else _INK if moment.episode_id else _QUIET
        # OpenCV's fonts are ASCII.
        text = text.encode("ascii", "replace").decode()
        return cv2.putText(canvas, text, (6, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, color, 1, cv2.LINE_AA)
