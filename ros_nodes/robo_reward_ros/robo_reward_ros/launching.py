"""The `launch` command: a plan's processes without `ros2 launch`, watched, and ended together."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import IO, Any, cast

from robo_reward.errors import RoboRewardError
from robo_reward.imports import instantiate
from robo_reward_ros.launch_plan import Plan, Process

__all__ = ["LaunchConfig", "LaunchError", "run", "run_plan"]

_GRACE_S = 8.0
_DRAIN_S = 2.0
_RESPAWN_S = 1.0


class LaunchError(RoboRewardError):
    """A process of a launch that failed."""


@dataclass(frozen=True)
class LaunchConfig:
    """The keys of `configs/launch.yaml`, which says what each means."""

    plan: dict[str, Any] = field(default_factory=dict)
    dry_run: bool = False


def run(config: LaunchConfig) -> None:
    """Run the plan of a config, or print its commands.

    Raises:
        LaunchError: a process that everything depends on has failed.
        ConfigError: the plan's arguments do not fit.
    """
    plan: Plan = instantiate(config.plan)
    if config.dry_run:
        for process in plan.processes:
            sys.stdout.write(" ".join(process.command(plan.namespace)) + "\n")
        return
    run_plan(plan)


def run_plan(plan: Plan) -> None:
    """Start every process, pass on what they print, and end all when one fails or an essential one ends.

    So do SIGINT, SIGTERM and the end of the terminal (SIGHUP). The others are asked with SIGINT, last started
    first, and killed after some seconds, with what they have started.

    Raises:
        LaunchError: the process that ended it all has failed.
        KeyboardInterrupt: a signal has ended it all.
    """
    environment = {**os.environ, **plan.environment}
    running: list[_Running] = []
    ended = None
    with _asked_to_end() as asked:
        try:
            for process in plan.processes:
                if asked.is_set():
                    break
                one = _Running(process, plan.namespace, environment)
                running.append(one)  # at once: where the next one does not start, this one has to end
            ended = _watch(running, asked)
        finally:
            for one in reversed(running):
                one.end()
    if ended is None:
        raise KeyboardInterrupt
    if ended.status:
        raise LaunchError(f"'{ended.process.name}' ended with status {ended.status}: see its output above")


@contextmanager
def _asked_to_end() -> Generator[threading.Event]:
    """An event that is set by the signals that ask a process to end.

    They raise nothing: that could happen between a process and the note of it, or while others are ended, and
    would leave a robot's nodes running.
    """
    asked = threading.Event()
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a shell's background
                before[number] = signal.signal(number, lambda *_: asked.set())
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(running: list[_Running], asked: threading.Event) -> _Running | None:
    """Wait until an essential process ends or one fails; start again what was killed and asks for it.

    None where it was asked to end before.
    """
    while not asked.is_set():
        for one in running:
            if one.status is None:
                continue
            if one.process.comes_back(one.status):
                one.start_again()
            elif one.process.essential or one.status:
                return one
        time.sleep(0.05)
    return None


class _Running:
    """A process of the plan while it runs."""

    def __init__(self, process: Process, namespace: str, environment: Mapping[str, str]) -> None:
        self.process = process
        self._command = process.command(namespace)
        self._environment = environment
        self._again_at = 0.0
        self._start()

    @property
    def status(self) -> int | None:
        """Exit status, or None while it runs."""
        return self._popen.poll()

    def start_again(self) -> None:
        """Start it again a second after it has ended."""
        now = time.monotonic()
        if not self._again_at:
            self._again_at = now + _RESPAWN_S
            sys.stderr.write(f"[{self.process.name}] ended with status {self.status}: starting it again\n")
        elif now >= self._again_at:
            self._again_at = 0.0
            self._start()

    def end(self) -> None:
        """Ask it to end, and make it, and what it has started and left behind with its output open."""
        until = time.monotonic() + _GRACE_S
        if self.status is None:
            self._popen.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(timeout=_GRACE_S)
        self._reader.join(timeout=max(until - time.monotonic(), 0.0))
        if self.status is None or self._reader.is_alive():
            with suppress(ProcessLookupError):
                os.killpg(self._popen.pid, signal.SIGKILL)
            self._popen.wait()
        # One in a session of its own is out of reach, and may hold the output for ever.
        self._reader.join(timeout=_DRAIN_S)

    def _start(self) -> None:
        # A group of its own: Ctrl-C reaches the launch alone, which then ends the processes in order.
        with _sigint_heard():
            self._popen = subprocess.Popen(
                self._command,
                env=dict(self._environment),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_launch,
            )
        pipe = cast("IO[bytes]", self._popen.stdout)
        self._reader = threading.Thread(target=_pass_on, args=(self.process.name, pipe), daemon=True)
        self._reader.start()


_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_launch() -> None:
    """In a process before it begins: a launch that is killed (-9) must not leave a robot's nodes running."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGINT))


@contextmanager
def _sigint_heard() -> Generator[None]:
    """Processes that start in here can be asked to end.

    A shell starts what it runs in the background with SIGINT ignored, and that is inherited: the processes of
    a launch from a script would not hear the request, and be killed instead.
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if not ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _pass_on(name: str, pipe: IO[bytes]) -> None:
    with pipe:
        for line in pipe:
            sys.stdout.write(f"[{name}] {line.decode(errors='replace')}")
            sys.stdout.flush()
