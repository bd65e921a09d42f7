"""The suite runs with shape and dtype checks on: an annotation of the library that is broken raises."""

from __future__ import annotations

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from robo_reward.schema import Frame, ProgressLabel


def test_a_frame_of_another_shape_or_dtype_is_refused() -> None:
    Frame(rgb=np.zeros((4, 5, 3), np.uint8), stamp_ns=0)
    with pytest.raises(TypeCheckError, match="rgb"):
        Frame(rgb=np.zeros((4, 5, 4), np.uint8), stamp_ns=0)
    with pytest.raises(TypeCheckError, match="rgb"):
        Frame(rgb=np.zeros((4, 5, 3), np.float32), stamp_ns=0)  # pyright: ignore[reportArgumentType]


def test_axes_of_the_same_name_must_agree() -> None:
    stage, tau = np.zeros(4, np.int64), np.zeros(4, np.float32)
    ProgressLabel(stage, tau, np.ones(4, np.bool_))
    with pytest.raises(TypeCheckError, match="valid"):
        ProgressLabel(stage, tau, np.ones(3, np.bool_))
