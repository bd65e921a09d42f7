"""What integration tests share.

Those of ROS: a domain of their own, loopback only, and processes that never outlive a test. Those that train
with LeRobot: a policy that learns in seconds.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
ROS_PACKAGE = REPO / "ros_nodes" / "robo_reward_ros"

# Release wheels check no field unless this is set before a message is first imported.
os.environ.setdefault("ROS_PYTHON_CHECK_FIELDS", "1")
if str(ROS_PACKAGE) not in sys.path:
    sys.path.append(str(ROS_PACKAGE))  # a robot installs it with colcon

StartProcess = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture(scope="session")
def small_act() -> Callable[..., list[str]]:
    """Arguments of `lerobot-train` for a small weighted ACT: `small_act(chunk, latent_dim=4)`."""

    def arguments(chunk: int, **others: object) -> list[str]:
        settings = {
            "type": "weighted_act",
            "device": "cpu",
            "push_to_hub": "false",
            "chunk_size": chunk,
            "n_action_steps": chunk,
            "dim_model": 16,
            "n_heads": 2,
            "dim_feedforward": 16,
            "n_encoder_layers": 1,
            "pretrained_backbone_weights": "null",
            **others,
        }
        return [f"--policy.{key}={value}" for key, value in settings.items()]

    return arguments


@pytest.fixture(scope="session")
def ros_domain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A ROS domain id that no other test process on this machine has, with the environment set for it.

    Child processes inherit the environment. Nodes of the test itself need a private rclpy Context each.
    """
    pytest.importorskip("rclpy", reason="no rclpy here: robo-reward doctor says how to get it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import rosidl_generator_py  # noqa: F401  (its parser imports the standard library's old sre_parse)
    folder = Path(tempfile.gettempdir()) / f"robo_reward_ros_domains_{os.getuid()}"
    folder.mkdir(exist_ok=True)
    for domain in range(1, 100):
        held = (folder / f"{domain}.lock").open("w")
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            held.close()
            continue
        break
    else:
        pytest.fail(f"all ROS domains 1..99 are taken: see {folder}")
    values = {
        "ROS_DOMAIN_ID": str(domain),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_LOG_DIR": str(tmp_path_factory.mktemp("ros_log")),
        "AMENT_PREFIX_PATH": os.environ.get("AMENT_PREFIX_PATH", sys.prefix),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROS_PACKAGE), os.environ.get("PYTHONPATH")))),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield domain
    held.close()


@pytest.fixture
def start_process(ros_domain: int, tmp_path: Path) -> Iterator[StartProcess]:
    """Starts `python -m <module> <arguments>` in the test's ROS domain; ends what is left at the end.

    With "-c" for the module the first argument is the program.
    The output of process n goes to `process_<n>.log` in the test's folder.
    """
    started: list[subprocess.Popen[bytes]] = []

    def start(module: str, arguments: Sequence[str] = (), **environment: str) -> subprocess.Popen[bytes]:
        with (tmp_path / f"process_{len(started)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *(["-c"] if module == "-c" else ["-m", module]), *arguments],
                env={**os.environ, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    for process in started:
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
