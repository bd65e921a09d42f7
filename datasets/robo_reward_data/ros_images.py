"""Pixels of ROS image messages, by their fields alone: for messages of rclpy and for those read from bags."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from robo_reward.errors import DataError

__all__ = ["image_to_rgb"]

# Encoding of sensor_msgs/Image: channels of a pixel, and the conversion to RGB (None: it is RGB).
_ENCODINGS: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
    "yuv422": (2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": (2, cv2.COLOR_YUV2RGB_YUY2),
}


def image_to_rgb(message: Any, who: str) -> UInt8[np.ndarray, "h w 3"]:
    """The picture in a sensor_msgs Image or CompressedImage, u8[h, w, 3].

    An rgb8 image comes back as a view of the message's own memory.

    Args:
        message: anything with the fields of one of the two messages.
        who: opens the error, e.g. "camera 'wrist'".

    Raises:
        DataError: an encoding that is not known, data of the wrong length, or a picture that does not decode.
    """
    return _decoded(message, who) if hasattr(message, "format") else _raw(message, who)


def _decoded(message: Any, who: str) -> UInt8[np.ndarray, "h w 3"]:
    data = np.frombuffer(message.data, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if len(data) else None
    if image is None:
        raise DataError(f"{who}: {len(data)} bytes of format '{message.format}' do not decode to a picture")
    return image


def _raw(message: Any, who: str) -> UInt8[np.ndarray, "h w 3"]:
    encoding, height, width, step = message.encoding, message.height, message.width, message.step
    if encoding not in _ENCODINGS:
        raise DataError(
            f"{who}: images are '{encoding}': this reads {', '.join(_ENCODINGS)}. "
            "Leave a camera of depth out: name the others alone (cameras=...)"
        )
    channels, conversion = _ENCODINGS[encoding]
    data = np.frombuffer(message.data, np.uint8)
    if not height or not width or step < width * channels:
        raise DataError(
            f"{who}: an image of {height}x{width} '{encoding}' with rows of {step} bytes: a row has "
            f"{width * channels} or more, and there is at least one pixel"
        )
    if len(data) != height * step:
        raise DataError(
            f"{who}: an image of {height}x{width} '{encoding}' with rows of {step} bytes "
            f"has {len(data)} bytes, not {height * step}"
        )
    pixels = data.reshape(height, step)[:, : width * channels].reshape(height, width, channels)
    return pixels if conversion is None else cv2.cvtColor(pixels, conversion)
