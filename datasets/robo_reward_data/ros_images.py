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
    # What cv_bridge calls a picture of OpenCV that was given to it without a name: OpenCV's are BGR.
    "8UC1": (1, cv2.COLOR_GRAY2RGB),
    "8UC3": (3, cv2.COLOR_BGR2RGB),
    "8UC4": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
    # By the first two pixels of the first two rows, as ROS has them. OpenCV's older names (BayerBG for rggb)
    # start one row and one column later.
    "bayer_rggb8": (1, cv2.COLOR_BayerRGGB2RGB),
    "bayer_bggr8": (1, cv2.COLOR_BayerBGGR2RGB),
    "bayer_gbrg8": (1, cv2.COLOR_BayerGBRG2RGB),
    "bayer_grbg8": (1, cv2.COLOR_BayerGRBG2RGB),
    "yuv422": (2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": (2, cv2.COLOR_YUV2RGB_YUY2),
}
_DEPTH = ("16UC1", "32FC1")
_LEAVE_OUT = "Leave a camera of depth out: name the others alone (cameras=...)"


def image_to_rgb(message: Any, who: str) -> UInt8[np.ndarray, "h w 3"]:
    """The picture in a sensor_msgs Image or CompressedImage, u8[h, w, 3].

    An rgb8 image comes back as a view of the message's own memory.

    Args:
        message: anything with the fields of one of the two messages.
        who: opens the error, e.g. "camera 'wrist'".

    Raises:
        DataError: an encoding that is not known, data of the wrong length, or a picture that does not decode
            or has more than 8 bits a value.
    """
    return _decoded(message, who) if hasattr(message, "format") else _raw(message, who)


def _decoded(message: Any, who: str) -> UInt8[np.ndarray, "h w 3"]:
    data = np.frombuffer(message.data, np.uint8)
    what = f"{who}: {len(data)} bytes of format '{message.format}'"
    try:
        # With its own depth: 16 bits cut down to 8 are a nearly black picture.
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH) if len(data) else None
    except cv2.error as error:
        raise DataError(f"{what} do not decode to a picture ({error.err})") from error
    if image is None:
        raise DataError(f"{what} do not decode to a picture")
    if image.dtype != np.uint8:
        raise DataError(
            f"{what} are a picture of {image.dtype}: this reads 8 bits a value. {_LEAVE_OUT}; "
            "let one of color send 8 bits"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _raw(message: Any, who: str) -> UInt8[np.ndarray, "h w 3"]:
    encoding, height, width, step = message.encoding, message.height, message.width, message.step
    if encoding not in _ENCODINGS:
        raise DataError(
            f"{who}: images are '{encoding}': this reads {', '.join(_ENCODINGS)}. {_advice(encoding)}"
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
    if encoding.startswith("bayer") and min(height, width) < 3:
        raise DataError(
            f"{who}: an image of {height}x{width} '{encoding}': its colors need 3x3 pixels or more"
        )
    pixels = data.reshape(height, step)[:, : width * channels].reshape(height, width, channels)
    try:
        return pixels if conversion is None else cv2.cvtColor(pixels, conversion)
    except cv2.error as error:
        raise DataError(
            f"{who}: an image of {height}x{width} '{encoding}' does not convert to RGB ({error.err})"
        ) from error


def _advice(encoding: str) -> str:
    if encoding in _DEPTH:
        return _LEAVE_OUT
    return "Let the camera's driver send one of these, or convert with a node of image_proc"
