"""What slave daemon and supervisor say to each other, one MessagePack struct in each datagram.

The supervisor owns the tasks' processes; the daemon may come and go. Starts are deduplicated by
container id, and an exit record is kept until `Forget`.
"""

from typing import Annotated

import msgspec

from meseta.ids import ContainerId

# Not `meseta.model.Record`: importing that costs the supervisor 2 MiB.


class _SupervisorMessage(
    msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True, tag_field="type", tag=True
):
    """Base: the tag is the class's name."""


class Limits(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """What the kernel enforces. None: no limit of that kind."""

    cpu_milli: int | None = None
    mem_bytes: int | None = None
    pids: int | None = None


class StartContainer(_SupervisorMessage, frozen=True, kw_only=True):
    """Start a process tree once; asked again for the same id, the answer is repeated.

    `user` is a login name, None the supervisor's own. stdout and stderr are appended to files of
    those names in `sandbox`, an existing folder that is also the working directory.
    """

    container_id: ContainerId
    arguments: tuple[str, ...]
    environment: dict[str, str]
    sandbox: str
    user: str | None = None
    limits: Limits = Limits()


class KillContainer(_SupervisorMessage, frozen=True, kw_only=True):
    """SIGTERM to the container's processes, after `grace_period_s` SIGKILL to the whole tree.

    0 kills at once; asked again, the earlier end counts. An ended container answers `Exited`
    again, an unknown one `SupervisorRefused`.
    """

    container_id: ContainerId
    grace_period_s: Annotated[float, msgspec.Meta(ge=0, le=1e10)]  # Bounded: that refuses NaN.


class ResizeContainer(_SupervisorMessage, frozen=True, kw_only=True):
    """New limits for a container that runs: an executor was given more tasks, or has ended some.

    Memory is only ever raised: to take it from living processes would kill them. Kinds that had no
    limit at the start get none. Of one that has ended, nothing happens.
    """

    container_id: ContainerId
    limits: Limits


class Forget(_SupervisorMessage, frozen=True, kw_only=True):
    """The exit record is safe with the daemon; drop it and all that is left of the container."""

    container_id: ContainerId


class ListContainers(_SupervisorMessage, frozen=True, kw_only=True):
    """Ask for `Containers`: first message of a daemon that comes back."""


class RetireSupervisor(_SupervisorMessage, frozen=True, kw_only=True):
    """Take no more starts, and exit when the last container is forgotten."""


class Started(_SupervisorMessage, frozen=True, kw_only=True):
    """The process runs. `start_ticks` (field 22 of /proc/PID/stat) tells it from a later owner of its pid."""

    container_id: ContainerId
    pid: int
    start_ticks: int
    cgroup: str = ""  # Relative path of its groups; empty where there are none.


class StartFailed(_SupervisorMessage, frozen=True, kw_only=True):
    """Nothing was started, and `Forget` is not needed."""

    container_id: ContainerId
    message: str


class Exited(_SupervisorMessage, frozen=True, kw_only=True):
    """The first process ended and its tree is dead. Repeated after `ListContainers` until `Forget`.

    `exit_status` is as a shell shows it: 128 + signal if a signal ended it. `oom_kills` is the
    kernel's counter.
    """

    container_id: ContainerId
    exit_status: int
    oom_kills: int = 0
    mem_peak_bytes: int = 0
    mem_limit_bytes: int = 0
    was_killed: bool = False  # By KillContainer.


class Containers(_SupervisorMessage, frozen=True, kw_only=True):
    """Answer to `ListContainers`: what runs (exits come as `Exited` messages after it)."""

    running: tuple[Started, ...]
    isolation: str  # "cgroups-v1", "cgroups-v2" or "posix"
    isolation_note: str = ""  # Why limits are not enforced, where they are not.
    supervisor_pid: int = 0


class SupervisorRefused(_SupervisorMessage, frozen=True, kw_only=True):
    """The datagram was no message, or cannot be obeyed now."""

    message: str


ToSupervisor = StartContainer | KillContainer | ResizeContainer | Forget | ListContainers | RetireSupervisor
FromSupervisor = Started | StartFailed | Exited | Containers | SupervisorRefused

_ENCODER = msgspec.msgpack.Encoder()
_TO_SUPERVISOR: msgspec.msgpack.Decoder[ToSupervisor] = msgspec.msgpack.Decoder(ToSupervisor)
_FROM_SUPERVISOR: msgspec.msgpack.Decoder[FromSupervisor] = msgspec.msgpack.Decoder(FromSupervisor)


def encode(message: ToSupervisor | FromSupervisor) -> bytes:
    """Return one datagram."""
    return _ENCODER.encode(message)


def decode_request(data: bytes) -> ToSupervisor:
    """Read a daemon's datagram. Raises msgspec.DecodeError."""
    return _TO_SUPERVISOR.decode(data)


def decode_report(data: bytes) -> FromSupervisor:
    """Read a supervisor's datagram. Raises msgspec.DecodeError."""
    return _FROM_SUPERVISOR.decode(data)
