"""Image stamp to reward through DDS: cameras, reward node and listener in processes of their own.

Three cameras of 640x480 at 30 Hz, raw and JPEG, decisions at 10 and at 30 Hz. The bars on two idle cores:
p50 <= 25 ms, p99 <= 60 ms, no decision dropped at 10 Hz and at most 1 % at 30 Hz. `--soak 600` runs one
setting for that long and measures how the node's memory grows (bar: < 1 %). One JSON line a setting.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from contextlib import suppress
from importlib.resources import files
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

CAMERAS = ("left", "right", "wrist")
SIZE = (480, 640)
FPS = 30.0


def camera(name: str, compressed: bool) -> None:
    """One camera driver: stamps, publishes best effort, until it is interrupted."""
    import cv2
    import rclpy
    from rclpy.qos import QoSProfile, QoSReliabilityPolicy
    from sensor_msgs.msg import CompressedImage, Image

    rclpy.init()
    node = rclpy.create_node(f"camera_{name}")
    qos = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
    topic = f"{name}/image_raw" + ("/compressed" if compressed else "")
    publisher = node.create_publisher(CompressedImage if compressed else Image, topic, qos)
    rng = np.random.default_rng(CAMERAS.index(name))
    # Smooth pictures: the JPEG of noise is no image that a camera sends.
    small = rng.integers(0, 256, (8, 12, 16, 3), np.uint8)
    pictures = [cv2.resize(image, SIZE[::-1], interpolation=cv2.INTER_CUBIC) for image in small]
    if compressed:
        pool = [array("B", cv2.imencode(".jpg", image)[1].tobytes()) for image in pictures]
        message = CompressedImage(format="jpeg")
    else:
        pool = [array("B", image.tobytes()) for image in pictures]
        message = Image(height=SIZE[0], width=SIZE[1], encoding="rgb8", step=3 * SIZE[1])
    # Interrupted in the middle of a message, rclpy calls its context invalid.
    with suppress(KeyboardInterrupt, RuntimeError):
        due = time.monotonic()
        for data in cycle(pool):
            due += 1 / FPS
            time.sleep(max(0.0, due - time.monotonic()))
            message.data = data
            message.header.stamp = node.get_clock().now().to_msg()
            publisher.publish(message)


def build_model(folder: Path) -> Path:
    """The tiny model with random weights: speed does not depend on them."""
    import torch

    from robo_reward.calibration import Calibration
    from robo_reward.checkpoint import save_checkpoint
    from robo_reward.model.config import ModelConfig, TaskConfig
    from robo_reward.model.progress_model import ProgressModel

    torch.manual_seed(0)
    config = ModelConfig(
        encoder={"_target_": "robo_reward.model.encoders.TinyEncoder"},
        tasks=(TaskConfig(("task",), ("a", "b", "c", "d"), (0.25,) * 4),),
        cameras=CAMERAS,
        image_size=(96, 128),
        period_s=0.1,
    )
    save_checkpoint(folder / "run", ProgressModel(config), Calibration(), {})
    return folder / "run"


class Listener:
    """Hears rewards and diagnostics in a thread, and starts the episode."""

    def __init__(self) -> None:
        """Join the domain of the environment."""
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.executors import SingleThreadedExecutor

        from robo_reward_msgs.msg import ShapedReward

        rclpy.init()
        self.node = rclpy.create_node("listener")
        self.latency_ms: list[float] = []
        self.values: dict[str, dict[str, str]] = {}
        self.node.create_subscription(ShapedReward, "shaped_reward", self._on_reward, 50)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        executor = SingleThreadedExecutor()
        executor.add_node(self.node)
        threading.Thread(target=executor.spin, daemon=True).start()

    def _on_reward(self, message: Any) -> None:
        stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        self.latency_ms.append((self.node.get_clock().now().nanoseconds - stamp) * 1e-6)

    def _on_diagnostics(self, message: Any) -> None:
        for status in message.status:
            self.values[status.name.rpartition(": ")[2]] = {v.key: v.value for v in status.values}

    def start_episode(self, name: str) -> None:
        """Rewards are published inside an episode only."""
        from robo_reward_msgs.srv import StartEpisode

        client = self.node.create_client(StartEpisode, "start_episode")
        if not client.wait_for_service(60.0):
            raise SystemExit("the reward node did not come up")
        done = threading.Event()
        future = client.call_async(StartEpisode.Request(episode_id=name))
        future.add_done_callback(lambda _: done.set())
        if not done.wait(10.0) or not future.result().success:
            raise SystemExit("the episode did not start")


def rss_mib(pid: int) -> float:
    """Resident memory that is the process's own or in files, without the shared memory of DDS."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Rss")}
    return (sizes["RssAnon"] + sizes["RssFile"]) / 1024


def measure(model: Path, compressed: bool, rate_hz: float, seconds: float) -> dict[str, Any]:
    """One setting, from start to end, in a child of this process: rclpy can be started once in each."""
    values = {
        "model": model,
        "cameras": f"[{','.join(CAMERAS)}]",
        "rate_hz": rate_hz,
        **{f"camera.{name}.transport": "compressed" if compressed else "raw" for name in CAMERAS},
    }
    arguments = [text for key, value in values.items() for text in ("-p", f"{key}:={value}")]
    profile = str(files("robo_reward_ros") / "fastdds_large_images.xml")
    sender = {**os.environ, "FASTDDS_DEFAULT_PROFILES_FILE": profile}
    node = subprocess.Popen([sys.executable, "-m", "robo_reward_ros.reward_node", "--ros-args", *arguments])
    me = [sys.executable, __file__, *(["--compressed"] if compressed else [])]
    drivers = [subprocess.Popen([*me, "--camera", name], env=sender) for name in CAMERAS]
    try:
        listener = Listener()
        listener.start_episode("bench")
        time.sleep(5.0)  # discovery, first touches
        before, kept = dict(listener.values), len(listener.latency_ms)
        memory, samples = rss_mib(node.pid), list[float]()
        begin = time.monotonic()
        while time.monotonic() - begin < seconds:
            time.sleep(1.0)
            samples.append(rss_mib(node.pid))
        spent = time.monotonic() - begin
        latency, after = np.array(listener.latency_ms[kept:]), dict(listener.values)
    finally:
        for process in (*drivers, node):
            process.send_signal(signal.SIGINT)
        for process in (*drivers, node):
            process.wait(10)
    grown = {key: int(after["rewards"][key]) - int(before["rewards"][key]) for key in ("offered", "dropped")}
    taken = [int(after[f"camera {c}"]["received"]) - int(before[f"camera {c}"]["received"]) for c in CAMERAS]
    half = len(samples) // 2
    return {
        "images": "jpeg" if compressed else "raw",
        "rate_hz": rate_hz,
        "seconds": round(spent, 1),
        "rewards": len(latency),
        "latency_ms_p50": round(float(np.quantile(latency, 0.5)), 1),
        "latency_ms_p99": round(float(np.quantile(latency, 0.99)), 1),
        "decision_ms_p50": float(after["rewards"]["decision p50 (ms)"]),
        "dropped_percent": round(100 * grown["dropped"] / max(1, grown["offered"]), 2),
        "images_lost_percent": round(100 * max(0.0, 1 - sum(taken) / (len(CAMERAS) * FPS * spent)), 2),
        "rss_mib": round(memory, 1),
        "rss_growth_percent": round(100 * (np.mean(samples[half:]) / np.mean(samples[:half]) - 1), 2),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each setting")
    parser.add_argument(
        "--soak", type=float, default=0.0, help="seconds of raw images at 30 Hz, and nothing else"
    )
    parser.add_argument("--domain", type=int, default=98, help="ROS domain; nobody else may use it")
    parser.add_argument("--camera", choices=CAMERAS, help="be this camera")
    parser.add_argument("--compressed", action="store_true", help="JPEG images")
    parser.add_argument("--rate", type=float, help="measure this one rate, in this process")
    parser.add_argument("--model", type=Path, help="run folder; default: random weights")
    options = parser.parse_args()
    if options.camera:
        camera(options.camera, options.compressed)
        return
    os.environ |= {"ROS_DOMAIN_ID": str(options.domain), "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("ROS_LOG_DIR", folder)
        model = options.model or build_model(Path(folder))
        if options.rate is not None:
            sys.stdout.write(
                json.dumps(measure(model, options.compressed, options.rate, options.seconds)) + "\n"
            )
            return
        settings = [("raw", 10.0), ("raw", 30.0), ("jpeg", 10.0), ("jpeg", 30.0)]
        for images, rate in [("raw", 30.0)] if options.soak else settings:
            command = [sys.executable, __file__, "--rate", str(rate), "--model", str(model)]
            command += ["--seconds", str(options.soak or options.seconds), "--domain", str(options.domain)]
            subprocess.run(command + ["--compressed"] * (images == "jpeg"), check=True)


if __name__ == "__main__":
    main()
