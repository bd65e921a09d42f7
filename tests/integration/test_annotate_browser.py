"""The annotation page in headless Chromium: keyboard, saving, undo, copies, two tabs, an outage."""

from __future__ import annotations

import contextlib
import html
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robo_reward.schema import Episode, EpisodeInfo, EpisodeReader, Outcome, ProgressLabel
from robo_reward_data.annotate import server as page_server
from robo_reward_data.annotate.auto import FoundStages
from robo_reward_data.annotate.journal import Marks
from robo_reward_data.annotate.server import AnnotationServer
from robo_reward_data.annotate.session import Session
from robo_reward_data.store import EpisodeStore

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the PATH"
)
HOSTILE = "<img src=x onerror=\"document.title='owned'\"> & {{scripts}}"
LENGTHS = (40, 60, 100, 3, 40)


def gray(camera: str, frame: int) -> int:
    """The gray level of a frame: it names the frame, differently for each camera."""
    return 20 + 2 * frame if camera == "front" else 235 - 2 * frame


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = EpisodeStore.create(tmp_path_factory.mktemp("annotate") / "store")
    for index, length in enumerate(LENGTHS):
        frames = {
            camera: np.stack([np.full((12, 16, 3), gray(camera, t), np.uint8) for t in range(length)])
            for camera in ("front", "wrist")
        }
        known = ProgressLabel(
            np.zeros(length, np.int64), np.zeros(length, np.float32), np.ones(length, np.bool_)
        )
        info = EpisodeInfo(
            name=f"episode_{index}",
            uid=str(index),
            cameras=("front", "wrist"),
            image_sizes={"front": (12, 16), "wrist": (12, 16)},
            stamp_ns=np.arange(length) * 100_000_000,
            instruction=HOSTILE,
            truth=known if index == 4 else None,
            outcome=Outcome.SUCCESS,
        )
        store.write(Episode(info, frames))
    return store.path


@pytest.fixture
def store(original: Path, tmp_path: Path) -> EpisodeStore:
    shutil.copytree(original, tmp_path / "store")
    return EpisodeStore.open(tmp_path / "store")


@contextlib.contextmanager
def serving(session: Session) -> Iterator[AnnotationServer]:
    server = AnnotationServer(session)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()
    session.close()


@pytest.fixture
def server(store: EpisodeStore) -> Iterator[AnnotationServer]:
    with serving(Session(store, names=("reach", "pull"))) as server:
        yield server


TOOLS = """
const seen = {};
const check = (name, value) => { seen[name] = value; };
const until = async (condition, times = 400) => {
  for (let i = 0; i < times && !condition(); i++) await new Promise((done) => setTimeout(done, 25));
  return Boolean(condition());
};
const press = (key, more = {}) => (document.activeElement ?? document.body)
  .dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true, ...more }));
const presses = (key, count) => { for (let i = 0; i < count; i++) press(key); };
const saved = () => until(() => !state.dirty.size && byId("saved").className === "saved");
const marks = () => ({ boundaries: [...current().boundaries], names: [...current().names] });
const shown = async (frame) => {
  await until(() => [0, 1].every((i) => byId(`view-${i}`).dataset.frame === String(frame)));
  return [0, 1].map((i) => byId(`view-${i}`).getContext("2d").getImageData(8, 6, 1, 1).data[0]);
};
const finish = () => {
  check("errors", state.errors);
  document.body.append(el("pre", { id: "probe" }, JSON.stringify(seen)));
};
const probe = async (work) => {
  try {
    await until(() => document.body.dataset.ready === "yes");
    await work();
  } catch (error) {
    check("failed", String(error.stack));
  }
  finish();
};
"""


def run_probe(
    server: AnnotationServer, script: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """What a script that runs after the page's own has seen."""
    plain = page_server._page

    def with_probe(nonce: str, page: str) -> str:
        text = f'<script nonce="{nonce}">{TOOLS}\nprobe(async () => {{{script}}});</script></body>'
        return plain(nonce, page).replace("</body>", text)

    monkeypatch.setattr(page_server, "_page", with_probe)
    quiet = "--no-first-run --disable-background-networking --disable-component-update --disable-sync"
    command = (
        f"{BROWSER} --headless --no-sandbox --disable-gpu {quiet} --virtual-time-budget=30000 --dump-dom"
    )
    result = subprocess.run(
        [*command.split(), f"--user-data-dir={folder / 'profile'}", server.url],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="probe">(.*?)</pre>', result.stdout, re.DOTALL)
    assert found is not None, "the page's scripts did not come to their end"
    seen = json.loads(html.unescape(found[1]))
    assert seen.get("failed") is None
    assert seen["errors"] == []
    assert "owned" not in result.stdout.split("<body", 1)[0]
    return seen


KEYBOARD = """
  check("instruction", byId("instruction").textContent);
  presses("ArrowRight", 9);
  press("ArrowRight", { shiftKey: true });
  check("views", await shown(19));
  press("m");
  check("first mark", marks());
  await saved();
  press("End");
  presses("ArrowLeft", 9);
  press("Enter");
  check("second mark", marks());
  press(","); press(",");
  check("moved", marks().boundaries);
  press("[");
  check("selected", state.selected);
  press("x");
  check("deleted", marks());
  press("z", { ctrlKey: true });
  check("undone", marks().boundaries);
  press("u"); press("u");
  check("undone thrice", marks().boundaries);
  press("U"); press("U"); press("z", { ctrlKey: true, shiftKey: true });
  check("redone", marks().boundaries);
  const terms = [...document.querySelectorAll("#readout dt")];
  check("phi", terms.map((term) => [term.textContent, term.nextSibling.textContent]));
  const field = document.querySelector("#stages input");
  field.focus();
  press("m"); // typing a letter is no command
  field.value = "<b>lift</b>";
  field.dispatchEvent(new Event("change"));
  field.blur();
  check("renamed", marks());
  check("markup", document.querySelectorAll("#bands b, #stages b, #instruction img").length);
  press("c");
  check("copied", [current().name, marks()]);
  await saved();
  press("c");
  check("copied again", [current().name, marks().boundaries]);
  press("c");
  check("shortest", [current().name, marks().boundaries]);
  press("c");
  check("last", current().name);
  press("j");
  press("m");
  check("locked", [current().name, byId("mark").disabled, marks().boundaries]);
  press("Home"); press(" ");
  check("played", await until(() => state.frame > 3));
  press(" ");
  check("paused", !state.playing);
  press("?");
  check("help", byId("help").open);
  press("?");
  const before = document.documentElement.dataset.theme;
  press("t");
  check("theme", before !== document.documentElement.dataset.theme);
  check("edges", [...document.querySelectorAll(".edge")].every((n) => n.getAttribute("aria-label")));
  await saved();
  check("done", byId("done").textContent);
"""


def test_an_episode_is_annotated_by_keyboard_and_all_of_it_is_stored(
    server: AnnotationServer, store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = run_probe(server, KEYBOARD, tmp_path, monkeypatch)
    assert seen["instruction"] == f"“{HOSTILE}”"
    assert seen["views"] == pytest.approx([gray("front", 19), gray("wrist", 19)], abs=1)
    assert seen["first mark"] == {"boundaries": [0, 19, 40], "names": ["reach", "pull"]}
    assert seen["second mark"]["boundaries"] == [0, 19, 30, 40]
    assert len(set(seen["second mark"]["names"])) == 3
    assert seen["moved"] == [0, 19, 28, 40]
    assert seen["selected"] == 1
    assert seen["deleted"]["boundaries"] == [0, 28, 40]
    assert seen["undone"] == [0, 19, 28, 40]
    assert seen["undone thrice"] == [0, 19, 30, 40]
    assert seen["redone"] == [0, 28, 40]
    assert dict(seen["phi"])["Φ"] == "0.34"  # frame 19, stage 1 of two: tau = 19/28, Phi = tau / 2
    assert seen["renamed"]["names"][0] == "<b>lift</b>"
    assert seen["renamed"]["boundaries"] == [0, 28, 40]
    assert seen["markup"] == 0
    assert seen["copied"] == ["episode_1", {"boundaries": [0, 42, 60], "names": seen["renamed"]["names"]}]
    assert seen["copied again"] == ["episode_2", [0, 70, 100]]
    assert seen["shortest"] == ["episode_3", [0, 2, 3]]
    assert seen["last"] == "episode_3", "a locked episode is passed over, and there is no other"
    assert seen["locked"] == ["episode_4", True, []]
    assert seen["played"]
    assert seen["paused"]
    assert seen["help"]
    assert seen["theme"]
    assert seen["edges"]
    for name, boundaries in (
        ("episode_0", [0, 28, 40]),
        ("episode_1", [0, 42, 60]),
        ("episode_2", [0, 70, 100]),
    ):
        info = store[name].info
        assert info.boundaries.tolist() == boundaries
        assert info.stage_names == tuple(seen["renamed"]["names"])


SUGGEST = """
  check("nothing to go by", byId("spread").disabled);
  presses("ArrowRight", 19);
  press("m");
  check("offered", !byId("spread").disabled);
  press("s");
  await until(() => byId("saved").textContent.includes("look them through"));
  check("said", [byId("saved").textContent, byId("alert").textContent]);
  check("all", state.episodes.map((episode) => episode.boundaries));
  check("no more", byId("spread").disabled);
  press("j");
  press("u");
  check("undone", marks());
  await saved();
"""


def test_marks_are_suggested_for_the_rest_and_can_be_undone(
    server: AnnotationServer, store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = run_probe(server, SUGGEST, tmp_path, monkeypatch)
    assert seen["nothing to go by"]
    assert seen["offered"]
    assert seen["said"][0].startswith("✓ 3 episodes marked")
    assert seen["said"][1] == ""
    first, *rest, locked = seen["all"]
    assert first == [0, 19, 40]
    assert [bounds[0] for bounds in rest] == [0, 0, 0]
    assert [bounds[-1] for bounds in rest] == list(LENGTHS[1:4])
    assert [len(bounds) for bounds in rest] == [3, 3, 3]
    assert locked == []
    assert seen["no more"]
    assert seen["undone"] == {"boundaries": [], "names": []}
    assert store["episode_1"].info.boundaries is None
    assert store["episode_2"].info.boundaries.tolist() == rest[1]


LEFT_OUT = """
  for (const frame of [10, 20, 30]) {
    go(frame);
    press("m");
  }
  const field = document.querySelector("#stages input");
  field.focus();
  field.value = "pull ";
  field.dispatchEvent(new Event("change"));
  field.blur();
  check("renamed", [marks().names, field.value, byId("alert").textContent]);
  press("s");
  await until(() => byId("saved").textContent.includes("look them through"));
  check("said", [byId("saved").textContent, byId("alert").hidden, byId("alert").textContent]);
  press("s");
  await until(() => byId("alert").textContent.includes("Nothing was suggested"));
  check("again", byId("alert").textContent);
"""


def test_names_differ_and_what_is_too_short_is_left_out_and_named(
    server: AnnotationServer, store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = run_probe(server, LEFT_OUT, tmp_path, monkeypatch)
    names, field, alert = seen["renamed"]
    assert (len(names), len(set(names)), names.count("pull"), field) == (4, 4, 1, names[0])
    assert "Another stage is named “pull” already" in alert
    done, hidden, left_out = seen["said"]
    assert done.startswith("✓ 2 episodes marked")
    assert not hidden
    assert left_out == "left out, too short: episode_3 (3 frames)"
    assert "too short for its stages: episode_3 (3 frames)" in seen["again"]
    assert store["episode_3"].info.boundaries is None


FOUND = """
  check("offered", !byId("spread").disabled);
  press("s");
  await until(() => byId("saved").textContent.includes("look them through"));
  check("said", [byId("saved").textContent, byId("alert").textContent]);
  check("all", state.episodes.map((episode) => episode.boundaries));
"""


def test_stages_are_found_from_other_tasks_where_nothing_is_marked(
    store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finder(readers: Sequence[EpisodeReader]) -> FoundStages:
        bounds = tuple(np.array([0, r.info.length // 2, r.info.length]) for r in readers)
        return FoundStages(bounds, np.ones(1), {2: 1.0})

    with serving(Session(store, names=("reach", "pull"), finder=finder)) as server:
        seen = run_probe(server, FOUND, tmp_path, monkeypatch)
    assert seen["offered"]
    assert "stages end as those of other tasks do" in seen["said"][0]
    assert seen["said"][1] == ""
    assert seen["all"] == [[0, 20, 40], [0, 30, 60], [0, 50, 100], [0, 1, 3], []]


TWO_TABS = """
  presses("ArrowRight", 10);
  press("m");
  await saved();
  const place = { episode: "episode_0", camera: "front", start: 39 };
  await fetch(address("/strip", place)); // the other tab saves now
  presses("ArrowRight", 10);
  press("m");
  await saved();
  check("theirs", marks().boundaries);
  check("said", byId("alert").textContent);
  press("u");
  await saved();
  check("ours", marks().boundaries);
"""


def test_a_second_tab_is_never_overwritten_unseen(
    server: AnnotationServer, store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = server.session
    plain = session.strip

    def strip(name: str, camera: str, start: int) -> bytes:
        if start == 39:
            session.save(name, session.state(name)["revision"], Marks(("other",), (5, 35)))
        return plain(name, camera, start)

    monkeypatch.setattr(session, "strip", strip)
    seen = run_probe(server, TWO_TABS, tmp_path, monkeypatch)
    assert seen["theirs"] == [5, 35]
    assert "changed in another tab" in seen["said"]
    assert seen["ours"] == [0, 10, 20, 40]
    assert store["episode_0"].info.boundaries.tolist() == [0, 10, 20, 40]


OUTAGE = """
  const real = window.fetch;
  window.fetch = () => Promise.reject(new TypeError("no connection"));
  presses("ArrowRight", 10);
  press("m");
  check("warned", await until(() => byId("saved").className === "failed"));
  check("alert", byId("alert").textContent);
  press("j");
  presses("ArrowRight", 7);
  press("m");
  window.fetch = real;
  check("saved", await saved());
  check("quiet", byId("alert").hidden);
"""


def test_an_outage_is_said_and_made_up_for(
    server: AnnotationServer, store: EpisodeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = run_probe(server, OUTAGE, tmp_path, monkeypatch)
    assert seen["warned"]
    assert "the server does not answer" in seen["alert"]
    assert seen["saved"]
    assert seen["quiet"]
    assert store["episode_0"].info.boundaries.tolist() == [0, 10, 40]
    assert store["episode_1"].info.boundaries.tolist() == [0, 7, 60]


DRAGGING = """
  presses("ArrowRight", 10);
  press("m");
  await saved();
  const box = byId("bands").getBoundingClientRect();
  const at = (frame) => ({ clientX: box.left + (box.width * frame) / current().length, bubbles: true });
  document.querySelectorAll(".edge")[1].dispatchEvent(new PointerEvent("pointerdown", at(10)));
  for (const frame of [14, 22, 27]) window.dispatchEvent(new PointerEvent("pointermove", at(frame)));
  check("view", await shown(27));
  window.dispatchEvent(new PointerEvent("pointerup", at(27)));
  await saved();
  check("dragged", marks().boundaries);
  press("u");
  await saved();
  check("one undo", marks().boundaries);
  check("revision", current().revision);
"""


def test_a_drag_is_one_change(
    server: AnnotationServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = run_probe(server, DRAGGING, tmp_path, monkeypatch)
    assert seen["view"] == pytest.approx([gray("front", 27), gray("wrist", 27)], abs=1)
    assert seen["dragged"] == [0, 27, 40]
    assert seen["one undo"] == [0, 10, 40]
    assert seen["revision"] == 3
