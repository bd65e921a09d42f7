"""Pixels of image messages: encodings of industrial cameras, and what is refused with which advice."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from robo_reward.errors import DataError
from robo_reward_data.ros_images import image_to_rgb

COLORS = np.array(
    [[[200, 100, 30]] * 8 + [[20, 60, 250]] * 8] * 6, np.uint8
)  # orange beside blue: no channel may be taken for another
DEPTH = "Leave a camera of depth out"


def raw(pixels: np.ndarray, encoding: str) -> Any:
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).reshape(height, -1)
    return SimpleNamespace(
        encoding=encoding, height=height, width=width, step=rows.strides[0], data=rows.tobytes()
    )


def compressed(pixels: np.ndarray, form: str, suffix: str = ".png") -> Any:
    return SimpleNamespace(format=form, data=cv2.imencode(suffix, pixels)[1].tobytes())


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_a_mosaic_has_its_colors_back(pattern: str) -> None:
    mosaic = np.zeros(COLORS.shape[:2], np.uint8)
    for place, color in enumerate(pattern):  # of the four pixels at the top left, row by row
        rows, columns = slice(place // 2, None, 2), slice(place % 2, None, 2)
        mosaic[rows, columns] = COLORS[rows, columns, "rgb".index(color)]
    image = image_to_rgb(raw(mosaic, f"bayer_{pattern}8"), "camera")
    inside = np.delete(image, (7, 8), axis=1)  # where the colors meet, they mix
    np.testing.assert_array_equal(inside, np.delete(COLORS, (7, 8), axis=1))


def test_a_picture_of_opencv_without_a_name_is_bgr() -> None:
    np.testing.assert_array_equal(image_to_rgb(raw(COLORS[..., ::-1], "8UC3"), "camera"), COLORS)
    solid = np.dstack([COLORS[..., ::-1], np.full_like(COLORS[..., 0], 255)])
    np.testing.assert_array_equal(image_to_rgb(raw(solid, "8UC4"), "camera"), COLORS)
    gray = COLORS[..., 0]
    np.testing.assert_array_equal(image_to_rgb(raw(gray, "8UC1"), "camera"), np.dstack([gray] * 3))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_compressed_picture_is_rgb(suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cv2, "IMREAD_COLOR_RGB", raising=False)  # OpenCV 4.10 and that of Ubuntu have none
    image = image_to_rgb(compressed(COLORS[..., ::-1], suffix[1:], suffix), "camera")
    np.testing.assert_allclose(image[:, [0, -1]], COLORS[:, [0, -1]], atol=0 if suffix == ".png" else 3)


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1"])
def test_depth_is_to_be_left_out(encoding: str) -> None:
    pixels = np.zeros((4, 6), np.uint16 if encoding == "16UC1" else np.float32)
    with pytest.raises(DataError, match=DEPTH):
        image_to_rgb(raw(pixels, encoding), "camera")


@pytest.mark.parametrize("encoding", ["mono16", "nv12", "bayer_rggb16"])
def test_what_is_not_depth_is_not_called_so(encoding: str) -> None:
    with pytest.raises(
        DataError, match=rf"'{encoding}': this reads rgb8, .*bayer_rggb8.*image_proc"
    ) as found:
        image_to_rgb(raw(np.zeros((4, 6), np.uint16), encoding), "camera")
    assert "depth" not in str(found.value)


@pytest.mark.parametrize("encoding", ["yuv422", "yuv422_yuy2"])
def test_an_odd_width_of_pixels_that_come_in_pairs_is_refused(encoding: str) -> None:
    with pytest.raises(DataError, match=rf"camera: an image of 4x5 '{encoding}' does not convert .*width"):
        image_to_rgb(raw(np.zeros((4, 5, 2), np.uint8), encoding), "camera")


def test_a_mosaic_too_small_for_its_colors_is_refused() -> None:
    """OpenCV would make it black."""
    with pytest.raises(DataError, match="4x2 'bayer_rggb8': its colors need 3x3 pixels"):
        image_to_rgb(raw(np.full((4, 2), 200, np.uint8), "bayer_rggb8"), "camera")


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3)])
def test_a_compressed_picture_of_16_bits_is_refused(shape: tuple[int, ...]) -> None:
    """Cut down to 8 bits it passed as a picture that is nearly black."""
    depth = np.full(shape, 900, np.uint16)  # millimeters
    with pytest.raises(DataError, match=rf"'16UC1; png compressed' are a picture of uint16: .*{DEPTH}"):
        image_to_rgb(compressed(depth, "16UC1; png compressed"), "camera")


@pytest.mark.parametrize("data", [b"", b"no picture"])
def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match="bytes of format 'jpeg' do not decode to a picture"):
        image_to_rgb(SimpleNamespace(format="jpeg", data=data), "camera")
