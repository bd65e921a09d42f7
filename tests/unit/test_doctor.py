"""What the doctor says of machines unlike this one, and that it never crashes on this one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from robo_reward.cli import doctor as clinic
from robo_reward.cli.main import main
from robo_reward.errors import RoboRewardError

NO_ROS = clinic.RosFacts(
    wheel="", sourced="", installed=(), trouble="No module named 'rclpy'", has_wheels=True
)


def test_this_machine_has_everything_required(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "json=true"]) == 0
    findings = {row["part"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"Python", "torch", "OpenCV", "rendering", "ROS 2", "Fast DDS"} <= set(findings)
    for row in findings.values():
        assert row["status"] in ("ok", "missing", "problem")
        assert row["found"]
        assert row["purpose"]
        assert row["status"] == "ok" or row["mend"] or row["part"] == "Fast DDS"


def test_the_table_shows_each_command_that_mends_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    mend = "sudo apt-get install -y " + " ".join(f"library-{n}" for n in range(30))
    clinic.print_table([clinic.Finding("rendering", clinic.Status.PROBLEM, "crashed", "images", mend)])
    out = capsys.readouterr().out
    assert f"rendering: {mend}" in out.splitlines()
    assert "problem" in out


def test_only_a_broken_required_part_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = clinic.Finding("ROS 2", clinic.Status.PROBLEM, "mixed", "robots", "mend it")
    monkeypatch.setattr(clinic, "diagnose", lambda: [fine])
    clinic.doctor(clinic.DoctorConfig(json=True))
    monkeypatch.setattr(clinic, "diagnose", lambda: [fine, replace(fine, part="torch", required=True)])
    with pytest.raises(RoboRewardError, match=r"torch \(mixed\); mend it with: mend it"):
        clinic.doctor(clinic.DoctorConfig(json=True))


def test_a_check_that_raises_is_itself_a_finding() -> None:
    def _broken() -> clinic.Finding:
        raise OSError("no such device")

    finding = clinic.guarded(_broken)
    assert finding.status is clinic.Status.PROBLEM
    assert finding.found == "OSError: no such device"


@pytest.mark.parametrize(
    ("code", "trouble"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed with signal 11"),
        ("raise SystemExit('no driver')", "no driver"),
        ("print('not json')", "printed 'not json'"),
    ],
)
def test_a_crash_in_a_probe_becomes_one_line(code: str, trouble: str) -> None:
    assert clinic.probe(code) == trouble


@pytest.mark.parametrize(
    ("versions", "status", "required", "words"),
    [
        ({"opencv-python-headless": "4.13.0"}, "ok", True, ""),
        ({"opencv-python-headless": "4.13.0", "opencv-python": "4.9"}, "problem", False, "=4.13.0"),
        ({"opencv-python": "4.9"}, "problem", False, ""),
        ({}, "problem", True, ""),
    ],
)
def test_two_opencv_wheels_clash(versions: dict[str, str], status: str, required: bool, words: str) -> None:
    finding = clinic.opencv_finding(versions)
    assert (finding.status, finding.required) == (status, required)
    assert words in finding.mend


def test_messages_that_were_not_built_say_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clinic, "probe", lambda _: "No module named 'robo_reward_msgs'")
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    finding = clinic.messages_finding(has_ros=True)
    assert finding.status == "missing"
    sources = Path(finding.mend.split("   #")[0].split()[-1])
    assert (sources / "msg" / "ProgressEstimate.msg").is_file()
    monkeypatch.setenv("AMENT_PREFIX_PATH", "/opt/ros/jazzy")
    assert "colcon build" in clinic.messages_finding(has_ros=True).mend
    assert clinic.messages_finding(has_ros=False).mend == ""


@pytest.mark.parametrize(
    ("facts", "status", "words"),
    [
        (NO_ROS, "missing", "make setup"),
        (replace(NO_ROS, has_wheels=False), "missing", "docs.ros.org"),
        (replace(NO_ROS, installed=("jazzy",)), "missing", ". /opt/ros/jazzy/setup.sh"),
        (replace(NO_ROS, sourced="humble", installed=("humble",)), "problem", "3.12"),
        (replace(NO_ROS, wheel="9.1.2"), "problem", "make setup"),
        (replace(NO_ROS, wheel="9.1.2", sourced="jazzy", trouble=""), "problem", "uninstall"),
        (replace(NO_ROS, wheel="9.1.2", trouble=""), "ok", ""),
        (replace(NO_ROS, sourced="jazzy", trouble=""), "ok", ""),
    ],
)
def test_ros_comes_from_one_place(facts: clinic.RosFacts, status: str, words: str) -> None:
    finding = clinic.ros_finding(facts)
    assert finding.status == status
    assert words in finding.mend


def test_fast_dds_needs_a_profile_that_exists(tmp_path: Path) -> None:
    profile = tmp_path / "profile.xml"
    profile.write_text("<dds/>", encoding="utf-8")
    setting = {"FASTDDS_DEFAULT_PROFILES_FILE": str(profile)}
    assert clinic.fastdds_finding({}, has_ros=False).status == "missing"
    assert clinic.fastdds_finding({}, has_ros=True).status == "problem"
    assert clinic.fastdds_finding(setting, has_ros=True).status == "ok"
    mend = clinic.fastdds_finding({}, has_ros=True).mend
    assert mend.startswith("export FASTDDS_DEFAULT_PROFILES_FILE=")
    assert Path(mend.partition("=")[2]).is_file()
    # Jazzy does not read the new name.
    jazzy = clinic.fastdds_finding({**setting, "ROS_DISTRO": "jazzy"}, has_ros=True)
    assert jazzy.status == "problem"
    assert jazzy.mend.startswith("export FASTRTPS_DEFAULT_PROFILES_FILE=")
    profile.unlink()
    assert "does not exist" in clinic.fastdds_finding(setting, has_ros=True).found
    assert clinic.fastdds_finding({"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}, has_ros=True).status == "ok"
