"""The `doctor` command: what is installed and works on this machine, and the command that mends the rest.

Anything that can hang or crash (torch, a GL driver, rclpy) is tried in a process of its own.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib import metadata, util
from pathlib import Path
from typing import Any

from robo_reward.errors import RoboRewardError

__all__ = [
    "DoctorConfig",
    "Finding",
    "RosFacts",
    "Status",
    "diagnose",
    "doctor",
    "fastdds_finding",
    "guarded",
    "opencv_finding",
    "print_table",
    "probe",
    "ros_finding",
]


@dataclass(frozen=True)
class DoctorConfig:
    """Options of `robo-reward doctor`. `json`: print one JSON list instead of a table."""

    json: bool


class Status(StrEnum):
    """OK; MISSING: optional and not there; PROBLEM: there and not right, or required and not there."""

    OK = "ok"
    MISSING = "missing"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    part      what was looked at
    status    see Status
    found     the version, device or trouble, in words
    purpose   what the stack needs it for
    mend      the command that mends it; "" where nothing needs mending
    required  True where nothing works without it
    """

    part: str
    status: Status
    found: str
    purpose: str
    mend: str = ""
    required: bool = False


def doctor(config: DoctorConfig) -> None:
    """Print the report.

    Raises:
        RoboRewardError: where a required part is broken, naming it.
    """
    findings = diagnose()
    if config.json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings], indent=2) + "\n")
    else:
        print_table(findings)
    broken = [finding for finding in findings if finding.required and finding.status is not Status.OK]
    if broken:
        names = ", ".join(f"{finding.part} ({finding.found})" for finding in broken)
        raise RoboRewardError(f"required and broken: {names}; mend it with: {broken[0].mend}")


def diagnose() -> list[Finding]:
    """Look at everything, two things at a time. Never raises: a check that fails is itself a finding."""
    checks: list[Callable[[], Finding]] = [
        _python,
        _machine,
        _disk,
        _torch,
        lambda: opencv_finding(_versions("opencv-")),
        lambda: _package("PyAV", "av", "decodes and encodes video (bundles FFmpeg 7)", required=True),
        lambda: _package("zarr", "zarr", "the episode store", required=True),
        _rendering,
        lambda: _package("Meta-World", "metaworld", "simulated tasks: demo, record, improve", extra="sim"),
        lambda: _package("LeRobot", "lerobot", "LeRobot datasets in and out", extra="data"),
        lambda: _package("rosbags", "rosbags", "demonstrations from ROS bags", extra="data"),
        _ffmpeg,
        lambda: ros_finding(RosFacts.of_this_machine()),
        lambda: messages_finding(has_ros=util.find_spec("rclpy") is not None),
        lambda: fastdds_finding(os.environ, has_ros=util.find_spec("rclpy") is not None),
    ]
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(guarded, checks))


def guarded(check: Callable[[], Finding]) -> Finding:
    """What a check finds, or a finding that the check itself failed."""
    try:
        return check()
    except Exception as error:
        name = getattr(check, "__name__", "check").strip("_<>")
        return Finding(name, Status.PROBLEM, f"{type(error).__name__}: {error}", "this report", _install(""))


def _python() -> Finding:
    right = sys.version_info[:2] == (3, 12)
    return Finding(
        "Python",
        Status.OK if right else Status.PROBLEM,
        f"{platform.python_version()} at {sys.executable}",
        "3.12: LeRobot and ROS 2 Jazzy and Kilted need it",
        "" if right else _install(""),
        required=True,
    )


def _machine() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    enough = memory >= 6
    return Finding(
        "CPU, memory",
        Status.OK if enough else Status.PROBLEM,
        f"{cores} cores, {memory:.0f} GiB",
        "training on this machine",
        "" if enough else "free memory, or train on another machine: 6 GiB are needed",
    )


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    enough = free >= 5
    return Finding(
        "disk",
        Status.OK if enough else Status.PROBLEM,
        f"{free:.0f} GiB free in {Path.cwd()}",
        "episode stores and runs",
        "" if enough else "free 5 GiB there, or give out=... on another disk",
    )


_TORCH_PROBE = """
import json, torch
cuda = torch.cuda.is_available()
print(json.dumps({
    "version": torch.__version__,
    "built_for": torch.version.cuda,
    "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
    "bf16": cuda and torch.cuda.is_bf16_supported(including_emulation=False),
}))
"""


def _torch() -> Finding:
    facts = probe(_TORCH_PROBE)
    purpose = "the model"
    if isinstance(facts, str):
        return Finding("torch", Status.PROBLEM, facts, purpose, _install(""), required=True)
    devices = ", ".join(facts["devices"])
    if devices:
        found = f"{facts['version']} on {devices}, bf16 {'yes' if facts['bf16'] else 'no'}"
        return Finding("torch", Status.OK, found, purpose, required=True)
    found = f"{facts['version']} on the CPU"
    if shutil.which("nvidia-smi") and _runs(["nvidia-smi", "-L"]):
        return Finding(
            "torch",
            Status.PROBLEM,
            f"{found}, though this machine has an NVIDIA GPU (torch is built for CUDA {facts['built_for']})",
            purpose,
            f"update the NVIDIA driver to one that runs CUDA {facts['built_for']}, and look at: nvidia-smi",
        )
    return Finding("torch", Status.OK, found, purpose, required=True)


def opencv_finding(versions: Mapping[str, str]) -> Finding:
    """Whether exactly one OpenCV is installed, and the right one: the wheels overwrite each other's files.

    Args:
        versions: version of each installed distribution whose name starts with `opencv-`.
    """
    wanted = "opencv-python-headless"
    others = sorted(name for name in versions if name != wanted)
    purpose = "reads, resizes and compresses images"
    if others and wanted in versions:
        mend = (
            f"{_pip('uninstall')} {' '.join(others)} {wanted}"
            f" && {_pip('install')} {wanted}=={versions[wanted]}"
        )
        found = f"{', '.join(others)} beside {wanted}: they overwrite each other"
        return Finding("OpenCV", Status.PROBLEM, found, purpose, mend)
    if wanted not in versions:
        found = f"{', '.join(others)} in place of {wanted}" if others else "not installed"
        return Finding("OpenCV", Status.PROBLEM, found, purpose, _install(""), required=not others)
    return Finding("OpenCV", Status.OK, f"{wanted} {versions[wanted]}", purpose, required=True)


_RENDER_PROBE = """
import json, time, mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><geom size='.3' rgba='1 0 0 1'/></worldbody></mujoco>"
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
with mujoco.Renderer(model, 64, 64) as renderer:
    renderer.update_scene(data)
    renderer.render()
    start = time.perf_counter()
    image = renderer.render()
    elapsed = time.perf_counter() - start
    from OpenGL import GL
    driver = GL.glGetString(GL.GL_RENDERER).decode()
print(json.dumps({"driver": driver, "milliseconds": elapsed * 1e3, "lit": int(image.max()) > 0}))
"""


def _rendering() -> Finding:
    purpose = "camera images from the simulators"
    if util.find_spec("mujoco") is None:
        return Finding("rendering", Status.MISSING, "mujoco is not installed", purpose, _install("sim"))
    named = os.environ.get("MUJOCO_GL", "")
    troubles: list[str] = []
    for backend in (named,) if named else ("egl", "osmesa"):
        facts = probe(_RENDER_PROBE, MUJOCO_GL=backend)
        if isinstance(facts, dict) and facts["lit"]:
            found = f"{backend}, {facts['driver']}, {facts['milliseconds']:.1f} ms for 64x64 pixels"
            return Finding("rendering", Status.OK, found, purpose)
        troubles.append(f"{backend}: {facts if isinstance(facts, str) else 'the rendered image is black'}")
    mend = _GL_INSTALL.get(named or "egl", "export MUJOCO_GL=egl")
    return Finding("rendering", Status.PROBLEM, "; ".join(troubles), purpose, mend)


_GL_INSTALL = {
    "egl": "sudo apt-get install -y libegl1 libgl1 libegl-mesa0 libgl1-mesa-dri",
    "osmesa": "sudo apt-get install -y libosmesa6",
}


def _ffmpeg() -> Finding:
    purpose = "LeRobot's fast video decoder (torchcodec); PyAV takes over without it"
    path = shutil.which("ffmpeg")
    if path is None:
        return Finding("ffmpeg", Status.MISSING, "not on PATH", purpose, "sudo apt-get install -y ffmpeg")
    first = _output([path, "-version"]).splitlines()[:1]
    words = first[0].split() if first else []
    return Finding("ffmpeg", Status.OK, f"{words[2] if len(words) > 2 else '?'} at {path}", purpose)


@dataclass(frozen=True, slots=True)
class RosFacts:
    """What there is of ROS 2 on a machine.

    wheel      version of the ros-rclpy wheel, or ""
    sourced    ROS_DISTRO of the sourced installation, or ""
    installed  names under /opt/ros
    trouble    why `import rclpy` fails, or "" where it works
    has_wheels whether PyPI has wheels for this machine (Linux on x86-64)
    """

    wheel: str
    sourced: str
    installed: tuple[str, ...]
    trouble: str
    has_wheels: bool

    @classmethod
    def of_this_machine(cls) -> RosFacts:
        """Look at the environment, at /opt/ros, and try `import rclpy` in another process."""
        prefixes = os.environ.get("AMENT_PREFIX_PATH", "")
        root = Path("/opt/ros")
        facts = probe("import json, rclpy; print(json.dumps({}))")
        return cls(
            wheel=_versions("ros-rclpy").get("ros-rclpy", ""),
            sourced=os.environ.get("ROS_DISTRO", "") if str(root) in prefixes else "",
            installed=tuple(sorted(path.name for path in root.iterdir())) if root.is_dir() else (),
            trouble=facts if isinstance(facts, str) else "",
            has_wheels=sys.platform == "linux" and platform.machine() == "x86_64",
        )


def ros_finding(facts: RosFacts) -> Finding:
    """Which ROS 2 this Python uses: a sourced installation or the PyPI wheels, never both."""
    purpose = "rewards as topics; demonstrations and improvement on a robot"
    if facts.wheel and facts.sourced:
        found = (
            f"ros-rclpy {facts.wheel} from PyPI under a sourced /opt/ros/{facts.sourced}: the two do not mix"
        )
        mend = (
            f"{_pip('uninstall')} ros-rclpy   # or open a shell that has not sourced /opt/ros/{facts.sourced}"
        )
        return Finding("ROS 2", Status.PROBLEM, found, purpose, mend)
    origin = f"ros-rclpy {facts.wheel} from PyPI" if facts.wheel else f"/opt/ros/{facts.sourced}"
    if facts.trouble and (facts.wheel or facts.sourced):
        mend = (
            _install("ros")
            if facts.wheel
            else "make .venv with the Python of that ROS: Jazzy or Kilted, 3.12"
        )
        return Finding("ROS 2", Status.PROBLEM, f"{origin}: {facts.trouble}", purpose, mend)
    if not facts.trouble:
        return Finding("ROS 2", Status.OK, origin if facts.wheel or facts.sourced else "rclpy", purpose)
    if facts.installed:
        found = f"/opt/ros/{facts.installed[-1]} is there but not sourced"
        return Finding("ROS 2", Status.MISSING, found, purpose, f". /opt/ros/{facts.installed[-1]}/setup.sh")
    guide = "install ROS 2 Jazzy: https://docs.ros.org/en/jazzy/Installation.html"
    return Finding(
        "ROS 2", Status.MISSING, "not installed", purpose, _install("ros") if facts.has_wheels else guide
    )


def messages_finding(*, has_ros: bool) -> Finding:
    """Whether the nodes have the messages that they speak in: wheels cannot hold them, they are compiled."""
    part, purpose = "messages", "the nodes: estimates and shaped rewards on topics"
    if not has_ros:
        return Finding(part, Status.MISSING, "need ROS 2 first", purpose)
    trouble = probe("import json, robo_reward_msgs.msg; print(json.dumps({}))")
    if not isinstance(trouble, str):
        return Finding(part, Status.OK, "robo_reward_msgs", purpose)
    if os.environ.get("AMENT_PREFIX_PATH"):
        mend = "colcon build --packages-select robo_reward_msgs && . install/setup.sh"
    else:
        mend = f"{_pip('install')} {_message_sources()}   # needs a C++ compiler"
    return Finding(part, Status.MISSING, "not built", purpose, mend)


def _message_sources() -> Path:
    """They come with the installed nodes; else they are in the sources."""
    shipped = _nodes() / "_messages"
    return shipped if shipped.is_dir() else _checkout() / "ros_nodes/robo_reward_msgs"


def fastdds_finding(environment: Mapping[str, str], *, has_ros: bool) -> Finding:
    """Whether Fast DDS will carry raw images over 512 KiB: its default shared memory loses most of them."""
    part, purpose = "Fast DDS", "raw camera images over 512 KiB (VGA is 900) arrive"
    middleware = environment.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp")
    new, old = "FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"
    # Jazzy reads the old name alone, later releases both.
    variable = old if environment.get("ROS_DISTRO") == "jazzy" else new
    profile = environment.get(variable, "") or environment.get(old, "")
    if not has_ros:
        return Finding(part, Status.MISSING, "needs ROS 2 first", purpose)
    if "fastrtps" not in middleware:
        return Finding(part, Status.OK, f"not used: RMW_IMPLEMENTATION={middleware}", purpose)
    if profile and Path(profile).is_file():
        return Finding(part, Status.OK, f"profile {profile}", purpose)
    found = f"profile {profile} does not exist" if profile else "default profile: large images get lost"
    return Finding(
        part, Status.PROBLEM, found, purpose, f"export {variable}={_nodes() / 'fastdds_large_images.xml'}"
    )


def _nodes() -> Path:
    """Where the package of the nodes lies; where it is not installed, in the sources."""
    found = util.find_spec("robo_reward_ros")
    if found and found.origin:
        return Path(found.origin).parent
    return _checkout() / "ros_nodes/robo_reward_ros/robo_reward_ros"


def _package(
    part: str, distribution: str, purpose: str, *, extra: str = "", required: bool = False
) -> Finding:
    version = _versions(distribution).get(distribution)
    if version is None:
        status = Status.PROBLEM if required else Status.MISSING
        return Finding(part, status, "not installed", purpose, _install(extra), required)
    if util.find_spec(distribution) is None:
        found = f"{version} is listed, but does not import"
        return Finding(part, Status.PROBLEM, found, purpose, _install(extra), required)
    return Finding(part, Status.OK, version, purpose, required=required)


def _versions(prefix: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = str(distribution.metadata["Name"] or "").lower().replace("_", "-")
        if name.startswith(prefix):
            found[name] = distribution.version
    return found


def _install(extra: str) -> str:
    """The command that installs the package again with an extra ("" for none)."""
    if (_checkout() / ".ci" / "setup").is_file():
        return "rm -f .venv/.robo-reward-setup && make setup"  # with every extra there is
    return f"{_pip('install')} --upgrade 'robo-reward{f'[{extra}]' if extra else ''}'"


def _pip(verb: str) -> str:
    """The start of a pip command line for this very Python: environments made by uv have no pip."""
    if util.find_spec("pip") is not None:
        return f"{sys.executable} -m pip {verb}" + (" --yes" if verb == "uninstall" else "")
    own = _checkout() / ".uv" / "bin" / "uv"
    return f"{own if own.is_file() else 'uv'} pip {verb} --python {sys.executable}"


def _checkout() -> Path:
    return Path(__file__).resolve().parents[2]


def probe(code: str, **environment: str) -> dict[str, Any] | str:
    """Run code in another process: the JSON object it prints last, or its trouble in one line."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, **environment},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "no answer within 60 s"
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode == 0 and lines:
        try:
            return dict(json.loads(lines[-1]))
        except ValueError:
            return f"printed '{lines[-1]}'"
    if done.returncode < 0:
        return f"crashed with signal {-done.returncode}"
    errors = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return errors[-1] if errors else f"exit status {done.returncode}"


def _runs(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


_STYLE = {Status.OK: "green", Status.MISSING: "yellow", Status.PROBLEM: "bold red"}


def print_table(findings: Sequence[Finding]) -> None:
    """Print a table, and below it each command that mends something, on a line of its own."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    table = Table("part", "status", "found", "for", box=box.SIMPLE)
    for finding in findings:
        style = _STYLE[finding.status]
        table.add_row(
            finding.part,
            f"[{style}]{finding.status.value}[/]",
            escape(finding.found),
            escape(finding.purpose),
        )
    console.print(table)
    for finding in findings:
        if finding.mend:
            # Not wrapped, so that the command can be copied.
            console.print(f"{finding.part}: [bold]{escape(finding.mend)}[/]", soft_wrap=True, highlight=False)
