"""`import robo_reward` and the command line's help are cheap: heavy packages come when they are used."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = frozenset(
    [
        "av",
        "cv2",
        "gymnasium",
        "hydra",
        "lerobot",
        "lightning",
        "lightning_fabric",
        "metaworld",
        "mujoco",
        "pandas",
        "pyarrow",
        "rclpy",
        "rich",
        "robo_reward_data",
        "robo_reward_sim",
        "scipy",
        "torch",
        "torchvision",
        "zarr",
    ]
)


def _imported_by(code: str) -> set[str]:
    report = "import json, sys; sys.stdout.write(chr(10) + json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_package_imports_nothing_but_itself() -> None:
    bare = _imported_by("")
    added = {name.split(".")[0] for name in _imported_by("import robo_reward") - bare}
    assert added - set(sys.stdlib_module_names) == {"robo_reward"}


@pytest.mark.parametrize(
    "code",
    [
        "import robo_reward.schema",
        "import robo_reward.cli.doctor",
        "from robo_reward.cli.main import main; main(['--help'])",
        "from robo_reward.cli.main import main; main(['doctor', '--help'])",
    ],
)
def test_data_types_and_help_import_nothing_heavy(code: str) -> None:
    assert {name.split(".")[0] for name in _imported_by(code)} & HEAVY == set()
