"""The local web page for marking stages: a server of the standard library, on the loopback.

Who may write: the page's address carries a secret, which becomes a cookie that other sites' pages cannot send
(SameSite=Strict); besides, a request must name this server as its Host, and one that writes must come from
this page (Origin) as JSON. So no other site can post here, nor resolve its own name to this address.

Servers follow one another on the same port, with other stores whose episodes have the same names: every
request says which server's page it comes from (`page`), so that a tab left open writes nowhere else, and no
picture of one store is taken from the browser's cache for another.
"""

from __future__ import annotations

import json
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from functools import cached_property
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from robo_reward.errors import ConfigError, RoboRewardError
from robo_reward.evaluate.page import read_asset
from robo_reward_data.annotate.journal import Marks
from robo_reward_data.annotate.session import ConflictError, Session

__all__ = ["AnnotationServer", "serve"]

_MOST_BYTES = 1_000_000  # of a posted annotation: a thousand boundaries are a few kilobytes
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "script-src 'nonce-{nonce}'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


class AnnotationServer(ThreadingHTTPServer):
    """Serves one session until `shutdown`."""

    daemon_threads = True
    session: Session
    token: str
    page: str

    def __init__(self, session: Session, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen on `host` and `port` (0: any that is free).

        Raises:
            ConfigError: the address cannot be had, or is that of every network.
        """
        if host in ("", "0.0.0.0", "::"):
            raise ConfigError(
                f"host={host}: requests must name the address they go to, so say which: 127.0.0.1, or this "
                "machine's own in that network"
            )
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise ConfigError(
                f"cannot serve on {host}:{port} ({error.strerror}): choose another port"
            ) from error
        self.session = session
        self.token = secrets.token_urlsafe(24)
        self.page = secrets.token_urlsafe(9)

    @cached_property
    def names(self) -> frozenset[str]:
        """What the Host header of a request for this server may say."""
        port = self.server_address[1]
        return frozenset(f"{host}:{port}" for host in (str(self.server_address[0]), "localhost"))

    @property
    def url(self) -> str:
        """The address of the page, with its secret."""
        return f"http://{self.server_address[0]}:{self.server_address[1]}/?token={self.token}"


def serve(session: Session, host: str, port: int) -> None:
    """Serve the page until Ctrl-C (or a termination signal); every mark is on disk at any moment."""
    try:
        server = AnnotationServer(session, host, port)
    except ConfigError:
        session.close()
        raise
    for name in session.recovered:
        sys.stdout.write(f"{name}: marks of an interrupted session brought into the store\n")
    for reason in session.refused:
        sys.stdout.write(f"marks of an interrupted session are left out: {reason}\n")
    sys.stdout.write(
        f"annotate {session.path} at {server.url}\nCtrl-C ends it; every change is saved at once\n"
    )
    sys.stdout.flush()
    stop = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        while not stop.wait(1.0):
            pass
    except KeyboardInterrupt:
        sys.stdout.write("\n")
    finally:
        signal.signal(signal.SIGTERM, previous)
        server.shutdown()
        server.server_close()
        session.close()


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"  # keeps the connection: a page asks for hundreds of strips
    server_version = "robo-reward"
    sys_version = ""
    timeout = 60

    @property
    def _own(self) -> AnnotationServer:
        return cast("AnnotationServer", self.server)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a line for each strip would bury the address."""

    def do_GET(self) -> None:
        """The page, states, strips of frames, curves."""
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        if not self._named():
            return
        if url.path == "/" and secrets.compare_digest(query.get("token", ""), self._own.token):
            self._send_page()
            return
        session = self._own.session
        routes: dict[str, Callable[[], tuple[str, bytes]]] = {
            "/api/overview": lambda: _json(session.overview()),
            "/api/episode": lambda: _json(session.state(query["episode"])),
            "/api/curve": lambda: _json(session.curve(query["episode"])),
            "/strip": lambda: (
                "image/jpeg",
                session.strip(query["episode"], query["camera"], int(query["start"])),
            ),
        }
        if not self._known(query):
            return
        if url.path not in routes:
            self._refuse(HTTPStatus.NOT_FOUND, f"nothing at {url.path}")
            return
        try:
            kind, data = routes[url.path]()
        except (RoboRewardError, KeyError, ValueError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            return
        # Frames never change while this server runs, and another's have another address; marks do change.
        self._send(data, kind, cache="private, max-age=3600" if kind == "image/jpeg" else "no-store")

    def do_POST(self) -> None:
        """Save the marks of an episode: 200 with its new state, or 409 with what it says by now.

        Or mark the unmarked episodes of its task from the marked ones: 200 with their new states.
        """
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _MOST_BYTES:
            self.close_connection = True
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body of '{length}' bytes")
            return
        body = self.rfile.read(int(length))
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        if not self._named() or not self._known(query):
            return
        origin = self.headers.get("Origin", "")
        if origin not in {f"http://{name}" for name in self._own.names}:
            self._refuse(HTTPStatus.FORBIDDEN, f"a page of '{origin}' may not write here")
            return
        routes = {"/api/save": self._save, "/api/spread": self._spread}
        act = routes.get(url.path)
        if self.headers.get_content_type() != "application/json" or act is None:
            self._refuse(HTTPStatus.BAD_REQUEST, f"only JSON can be posted, to {' or '.join(routes)}")
            return
        try:
            state = act(cast("dict[str, Any]", json.loads(body)))
        except ConflictError as error:
            self._send(_json(error.state)[1], "application/json", HTTPStatus.CONFLICT)
        except (RoboRewardError, KeyError, ValueError, TypeError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except OSError as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"cannot write the store: {error.strerror}")
        else:
            self._send(*_json(state)[::-1])

    def _save(self, said: Mapping[str, Any]) -> dict[str, Any]:
        marks = Marks(tuple(_checked(said["names"], str)), tuple(_checked(said["boundaries"], int)))
        return self._own.session.save(str(said["episode"]), int(said["revision"]), marks)

    def _spread(self, said: Mapping[str, Any]) -> dict[str, Any]:
        return self._own.session.spread(str(said["episode"]))

    def _named(self) -> bool:
        if self.headers.get("Host", "") in self._own.names:
            return True
        self._refuse(
            HTTPStatus.FORBIDDEN,
            f"this page answers to {' and '.join(sorted(self._own.names))} alone: forward the same port",
        )
        return False

    def _known(self, query: Mapping[str, str]) -> bool:
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(self._cookie_name)
        except CookieError:
            cookie = None
        if (
            cookie is not None
            and secrets.compare_digest(cookie.value, self._own.token)
            and query.get("page") == self._own.page
        ):
            return True
        self._refuse(HTTPStatus.FORBIDDEN, "open the address that robo-reward annotate printed")
        return False

    @property
    def _cookie_name(self) -> str:
        # Cookies do not tell ports apart: two servers would take each other's.
        return f"annotate_{self._own.server_address[1]}"

    def _send_page(self) -> None:
        nonce = secrets.token_urlsafe(12)
        self._send(
            _page(nonce, self._own.page).encode(),
            "text/html; charset=utf-8",
            policy=_POLICY.format(nonce=nonce),
            cookie=f"{self._cookie_name}={self._own.token}; HttpOnly; SameSite=Strict; Path=/",
        )

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self._send(_json({"error": why})[1], "application/json", status)

    def _send(
        self,
        data: bytes,
        kind: str,
        status: HTTPStatus = HTTPStatus.OK,
        cache: str = "no-store",
        policy: str = "default-src 'none'",
        cookie: str | None = None,
    ) -> None:
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(data)),
            "Cache-Control": cache,
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        if cookie is not None:
            headers["Set-Cookie"] = cookie
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the tab is gone


def _json(value: Any) -> tuple[str, bytes]:
    return "application/json", json.dumps(value, allow_nan=False).encode()


def _checked(values: Any, kind: type) -> list[Any]:
    if not isinstance(values, list) or any(type(value) is not kind for value in values):
        raise ValueError(f"expected a list of {kind.__name__}, got {values!r}")
    return cast("list[Any]", values)


def _page(nonce: str, page: str) -> str:
    """The page: one document with its styles and scripts, no data but which server's it is."""
    home = resources.files("robo_reward_data.annotate") / "_page"
    text = (home / "page.html").read_text(encoding="utf-8")
    # The reports' colors and type, then this page's own.
    style = read_asset("page.css") + (home / "page.css").read_text(encoding="utf-8")
    scripts = "\n".join(
        (home / name).read_text(encoding="utf-8") for name in ("marks.js", "views.js", "page.js")
    )
    values = {"nonce": nonce, "page": page, "styles": style, "scripts": scripts}
    for place, value in values.items():
        text = text.replace(f"{{{{{place}}}}}", value)
    return text
