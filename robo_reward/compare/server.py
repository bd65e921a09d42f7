"""A vision-language model behind a server that speaks the OpenAI-compatible chat protocol, asked for hops.

In the form of Robo-Dopamine's GRM (arXiv 2512.23703): the model sees the cameras at an earlier and at a later
moment, beside the start of the episode, and says by how many percent the task progressed from one to the
other, relative to what was left (or, where it went back, to what there was). A request that fails, or an
answer that cannot be read, makes its frames invalid with that reason.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from robo_reward.compare.method import Budget, MethodPrediction, TrainingData
from robo_reward.errors import ConfigError, DataError, RoboRewardError
from robo_reward.labels import apply_hop
from robo_reward.schema import EpisodeReader

__all__ = ["ChatClient", "HopServer", "ServerError", "parse_hop"]

PROMPT = (
    "You judge the progress of a robot. Its task: {task}\n"
    "You see the same cameras ({cameras}) three times: START is the beginning of the episode, BEFORE is an "
    "earlier moment, AFTER is a later one. By how many percent did the task progress from BEFORE to AFTER? "
    "Positive: of what was left to do at BEFORE. Negative, if it went back: of what had been done at BEFORE. "
    "0 if nothing changed. Answer with one signed number from -100 to 100 in the form <score>+N%</score>."
)
_SCORE = re.compile(r"<score>\s*([+-]?\d+(?:\.\d+)?)\s*%?\s*</score>")


class ServerError(RoboRewardError):
    """A server that cannot be reached, refuses, or answers what cannot be read.

    may_pass   it may answer another time: there was no connection, too much to do (429), or a fault (5xx)
    """

    may_pass = False


class ChatClient:
    """POSTs to `<url>/chat/completions`, again after failures that may pass (429, 5xx, no connection)."""

    def __init__(self, url: str, model: str, key_variable: str, timeout_s: float, retries: int) -> None:
        self._url, self._model = url.rstrip("/") + "/chat/completions", model
        self._key_variable, self._timeout_s, self._retries = key_variable, timeout_s, retries

    def ask(self, content: Sequence[Mapping[str, Any]]) -> str:
        """The text of the answer to one message of the user.

        Raises:
            ServerError: naming the address, and what it said.
        """
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": list(content)}],
            "temperature": 0,
            "max_tokens": 256,
        }
        problem, attempt, may_pass = "", 0, True
        for attempt in range(self._retries + 1):
            if attempt:
                time.sleep(min(0.2 * 2**attempt, 10.0))
            try:
                return _text(self._post(body), self._url)
            except urllib.error.HTTPError as error:
                said = error.read(300).decode("utf-8", "replace").strip()
                problem = f"HTTP {error.code} {said}"
                may_pass = error.code == 429 or error.code >= 500
                if not may_pass:
                    break
            except (OSError, http.client.HTTPException) as error:  # no connection, time-out, half an answer
                problem = str(getattr(error, "reason", error)) or type(error).__name__
        failed = ServerError(f"{self._url}: {problem} (after {attempt + 1} tries): is the server running?")
        failed.may_pass = may_pass
        raise failed

    def check(self) -> None:
        """Whether something answers there, whatever it says.

        Raises:
            ServerError: naming the address, and what is wrong.
        """
        address = self._url.removesuffix("/chat/completions") + "/models"
        try:
            urllib.request.urlopen(address, timeout=min(self._timeout_s, 10.0)).close()
        except urllib.error.HTTPError as error:
            error.close()
        except (OSError, http.client.HTTPException) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
            raise ServerError(f"{self._url}: {problem}: is the server running?") from error

    def _post(self, body: Mapping[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self._key_variable):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=self._timeout_s) as answer:
            return answer.read()


def _text(answer: bytes, url: str) -> str:
    try:
        text = json.loads(answer)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ServerError(f"{url}: not an answer of the chat protocol: {answer[:200]!r}") from error
    if not isinstance(text, str):
        raise ServerError(f"{url}: the answer has no text: {answer[:200]!r}")
    return text


def parse_hop(text: str) -> float:
    """The hop in [-1, 1] that an answer gives, from its last `<score>`.

    Raises:
        ServerError: no score, or one outside [-100, 100].
    """
    found = _SCORE.findall(text)
    if not found:
        raise ServerError(f"the answer has no <score>: {text[:120]!r}")
    percent = float(found[-1])
    if abs(percent) > 100:
        raise ServerError(f"the answer's score is {found[-1]} %, outside -100 to 100")
    return percent / 100


class HopServer:
    """Progress from hops that a served vision-language model estimates, asked at every `interval`-th frame.

    Between two questions the estimate stays. After a failed one every frame up to the next good answer is
    invalid; an incremental estimate has then lost its place and stays invalid.

    Args:
        url: base address, such as http://localhost:8000/v1.
        model: name that the server knows the model by.
        readout: forward (hop from the first frame) or incremental (from the last question).
        interval: frames between questions.
        prompt: with {task} and {cameras} in it.
        key_variable: environment variable that holds the server's key, if it wants one.
    """

    causal = True

    def __init__(
        self,
        url: str,
        model: str,
        readout: str = "incremental",
        interval: int = 8,
        prompt: str = PROMPT,
        key_variable: str = "OPENAI_API_KEY",
        timeout_s: float = 60.0,
        retries: int = 4,
    ) -> None:
        """Nothing is asked yet.

        Raises:
            ConfigError: a readout that does not exist, or an address that is none.
        """
        if readout not in ("forward", "incremental"):
            raise ConfigError(f"readout='{readout}': choose forward or incremental")
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"url='{url}': must start with http:// or https://")
        if interval < 1 or retries < 0:
            raise ConfigError(f"interval={interval} must be 1 or more, retries={retries} 0 or more")
        self._url, self._model, self._readout, self._interval = url, model, readout, interval
        self._prompt = prompt
        self._client = ChatClient(url, model, key_variable, timeout_s, retries)

    @property
    def recipe(self) -> Mapping[str, Any]:
        """What is asked of whom."""
        return {
            "method": "server",
            "url": self._url,
            "model": self._model,
            "readout": self._readout,
            "interval": self._interval,
            "prompt": self._prompt,
        }

    def check(self, data: TrainingData) -> None:
        """Refuse a server that does not answer."""
        self._client.check()

    def fit(self, data: TrainingData, budget: Budget, seed: int, workdir: Path) -> None:
        """Nothing: the model is used as it is served."""

    def predict(self, reader: EpisodeReader, cameras: Sequence[str]) -> MethodPrediction:
        """Ask at every `interval`-th frame."""
        info = reader.info
        if not cameras:
            raise DataError("no camera to show")
        progress = np.full(info.length, np.nan, dtype=np.float32)
        progress[0] = 0.0
        reason, may_pass, last, at = "", False, 0.0, 0
        for now in range(self._interval, info.length, self._interval):
            before = 0 if self._readout == "forward" else at
            start = 0.0 if self._readout == "forward" else last
            progress[at + 1 : now] = last
            try:
                hop = self._ask(reader, cameras, before, now)
            except ServerError as error:
                reason, may_pass = str(error), may_pass or error.may_pass
                if self._readout == "incremental":
                    return MethodPrediction(progress, reason=reason, may_pass=may_pass)
                last, at = float("nan"), now
                continue
            last, at = float(np.clip(apply_hop(np.array([start]), np.array([hop]))[0], 0, 1)), now
            progress[now] = last
        progress[at + 1 :] = last
        return MethodPrediction(progress, reason=reason, may_pass=may_pass)

    def _ask(self, reader: EpisodeReader, cameras: Sequence[str], before: int, now: int) -> float:
        text = self._prompt.format(task=reader.info.instruction, cameras=", ".join(cameras))
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        for name, frame in (("START", 0), ("BEFORE", before), ("AFTER", now)):
            content.append({"type": "text", "text": f"{name}:"})
            for camera in cameras:
                rgb = reader.read_frames(camera, np.array([frame]))[0]
                content.append({"type": "image_url", "image_url": {"url": _data_url(rgb)}})
        return parse_hop(self._client.ask(content))


def _data_url(rgb: UInt8[np.ndarray, "h w 3"]) -> str:
    ok, data = cv2.imencode(".png", rgb[..., ::-1])
    if not ok:
        raise DataError(f"cannot encode an image of shape {rgb.shape}")
    return "data:image/png;base64," + base64.b64encode(data.tobytes()).decode("ascii")
