"""How the end of a container becomes the end of its tasks: state, reason and words. Pure."""

import msgspec

from meseta.model import Limitation, Reason, TaskState
from meseta.resources import MILLI
from slave.containers import Cause, ContainerEnded
from slave.supervisor_messages import Exited

_MIB = 1 << 20
# `signal` is not for cores: the numbers of Linux, the same on all machines that Python's `signal` names so.
_SIGNALS = [
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
]
_GREATEST_SIGNAL = 64  # Above the real-time signals there is none: 255 is an exit status.


class Ending(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """What a terminal status update says."""

    state: TaskState
    reason: Reason | None = None
    message: str = ""
    exit_status: int | None = None
    limitation: Limitation | None = None


def describe_exit(exit_status: int) -> str:
    """Return `exited with status 3` or `killed by SIGKILL` (128 + signal, as a shell shows it)."""
    signal_number = exit_status - 128
    if 1 <= signal_number <= len(_SIGNALS):
        return f"killed by {_SIGNALS[signal_number - 1]}"
    if len(_SIGNALS) < signal_number <= _GREATEST_SIGNAL:
        return f"killed by signal {signal_number}"
    return f"exited with status {exit_status}"


def ending_of_command(ended: ContainerEnded, kill_reason: Reason | None) -> Ending:
    """Return how a command task ended; `kill_reason` is why we killed it, if we did and there is one."""
    match ended.cause:
        case Cause.NEVER_STARTED:
            reason = kill_reason or Reason.TASK_KILLED_DURING_LAUNCH
            return Ending(state=TaskState.KILLED, reason=reason, message="killed before it was started")
        case Cause.START_FAILED:
            return Ending(
                state=TaskState.FAILED,
                reason=Reason.CONTAINER_LAUNCH_FAILED,
                message=f"could not start: {ended.message}",
            )
        case Cause.SUPERVISOR_LOST:
            return Ending(state=TaskState.FAILED, reason=Reason.SUPERVISOR_TERMINATED, message=ended.message)
        case Cause.EXITED:
            assert ended.exited is not None, f"container {ended.container_id} exited without a report"
            return _ending_of_exit(ended.exited, kill_reason)


def memory_ending(exited: Exited) -> Ending:
    """Return the end of a task whose container went over its memory."""
    limit, peak = exited.mem_limit_bytes, exited.mem_peak_bytes
    return Ending(
        state=TaskState.FAILED,
        reason=Reason.CONTAINER_LIMITATION_MEMORY,
        message=f"out of memory: limit {limit / _MIB:.1f} MiB, peak {peak / _MIB:.1f} MiB; ask for more mem",
        exit_status=exited.exit_status,
        limitation=Limitation(resource="mem", limit_milli=limit * MILLI // _MIB, peak_milli=peak * MILLI // _MIB),
    )


def _ending_of_exit(exited: Exited, kill_reason: Reason | None) -> Ending:
    how = describe_exit(exited.exit_status)
    if exited.was_killed:
        return Ending(state=TaskState.KILLED, reason=kill_reason, message=how, exit_status=exited.exit_status)
    if exited.oom_kills > 0 and exited.exit_status != 0:
        return memory_ending(exited)
    state = TaskState.FINISHED if exited.exit_status == 0 else TaskState.FAILED
    return Ending(state=state, message=how, exit_status=exited.exit_status)
