"""The message package says the same thing everywhere, and what is installed was built from it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest


@pytest.fixture(scope="module")
def package(repo: Path) -> Path:
    return repo / "ros_nodes" / "robo_reward_msgs"


def _interfaces(package: Path) -> set[str]:
    return {str(path.relative_to(package)) for kind in ("msg", "srv") for path in (package / kind).iterdir()}


def test_every_interface_is_built(package: Path) -> None:
    listed = re.findall(r'"((?:msg|srv)/\w+\.\w+)"', (package / "CMakeLists.txt").read_text())
    assert set(listed) == _interfaces(package)


def test_colcon_and_the_wheel_build_the_same_package(package: Path) -> None:
    manifest = ElementTree.parse(package / "package.xml").getroot()
    wheel = tomllib.loads((package / "pyproject.toml").read_text())
    assert manifest.findtext("version") == wheel["project"]["version"]
    assert manifest.findtext("name") == wheel["project"]["name"].replace("-", "_")
    needed = {element.text for element in manifest.findall("depend")}
    cmake = (package / "CMakeLists.txt").read_text()
    assert needed == set(re.search(r"DEPENDENCIES ([\w ]+)", cmake)[1].split())
    for requirement in (wheel["build-system"]["requires"], wheel["project"]["dependencies"]):
        built = {text.split("==")[0].removeprefix("ros-").replace("-", "_") for text in requirement}
        assert needed <= built


def test_the_wheel_asks_for_what_the_lock_has(package: Path, repo: Path) -> None:
    wheel = tomllib.loads((package / "pyproject.toml").read_text())["project"]["dependencies"]
    packages = tomllib.loads((repo / "uv.lock").read_text())["package"]
    locked = {entry["name"]: entry.get("version") for entry in packages}
    for requirement in wheel:
        name, _, version = requirement.partition("==")
        assert locked[name.partition("[")[0]] == version


def _fields(text: str) -> list[tuple[str, str]]:
    """(type, name) of each field of one message definition; constants are none."""
    lines = (line.partition("#")[0].split() for line in text.splitlines())
    return [(line[0], line[1]) for line in lines if len(line) == 2 and "=" not in line[1]]


def _as_declared(kind: str) -> str:
    """A type as rclpy reports it, in the words of a message file."""
    if inner := re.fullmatch(r"sequence<(.+)>", kind):
        return f"{_as_declared(inner[1])}[]"
    return {"float": "float32", "double": "float64", "boolean": "bool"}.get(kind, kind)


@pytest.mark.ros
def test_what_is_installed_is_what_the_files_say(package: Path) -> None:
    reason = "no ROS messages: .ci/setup builds them with a C++ compiler"
    messages = pytest.importorskip("robo_reward_msgs.msg", reason=reason)
    services = pytest.importorskip("robo_reward_msgs.srv", reason=reason)
    built: dict[str, list[object]] = {}
    for name in sorted(_interfaces(package)):
        kind = Path(name).stem
        whole = getattr(messages if name.startswith("msg") else services, kind)
        built[name] = [whole] if name.startswith("msg") else [whole.Request, whole.Response]
    for name, parts in built.items():
        texts = re.split(r"^---$", (package / name).read_text(), flags=re.MULTILINE)
        for part, text in zip(parts, texts, strict=True):
            found = {field: _as_declared(kind) for field, kind in part.get_fields_and_field_types().items()}
            assert found == {field: kind for kind, field in _fields(text)}
