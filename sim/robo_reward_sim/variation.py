"""How a scene may look different while it is the same: light, colors, camera places, things that stand about.

Nothing here touches the physics. What an episode looks like follows from a `Look`, which is a few numbers.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from robo_reward.errors import ConfigError

__all__ = ["Bystander", "Look", "Paint", "Variation", "bystanders", "jitter_camera", "look_of"]


@dataclass(frozen=True, slots=True)
class Variation:
    """How much the look of a scene varies from episode to episode; with all 0 it does not.

    light        in [0, 1]: at 1, lamps between 0.4 and 1.6 times as bright and turned by up to 40 degrees
    color        in [0, 1]: at 1, other patterns and tints for table, floor and wall, slight tints elsewhere
    camera       in [0, 1]: at 1, cameras moved by up to 4 cm and turned by up to 6 degrees
    distractors  up to so many things stand about that only the cameras see; nothing ever touches them
    """

    light: float = 0.0
    color: float = 0.0
    camera: float = 0.0
    distractors: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("light", "color", "camera"):
            # 1 and 1.0 are one amount: what is recorded of it must not tell them apart.
            object.__setattr__(self, name, float(getattr(self, name)))
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"variation.{name}={getattr(self, name)}: must be in [0, 1]")
        if not 0 <= self.distractors <= _MOST:
            raise ConfigError(f"variation.distractors={self.distractors}: must be in 0..{_MOST}")

    @property
    def on(self) -> bool:
        """Whether anything varies at all."""
        return self != Variation()


@dataclass(frozen=True, slots=True)
class Look:
    """What one episode looks like.

    variation  how much may differ
    seed       which of the looks that this allows
    clear      places (x, y) in meters on the table where the work is done: no distractor stands near them
    """

    variation: Variation
    seed: int
    clear: tuple[tuple[float, float], ...] = ()

    def facts(self) -> dict[str, Any]:
        """The same as JSON-able facts, for the record."""
        return {**asdict(self.variation), "seed": self.seed}

    def rng(self, part: int) -> np.random.Generator:
        """A generator of its own for each part, so that parts can be switched on and off one by one."""
        return np.random.default_rng((self.seed, part))


def look_of(variation: Variation, seed: int, sim: Any) -> Look | None:
    """The look of an episode that begins as the environment `sim` stands, or None without variation."""
    if not variation.on:
        return None
    hand, goal = sim.get_endeff_pos()[:2], np.asarray(sim._target_pos)[:2]
    things = sim._get_pos_objects().reshape(-1, 3)[:, :2]
    first = sim.model.body("mocap").id + 1  # the bodies of the task come after those of the robot
    work = [
        way[0] + step * (way[1] - way[0])
        for way in ((hand, things[0]), (things[0], goal))
        for step in np.linspace(0.0, 1.0, 5)
    ]
    places = [*work, *things, *sim.data.xpos[first:, :2]]
    return Look(variation, seed, tuple((float(x), float(y)) for x, y in places))


class Paint:
    """Paints the render copy of a model for a look, and back."""

    def __init__(self, model: Any) -> None:
        """Remember how `model`, a render copy, looks of itself."""
        self._model = model
        self._fields = {name: getattr(model, name).copy() for name in _FIELDS}
        self._ambient = model.vis.headlight.ambient.copy()
        self._textures = {
            texture: self._pixels(texture).copy()
            for texture in range(model.ntex)
            if model.texture(texture).name in _GROUND
        }

    def apply(self, look: Look | None) -> list[int]:
        """Paint, and return the textures that are to be uploaded again."""
        model = self._model
        for name, plain in self._fields.items():
            getattr(model, name)[:] = plain
        model.vis.headlight.ambient[:] = self._ambient
        for texture, plain in self._textures.items():
            self._pixels(texture)[:] = plain
        if look is not None:
            self._light(look)
            self._color(look)
        return list(self._textures)

    def _light(self, look: Look) -> None:
        rng, amount = look.rng(0), look.variation.light
        model = self._model
        model.light_diffuse[:] *= 1.0 + 0.6 * amount * rng.uniform(-1.0, 1.0, (model.nlight, 1))
        # A little of a color, as lamps have: up to a tenth from channel to channel.
        model.light_diffuse[:] *= 1.0 + 0.1 * amount * rng.uniform(-1.0, 1.0, 3)
        model.vis.headlight.ambient[:] *= 1.0 + 0.4 * amount * rng.uniform(-1.0, 1.0)
        turned = model.light_dir + np.tan(np.deg2rad(40.0)) * amount * rng.uniform(
            -0.6, 0.6, (model.nlight, 3)
        )
        model.light_dir[:] = turned / np.linalg.norm(turned, axis=1, keepdims=True)

    def _color(self, look: Look) -> None:
        rng, amount = look.rng(1), look.variation.color
        model = self._model
        for material in range(model.nmat):
            ground = model.material(material).name in _GROUND_MATERIALS
            # What the instruction names keeps its color: the red button stays red.
            range_ = 0.5 if ground else 0.12
            tint = 1.0 + range_ * amount * rng.uniform(-1.0, 1.0, 3)
            model.mat_rgba[material, :3] = np.clip(model.mat_rgba[material, :3] * tint, 0.0, 1.0)
        for texture, plain in self._textures.items():
            drawn = _pattern(rng, plain.shape[:2])
            mixed = (1.0 - 0.8 * amount) * plain + 0.8 * amount * drawn
            self._pixels(texture)[:] = np.clip(mixed, 0.0, 255.0).astype(np.uint8)

    def _pixels(self, texture: int) -> UInt8[np.ndarray, "h w 3"]:
        model = self._model
        height, width, start = model.tex_height[texture], model.tex_width[texture], model.tex_adr[texture]
        return model.tex_data[start : start + height * width * 3].reshape(height, width, 3)


def jitter_camera(look: Look, index: int, view: Any) -> None:
    """Move a free camera (an MjvCamera) a little; `index` tells the cameras of a scene apart."""
    rng, amount = look.rng(100 + index), look.variation.camera
    view.lookat[:] = np.array(view.lookat) + amount * rng.uniform(-0.04, 0.04, 3)
    view.azimuth += amount * rng.uniform(-6.0, 6.0)
    view.elevation += amount * rng.uniform(-6.0, 6.0)
    view.distance *= 1.0 + 0.08 * amount * rng.uniform(-1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Bystander:
    """A thing that stands about. `shape` names an mjtGeom; size and position in meters."""

    shape: str
    size: tuple[float, float, float]
    position: tuple[float, float, float]
    rgba: tuple[float, float, float, float]
    turn: float

    def draw(self, geom: Any) -> None:
        """Write it into a geom of a scene."""
        mujoco: Any = import_module("mujoco")
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        turn = np.array((cos, -sin, 0.0, sin, cos, 0.0, 0.0, 0.0, 1.0))
        kind = getattr(mujoco.mjtGeom, self.shape)
        mujoco.mjv_initGeom(
            geom, kind, np.array(self.size), np.array(self.position), turn, np.array(self.rgba, np.float32)
        )


def bystanders(look: Look) -> list[Bystander]:
    """The distractors of a look: half as many as allowed or more, fewer where there is no room."""
    rng, most = look.rng(2), look.variation.distractors
    if not most:
        return []
    placed: list[Bystander] = []
    for _ in range(int(rng.integers((most + 1) // 2, most + 1))):
        place = _free_place(rng, look.clear, [item.position[:2] for item in placed])
        if place is None:
            continue
        shape = str(rng.choice(tuple(_SHAPES)))
        size = rng.uniform(0.015, 0.035, 3)
        height = float(size[_SHAPES[shape]])
        placed.append(
            Bystander(
                shape=shape,
                size=(float(size[0]), float(size[1]), float(size[2])),
                position=(*place, height),
                rgba=_bystander_color(rng),
                turn=float(rng.uniform(0.0, np.pi)),
            )
        )
    return placed


def _free_place(
    rng: np.random.Generator, clear: Sequence[tuple[float, float]], taken: Sequence[tuple[float, ...]]
) -> tuple[float, float] | None:
    for _ in range(40):
        place = rng.uniform(_TABLE[0], _TABLE[1])
        far = all(np.hypot(*(place - other)) > _APART for other in clear)
        if far and all(np.hypot(*(place - other)) > 0.08 for other in taken):
            return float(place[0]), float(place[1])
    return None


def _bystander_color(rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Yellow, cyan, or purple, light or dark: red, green and blue are what instructions name."""
    hue = (float(rng.integers(3)) + 0.5) / 3.0 + rng.uniform(-0.06, 0.06)
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, rng.uniform(0.2, 0.9), rng.uniform(0.3, 0.95))
    return float(red), float(green), float(blue), 1.0


def _pattern(rng: np.random.Generator, size: tuple[int, int]) -> Float64[np.ndarray, "h w 3"]:
    """A ground of two colors, in stripes or patches, 0..255."""
    colors = rng.uniform(30.0, 220.0, (2, 3))
    cells = int(rng.integers(4, 17))
    stripes = rng.random() < 0.5
    grid = rng.random((cells, 1 if stripes else cells))
    rows = np.arange(size[0]) * cells // size[0]
    columns = np.arange(size[1]) * grid.shape[1] // size[1]
    weight = grid[rows][:, columns, None]
    return weight * colors[0] + (1.0 - weight) * colors[1]


_MOST = 12
_APART = 0.17  # of a distractor from the work, in meters: nothing that moves comes near it
_TABLE = ((-0.45, 0.32), (0.45, 0.95))  # corners (x, y) of the part of the table that cameras see, in meters
_SHAPES: Mapping[str, int] = {"mjGEOM_BOX": 2, "mjGEOM_ELLIPSOID": 2, "mjGEOM_CYLINDER": 1}
"""Shapes by name, and which of a shape's sizes is half its height. No balls: goals are marked by those."""
_FIELDS = ("light_diffuse", "light_dir", "mat_rgba")
_GROUND = ("T_table", "T_floor", "T_wallmetal")
_GROUND_MATERIALS = ("basic_floor", "table_wood", "wall_metal")
