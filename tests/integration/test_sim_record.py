"""The command `record`: parallel, resumable, and the same whatever the number of workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from robo_reward.cli.main import main
from robo_reward_data.store import EpisodeStore

FAST = ["image_size=[24,24]", "cameras=[right]", "mix={expert: 2, aborted: 1}", "max_decisions=40"]


def run(out: Path, *overrides: str) -> int:
    return main(["record", f"out={out}", *FAST, *overrides])


def test_a_recording_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "store"
    assert run(out, "episodes=2", "workers=1") == 0
    first = EpisodeStore.open(out).episodes[0].info
    assert run(out, "episodes=3", "workers=1") == 0
    assert "1 episodes" in capsys.readouterr().out.splitlines()[-1]
    store = EpisodeStore.open(out)
    assert [episode.info.name for episode in store.episodes] == [f"episode_{i:06d}" for i in range(3)]
    assert [episode.info.kind for episode in store.episodes] == ["expert", "aborted", "expert"]
    assert len({episode.info.uid for episode in store.episodes}) == 3
    assert store.episodes[0].info.uid == first.uid
    info = store.episodes[0].info
    assert info.truth is not None
    assert info.truth.valid.all()
    assert info.truth.tau[-1] == 1.0
    assert str(info.outcome) == "success"
    frames = store.episodes[0].read_frames("right", np.array([0, info.length - 1]))
    assert frames.shape == (2, 24, 24, 3)
    assert frames.std() > 10


def test_workers_change_nothing(tmp_path: Path) -> None:
    assert run(tmp_path / "one", "episodes=3", "workers=1", "seed=5") == 0
    assert run(tmp_path / "two", "episodes=3", "workers=2", "seed=5") == 0
    assert EpisodeStore.open(tmp_path / "one").fingerprint == EpisodeStore.open(tmp_path / "two").fingerprint
    for left, right in zip(
        EpisodeStore.open(tmp_path / "one").episodes,
        EpisodeStore.open(tmp_path / "two").episodes,
        strict=True,
    ):
        last = np.array([left.info.length - 1])
        assert np.array_equal(left.read_frames("right", last), right.read_frames("right", last))


def test_another_seed_gives_other_episodes(tmp_path: Path) -> None:
    for seed in (0, 1):
        assert run(tmp_path / str(seed), "episodes=1", f"seed={seed}", "workers=1") == 0
    uids = [EpisodeStore.open(tmp_path / str(seed)).episodes[0].info.uid for seed in (0, 1)]
    assert uids[0] != uids[1]


def test_a_store_of_other_options_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "store"
    assert run(out, "episodes=1", "workers=1") == 0
    assert run(out, "episodes=1", "workers=1", "seed=1") == 1
    assert "was recorded with seed=0, not seed=1" in capsys.readouterr().err
    assert run(out, "episodes=1", "workers=1", "mix={expert: 1}") == 1
    assert "mix=" in capsys.readouterr().err
    once = [*FAST[:2], FAST[3], f"out={tmp_path / 'even'}", "workers=1"]
    assert main(["record", *once, "episodes=1", "mix={expert: 1, aborted: 1}"]) == 0
    assert main(["record", *once, "episodes=2", "mix={aborted: 1, expert: 1}"]) == 1
    message = "was recorded with mix_order=['expert', 'aborted'], not mix_order=['aborted', 'expert']"
    assert message in capsys.readouterr().err
    even = EpisodeStore.open(tmp_path / "even")
    assert "light_recipe" not in even.attrs["record"]  # nor is any other store in another light
    noted = {key: value for key, value in even.attrs["record"].items() if key != "mix_order"}
    even.update_attrs({"record": noted})  # as earlier versions wrote it
    assert main(["record", *once, "episodes=2", "mix={expert: 1, aborted: 1}"]) == 0
    assert [e.info.kind for e in EpisodeStore.open(tmp_path / "even").episodes] == ["expert", "aborted"]
    EpisodeStore.create(tmp_path / "imported", attrs={"fps": 10})
    assert run(tmp_path / "imported", "episodes=1") == 1
    assert "'record' did not write" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env=robo_reward/Nothing-v0", "no simulated environment 'robo_reward/Nothing-v0'"),
        ("episodes=0", "episodes=0: must be 1 or more"),
        ("workers=0", "workers=0"),
        ("seed=-1", "seed=-1"),
        ("mix={perfect: 1}", "no demonstrator 'perfect'"),
        ("mix={expert: -1}", "mix.expert=-1.0"),
        ("mix={expert: 0}", "asks for no episodes"),
        ("image_size=[84]", r"image_size=\[84\]"),
        ("cameras=[]", r"cameras=\[\]"),
        ("cameras=[top]", "no camera 'top'"),
        ("cameras=[left,left]", "cameras=[left, left]: name each camera once"),
        (
            "writer=json.dumps",
            "writer=json.dumps has no create and no open: a writer makes a store with create",
        ),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    out = tmp_path / "store"
    assert main(["record", f"out={out}", "workers=1", override]) == 1
    captured = capsys.readouterr()
    assert len(captured.err.strip().splitlines()) == 1
    assert message.replace("\\", "") in captured.err
    assert not out.exists()
