"""A table that two arms clear, drawn by MuJoCo: other places and other orders of the things in every episode.

It stands in for real recordings of a kind of which there is one (a bimanual arm clears a table): three bins,
eight things, one camera on a stand and one on each hand, 16 stages (reach for a thing, put it away). Nothing
is simulated: bodies are put where they would be, frame by frame.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field

import numpy as np

os.environ.setdefault("MUJOCO_GL", "egl")
import mujoco  # after the choice of its renderer

from robo_reward.schema import Episode, EpisodeInfo, Outcome

SIZE = (96, 128)
CAMERAS = {"cam_high": "high", "cam_left_wrist": "wrist_l", "cam_right_wrist": "wrist_r"}

# name: geoms, the bin it belongs into, its usual place
THINGS = {
    "can": (
        '<geom type="cylinder" size=".03 .06" rgba=".7 .12 .1 1"/>'
        '<geom type="cylinder" size=".028 .062" rgba=".8 .8 .8 1"/>',
        0,
        (-0.24, 0.12),
    ),
    "milk": (
        '<geom type="box" size=".035 .03 .06" rgba=".9 .92 .95 1"/>'
        '<geom type="box" size=".036 .031 .02" rgba=".2 .3 .7 1"/>',
        0,
        (-0.4, 0.02),
    ),
    "pen0": (
        '<geom type="box" size=".009 .07 .009" rgba=".85 .1 .1 1"/>'
        '<geom type="box" size=".01 .02 .01" pos="0 .06 0" rgba=".95 .95 .95 1"/>',
        1,
        (-0.15, -0.02),
    ),
    "pen1": ('<geom type="box" size=".009 .08 .009" rgba=".08 .08 .08 1"/>', 1, (-0.05, -0.02)),
    "pen2": (
        '<geom type="box" size=".008 .07 .008" rgba=".9 .9 .9 1"/>'
        '<geom type="box" size=".011 .02 .011" pos="0 .05 0" rgba=".05 .05 .05 1"/>',
        1,
        (0.05, -0.02),
    ),
    "tissue0": (
        '<geom type="ellipsoid" size=".045 .03 .02" rgba=".93 .93 .9 1"/>'
        '<geom type="ellipsoid" size=".02 .03 .03" pos=".02 .01 .01" rgba=".85 .85 .83 1"/>',
        2,
        (0.2, 0.12),
    ),
    "tissue1": ('<geom type="ellipsoid" size=".03 .028 .022" rgba=".93 .93 .9 1"/>', 2, (0.3, 0.0)),
    "tissue2": ('<geom type="ellipsoid" size=".025 .035 .02" rgba=".9 .9 .88 1"/>', 2, (0.15, 0.02)),
}
GROUPS = ([0, 1], [5, 6, 7], [2, 3, 4])  # the usual order: can and carton, tissues, pens
BINS = ((-0.38, 0.36), (-0.02, 0.4), (0.3, 0.38))
BIN_SHAPES = (
    (".62 .68 .62", 0.11, 0.09, 0.05),
    (".07 .07 .08", 0.045, 0.035, 0.07),
    (".85 .7 .1", 0.1, 0.09, 0.06),
)
BASES = {"l": np.array([-0.42, -0.5, 0.12]), "r": np.array([0.42, -0.5, 0.12])}
HOMES = {"l": np.array([-0.32, -0.12, 0.3]), "r": np.array([0.32, -0.12, 0.3])}
LIFT_HEIGHT = {0: 0.06, 1: 0.01, 2: 0.02}


def scene_xml() -> str:
    """The table, its bins, its things and two arms, all of them placed by hand (mocap)."""
    parts: list[str] = []
    for index, (x, y) in enumerate(BINS):
        color, a, b, h = BIN_SHAPES[index]
        walls = ((a, 0, 0.006, b), (-a, 0, 0.006, b), (0, b, a, 0.006), (0, -b, a, 0.006))
        geoms = "".join(
            f'<geom type="box" pos="{px} {py} {h}" size="{sx} {sy} {h}" rgba="{color} 1"/>'
            for px, py, sx, sy in walls
        )
        floor = f'<geom type="box" size="{a} {b} .004" pos="0 0 .004" rgba="{color} 1"/>'
        parts.append(f'<body name="bin{index}" mocap="true" pos="{x} {y} 0">{geoms}{floor}</body>')
    parts += [f'<body name="{name}" mocap="true">{geoms}</body>' for name, (geoms, *_) in THINGS.items()]
    for side in "lr":
        parts.append(
            f'<body name="up_{side}" mocap="true"><geom type="capsule" fromto="0 0 0 0 0 .45" size=".04" '
            'rgba=".12 .12 .13 1"/></body>'
            f'<body name="lo_{side}" mocap="true"><geom type="capsule" fromto="0 0 0 0 0 .45" size=".035" '
            'rgba=".15 .15 .16 1"/>'
            '<geom type="cylinder" fromto="0 0 .1 0 0 .16" size=".04" rgba=".7 .7 .72 1"/></body>'
            f'<body name="hand_{side}" mocap="true">'
            '<geom type="box" size=".045 .03 .03" pos="0 0 .1" rgba=".1 .1 .1 1"/>'
            f'<camera name="wrist_{side}" pos="0 -.1 .14" euler="25 0 0" fovy="75"/></body>'
        )
        parts += [
            f'<body name="f{finger}_{side}" mocap="true"><geom type="box" size=".008 .015 .05" pos="0 0 .04" '
            'rgba=".05 .05 .05 1"/></body>'
            for finger in "ab"
        ]
    return f"""<mujoco><visual><global offwidth="{SIZE[1]}" offheight="{SIZE[0]}"/>
<headlight ambient=".35 .35 .35" diffuse=".35 .35 .35"/></visual><worldbody>
<light pos=".3 -.3 2" dir="-.1 .1 -1" diffuse=".35 .35 .35"/>
<geom type="box" size=".9 .7 .01" pos="0 .1 -.01" rgba=".86 .88 .88 1"/>
<geom type="box" size="1.2 .01 .5" pos="0 .62 .3" rgba=".78 .79 .8 1"/>
<geom type="box" size="2 2 .01" pos="0 0 -.6" rgba=".2 .2 .2 1"/>
<camera name="high" pos="0 -.7 .75" xyaxes="1 0 0 0 .66 .75" fovy="40"/>
{"".join(parts)}</worldbody></mujoco>"""


def above(height: float) -> np.ndarray:
    return np.array([0.0, 0.0, height])


def turned(angle: float, axis: int = 2) -> np.ndarray:
    """Quaternion of a turn about x (0), y (1) or z (2)."""
    quat = np.zeros(4)
    quat[0], quat[1 + axis] = math.cos(angle / 2), math.sin(angle / 2)
    return quat


def pointing(way: np.ndarray) -> np.ndarray:
    """Quaternion that turns z to `way`."""
    way = way / np.linalg.norm(way)
    quat = np.array([1.0 + way[2], *np.cross((0.0, 0.0, 1.0), way)])
    return quat / np.linalg.norm(quat)


@dataclass
class Table:
    """One episode as it is drawn."""

    rng: np.random.Generator
    model: mujoco.MjModel = field(init=False)

    def __post_init__(self) -> None:
        rng = self.rng
        self.model = mujoco.MjModel.from_xml_string(scene_xml())
        self.model.vis.headlight.diffuse[:] *= rng.uniform(0.9, 1.1)
        self.model.cam_pos[:] += rng.normal(0, 0.004, self.model.cam_pos.shape)
        self.data = mujoco.MjData(self.model)
        self.renderer = mujoco.Renderer(self.model, *SIZE)
        bodies = range(self.model.nbody)
        self.mocap = {self.model.body(i).name: int(self.model.body_mocapid[i]) for i in bodies}
        self.bins = [np.array(place) + rng.uniform(-0.02, 0.02, 2) for place in BINS]
        for index, place in enumerate(self.bins):
            self._put(f"bin{index}", np.array([*place, 0.0]))
        self.places: dict[str, tuple[np.ndarray, float]] = {}
        for name, (_, kind, usual) in THINGS.items():
            for _ in range(1000):
                at = np.array(usual) + rng.uniform(-0.05, 0.05, 2)
                if all(np.linalg.norm((at - p[:2]) * [1, 0.7]) > 0.05 for p, _ in self.places.values()):
                    break
            self.places[name] = (np.array([*at, LIFT_HEIGHT[kind]]), rng.uniform(-0.5, 0.5))
        for name, (place, angle) in self.places.items():
            self._put(name, place, turned(angle))
        self.hand = {side: home.copy() for side, home in HOMES.items()}
        self.angle, self.open = dict.fromkeys("lr", 0.0), dict.fromkeys("lr", 1.0)
        self.frames: dict[str, list[np.ndarray]] = {name: [] for name in CAMERAS}

    def _put(self, body: str, place: np.ndarray, quat: np.ndarray | None = None) -> None:
        self.data.mocap_pos[self.mocap[body]] = place
        if quat is not None:
            self.data.mocap_quat[self.mocap[body]] = quat

    @property
    def length(self) -> int:
        """Frames so far."""
        return len(self.frames["cam_high"])

    def shot(self) -> None:
        """Take a frame of every camera."""
        for side, hand in self.hand.items():
            base, wrist = BASES[side], hand + above(0.13)
            reach = wrist - base
            span = np.linalg.norm(reach)
            half = min(span / 2, 0.449)
            up = np.array([0, 0, 1.0]) - reach * (reach[2] / span**2)
            elbow = base + reach / 2 + up / np.linalg.norm(up) * math.sqrt(0.45**2 - half**2)
            self._put(f"up_{side}", base, pointing(elbow - base))
            self._put(f"lo_{side}", elbow, pointing(wrist - elbow))
            angle, apart = self.angle[side], 0.02 + 0.03 * self.open[side]
            self._put(f"hand_{side}", hand, turned(angle))
            for finger, sign in (("a", -1), ("b", 1)):
                along = np.array([math.cos(angle), math.sin(angle), 0.0])
                self._put(f"f{finger}_{side}", hand + sign * apart * along - above(0.01), turned(angle))
        mujoco.mj_forward(self.model, self.data)
        for name, camera in CAMERAS.items():
            self.renderer.update_scene(self.data, camera)
            self.renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
            self.frames[name].append(self.renderer.render().copy())

    def move(
        self,
        side: str,
        goal: np.ndarray,
        count: int,
        angle: float | None = None,
        held: str | None = None,
        grip: float | None = None,
    ) -> None:
        """Move one hand in `count` frames, with what it holds; the other one goes home."""
        start, turn, width = self.hand[side].copy(), self.angle[side], self.open[side]
        for step in range(1, count + 1):
            u = step / count
            u = u * u * (3 - 2 * u)
            self.hand[side] = start + (goal - start) * u + self.rng.normal(0, 0.002, 3)
            other = "r" if side == "l" else "l"
            self.hand[other] += (HOMES[other] - self.hand[other]) * 0.3
            if angle is not None:
                self.angle[side] = turn + (angle - turn) * u
            if grip is not None:
                self.open[side] = width + (grip - width) * u
            if held is not None:
                self._put(held, self.hand[side], turned(self.places[held][1] + self.angle[side]))
            self.shot()


def clear_table(seed: int, name: str, other_order: float) -> Episode:
    """One demonstration; with probability `other_order` two kinds of things change their turns."""
    rng = np.random.default_rng(seed)
    table = Table(rng)
    groups = [list(rng.permutation(group)) for group in GROUPS]
    changed = bool(rng.random() < other_order)
    if changed:
        first = int(rng.integers(2))
        groups[first], groups[first + 1] = groups[first + 1], groups[first]
    bounds = [2]
    for _ in range(int(rng.integers(2, 5))):
        table.shot()
    filled = [0, 0, 0]
    names = list(THINGS)
    for index in (index for group in groups for index in group):
        thing = names[index]
        kind = THINGS[thing][1]
        place, angle = table.places[thing]
        side = "l" if place[0] < rng.normal(0, 0.05) else "r"
        table.move(side, place + above(0.13), int(rng.integers(8, 16)), angle=angle, grip=1.0)
        table.move(side, place + above(0.01), int(rng.integers(4, 8)))
        table.move(side, place + above(0.01), int(rng.integers(2, 4)), grip=0.1)
        bounds.append(table.length)
        x, y = table.bins[kind]
        over = np.array([x, y, 0.24])
        table.move(side, place + above(0.16), int(rng.integers(3, 6)), held=thing)
        table.move(side, over, int(rng.integers(7, 14)), held=thing, angle=0.0)
        nth = filled[kind]
        filled[kind] += 1
        rest = (
            np.array([x, y, 0.0])
            + (
                ((-0.05, 0.04)[nth % 2], 0, 0.07),
                (0.02 * (nth - 1), 0, 0.13),
                (0.05 * (nth - 1), 0.02 * (nth % 2), 0.04),
            )[kind]
        )
        table.move(side, np.maximum(rest, [-9, -9, 0.12]), int(rng.integers(3, 6)), held=thing)
        lies = turned(1.4, 0) if kind == 1 else turned(0.4, 0) if thing == "can" else None
        table._put(thing, rest, lies)
        table.move(side, table.hand[side].copy(), 2, grip=1.0)
        table.move(side, over, int(rng.integers(2, 5)))
        bounds.append(table.length)
    for _ in range(6):
        for side, home in HOMES.items():
            table.hand[side] += (home - table.hand[side]) * 0.4
        table.shot()
    length = table.length
    bounds[-1] = length - 4
    info = EpisodeInfo(
        name=name,
        uid=f"{seed:032x}",
        cameras=tuple(CAMERAS),
        image_sizes=dict.fromkeys(CAMERAS, SIZE),
        stamp_ns=np.arange(length, dtype=np.int64) * 100_000_000,
        instruction="clean the table",
        stage_names=tuple(f"subtask{i + 1}" for i in range(2 * len(THINGS))),
        boundaries=np.array(bounds, np.int64),
        success=np.arange(length) >= bounds[-1],
        outcome=Outcome.SUCCESS,
        kind="other order" if changed else "usual order",
    )
    return Episode(info, {camera: np.stack(frames) for camera, frames in table.frames.items()})
