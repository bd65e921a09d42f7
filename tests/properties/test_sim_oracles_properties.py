"""Properties of the oracle, of mesh simplification, and of the order in which kinds of episodes are made."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from robo_reward_sim.oracles import PegScene, peg_potential, reading
from robo_reward_sim.record import DEFAULT_MIX, kinds_of
from robo_reward_sim.rendering import cluster_vertices

coordinates = st.tuples(
    st.floats(-0.4, 0.3, allow_subnormal=False),
    st.floats(0.4, 0.9, allow_subnormal=False),
    st.floats(0.0, 0.3, allow_subnormal=False),
)


@st.composite
def scenes(draw: st.DrawFn) -> PegScene:
    """Any peg, upright within the hand's reach, with fingers anywhere or near it."""
    grasp = np.array(draw(coordinates))
    yaw = draw(st.floats(-1.5, 1.5))
    axis = np.array((np.cos(yaw), np.sin(yaw), 0.0))
    near = np.array(draw(st.tuples(*[st.floats(-0.06, 0.06)] * 3)))
    fingers = grasp + near if draw(st.booleans()) else np.array(draw(coordinates))
    head = grasp - 0.13 * axis - (0.0, 0.0, 0.01)
    target = np.array((draw(st.floats(-0.32, -0.22)), draw(st.floats(0.4, 0.7)), 0.13))
    return PegScene(fingers, grasp, axis, head, target, opening=draw(st.floats(0.0, 1.0)))


@given(scene=scenes(), first=scenes())
def test_the_potential_is_within_its_stages_and_splits_without_loss(scene: PegScene, first: PegScene) -> None:
    value = peg_potential(scene, first)
    assert 0.0 <= value <= 4.0
    read = reading(value, 4, success=False)
    assert 0 <= read.stage <= 3
    assert 0.0 <= read.tau <= 1.0
    assert abs(read.stage + read.tau - value) < 1e-12
    assert abs(read.progress - value / 4) < 1e-12


@given(
    scene=scenes(),
    first=scenes(),
    way=st.tuples(*[st.floats(-1.0, 1.0)] * 3),
    grip=st.floats(-1.0, 1.0),
)
@settings(max_examples=300)
def test_a_tiny_motion_changes_the_potential_a_tiny_bit(
    scene: PegScene, first: PegScene, way: tuple[float, float, float], grip: float
) -> None:
    step = 1e-6
    moved = PegScene(
        scene.fingers + step * np.array(way),
        scene.grasp,
        scene.axis,
        scene.head,
        scene.target,
        float(np.clip(scene.opening + step * grip, 0.0, 1.0)),
    )
    carried = PegScene(
        moved.fingers,
        scene.grasp + step * np.array(way),
        scene.axis,
        scene.head + step * np.array(way),
        scene.target,
        moved.opening,
    )
    # No slope is steeper than 1 / (3 cm) for a term, times the gates that open within 2 cm.
    assert abs(peg_potential(moved, first) - peg_potential(scene, first)) < 1000 * step
    assert abs(peg_potential(carried, first) - peg_potential(scene, first)) < 1000 * step


@given(seed=st.integers(0, 10_000), cell=st.floats(0.05, 0.6))
def test_a_simplified_mesh_is_a_mesh_near_the_old_one(seed: int, cell: float) -> None:
    rng = np.random.default_rng(seed)
    vertices = rng.uniform(-1.0, 1.0, (60, 3))
    faces = np.stack([rng.choice(60, 3, replace=False) for _ in range(80)])
    small, triangles = cluster_vertices(vertices, faces, cell)
    assert len(small) <= len(vertices)
    assert len(triangles) <= len(faces)
    if len(triangles):
        assert triangles.min() >= 0
        assert triangles.max() < len(small)
        assert all(len(set(triangle)) == 3 for triangle in triangles.tolist())
    gaps = np.linalg.norm(vertices[:, None] - small[None], axis=2).min(axis=1)
    assert gaps.max() <= cell * np.sqrt(3) + 1e-9


def test_simplifying_within_a_cell_keeps_the_orientation_of_faces() -> None:
    vertices = np.array([(0.0, 0, 0), (0.001, 0, 0), (1, 0, 0), (0, 1, 0)])
    small, triangles = cluster_vertices(vertices, np.array([(3, 1, 2), (0, 1, 3), (2, 3, 0)]), 0.1)
    corners = small[triangles]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert len(triangles) == 1  # two faces fell together, one collapsed
    assert (normals[:, 2] > 0.9).all()


@given(
    mix=st.dictionaries(st.sampled_from(sorted(DEFAULT_MIX)), st.floats(0.01, 5.0), min_size=1),
    count=st.integers(1, 80),
)
def test_every_beginning_of_a_series_has_its_shares(mix: dict[str, float], count: int) -> None:
    kinds = kinds_of(mix, count)
    assert kinds == kinds_of(mix, count + 7)[:count]
    for kind, weight in mix.items():
        assert abs(kinds.count(kind) - count * weight / sum(mix.values())) <= len(mix)
