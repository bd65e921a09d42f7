"""Fast camera views of a MuJoCo scene, drawn from a light copy of its model. The physics is not touched."""

from __future__ import annotations

import atexit
import copy
import functools
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from robo_reward_sim.gl import create_context
from robo_reward_sim.variation import Bystander, Look, Paint, bystanders, jitter_camera

__all__ = ["CAMERAS", "FixedCamera", "FreeCamera", "SceneRenderer", "cluster_vertices"]

_MAX_GEOMS = 1000


@dataclass(frozen=True, slots=True)
class FreeCamera:
    """A camera that stands in the world. `lookat` and `distance` in meters, angles in degrees."""

    lookat: tuple[float, float, float] = (0.0, 0.66, 0.10)
    distance: float = 1.0
    azimuth: float = 35.0
    elevation: float = -30.0


@dataclass(frozen=True, slots=True)
class FixedCamera:
    """A camera that the model itself defines, by its name there."""

    name: str


CAMERAS: Mapping[str, FreeCamera | FixedCamera] = {
    "left": FreeCamera(azimuth=35.0),
    "right": FreeCamera(azimuth=145.0),
    "wrist": FixedCamera("gripperPOV"),
}
"""The cameras that every task knows by name. The model's own corner cameras hide the contact."""


class SceneRenderer:
    """Draws several cameras of one scene. Owns an OpenGL context: close it, or let the exit hook do so.

    Big visual meshes are simplified, and shadows, reflections, multisampling and markers (sites, the goal
    sphere among them) are off, which makes a view some thirty times cheaper in software rendering.
    """

    def __init__(
        self,
        model: Any,
        cameras: Mapping[str, FreeCamera | FixedCamera],
        image_size: tuple[int, int],
        *,
        cell_m: float = 0.012,
        show_sites: tuple[str, ...] = (),
    ) -> None:
        """Prepare to draw `model`, a MuJoCo MjModel.

        Args:
            model: the physics model; a copy is simplified, this one is not changed.
            cameras: cameras by the name that their images get.
            image_size: (height, width) in pixels.
            cell_m: edge of the grid cells, in meters, within which mesh vertices are merged.
            show_sites: names of the sites (markers) to draw; the others are hidden.

        Raises:
            GraphicsError: no OpenGL context can be had here.
        """
        mujoco: Any = import_module("mujoco")
        self._mujoco = mujoco
        self._size = image_size
        self._model = _render_copy(model, cell_m, image_size, show_sites)
        self._cameras = dict(cameras)
        self._views = {name: self._view(camera) for name, camera in cameras.items()}
        self._paint: Paint | None = None
        self._bystanders: list[Bystander] = []
        self._turned = False  # the lamps
        self._gl = create_context(image_size[1], image_size[0])
        # Registered only now: the GL module, imported by the line above, has an exit hook of its own that
        # ends the display, and exit hooks run last in, first out.
        _register_exit_hook()
        self._gl.make_current()
        self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._scene = mujoco.MjvScene(self._model, maxgeom=_MAX_GEOMS)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._option = mujoco.MjvOption()
        self._option.sitegroup[:] = 0
        self._option.sitegroup[_SHOWN_GROUP] = 1
        self._rect = mujoco.MjrRect(0, 0, image_size[1], image_size[0])
        _open_renderers.add(self)

    def dress(self, look: Look | None) -> None:
        """Draw the scene in another look from now on, or with None in its own."""
        if look is None and self._paint is None:
            return
        if self._paint is None:
            self._paint = Paint(self._model)
        self._gl.make_current()
        for texture in self._paint.apply(look):
            self._mujoco.mjr_uploadTexture(self._model, self._context, texture)
        self._views = {name: self._view(camera) for name, camera in self._cameras.items()}
        self._bystanders = [] if look is None else bystanders(look)
        self._turned = look is not None and look.variation.light > 0.0
        if look is not None:
            for index, (name, camera) in enumerate(self._cameras.items()):
                if isinstance(camera, FreeCamera):
                    jitter_camera(look, index, self._views[name])

    def render(self, data: Any) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """Images by camera name, of the scene in `data` (an MjData of the model given at construction).

        Raises:
            RuntimeError: the renderer is closed.
        """
        if self._gl is None:
            raise RuntimeError("this renderer is closed: make a new one")
        mujoco = self._mujoco
        self._gl.make_current()
        images: dict[str, np.ndarray] = {}
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        for name, view in self._views.items():
            if images:
                mujoco.mjv_updateCamera(self._model, data, view, self._scene)
            else:
                mujoco.mjv_updateScene(self._model, data, self._option, None, view, everything, self._scene)
                self._add_bystanders()
                if self._turned:
                    self._turn_lights(data)
            mujoco.mjr_render(self._rect, self._scene, self._context)
            upside_down = np.empty((*self._size, 3), np.uint8)
            mujoco.mjr_readPixels(upside_down, None, self._rect, self._context)
            images[name] = np.ascontiguousarray(upside_down[::-1])
        return images

    def close(self) -> None:
        """Free the OpenGL context. Safe to call twice."""
        if self._gl is None:
            return
        _open_renderers.discard(self)
        # mjrContext owns textures and buffers in the GL context, so it goes first and while that is current.
        self._gl.make_current()
        self._context.free()
        self._gl.free()
        self._gl = None

    def _add_bystanders(self) -> None:
        for item in self._bystanders:
            item.draw(self._scene.geoms[self._scene.ngeom])
            self._scene.ngeom += 1

    def _turn_lights(self, data: Any) -> None:
        # The scene has its directions from `data`, where the physics model has put its own.
        model = self._model
        # The headlight, which goes with the camera, comes first; lights that are off are not there.
        lights = [light for light in self._scene.lights[: self._scene.nlight] if not light.headlight]
        for light, index in zip(lights, np.flatnonzero(model.light_active), strict=True):
            turn = data.xmat[model.light_bodyid[index]].reshape(3, 3)
            light.dir[:] = turn @ model.light_dir[index]

    def _view(self, camera: FreeCamera | FixedCamera) -> Any:
        mujoco = self._mujoco
        view = mujoco.MjvCamera()
        if isinstance(camera, FixedCamera):
            view.type = mujoco.mjtCamera.mjCAMERA_FIXED
            view.fixedcamid = self._model.camera(camera.name).id
        else:
            view.type = mujoco.mjtCamera.mjCAMERA_FREE
            view.lookat[:] = camera.lookat
            view.distance, view.azimuth, view.elevation = camera.distance, camera.azimuth, camera.elevation
        return view


def cluster_vertices(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"], cell: float
) -> tuple[Float[np.ndarray, "w 3"], Int[np.ndarray, "g 3"]]:
    """Simplify a mesh: merge the vertices of each grid cell into their mean, drop faces that collapse.

    Vertex clustering as in Rossignac & Borrel, "Multi-resolution 3D approximations" (1993).

    Args:
        vertices: positions, in the unit of `cell`.
        faces: vertex indices of the triangles.
        cell: edge of a grid cell.

    Returns:
        The new vertices and faces. Duplicate faces are dropped; orientation is kept.
    """
    cells = np.floor((vertices - vertices.min(axis=0)) / cell).astype(np.int64)
    _, label, count = np.unique(cells, axis=0, return_inverse=True, return_counts=True)
    label = label.reshape(-1)
    merged = np.stack([np.bincount(label, vertices[:, axis]) for axis in range(3)], axis=1) / count[:, None]
    mapped = label[faces]
    a, b, c = mapped.T
    mapped = mapped[(a != b) & (b != c) & (c != a)]
    # Rotate each triangle so that its smallest index comes first: equal faces then compare equal.
    first = np.argmin(mapped, axis=1)
    rotated = np.take_along_axis(mapped, (first[:, None] + np.arange(3)) % 3, axis=1)
    return merged, np.unique(rotated, axis=0)


_SHOWN_GROUP = 5
_SHOWN_RADIUS_M = 0.02  # markers as the model has them are a pixel or two in a small image
_BIG_MESH_FACES = 400
_open_renderers: weakref.WeakSet[SceneRenderer] = weakref.WeakSet()


@functools.cache
def _register_exit_hook() -> None:
    atexit.register(_close_all)


def _close_all() -> None:
    for renderer in list(_open_renderers):
        renderer.close()


def _render_copy(model: Any, cell_m: float, image_size: tuple[int, int], show_sites: tuple[str, ...]) -> Any:
    light = copy.deepcopy(model)
    light.vis.quality.offsamples = 0
    light.vis.quality.shadowsize = 0
    light.vis.global_.offheight, light.vis.global_.offwidth = image_size
    light.mat_reflectance[:] = 0
    for name in show_sites:
        light.site_group[light.site(name).id] = _SHOWN_GROUP
        light.site_size[light.site(name).id] = _SHOWN_RADIUS_M
    for mesh in range(light.nmesh):
        if light.mesh_facenum[mesh] > _BIG_MESH_FACES:
            _simplify_mesh(light, mesh, cell_m)
    return light


def _simplify_mesh(model: Any, mesh: int, cell_m: float) -> None:
    """Replace a mesh in place by a smaller one, in the first part of the room that it had."""
    vertex0, vertices = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
    face0, faces = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
    normal0, normals = int(model.mesh_normaladr[mesh]), int(model.mesh_normalnum[mesh])
    small_vertices, small_faces = cluster_vertices(
        model.mesh_vert[vertex0 : vertex0 + vertices].astype(np.float64),
        model.mesh_face[face0 : face0 + faces].astype(np.int64),
        cell_m,
    )
    n, m = len(small_vertices), len(small_faces)
    if n > min(vertices, normals) or m >= faces:
        return
    model.mesh_vert[vertex0 : vertex0 + n] = small_vertices
    model.mesh_face[face0 : face0 + m] = small_faces
    model.mesh_normal[normal0 : normal0 + n] = _vertex_normals(small_vertices, small_faces)
    model.mesh_facenormal[face0 : face0 + m] = small_faces
    model.mesh_vertnum[mesh], model.mesh_facenum[mesh], model.mesh_normalnum[mesh] = n, m, n
    model.mesh_graphadr[mesh] = -1


def _vertex_normals(
    vertices: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "f 3"]
) -> Float[np.ndarray, "v 3"]:
    corners = vertices[faces]
    area_normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = np.zeros_like(vertices)
    for corner in range(3):
        np.add.at(total, faces[:, corner], area_normals)
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.where(length > 1e-12, total / np.maximum(length, 1e-12), (0.0, 0.0, 1.0))
