"""A vision-language server: asked over real HTTP, in the chat protocol, by a stub that speaks it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
import numpy as np
import pytest

from robo_reward.compare.method import TrainingData
from robo_reward.compare.server import HopServer, ServerError, parse_hop
from robo_reward.compare.views import blinded
from robo_reward.errors import ConfigError
from robo_reward.testing import MemoryReader, toy_episode
from robo_reward.train.config import TrainConfig

Answer = Callable[[dict[str, Any]], tuple[int, bytes]]


class Stub:
    """A chat server whose answers the test chooses."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answer: Answer = lambda _: (200, says("<score>+25%</score>"))
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.requests.append({"path": self.path, **body})
                stub.headers.append(dict(self.headers))
                status, data = stub.answer(body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"


def says(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@pytest.fixture
def stub() -> Iterator[Stub]:
    made = Stub()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def method(stub: Stub, **options: Any) -> HopServer:
    return HopServer(url=stub.url, model="grm", **{"interval": 4, "retries": 2, "timeout_s": 5.0, **options})


NOTHING = TrainingData((), (), TrainConfig(data="", out=""), held_out=True, fingerprint="")
EPISODE = blinded(MemoryReader(toy_episode(0, length=10)))


def test_the_model_sees_start_before_and_after_through_every_camera(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRM_KEY", "secret")
    found = method(stub, key_variable="GRM_KEY").predict(EPISODE, ["front", "wrist"])
    # Asked at frames 4 and 8, each time +25 % of what was left: 0.25, then 0.25 + 0.75 / 4; held in between.
    assert found.progress == pytest.approx([0] * 4 + [0.25] * 4 + [0.4375] * 2)
    assert found.reason == ""
    first, second = stub.requests
    assert first["path"] == "/v1/chat/completions"
    assert first["model"] == "grm"
    assert stub.headers[0]["Authorization"] == "Bearer secret"
    (message,) = second["messages"]
    texts = [part["text"] for part in message["content"] if part["type"] == "text"]
    assert "fill the bar" in texts[0]
    assert "front, wrist" in texts[0]
    assert texts[1:] == ["START:", "BEFORE:", "AFTER:"]
    urls = [part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url"]
    shown = [
        cv2.imdecode(np.frombuffer(base64.b64decode(url.split(",")[1]), np.uint8), cv2.IMREAD_COLOR)[
            ..., ::-1
        ]
        for url in urls
    ]
    # The toy writes (episode, frame, camera) into its first pixel.
    assert [tuple(image[0, 0]) for image in shown] == [(0, f, c) for f in (0, 4, 8) for c in (0, 1)]


def test_a_forward_readout_asks_from_the_first_frame(stub: Stub) -> None:
    found = method(stub, readout="forward").predict(EPISODE, ["front"])
    assert found.progress == pytest.approx([0] * 4 + [0.25] * 6)


def test_what_fails_is_invalid_with_its_reason_and_never_zero(stub: Stub) -> None:
    stub.answer = lambda _: (200, says("I cannot tell."))
    found = method(stub).predict(EPISODE, ["front"])
    assert "no <score>" in found.reason
    assert not found.may_pass, "that is what it says of these images"
    assert found.progress[:4] == pytest.approx(0)  # before the first question nothing had failed
    assert np.isnan(found.progress[4:]).all()
    # A forward readout finds its way back with the next good answer.
    answers = iter([says("?"), says("<score>50</score>")])
    stub.answer = lambda _: (200, next(answers))
    found = method(stub, readout="forward").predict(EPISODE, ["front"])
    assert np.isnan(found.progress[4:8]).all()
    assert found.progress[8:] == pytest.approx(0.5)
    stub.answer = lambda _: (200, b"<html>")
    assert "not an answer of the chat protocol" in method(stub).predict(EPISODE, ["front"]).reason


def test_failures_that_may_pass_are_asked_again_and_others_are_not(stub: Stub) -> None:
    statuses = iter([503, 429, 200, 200])
    stub.answer = lambda _: (next(statuses), says("<score>-10%</score>"))
    found = method(stub).predict(EPISODE, ["front"])
    assert found.reason == ""
    assert len(stub.requests) == 4
    stub.requests.clear()
    stub.answer = lambda _: (401, b"no such key")
    found = method(stub).predict(EPISODE, ["front"])
    assert "HTTP 401 no such key" in found.reason
    assert not found.may_pass
    assert len(stub.requests) == 1


def test_a_server_that_is_not_there_is_named(stub: Stub) -> None:
    method(stub).check(NOTHING)  # something answers, whatever it says
    assert not stub.requests  # and is asked nothing that costs
    stub.server.server_close()
    with pytest.raises(ServerError, match=r"/v1/chat/completions: .*: is the server running\?"):
        method(stub).check(NOTHING)
    found = method(stub, retries=0).predict(EPISODE, ["front"])
    assert found.may_pass, "a comparison asks again when it is there"
    reason = found.reason
    assert f"{stub.url}/chat/completions" in reason
    assert "is the server running?" in reason


def test_scores_and_options_that_make_no_sense_are_refused() -> None:
    assert parse_hop("first <score>+3%</score>, no: <score> -12.5 </score>") == pytest.approx(-0.125)
    with pytest.raises(ServerError, match="outside -100 to 100"):
        parse_hop("<score>140%</score>")
    with pytest.raises(ConfigError, match="readout='sideways'"):
        HopServer(url="http://x", model="m", readout="sideways")
    with pytest.raises(ConfigError, match="must start with http"):
        HopServer(url="localhost:8000", model="m")
