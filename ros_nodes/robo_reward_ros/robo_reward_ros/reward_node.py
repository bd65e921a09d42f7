"""The reward node: camera topics in, progress and shaped rewards out. A lifecycle node.

Publishes `estimate` (robo_reward_msgs/ProgressEstimate) all the time; `shaped_reward`
(robo_reward_msgs/ShapedReward) and `reward` (std_msgs/Float64; NaN where not valid) inside an episode;
`overlay` (sensor_msgs/Image) where someone looks; `/diagnostics`. Services `start_episode`, `end_episode`,
`set_model`. Images are taken in and aligned in the executor's thread; a thread of its own turns the newest
set into an estimate. What arrives while that one is busy waits, and is dropped for what comes next.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import cv2
import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from jaxtyping import Float32
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType, JumpThreshold, TimeJump
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import Bool, Float64, Header

import robo_reward
import robo_reward_msgs.msg
from robo_reward.errors import ConfigError, RoboRewardError
from robo_reward.schema import ProgressEstimate
from robo_reward_data.ros_images import image_to_rgb
from robo_reward_msgs.srv import EndEpisode, SetModel, StartEpisode
from robo_reward_ros import parameters
from robo_reward_ros.alignment import AlignedSet, Aligner
from robo_reward_ros.camera_health import camera_values, why_blind, why_left_out, why_missing
from robo_reward_ros.cameras import Camera
from robo_reward_ros.episode import Ending, EpisodeError, EpisodeJudge, Moment, Pacer, Payment
from robo_reward_ros.health import Doubts, Timings, Told
from robo_reward_ros.overlay import Overlay
from robo_reward_ros.proprio import Proprioception
from robo_reward_ros.rivals import Rivals
from robo_reward_ros.running import run_node
from robo_reward_ros.stamps import stamp_msg
from robo_reward_ros.to_msg import (
    estimate_msg,
    image_msg,
    reward_msg,
    shaped_msg,
    status_msg,
)
from robo_reward_ros.worker import LatestWins

__all__ = ["RewardNode", "main"]

_SURE = QoSProfile(depth=10, reliability=QoSReliabilityPolicy.RELIABLE)
_ANYONE = QoSProfile(depth=10, reliability=QoSReliabilityPolicy.BEST_EFFORT)  # matches every publisher
_ALONE = (
    "too: every reward would come twice. End all but one of them (an earlier launch may have left it), or "
    "give each a namespace. One that was killed is counted for up to 20 s, then this resolves by itself"
)
_HEALTH_S = 0.5
_ENDINGS = {
    EndEpisode.Request.SUCCESS: Ending.SUCCESS,
    EndEpisode.Request.FAILURE: Ending.FAILURE,
    EndEpisode.Request.TRUNCATED: Ending.TRUNCATED,
}
_DONE, _REFUSED = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class RewardNode(LifecycleNode):
    """Hosts a model; its parameters are described in `robo_reward_ros.parameters`."""

    def __init__(self, **options: Any) -> None:
        """Declare parameters; configure and activate where `autostart` says so.

        Args:
            options: of rclpy's node (context, namespace, parameter_overrides).

        Raises:
            ConfigError: parameters, or a model, that cannot be used, with `autostart`.
        """
        super().__init__("reward", **options)
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._configured = self._running = False
        self._why = ""
        self._switching_to: str | None = None
        parameters.declare(self)
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._apply_parameters)
        if self.get_parameter("autostart").value:
            for transition in (self.trigger_configure, self.trigger_activate):
                if transition() != _DONE:
                    raise ConfigError(self._why)

    # --- lifecycle ---------------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Read the parameters, load the model, offer topics and services."""
        return self._attempt(self._configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe the cameras and start judging."""
        return self._attempt(self._activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End what runs: an episode is truncated."""
        return self._attempt(self._deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let go of the model, the topics and the services."""
        return self._attempt(self._clean_up)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop from whatever state."""
        return self._attempt(self.stop)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured."""
        return self._attempt(self.stop)

    def stop(self) -> None:
        """Deactivate and clean up, as far as there is something to."""
        if self._running:
            self._deactivate()
        if self._configured:
            self._clean_up()

    def _attempt(self, step: Callable[[], None]) -> TransitionCallbackReturn:
        """rclpy swallows what a transition raises: say it, and stay in the state before."""
        try:
            step()
        except RoboRewardError as error:
            self._why = " ".join(str(error).split())
            self.get_logger().error(self._why)
            return _REFUSED
        except Exception as error:
            self._why = f"{type(error).__name__}: {error}"
            self.get_logger().error(self._why)
            raise
        return _DONE

    def _configure(self) -> None:
        self._settings = parameters.read(self)
        self._judge = self._load(self._settings.model)
        self._estimates = self.create_publisher(robo_reward_msgs.msg.ProgressEstimate, "estimate", _SURE)
        self._shaped = self.create_publisher(robo_reward_msgs.msg.ShapedReward, "shaped_reward", _SURE)
        self._rewards = self.create_publisher(Float64, "reward", _SURE)
        self._overlays = self.create_publisher(Image, "overlay", QoSProfile(depth=1))
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", _SURE)
        self._service_handles = [
            self.create_service(StartEpisode, "start_episode", self._on_start),
            self.create_service(EndEpisode, "end_episode", self._on_end),
            self.create_service(SetModel, "set_model", self._on_set_model),
        ]
        self._rivals = [
            Rivals(self, topic, f"{does} {_ALONE}", ours=True)
            for topic, does in (("estimate", "judges"), ("reward", "pays"))
        ]
        self._configured = True

    def _activate(self) -> None:
        with ExitStack() as undo:  # a step that fails leaves nothing behind
            self._begin(undo)
            self._undo = undo.pop_all()
        self._running = True
        self.get_logger().info(
            f"judging with {', '.join(self._cameras)}; model {self._model.version}, device {self._device}"
        )

    def _begin(self, undo: ExitStack) -> None:
        """Listen and judge; `undo` ends what has begun, last things first."""
        settings = self._settings
        self._judge.renew()  # a new aligner counts the generations of stamps from 0
        self._aligner: Aligner[Any] = Aligner([camera.name for camera in settings.cameras], settings.aligner)
        self._pacer, self._overlay = Pacer(settings.rate_hz), Overlay()
        self._latency, self._inference = Timings(), Timings()
        self._decisions = self._invalid = 0
        self._failure, self._doubts = "", Doubts()
        log = self.get_logger()
        self._told = Told(self._say_doubts, lambda: log.info("rewards are well again"), self._now)
        self._last_set_ns = self._now()
        self._started_ns = 0
        self._overlay_due = 0
        self._success_ns: int | None = None
        self._cameras: dict[str, Camera] = {}
        for camera in settings.cameras:
            self._cameras[camera.name] = Camera(self, camera, self._now, self._on_image)
            undo.callback(self._cameras[camera.name].close)
        self._proprio = self._listen_to_body()
        undo.callback(self._stop_listening_to_body)
        self._success, self._success_told = None, Told(log.warning, lambda: None, self._now)
        if settings.success_source == "topic":
            self._success = self.create_subscription(Bool, "success", self._on_success, _ANYONE)
            undo.callback(self.destroy_subscription, self._success)
        self._deadline = self.create_timer(1.0, self._on_deadline, clock=self._steady, autostart=False)
        undo.callback(self.destroy_timer, self._deadline)
        self._armed_ns: int | None = None  # the deadline that it is set to
        health = self.create_timer(_HEALTH_S, self._on_health, clock=self._steady)
        undo.callback(self.destroy_timer, health)
        self._watch_clock()
        undo.callback(lambda: self._jumps.unregister())
        self._worker: LatestWins[tuple[AlignedSet[Any], int]] = LatestWins(
            self._work, self._work_failed, "inference"
        )
        undo.callback(self._worker.close)

    def _watch_clock(self) -> None:
        """Be told of jumps of ROS time by jump_s, and of any back."""
        self._jumps = self.get_clock().create_jump_callback(
            JumpThreshold(
                min_forward=Duration(seconds=self._settings.jump_s),
                min_backward=Duration(nanoseconds=-1),
                on_clock_change=True,
            ),
            post_callback=self._on_clock_jump,
        )

    def _deactivate(self) -> None:
        self._running = False
        if self._judge.episode_id:
            with suppress(EpisodeError):  # the decision that is still under way ended it
                self._publish_end(self._judge.end(Ending.TRUNCATED, self._end_ns()).payment)
        self._undo.close()

    def _clean_up(self) -> None:
        self._configured = False
        for service in self._service_handles:
            self.destroy_service(service)
        for publisher in (self._estimates, self._shaped, self._rewards, self._overlays, self._diagnostics):
            self.destroy_publisher(publisher)
        del self._judge, self._model

    def _load(self, path: str) -> EpisodeJudge:
        """A judge with the model at `path`, which has been run once: the first decision is not a slow one."""
        import torch

        settings = self._settings
        if not path:
            raise ConfigError("no model: set the parameter model to a run folder of robo-reward train")
        device = settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if settings.threads:
            # OpenCV too: its pool for a resize of 0.3 ms waits for cores that cameras keep busy.
            torch.set_num_threads(settings.threads)
            cv2.setNumThreads(settings.threads)
        model = robo_reward.load(path, device=device)
        judge = EpisodeJudge(
            model,
            settings.shaper,
            settings.rewards,
            settings.instruction or None,
            detector_ends=settings.success_source == "detector",
        )
        names = [camera.model_name for camera in settings.cameras]
        model.stream(instruction=settings.instruction or None).push(
            {name: np.zeros((96, 96, 3), np.uint8) for name in names}, stamp_ns=1
        )
        known = getattr(model, "cameras", ())
        if strangers := [name for name in names if known and name not in known]:
            self.get_logger().warning(
                f"the model was trained with cameras {', '.join(known)}, not with {', '.join(strangers)}: "
                "say what it calls them with camera.<name>.model_name"
            )
        self._model, self._device = model, device
        return judge

    def _listen_to_body(self) -> Proprioception | None:
        """The proprioception that model and parameters agree on."""
        topic = self._settings.proprio_topic
        checkpoint = getattr(self._model, "checkpoint", None)
        config = None if checkpoint is None else checkpoint.model.config
        size = 0 if config is None else config.proprio_dim
        if topic and config is not None and size:
            return Proprioception(self, topic, config)
        if topic:
            self.get_logger().info(f"proprio_topic '{topic}' is not read: the model takes images alone")
        elif size:
            self.get_logger().warning(
                f"the model was trained with {size} numbers of proprioception and gets none: say where they "
                "are with proprio_topic"
            )
        return None

    def _stop_listening_to_body(self) -> None:
        if self._proprio is not None:
            self._proprio.close()
            self._proprio = None

    # --- parameters --------------------------------------------------------------------------------------

    def _check_parameters(self, changes: Sequence[Parameter]) -> SetParametersResult:
        values = {change.name: change.value for change in changes}
        if values == {"model": self._switching_to}:  # by the service set_model, which has loaded it
            return SetParametersResult(successful=True)
        why = parameters.check(self, values, self._configured)
        return SetParametersResult(successful=not why, reason=why)

    def _apply_parameters(self, changes: Sequence[Parameter]) -> None:
        if not self._configured or not any(change.name in parameters.LIVE for change in changes):
            return
        self._settings = parameters.read(self)
        self._judge.settle(self._settings.shaper, self._settings.rewards)
        if self._running:
            self._aligner.settings = self._settings.aligner
            self._pacer.rate_hz = self._settings.rate_hz
            self._jumps.unregister()
            self._watch_clock()

    # --- images ------------------------------------------------------------------------------------------

    def _now(self) -> int:
        return time.monotonic_ns()

    def _on_image(self, camera: str, stamp: int, message: Any, now: int) -> None:
        if self._settings.drop_frozen and self._cameras[camera].frozen(self._settings.frozen_after_s):
            return
        self._take(self._aligner.add(camera, stamp, message, now))
        self._arm()

    def _on_deadline(self) -> None:
        self._take(self._aligner.tick(self._now()))
        self._arm()

    def _arm(self) -> None:
        """Set the timer to the next deadline."""
        due = self._aligner.due_ns
        if due == self._armed_ns:
            return
        self._armed_ns = due
        if due is None:
            self._deadline.cancel()
        else:
            self._deadline.timer_period_ns = max(due - self._now(), 1_000_000)
            self._deadline.reset()

    def _on_clock_jump(self, jump: TimeJump) -> None:
        seconds = jump.delta.nanoseconds * 1e-9
        self._aligner.restart(f"the ROS clock jumped by {seconds:+.3f} s")

    def _on_success(self, message: Bool) -> None:
        # Since when the robot says so: one that repeats itself must not put it off.
        self._success_ns = (self._success_ns or self._now()) if message.data else None

    def _take(self, ready: list[AlignedSet[Any]]) -> None:
        for images in ready:
            self._last_set_ns = self._now()
            # What came before the episode's start is no part of it, though its set was completed after.
            early = images.arrived_ns < self._started_ns
            if self._pacer.accept(images.stamp_ns):
                self._worker.offer((images, self._judge.epoch - early))

    # --- decisions, in the worker's thread ---------------------------------------------------------------

    def _work(self, item: tuple[AlignedSet[Any], int]) -> None:
        images, epoch = item
        began = self._now()
        pixels: dict[str, Any] = {}
        problems = list[str]()
        for name, (_, message) in images.frames.items():
            camera = self._cameras[name]
            try:
                pixels[camera.settings.model_name] = camera.decode(message)
                camera.problem = ""
            except (RoboRewardError, cv2.error) as error:
                camera.problem = " ".join(str(error).split())
                problems.append(camera.problem)
        reported = self._success_ns
        moment = self._judge.push(
            pixels,
            images.stamp_ns,
            epoch=epoch,
            generation=images.generation,
            reset=images.reset,
            robot_success=reported is not None and images.arrived_ns >= reported,
            problems="; ".join(problems),
            proprio=self._body_at(images.stamp_ns),
            taken={self._cameras[name].settings.model_name: at for name, (at, _) in images.frames.items()},
        )
        if moment is None:
            return
        self._publish(moment, images.reference, self._missing(moment.estimate, pixels))
        self._failure = ""
        self._inference.add((self._now() - began) * 1e-6)
        self._latency.add((self.get_clock().now().nanoseconds - images.stamp_ns) * 1e-6)
        self._decisions += 1
        self._invalid += not moment.estimate.valid
        self._doubts.add(moment.estimate.valid, moment.estimate.reason or moment.estimate.note)
        self._draw(moment, pixels, images)

    def _missing(self, estimate: ProgressEstimate, pixels: Iterable[str]) -> list[str]:
        """Cameras of the model that this moment was not seen through, by the model's names."""
        seen = estimate.per_view if estimate.valid else pixels
        return [name for name in self._known_cameras() if name not in seen]

    def _known_cameras(self) -> list[str]:
        """Those that the model was trained with; this node's, where the model does not say."""
        own = [camera.model_name for camera in self._settings.cameras]
        return list(getattr(self._model, "cameras", ())) or own

    def _body_at(self, stamp: int) -> Float32[np.ndarray, " p"] | None:
        if self._proprio is None:
            return None
        return self._proprio.at(stamp, round(self._settings.proprio_timeout_s * 1e9))

    def _work_failed(self, error: Exception) -> None:
        """A decision that nobody expected to fail, as for want of memory on the GPU: that is published."""
        self._failure = f"a decision failed: {type(error).__name__}: {' '.join(str(error).split())}"
        self.get_logger().error(self._failure, throttle_duration_sec=1.0)
        self._say_invalid(self._failure)

    def _publish(self, moment: Moment, frame_id: str, missing: Sequence[str]) -> None:
        if moment.payment is not None:
            self._pay(moment.payment, frame_id)
        self._estimates.publish(estimate_msg(moment, frame_id, missing))

    def _pay(self, payment: Payment, frame_id: str) -> None:
        self._rewards.publish(reward_msg(payment))
        self._shaped.publish(shaped_msg(payment, frame_id))

    def _draw(self, moment: Moment, pixels: dict[str, Any], images: AlignedSet[Any]) -> None:
        if not self._overlays.get_subscription_count():
            self._overlay.clear()
            return
        self._overlay.note(moment)
        now = self._now()
        if now >= self._overlay_due:
            self._overlay_due = now + int(1e9 / self._settings.overlay_rate_hz)
            drawn = self._overlay.draw(moment, pixels, self._settings.overlay_height)
            self._overlays.publish(image_msg(drawn, images.stamp_ns, images.reference))

    # --- services ----------------------------------------------------------------------------------------

    def _on_start(
        self, request: StartEpisode.Request, response: StartEpisode.Response
    ) -> StartEpisode.Response:
        try:
            if not self._running:
                raise ConfigError("the node is not active: activate it first")
            if why := self._why_not_alone():
                raise ConfigError(why)
            episode = str(request.episode_id) or f"episode_{time.time_ns()}"
            self._judge.start(episode, self._instruction(request), self._goal(request))
            self._success_ns, self._started_ns = None, self._now()
        except RoboRewardError as error:
            response.success, response.message = False, str(error)
            return response
        response.success, response.episode_id = True, episode
        return response

    def _instruction(self, request: StartEpisode.Request) -> str:
        """What to judge: the task where one is named, whatever words the robot was told it in."""
        known = tuple(getattr(self._model, "instructions", ()))
        if request.task and request.task not in known:
            raise ConfigError(
                f"the model has no task '{request.task}': it knows {', '.join(map(repr, known))}"
            )
        return str(request.task or request.instruction)

    def _goal(self, request: StartEpisode.Request) -> dict[str, Any] | None:
        if not len(request.goal_image.data):
            return None
        camera = request.goal_image.header.frame_id or self._settings.cameras[0].name
        if camera not in self._cameras:
            raise ConfigError(
                f"the goal image is of camera '{camera}', this node has {', '.join(self._cameras)}"
            )
        pixels = image_to_rgb(request.goal_image, "goal image")
        return {self._cameras[camera].settings.model_name: pixels}

    def _on_end(self, request: EndEpisode.Request, response: EndEpisode.Response) -> EndEpisode.Response:
        try:
            if not self._running:
                raise ConfigError("the node is not active: no episode is running")
            if request.outcome not in _ENDINGS:
                raise ConfigError(f"outcome is {request.outcome}: 1 is success, 2 failure, 3 truncated")
            summary = self._judge.end(_ENDINGS[request.outcome], self._end_ns(), str(request.episode_id))
        except RoboRewardError as error:
            response.success, response.message = False, str(error)
            return response
        self._publish_end(summary.payment)
        response.success, response.episode_id = True, summary.episode_id
        response.rewards, response.total_value = int(summary.rewards), float(summary.total_value)
        return response

    def _end_ns(self) -> int | None:
        """The stamp of now, on the clock of the images: theirs, and the time since."""
        last = self._judge.last_stamp_ns
        if last is not None and self.get_clock().ros_time_is_active:
            return self.get_clock().now().nanoseconds
        return None if last is None else last + self._now() - self._last_set_ns

    def _publish_end(self, payment: Payment | None) -> None:
        if payment is not None:
            self._pay(payment, "")

    def _on_set_model(self, request: SetModel.Request, response: SetModel.Response) -> SetModel.Response:
        try:
            self._set_model(str(request.path))
        except Exception as error:  # whatever another model's own code raises, the one before stays
            own = isinstance(error, RoboRewardError)
            response.message = str(error) if own else f"{type(error).__name__}: {error}"
        else:
            response.success = True
            response.message = "until this process ends: one that is started anew loads what its launch names"
        response.model_version = str(self._model.version)
        return response

    def _set_model(self, path: str) -> None:
        if self._judge.episode_id:
            raise ConfigError(f"episode '{self._judge.episode_id}' is running: end it first")
        self._judge = self._load(path)
        self._switching_to = path
        try:
            self.set_parameters([Parameter("model", value=path)])  # what the next configure loads
        finally:
            self._switching_to = None
        if self._running:
            self._doubts = Doubts()
            self._stop_listening_to_body()
            self._proprio = self._listen_to_body()

    # --- health ------------------------------------------------------------------------------------------

    def _on_health(self) -> None:
        for camera in self._cameras.values():
            camera.look_after()
        silence = (self._now() - self._last_set_ns) * 1e-9
        if silence > max(self._settings.camera_timeout_s, _HEALTH_S):
            self._say_blind(silence)
        self._diagnostics.publish(self._status())

    def _why_not_alone(self) -> str:
        """What to say of other nodes that publish or serve what this one does; "" where there are none."""
        for rivals in self._rivals:
            rivals.check()
        if why := next((rivals.problem for rivals in self._rivals if rivals.problem), ""):
            return why
        service = self.resolve_service_name("start_episode")
        if self.count_services(service) <= 1:
            return ""
        why = f"another node offers {service} {_ALONE}"
        self.get_logger().error(why, throttle_duration_sec=30.0)
        return why

    def _say_doubts(self, text: str) -> None:
        say = self.get_logger().error if self._doubts.error else self.get_logger().warning
        say(text)

    def _why_no_success(self) -> str:
        """What to say where nobody publishes the robot's word on success; "" where somebody does."""
        if self._success is None or self._success.get_publisher_count():
            return ""
        return f"nobody publishes '{self._success.topic_name}', which is to say that the task is done"

    def _say_blind(self, silence: float) -> None:
        """No camera sees anything: that is published, too."""
        self._say_invalid(why_blind(self._cameras.values(), silence))

    def _say_invalid(self, reason: str) -> None:
        estimate = ProgressEstimate.invalid(
            reason,
            stages=max(1, len(self._judge.stage_names)),
            stamp_ns=max(0, self.get_clock().now().nanoseconds),
            model_version=self._model.version,
        )
        moment = Moment(estimate, "", False, self._judge.episode_id, None)
        self._estimates.publish(estimate_msg(moment, "", self._known_cameras()))

    def _status(self) -> DiagnosticArray:
        name = self.get_fully_qualified_name().lstrip("/")
        worst, statuses = "", list[DiagnosticStatus]()
        paused = all(camera.silent_s > _HEALTH_S for camera in self._cameras.values())
        for camera in self._cameras.values():
            well, text = camera.state(self._settings.frozen_after_s)
            doubt = self._doubts.of(camera.settings.model_name)
            now = self._now()
            apart = why_left_out(self._aligner, camera, now) or why_missing(self._aligner, camera, now)
            if well and (why := apart or doubt):
                well, text = False, why
            # A robot that waits for its learner shows the same, or nothing: that is no news, good or bad.
            resting = paused or camera.frozen(self._settings.frozen_after_s)
            if well or camera.absent or not resting:
                camera.note("" if well else text)
            worst = worst or ("" if well else f"{camera.settings.name}: {text}")
            level = DiagnosticStatus.OK if well else DiagnosticStatus.WARN
            label = f"{name}: camera {camera.settings.name}"
            statuses.append(status_msg(label, level, text, camera_values(camera, self._aligner)))
        if self._proprio is not None:
            text = self._proprio.problem or self._proprio.absence
            worst = worst or text
            level = DiagnosticStatus.WARN if text else DiagnosticStatus.OK
            statuses.append(status_msg(f"{name}: proprioception", level, text or "ok", {}))
        if self._success is not None:
            text = self._why_no_success()
            self._success_told.note(text)
            worst = worst or text
            level = DiagnosticStatus.WARN if text else DiagnosticStatus.OK
            statuses.append(status_msg(f"{name}: success", level, text or "ok", {}))
        error = self._why_not_alone() or self._failure or self._doubts.error
        worst = error or worst or self._doubts.warning
        level = DiagnosticStatus.WARN if worst else DiagnosticStatus.OK
        level = DiagnosticStatus.ERROR if error else level
        statuses.insert(0, status_msg(f"{name}: rewards", level, worst or "ok", self._values()))
        self._told.note(self._doubts.error or self._doubts.but_for_cameras)
        now = stamp_msg(self.get_clock().now().nanoseconds)
        return DiagnosticArray(header=Header(stamp=now), status=statuses)

    def _values(self) -> dict[str, object]:
        offered, dropped = self._worker.offered, self._worker.dropped
        return {
            "episode": self._judge.episode_id or "none",
            "model": self._model.version,
            "device": self._device,
            "decisions": self._decisions,
            "decisions that were invalid": self._invalid,
            "rate (Hz)": f"{self._latency.rate_hz:.1f}",
            "stamp to reward p50 (ms)": f"{self._latency.quantile(0.5):.1f}",
            "stamp to reward p99 (ms)": f"{self._latency.quantile(0.99):.1f}",
            "decision p50 (ms)": f"{self._inference.quantile(0.5):.1f}",
            "decision p99 (ms)": f"{self._inference.quantile(0.99):.1f}",
            "offered": offered,
            "dropped": dropped,
            "reference camera": self._aligner.reference(self._now()) or "none",
            **self._judge.gate(),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the node; `arguments` as of a command line."""
    return run_node(RewardNode, arguments, RewardNode.stop)


if __name__ == "__main__":
    sys.exit(main())
