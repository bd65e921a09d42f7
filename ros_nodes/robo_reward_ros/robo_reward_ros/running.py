"""How a node of this package runs as a process: one clear line for a bad parameter, and an orderly end."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable, Sequence

import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from robo_reward.errors import RoboRewardError
from robo_reward_ros.exits import CRASHED, FinishedError

__all__ = ["run_node"]

_LISTEN_S = 0.2


def run_node[NodeT: Node](
    make: Callable[[], NodeT],
    arguments: Sequence[str] | None = None,
    at_end: Callable[[NodeT], None] | None = None,
) -> int:
    """Run a node until SIGINT, SIGTERM or the end of its terminal (SIGHUP, unless it is ignored: nohup).

    Args:
        make: makes the node.
        arguments: of the command line, `--ros-args` among them; those of the process where None.
        at_end: called while the node can still publish.

    Returns:
        Exit status: 0, or 1 where the node refused to start or could not go on, `CRASHED` after an error that
        nobody expected.
    """
    # rclpy's own handlers close the context at once: nothing could be published any more.
    try:
        rclpy.init(
            args=None if arguments is None else list(arguments),
            signal_handler_options=SignalHandlerOptions.NO,
        )
    except rclpy_implementation.RCLError as error:  # a name that is none, a parameter file that is no YAML
        sys.stderr.write(f"ROS refuses its arguments: {' '.join(str(error).split())}\n")
        return 1
    # A process started in the background of a shell script ignores SIGINT, unless it says otherwise.
    heard = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        heard.append(signal.SIGHUP)
    for number in heard:
        signal.signal(number, signal.default_int_handler)
    try:
        node = make()
    except (RoboRewardError, ParameterException) as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        rclpy.try_shutdown()
        return 1
    except KeyboardInterrupt:  # while it loads its model, say
        sys.stderr.write("interrupted\n")
        rclpy.try_shutdown()
        return 0
    # Python hears a signal when the executor's wait returns, and that of an idle node need not.
    node.create_timer(_LISTEN_S, lambda: None, clock=Clock(clock_type=ClockType.STEADY_TIME))
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    status = 0
    try:
        executor.spin()
    except KeyboardInterrupt:
        node.get_logger().info("interrupted")
    except FinishedError:
        pass
    except RoboRewardError as error:
        sys.stderr.write(f"{' '.join(str(error).split())}\n")
        status = 1
    except Exception:
        traceback.print_exc()
        status = CRASHED
    finally:
        try:  # a terminal that ends says so more than once, by its shell and by itself
            for number in heard:
                signal.signal(number, signal.SIG_IGN)
        finally:
            if at_end is not None:
                at_end(node)
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    return status
