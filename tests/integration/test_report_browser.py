"""The HTML report: what is written, and what headless Chromium makes of it."""

from __future__ import annotations

import dataclasses
import html
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from robo_reward.errors import DataError
from robo_reward.evaluate.report import Report, ReportEpisode, write_report
from robo_reward.metrics import Metric

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "open </script><script>document.title='owned'</script> the <b>drawer</b> & \u2028 {{data}}"
FRAMES = 40


def gray(camera: str, frame: int) -> int:
    """The gray level of a frame: it names the frame, differently for each camera."""
    return 20 + 5 * frame if camera == "front" else 235 - 5 * frame


def jpeg(level: int) -> bytes:
    return cv2.imencode(".jpg", np.full((24, 32, 3), level, np.uint8))[1].tobytes()


def make_episode(name: str, kind: str, mae: float | None, count: int = FRAMES) -> ReportEpisode:
    truth = np.linspace(0, 1, count, dtype=np.float32)
    valid = np.arange(count) >= 2
    progress = np.where(valid, truth, np.nan).astype(np.float32)
    return ReportEpisode(
        name=name,
        kind=kind,
        outcome="failure" if kind == "near_miss" else "success",
        instruction=HOSTILE,
        time_s=np.arange(count) / 10 + 1e9,
        progress=progress,
        low=progress - np.float32(0.1),
        high=progress + np.float32(0.1),
        stage=np.where(valid, np.arange(count) * 2 // count, -1),
        success_prob=progress,
        valid=valid,
        reasons=tuple("" if good else "warming up" for good in valid),
        stage_names=("reach", "pull"),
        truth_progress=truth,
        truth_stage=np.arange(count) * 2 // count,
        truth_stage_names=("reach", "pull"),
        truth_success=truth > 0.9,
        seen=np.arange(count) < 5,
        mae=mae,
        views={c: tuple(jpeg(gray(c, min(i, FRAMES))) for i in range(count)) for c in ("front", "wrist")},
    )


def make_report(*episodes: ReportEpisode) -> Report:
    metrics = {
        "progress_mae": Metric(0.04, 0.03, 0.05, 3),
        "tau_a": Metric.undefined(),
        "unheard_of": Metric.exact(math.inf, 1),
    }
    return Report(
        title="Drawer & <i>co</i>",
        facts={"model": HOSTILE},
        metrics=metrics,
        dropout={"without wrist": metrics},
        by_kind={"expert": metrics},
        calibration=(np.array([0.5, 0.9]), np.array([0.4, np.nan])),
        episodes=episodes,
        notes=("a note",),
    )


@pytest.fixture(scope="module")
def report() -> Report:
    return make_report(
        make_episode("episode_10", "expert", 0.2),
        make_episode("episode_9", "near_miss", 0.5),
        make_episode("episode_8", "expert", 0.1),
        make_episode("episode_7", "expert", None),
    )


def page_data(page: str, name: str) -> Any:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_page_holds_everything_and_asks_for_nothing(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(report, path)
    page = path.read_text(encoding="utf-8")
    assert [child.name for child in path.parent.iterdir()] == ["report.html"]
    assert re.findall(r"https?://[^\"]+", page) == ["http://www.w3.org/2000/svg"]
    assert "default-src 'none'" in page
    assert "<b>" not in page
    assert "<i>" not in page
    data = page_data(page, "report-data")
    assert data["facts"] == [["model", HOSTILE]]
    assert dict(data["metrics"])["unheard_of"] == {"value": None, "low": None, "high": None, "n": 1}
    first = data["episodes"][0]
    assert first["time"][:2] == [0, 0.1]
    assert first["progress"][:3] == [None, None, round(2 / 39, 4)]
    assert first["invalid"] == [[0, 2, "warming up"]]
    assert first["stages"] == [[2, 20, "reach"], [20, 40, "pull"]]
    assert len(page_data(page, "frames-3")["wrist"]) == FRAMES


def test_a_report_replaces_the_last_one_only_when_whole(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("the last report")
    broken = dataclasses.replace(report, title="\ud800")  # half a character: the file cannot be written
    with pytest.raises(UnicodeEncodeError, match="surrogates"):
        write_report(broken, path)
    assert path.read_text() == "the last report"
    assert list(tmp_path.iterdir()) == [path]


def test_episodes_that_do_not_fit_together_are_refused_by_name(report: Report, tmp_path: Path) -> None:
    good = report.episodes[0]
    views = {**good.views, "wrist": good.views["wrist"][:3]}
    for changed, message in (
        ({"views": views}, r"camera 'wrist' has 3 frames, time_s has 40: .* \(episode_10\)"),
        ({"reasons": ()}, "reasons has 0 frames"),
        ({"time_s": np.zeros(FRAMES)}, "time_s of episode 'episode_10' does not increase"),
    ):
        with pytest.raises(DataError, match=message):
            write_report(make_report(dataclasses.replace(good, **changed)), tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


# --- in the browser ------------------------------------------------------------------------------------

# Runs after the page's own scripts. `check(name, value)` records what happened; Python judges it.
PROBE = """
<script>
(async () => {
  const seen = {};
  const check = (name, value) => { seen[name] = value; };
  const state = window.__report;
  const names = () => [...document.querySelectorAll("#list .name")].map((node) => node.textContent);
  const press = (key, options = {}) => document.body.dispatchEvent(
    new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true, ...options }));
  const pressed = (key, options) => { press(key, options); return state.frame; };
  const until = async (condition) => {
    for (let i = 0; i < 400 && !condition(); i++) await new Promise((done) => setTimeout(done, 10));
    return condition();
  };
  const set = (label, value) => {
    const labels = [...document.querySelectorAll("#filters label")];
    const control = labels.find((node) => node.textContent.startsWith(label)).querySelector("select");
    control.value = value;
    control.dispatchEvent(new Event("change"));
  };
  const canvases = () => [...document.querySelectorAll(".views canvas")];
  const grays = async (frame) => {
    await until(() => canvases().every((canvas) => canvas.dataset.frame === String(frame)));
    return canvases().map((canvas) => canvas.getContext("2d").getImageData(16, 12, 1, 1).data[1]);
  };
  const pointer = (type, share) => {
    const chart = document.querySelector("svg.chart");
    const box = chart.getBoundingClientRect();
    const clientX = box.left + share * box.width;
    chart.dispatchEvent(new PointerEvent(type, { clientX, clientY: box.top + 50, bubbles: true }));
  };

  try {
    byId("player").scrollIntoView();
    check("worst first", names());
    check("chosen", document.querySelector("#player h3").textContent);
    check("instruction", document.querySelector(".instruction").textContent);
    check("markup", document.querySelectorAll("b, i").length);
    check("steps", [
      pressed("ArrowRight"), pressed("ArrowRight", { shiftKey: true }), pressed("ArrowLeft"),
      pressed("End"), pressed("ArrowRight"), pressed("ArrowLeft", { shiftKey: true }),
      pressed("Home"), pressed("ArrowLeft")]);
    check("invalid", document.querySelector(".readout .stage dd").textContent);
    for (let i = 0; i < 17; i++) press("ArrowRight");
    check("grays", await grays(17));
    check("readout", document.querySelector(".readout .frame dd").textContent);
    pointer("pointermove", 1);
    check("hovered", await grays(39));
    pointer("pointerleave", 1);
    check("left", await grays(17));
    press("j");
    check("j", document.querySelector("#player h3").textContent);
    press("ArrowDown");
    press("k");
    press("ArrowUp");
    press("ArrowUp");
    check("k", document.querySelector("#player h3").textContent);
    press(" ");
    check("played", await until(() => state.frame > 3) && state.playing);
    press(" ");
    check("paused", !state.playing);
    press("?");
    check("help", byId("help").open);
    press("?");
    check("help closed", !byId("help").open);
    set("Order", "best");
    check("best first", names());
    set("Order", "name");
    check("by name", names());
    set("Kind", "near_miss");
    check("near misses", [names(), document.querySelector("#player h3").textContent]);
    const before = document.documentElement.dataset.theme;
    byId("theme").click();
    check("theme", before !== document.documentElement.dataset.theme);
  } catch (error) {
    check("failed", String(error.stack));
  }
  check("errors", state.errors);
  document.body.append(el("pre", { id: "probe" }, JSON.stringify(seen)));
})();
</script>
"""


def browse(path: Path, profile: Path, fragment: str = "") -> str:
    """The document that Chromium has once the page's scripts are done."""
    assert BROWSER is not None
    quiet = "--no-first-run --disable-background-networking --disable-component-update --disable-sync"
    command = (
        f"{BROWSER} --headless --no-sandbox --disable-gpu {quiet} --virtual-time-budget=20000 --dump-dom"
    )
    result = subprocess.run(
        [*command.split(), f"--user-data-dir={profile}", path.as_uri() + fragment],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return result.stdout


def probe(report: Report, script: str, folder: Path, fragment: str = "") -> dict[str, Any]:
    path = folder / "report.html"
    write_report(report, path)
    page = path.read_text(encoding="utf-8")
    path.write_text(page.replace("</body>", f"{script}</body>"), encoding="utf-8")
    document = browse(path, folder / "profile", fragment)
    found = re.search(r'<pre id="probe">(.*?)</pre>', document, re.DOTALL)
    assert found is not None, "the page's scripts did not come to their end"
    return json.loads(html.unescape(found[1]))


needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the PATH"
)


@needs_browser
def test_keys_list_and_views_work_and_no_script_fails(report: Report, tmp_path: Path) -> None:
    seen = probe(report, PROBE, tmp_path)
    assert seen.get("failed") is None
    assert seen["errors"] == []
    assert seen["worst first"] == ["episode_9", "episode_10", "episode_8", "episode_7"]
    assert seen["chosen"] == "episode_9"
    assert seen["instruction"] == f"“{HOSTILE}”"
    assert seen["markup"] == 0
    assert seen["steps"] == [1, 11, 10, 39, 39, 29, 0, 0]
    assert seen["invalid"] == "invalid: warming up"
    for name, frame in (("grays", 17), ("hovered", 39), ("left", 17)):
        assert seen[name] == pytest.approx([gray("front", frame), gray("wrist", frame)], abs=1)
    assert seen["readout"] == "17 / 39"
    assert seen["j"] == "episode_10"
    assert seen["k"] == "episode_9"
    assert seen["played"]
    assert seen["paused"]
    assert seen["help"]
    assert seen["help closed"]
    assert seen["best first"] == ["episode_8", "episode_10", "episode_9", "episode_7"]
    assert seen["by name"] == ["episode_7", "episode_8", "episode_9", "episode_10"]
    assert seen["near misses"] == [["episode_9"], "episode_9"]
    assert seen["theme"]


BRIEF_PROBE = """
<script>
document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "End", bubbles: true }));
const outcome = { errors: state.errors, frame: state.frame, hidden: byId("episodes").hidden,
  views: document.querySelectorAll("canvas").length };
document.body.append(el("pre", { id: "probe" }, JSON.stringify(outcome)));
</script>
"""


@needs_browser
def test_one_long_episode_without_truth_and_no_episode_at_all(report: Report, tmp_path: Path) -> None:
    long = dataclasses.replace(
        make_episode("long", "", None, count=1277),
        truth_progress=None,
        truth_stage=None,
        truth_stage_names=(),
        truth_success=None,
        seen=None,
    )
    script = BRIEF_PROBE.replace("document", "byId('player').scrollIntoView();\ndocument", 1)
    (tmp_path / "long").mkdir()
    seen = probe(make_report(long), script, tmp_path / "long")
    assert seen == {"errors": [], "frame": 1276, "hidden": False, "views": 2}
    (tmp_path / "empty").mkdir()
    empty = dataclasses.replace(make_report(), metrics={}, dropout={}, by_kind={}, calibration=None, notes=())
    seen = probe(empty, BRIEF_PROBE, tmp_path / "empty")
    assert seen == {"errors": [], "frame": 0, "hidden": True, "views": 0}


LINK_PROBE = """
<script>
(async () => {
  const seen = { opened: [document.querySelector("#player h3").textContent, state.frame] };
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  step(2);
  await wait(1000);
  seen.address = location.hash;
  location.hash = "#episode_7@999";
  await wait(1000);
  seen.followed = [document.querySelector("#player h3").textContent, state.frame];
  location.hash = "#no such episode";
  await wait(1000);
  seen.unknown = document.querySelector("#player h3").textContent;
  seen.errors = state.errors;
  document.body.append(el("pre", { id: "probe" }, JSON.stringify(seen)));
})();
</script>
"""


@needs_browser
def test_a_link_opens_a_moment_and_the_address_follows(report: Report, tmp_path: Path) -> None:
    seen = probe(report, LINK_PROBE, tmp_path, "#episode_8@12")
    assert seen == {
        "opened": ["episode_8", 12],
        "address": "#episode_8@14",
        "followed": ["episode_7", FRAMES - 1],
        "unknown": "episode_7",
        "errors": [],
    }
