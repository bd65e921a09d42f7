"""Exit statuses and one-line errors, as scripts see them."""

from __future__ import annotations

import errno
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from robo_reward.api import RewardModel
from robo_reward.cli import demo
from robo_reward.cli import main as cli
from robo_reward.errors import DataError
from robo_reward.evaluate.run import metric_table
from robo_reward.metrics import Metric
from robo_reward.schema import LiveMoment, ProgressEstimate
from robo_reward.sources import command_line, name_sources, typed_command


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "robo_reward.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@dataclass(frozen=True)
class StubConfig:
    path: str
    count: int
    note: str | None = None
    on_error: str = "stop"
    data: Any = None
    names: list[str] | None = None
    cameras: dict[str, str] = field(default_factory=dict)


def stub(config: StubConfig) -> None:
    if config.path == "refuse":
        raise DataError(f"'{config.path}' has {config.count} frames: record it again")
    if config.path == "crash":
        raise ZeroDivisionError("count is zero\nand more")
    if config.path == "interrupt":
        raise KeyboardInterrupt
    if config.path == "full":
        raise OSError(errno.ENOSPC, "No space left on device")
    if config.path == "locked":
        raise PermissionError(13, "Permission denied", "/there/x")
    print(f"{config.path} {config.count + 1} {config.note}")


def two_arguments(config: StubConfig, other: int) -> None:
    """No command: it takes two."""


@pytest.fixture
def stub_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stub_commands", sys.modules[__name__])
    monkeypatch.setattr(cli, "config_dir", lambda: tmp_path)
    body = (
        "path: ??? # which\ncount: 1 # how many\nnote: null # remark\n"
        "# where one fails:\non_error: stop # stop or skip\n"
        "data: null # one or several\nnames: null # several\ncameras: {} # by name\n"
    )
    for name, target in (("stub", "stub"), ("wrong", "two_arguments"), ("gone", "nothing_here")):
        text = f"# the {name} command\n_target_: stub_commands.{target}\n{body}"
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")


@pytest.mark.usefixtures("stub_command")
@pytest.mark.parametrize(
    ("arguments", "status", "out", "err"),
    [
        (["stub", "path=a"], 0, "a 2 None\n", ""),
        (["stub", "path=a b", "count=41", "note=x"], 0, "a b 42 x\n", ""),
        (["stub", "--path", "a", "--count=2", "note=x"], 0, "a 3 x\n", ""),
        (["stub", "--path=a b", "--count", "-5"], 0, "a b -4 None\n", ""),
        (["stub", "--path=a", "--note=", "--on-error", "skip"], 0, "a 2 \n", ""),
        (["stub", "--path="], 2, "", "robo-reward: path= is empty: name a place, or leave it out\n"),
        (["stub", "path=refuse"], 1, "", "robo-reward: 'refuse' has 1 frames: record it again\n"),
        (["stub"], 2, "", "robo-reward: 'stub' needs path=... (see: robo-reward stub --help)\n"),
        (["stub", "path=interrupt"], 130, "", "robo-reward: interrupted\n"),
    ],
)
def test_status_and_output(
    arguments: list[str], status: int, out: str, err: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == status
    assert tuple(capsys.readouterr()) == (out, err)


@pytest.mark.usefixtures("stub_command")
@pytest.mark.parametrize(
    ("arguments", "status", "names"),
    [
        (["stub", "path=a", "count=many"], 2, "'many'"),
        (["stub", "path=a", "speed=2"], 2, "'speed'"),
        (["stub", "path=a", "count"], 2, "'count'"),
        (["stub", "path=a", "--count"], 2, "'--count' has no value: write --count VALUE"),
        (["stub", "--count", "--path", "a"], 2, "'--count' has no value"),
        (["stub", "path=a", "--top-speed", "2"], 2, "'top_speed'"),
        (["fly"], 2, "no command 'fly': choose one of gone, stub, wrong"),
        (["fly", "--help"], 2, "no command 'fly'"),
        (["stub", "path=crash"], 1, "ZeroDivisionError: count is zero"),
        (["stub", "path=full"], 1, "the disk is full: make room and give the same command again"),
        (["stub", "path=locked"], 1, "cannot use '/there/x': Permission denied"),
        (["stub", "path"], 2, "'path' has no value: write path=VALUE"),
        (["stub", "-m", "path=a,b"], 2, "'-m': one command is one run"),
        (["stub", "path=a", "names=b"], 2, "names is a list: write names=[A,B]"),
        (["stub", "path=a", "cameras=b"], 2, "cameras is a mapping: write cameras='{NAME: VALUE}'"),
        (["stub", "path=a", "data=[b, {c: '}]"], 2, "cannot read data=[b, {c: '}]"),
        (["stub", "path=a", "cameras.x=["], 2, ": cannot read cameras.x=["),
        (["stub", "path=a", "size=big"], 2, "'size'"),
        (["gone", "path=a"], 1, "has no 'nothing_here'"),
        (["wrong", "path=a"], 1, "must take one dataclass"),
    ],
)
def test_errors_are_one_line_that_names_the_thing(
    arguments: list[str], status: int, names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("robo-reward: ")
    assert err.count("\n") == 1
    assert names in err


def test_a_mapping_without_keys_of_its_own_takes_any() -> None:
    needed = ["env=e", "demos=d", "out=o"]
    _, config = cli.load_config("improve", [*needed, "env_args.max_episode_steps=50", "env_args.look=it's"])
    assert config.env_args == {"max_episode_steps": 50, "look": "it's"}
    _, config = cli.load_config("record", ["out=o", "mix.expert=0.5", "mix.noisy=1"])
    assert config.mix == {"expert": 0.5, "noisy": 1.0}
    with pytest.raises(cli.UsageError, match=r"no key 'blind_args.cams'.*write \+blind_args.cams=VALUE"):
        cli.load_config("improve", [*needed, "blind_args.cams=3"])


TYPED = [
    "2026_11_21",
    "1e5",
    "007",
    "run (1)",
    "it's für 箱",
    "a, b=c",
    "~/x#y",
    'say "go"',
    "C:\\x\\",
    "a[1]{b}",
]


@pytest.mark.usefixtures("stub_command")
@pytest.mark.parametrize("text", [*TYPED, "true"])
def test_text_arrives_as_it_was_typed(text: str) -> None:
    """Hydra's grammar would refuse most of these, and make the folder 20261121 of the first."""
    _, config = cli.load_config("stub", [f"path={text}", f"note={text}", f"data={text}"])
    assert (config.path, config.note, config.data) == (text, text, text)


def test_a_folder_like_a_number_is_a_folder() -> None:
    pytest.importorskip("metaworld", reason="no simulator here: pip install 'robo-reward[sim]'")
    _, config = cli.load_config("record", ["env=x", "out=2026_11_21", "episodes=1_000"])
    assert (config.out, config.episodes) == (Path("2026_11_21"), 1000)
    _, config = cli.load_config("launch", ["plan=replay", "plan.model=m", "plan.bag=2026_11_21"])
    assert config.plan["bag"] == "2026_11_21"


def test_a_tilde_is_the_home_folder_as_in_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """`out=~/runs` made a folder named ~: shells expand it at the start of a word alone."""
    monkeypatch.setenv("HOME", "/home/me")
    heard: list[str] = []
    monkeypatch.setattr(cli, "run_command", lambda _, overrides: heard.extend(overrides))
    assert cli.main(["stub", "~x", "path=~/a", "data=[~/b, ~/c~/d,~x]", "--note-to", "~", "text='~/e'"]) == 0
    assert heard == [
        *("~x", "path=/home/me/a", "data=[/home/me/b, /home/me/c~/d,~x]", "note_to=/home/me", "text='~/e'"),
    ]


@pytest.mark.usefixtures("stub_command")
def test_lists_of_text_arrive_as_they_were_typed() -> None:
    _, config = cli.load_config("stub", ["path=x", "data=[a b,run (1), 2026_11_21]", "names=['a, b','ü']"])
    assert config.data == ["a b", "run (1)", "2026_11_21"]
    assert config.names == ["a, b", "ü"]
    # As `robo-reward label` tells its users to write.
    _, config = cli.load_config("stub", ["path=x", "cameras={front: top, wrist: 'a, b'}"])
    assert config.cameras == {"front": "top", "wrist": "a, b"}


@pytest.mark.usefixtures("stub_command")
def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["stub", "path=refuse", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        cli.main(["stub", "path=crash", "--debug"])


@pytest.mark.usefixtures("stub_command")
def test_overview_lists_each_command_with_its_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "stub   the stub command" in text
    assert cli.main([]) == 2


@pytest.mark.usefixtures("stub_command")
def test_help_lists_keys_defaults_and_the_options_of_groups(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["stub", "--help"]) == 0
    assert capsys.readouterr().out == (
        "usage: robo-reward stub [key=value ...] [--debug]\n\nthe stub command\n\n"
        "keys and their defaults (--some-key value works too):\n"
        "  path=...       required: which\n"
        "  count=1        how many\n"
        "  note=null      remark\n"
        "  on_error=stop  where one fails: stop or skip\n"
        "  data=null      one or several\n"
        "  names=null     several\n"
        "  cameras={}     by name\n"
    )
    (tmp_path / "size").mkdir()
    (tmp_path / "size" / "big.yaml").write_text("# @package size\n# A lot.\nlines: 9\n")
    (tmp_path / "grown.yaml").write_text(
        "# the grown command\ndefaults:\n  - size: big # how much\n  - _self_\n"
        "part: # of it\n  first: [1, 2] # from here\nlast: 1.0e-3 # to there\n"
    )
    assert cli.main(["grown", "-h"]) == 0
    text = capsys.readouterr().out
    assert "  part.first=[1, 2]  from here\n  last=1.0e-3        to there\n" in text
    assert "\nsize (default: big), a set of further keys:\n  size=big  A lot.\n" in text
    assert text.endswith("  the keys of one: robo-reward grown size=big --help\n")
    assert cli.main(["grown", "size=big", "--help"]) == 0
    assert capsys.readouterr().out.endswith("\nkeys of size=big and their defaults:\n  size.lines=9\n")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("mintues=3", "minutes"),
        ("windows.framez=3", "windows.frames"),
        ("netwrok=base", "network"),
        ("network.widht=3", "network.width"),
    ],
)
def test_a_mistyped_key_is_answered_with_the_likely_one(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "data=a", "out=b", typed]) == 2
    assert f"no key '{typed.partition('=')[0]}': did you mean '{meant}'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "typed", "meant"),
    [
        (["train", "data=a", "out=b"], "device=cuda", "accelerator"),
        (["label", "model=a", "dataset=b"], "accelerator=gpu", "device"),
    ],
)
def test_a_key_of_another_command_is_answered_with_the_one_that_does_it_here(
    command: list[str], typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*command, typed]) == 2
    assert f"no key '{typed.partition('=')[0]}': did you mean '{meant}'?" in capsys.readouterr().err


def test_a_mapping_that_is_given_twice_is_told_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    """It was answered with "no key 'env_args': did you mean 'env_args'?"."""
    twice = ["env_args={max_episode_steps: 4}", "env_args={action_repeat: 10}"]
    assert cli.main(["run_policy", "policy=a", "env=b", "out=c", *twice]) == 2
    assert "'env_args' is given twice: write env_args='{NAME: VALUE, OTHER" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "options"),
    [
        (["train", "data=a", "out=b", "network.encoder.name=resnet18"], "network=base"),
        (["import", "source=lerobot", "path=a", "out=b", "source.slop_s=1"], "source=rosbag"),
    ],
)
def test_a_key_of_another_option_names_that_option(
    typed: list[str], options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was said to be given twice."""
    assert cli.main(typed) == 2
    assert (
        f"'{typed[-1].partition('=')[0]}' is a key of {options}: choose that too" in capsys.readouterr().err
    )


def test_the_command_in_a_report_is_one_that_runs() -> None:
    """evaluate wrote `data=a, b` for several stores."""
    typed = shlex.split(command_line("evaluate", {"data": ["run (1)", "c d"]}, model="it's", out="o"))
    assert typed[:2] == ["robo-reward", "evaluate"]
    _, config = cli.load_config("evaluate", typed[2:])
    assert (config.data, config.model, config.out) == (["run (1)", "c d"], "it's", "o")
    assert command_line("evaluate", {"data": "a"}) == "robo-reward evaluate data=a"
    with typed_command("evaluate", ["data=a b", "device=cuda"]):
        assert command_line("evaluate", {"data": "a b"}) == "robo-reward evaluate 'data=a b' device=cuda"
        assert command_line("compare", {"test": "t"}) == "robo-reward compare test=t"
    assert [name_sources(paths) for paths in ("a", ["a", "b"], list("abcd"))] == ["a", "[a,b]", "4 stores"]


def test_stores_in_brackets_are_no_markup() -> None:
    told = StringIO()
    Console(file=told, width=200).print(metric_table("model on [a,b]", {"ece": Metric.exact(0.5, 1)}))
    assert "model on [a,b]" in told.getvalue()


def one_moment(*_: object) -> Iterator[LiveMoment]:
    yield LiveMoment({}, 0, 0.0, 0, success=False)


class BlindModel(RewardModel):
    instructions = ("go",)

    def __init__(self) -> None:
        """No checkpoint."""

    def stage_names(self, instruction: str) -> tuple[str, ...]:
        return ("a", "b")

    def stream(self, instruction: str | None = None) -> Any:
        nothing = ProgressEstimate.invalid("no camera frame", 2, 0, "v")
        return SimpleNamespace(push=lambda *_, **__: nothing)


def test_the_demo_tells_a_moment_without_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stub_commands", sys.modules[__name__])
    told = StringIO()
    demo.stream_live(BlindModel(), demo.DemoConfig(live="stub_commands.one_moment"), Console(file=told))
    assert "no estimate: no camera frame" in told.getvalue()


def test_the_process_exits_with_the_status() -> None:
    assert _run("--version").stdout.startswith("robo-reward 0.")
    overview = _run("--help")
    assert overview.returncode == 0
    assert "doctor" in overview.stdout
    unknown = _run("fly")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert unknown.stderr.startswith("robo-reward: no command 'fly'")
    assert "Traceback" not in unknown.stderr


def test_modules_in_the_current_folder_are_found(tmp_path: Path) -> None:
    """By the console script too, whose first folder is its own."""
    source = """
class Importer:
    def __init__(self, annotation): pass
    def recordings(self, path): return []
"""
    (tmp_path / "own_module.py").write_text(source)
    script = Path(sys.executable).with_name("robo-reward")
    arguments = ["import", "source=lerobot", "source._target_=own_module.Importer", "path=.", "out=store"]
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("own_module")) == (0, 0), done.stderr


def test_a_mapping_that_is_there_says_how_a_name_is_added_to_it() -> None:
    """It said that there was no such key."""
    asked = ["+experiment=one_demo", "out=runs/x", "record.mix={expert: 1}"]
    with pytest.raises(
        cli.UsageError, match=r"'record.mix' has no 'expert': .* write \+record.mix.expert=VALUE"
    ):
        cli.load_config("improve", asked)
