"""Launch plans: the processes they start, their files and the command that runs them. Needs no ROS."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from robo_reward.errors import ConfigError

sys.path.append(str(Path(__file__).resolve().parents[2] / "ros_nodes" / "robo_reward_ros"))

from robo_reward.cli.main import main
from robo_reward.imports import instantiate
from robo_reward_ros.exits import CRASHED
from robo_reward_ros.launch_arguments import default_text, values
from robo_reward_ros.launch_plan import (
    Plan,
    Process,
    params_file,
    replay_plan,
    reward_plan,
    sim_improve_plan,
)
from robo_reward_ros.launching import LaunchError, run_plan


@pytest.fixture(autouse=True)
def _no_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "AMENT_PREFIX_PATH",
        "ROS_DISTRO",
        "FASTDDS_DEFAULT_PROFILES_FILE",
        "FASTRTPS_DEFAULT_PROFILES_FILE",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the test runs there are a trained model `runs/drawer` and demonstrations `demos`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/drawer").mkdir(parents=True)
    (tmp_path / "runs/drawer/model.json").write_text("{}")
    (tmp_path / "demos").mkdir()


@pytest.mark.usefixtures("_files")
def test_the_reward_node_has_its_cameras_and_model(repo: Path) -> None:
    plan = reward_plan("runs/drawer", namespace="arm", use_sim_time=True)
    (node,) = plan.processes
    assert (node.essential, node.respawn) == (False, True)
    assert node.command(plan.namespace)[1:] == [
        *("-m", "robo_reward_ros.reward_node", "--ros-args", "-r", "__node:=reward", "-r", "__ns:=/arm"),
        *("--params-file", str(repo / "launch/params/reward.yaml")),
        *("-p", 'model:="runs/drawer"', "-p", "use_sim_time:=true"),
    ]
    assert plan.environment["FASTDDS_DEFAULT_PROFILES_FILE"].endswith("fastdds_large_images.xml")


def test_a_profile_of_the_users_own_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDDS_DEFAULT_PROFILES_FILE", "mine.xml")
    assert reward_plan("package.Model").environment == {}


@pytest.mark.usefixtures("_files")
def test_the_improvement_stands_behind_the_safety_node() -> None:
    plan = sim_improve_plan("demos", "out", overrides=["rollouts=3"])
    assert [process.name for process in plan.processes] == ["sim_robot", "safety", "improve"]
    assert all(process.essential for process in plan.processes)
    assert plan.processes[-1].command()[2:] == [
        *("robo_reward.cli.main", "improve", "+robot=simulated", "demos=demos", "out=out", "rollouts=3"),
    ]
    with_model = sim_improve_plan("demos", "out", model="runs/drawer")
    assert [process.name for process in with_model.processes] == ["sim_robot", "safety", "reward", "improve"]
    assert "model=runs/drawer" in with_model.processes[-1].arguments


def test_a_replay_ends_with_its_bag(tmp_path: Path) -> None:
    reward, player = replay_plan(tmp_path, "package.Model", rate=2.0).processes
    assert (reward.essential, player.essential) == (False, True)
    assert reward.parameters["use_sim_time"] is True
    assert player.parameters["rate"] == 2.0
    assert player.parameters["episodes"] is True


def test_a_replay_plays_what_the_reward_node_reads_and_no_command(tmp_path: Path) -> None:
    player = replay_plan(tmp_path, "package.Model").processes[-1]
    topics = ["/front/image_raw", "/wrist/image_raw/compressed", "/episode_marker"]
    assert player.parameters["optional"] == topics  # of params/reward.yaml
    assert "topics" not in player.parameters
    chosen = replay_plan(tmp_path, "package.Model", topics=["/a"]).processes[-1].parameters
    assert (chosen["topics"], "optional" in chosen) == (["/a"], False)
    params = tmp_path / "own.yaml"
    params.write_text(
        "/**:\n  ros__parameters:\n    cameras: [left, right, top]\n    success_source: topic\n"
        "    camera.left.transport: compressed\n    camera: {right: {topic: right/rgb}}\n"
        "/arm/reward:\n  ros__parameters: {camera.top.topic: /top}\n"
        "arm:\n  '*':\n    ros__parameters: {proprio_topic: joint_states}\n"
        "/other/reward:\n  ros__parameters: {cameras: [nose]}\n"
        "safety:\n  ros__parameters: {cameras: [ear]}\n"
    )
    player = replay_plan(tmp_path, "package.Model", params, namespace="arm", markers="/m").processes[-1]
    names = ["left/image_raw/compressed", "right/rgb", "/top", "joint_states", "success"]
    absolute = [name if name.startswith("/") else f"/arm/{name}" for name in names]
    assert player.parameters["optional"] == [*absolute, "/m"]
    params.write_text(
        "/**:\n  ros__parameters:\n    cameras: [left]\n    camera.left.topic: ~/left\n"
        "    proprio_topic: ~/body\n"
    )
    for namespace, place in (("arm", "/arm/reward"), ("", "/reward")):
        player = replay_plan(tmp_path, "package.Model", params, namespace=namespace).processes[-1]
        assert player.parameters["optional"] == [f"{place}/left", f"{place}/body", "/episode_marker"]
    params.write_text("safety:\n  ros__parameters: {cameras: [ear]}\n")
    with pytest.raises(ConfigError, match="names no cameras for the node '/reward'"):
        replay_plan(tmp_path, "package.Model", params)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no parameter file"):
        reward_plan("package.Model", params=tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="namespace '1arm': '1arm' is no name"):
        reward_plan("package.Model", namespace="1arm")
    with pytest.raises(ConfigError, match="no bag"):
        replay_plan(tmp_path / "missing", "run")
    with pytest.raises(ConfigError, match="rate is 0"):
        replay_plan(tmp_path, "run", rate=0)
    with pytest.raises(ConfigError, match=r"no parameter file 'other\.yaml' in"):
        params_file("other.yaml")


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (["reward", "plan.model=nope"], "no run at 'nope': train one"),
        (["reward", "plan.model=demos"], "no model at 'demos': 'model.json' is not there"),
        (["replay", "plan.bag=demos", "plan.model=runs/nope"], "no run at 'runs/nope'"),
        (["sim_improve", "plan.out=o", "plan.demos=nope"], "no demonstrations at 'nope'"),
        (["sim_improve", "plan.out=o", "plan.demos=demos", "plan.model=nope"], "no run at 'nope'"),
    ],
)
@pytest.mark.usefixtures("_files")
def test_what_is_not_there_is_told_before_anything_starts(
    plan: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("robo_reward_ros.launching.run_plan", lambda _: pytest.fail("it started"))
    assert main(["launch", f"plan={plan[0]}", *plan[1:]]) == 1
    assert message in capsys.readouterr().err


def test_an_installed_bringup_wins_over_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "share/robo_reward_bringup/params/reward.yaml"
    installed.parent.mkdir(parents=True)
    installed.write_text("/**: {ros__parameters: {cameras: [front]}}")
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    assert params_file("reward.yaml") == installed


@pytest.mark.parametrize(
    "name",
    ["reward.yaml", "reward_simulated.yaml", "sim_robot.yaml", "safety_simulated.yaml", "safety_arm.yaml"],
)
def test_every_parameter_file_reads_and_explains_itself(name: str) -> None:
    path = params_file(name)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert yaml.safe_load(text)["/**"]["ros__parameters"]


def test_layouts_read(repo: Path) -> None:
    layout = json.loads((repo / "launch/config/reward.foxglove.json").read_text(encoding="utf-8"))
    assert set(_leaves(layout["layout"])) == set(layout["configById"])
    rviz = yaml.safe_load((repo / "launch/config/reward.rviz").read_text(encoding="utf-8"))
    assert rviz["Visualization Manager"]["Displays"]


def _leaves(node: Any) -> list[str]:
    return [node] if isinstance(node, str) else [*_leaves(node["first"]), *_leaves(node["second"])]


@pytest.mark.parametrize("name", ["reward", "replay", "sim_improve"])
def test_launch_files_build_their_plan(repo: Path, name: str) -> None:
    launch = pytest.importorskip("launch.actions", reason="ROS 2's launch is not on PyPI")
    module = runpy.run_path(str(repo / "launch" / f"{name}.launch.py"))
    entities = module["generate_launch_description"]().entities
    declared = [entity.name for entity in entities if isinstance(entity, launch.DeclareLaunchArgument)]
    assert "model" in declared
    assert any(isinstance(entity, launch.OpaqueFunction) for entity in entities)


@pytest.mark.parametrize(
    ("name", "required"),
    [
        ("reward", {"model": "runs/drawer"}),
        ("replay", {"bag": "demos", "model": "runs/drawer"}),
        ("sim_improve", {"demos": "demos", "out": "o"}),
    ],
)
@pytest.mark.usefixtures("_files")
def test_a_launch_file_and_the_command_start_the_same_by_default(
    repo: Path, name: str, required: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arguments as text and back, as ROS's `launch` passes them; that package itself is not on PyPI."""
    kept = SimpleNamespace(description=lambda make, arguments: (make, arguments))
    monkeypatch.setitem(sys.modules, "robo_reward_ros.launch_actions", kept)
    module = runpy.run_path(str(repo / "launch" / f"{name}.launch.py"))
    make, arguments = module["generate_launch_description"]()
    texts = {key: default_text(default) for key, (default, _) in arguments.items()} | required
    assert None not in texts.values(), "a required argument that the command does not require"
    config = yaml.safe_load((repo / f"configs/plan/{name}.yaml").read_text(encoding="utf-8"))
    assert make(**values(arguments, texts)) == instantiate(config | required)
    assert arguments.keys() == config.keys() - {"_target_"}


def test_what_is_typed_becomes_a_value_or_is_refused() -> None:
    arguments = {
        "clock": (False, ""),
        "rate": (1.0, ""),
        "words": ((), ""),
        "name": ("x", ""),
        "bag": (None, ""),
    }
    assert [default_text(default) for default, _ in arguments.values()] == ["False", "1.0", "", "x", None]
    assert default_text(("a=1", "b=2")) == "a=1 b=2"
    assert values(arguments, {"clock": "", "words": "", "name": ""}) == {}
    typed = values(arguments, {"clock": "Yes", "rate": "2", "words": "a=1  b=2", "name": "1", "bag": "b"})
    assert typed == {"clock": True, "rate": 2.0, "words": ("a=1", "b=2"), "name": "1", "bag": "b"}
    for text, value in {"on": True, "TRUE": True, "1": True, "off": False, "no": False, "0": False}.items():
        assert values(arguments, {"clock": text}) == {"clock": value}
    with pytest.raises(ConfigError, match="clock is 'ture': say true or false"):
        values(arguments, {"clock": "ture"})
    with pytest.raises(ConfigError, match="rate is 'fast': say a number"):
        values(arguments, {"rate": "fast"})


@pytest.mark.usefixtures("_files")
def test_the_command_shows_what_it_would_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "plan=sim_improve", "plan.demos=demos", "plan.out=o", "dry_run=true"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("-m ")[1].split()[0] for line in lines] == [
        "robo_reward_ros.sim_robot_node",
        "robo_reward_ros.safety_node",
        "robo_reward.cli.main",
    ]


def _script(tmp_path: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return name


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["foreground", "background"])
def _sigint(request: pytest.FixtureRequest) -> Generator[None]:
    """SIGINT as a shell leaves it to what it runs in the foreground, and in the background."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_sigint")
def test_everything_ends_with_the_essential_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waiter = _script(
        tmp_path,
        "waiter",
        "import time\nprint('up', flush=True)\ntry:\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('asked', flush=True)\n",
        monkeypatch,
    )
    failing = _script(tmp_path, "failing", "import time\ntime.sleep(1)\nraise SystemExit(3)\n", monkeypatch)
    plan = Plan((Process("waits", waiter, is_node=False), Process("fails", failing, is_node=False)))
    with pytest.raises(LaunchError, match="'fails' ended with status 3"):
        run_plan(plan)
    assert capsys.readouterr().out.splitlines() == ["[waits] up", "[waits] asked"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_a_launch_that_is_asked_to_end_ends_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """And goes on doing so where it is asked again meanwhile: a robot's nodes must not be left running."""
    slow = _script(
        tmp_path,
        "slow",
        "import os, time\nprint('up', os.getpid(), flush=True)\ntry:\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('asked', flush=True)\n    time.sleep(1)\n"
        "    print('ended', flush=True)\n",
        monkeypatch,
    )
    processes = ", ".join(f"Process({name!r}, {slow!r}, is_node=False)" for name in ("one", "two"))
    program = (
        "import signal, sys\n"
        # What a shell leaves to what it runs in the foreground, whatever runs this test.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        f"sys.path += {sys.path!r}\n"
        "from robo_reward_ros.launch_plan import Plan, Process\n"
        "from robo_reward_ros.launching import run_plan\n"
        f"run_plan(Plan(({processes})))\n"
    )
    launch = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert launch.stdout is not None
    lines: list[str] = []
    while sum("up" in line for line in lines) < 2:
        lines.append(launch.stdout.readline())
        assert lines[-1], "it ended by itself"
    pids = [int(line.split()[-1]) for line in lines]
    launch.send_signal(number)
    lines.append(launch.stdout.readline())
    launch.send_signal(number)
    rest, errors = launch.communicate(timeout=60)
    said = [*lines[2:], *rest.splitlines(keepends=True)]
    # The last that was started comes first, and the next one once it has ended.
    assert said == [f"[{name}] {word}\n" for name in ("two", "one") for word in ("asked", "ended")]
    assert errors.endswith("KeyboardInterrupt\n")
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_launch_that_is_killed_leaves_nothing_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = _script(
        tmp_path, "slow", "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n", monkeypatch
    )
    program = (
        f"import sys\nsys.path += {sys.path!r}\n"
        "from robo_reward_ros.launch_plan import Plan, Process\n"
        "from robo_reward_ros.launching import run_plan\n"
        f"run_plan(Plan((Process('one', {slow!r}, is_node=False),)))\n"
    )
    launch = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert launch.stdout is not None
    pid = int(launch.stdout.readline().split()[-1])
    launch.kill()
    launch.communicate()
    try:
        for _ in range(2400):
            if not _runs(pid):
                break
            time.sleep(0.05)
        assert not _runs(pid)
    finally:
        if _runs(pid):
            os.kill(pid, signal.SIGKILL)


def test_what_crashed_comes_back_and_what_refused_does_not() -> None:
    reward = Process("reward", "module", essential=False, respawn=True)
    assert [reward.comes_back(status) for status in (-9, CRASHED, 1, 0)] == [True, True, False, False]
    assert not Process("safety", "module").comes_back(-9)


@pytest.mark.parametrize("session", [False, True], ids=["its_session", "own_session"])
def test_what_a_process_leaves_behind_does_not_keep_the_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, session: bool
) -> None:
    """A child of the child, with its output: it is killed, but for one that has left the session."""
    leaves = _script(
        tmp_path,
        "leaves",
        "import subprocess, sys, time\n"
        "program = 'import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)'\n"
        f"left = subprocess.Popen([sys.executable, '-c', program], start_new_session={session})\n"
        "open('left', 'w').write(str(left.pid))\n"
        "try:\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    pass\n",
        monkeypatch,
    )
    waits = (
        "import os, time\nwhile not (os.path.exists('left') and open('left').read()):\n    time.sleep(0.05)\n"
    )
    ends = _script(tmp_path, "ends", waits, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("robo_reward_ros.launching._GRACE_S", 2.0)
    plan = Plan((Process("leaves", leaves, is_node=False), Process("ends", ends, is_node=False)))
    launch = threading.Thread(target=run_plan, args=(plan,), daemon=True)
    launch.start()
    launch.join(timeout=60)
    pid = int((tmp_path / "left").read_text())
    try:
        assert not launch.is_alive()
        while not session and _runs(pid):  # its output is closed a moment before it is gone
            time.sleep(0.01)
        assert _runs(pid) == session
    finally:
        if _runs(pid):
            os.kill(pid, signal.SIGKILL)


def _runs(pid: int) -> bool:
    """Whether it is there, and not merely waiting for who adopted it to notice that it was killed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_node_that_is_killed_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dies = _script(
        tmp_path,
        "dies",
        f"import os, signal\nprint('up', flush=True)\nos.kill(os.getpid(), {signal.SIGKILL})\n",
        monkeypatch,
    )
    ends = _script(tmp_path, "ends", "import time\ntime.sleep(3)\n", monkeypatch)
    plan = Plan(
        (
            Process("node", dies, is_node=False, essential=False, respawn=True),
            Process("job", ends, is_node=False),
        )
    )
    run_plan(plan)
    output = capsys.readouterr()
    assert output.out.count("[node] up") >= 2
    assert "[node] ended with status -9: starting it again" in output.err
