"""What a supervisor asks of an isolation: start a container's process tree, signal it, bury it."""

from typing import Final, NamedTuple, Protocol

from isolation.spawn import Command

# In the environment of every container: what leaves its session and loses its parents is known by it.
CONTAINER_MARK = "MESETA_CONTAINER_ID"

# Mesos's floor as well. Below a few MiB not even exec succeeds, and the kernel might then kill the
# supervisor, which stands in the group at that moment.
MEM_FLOOR_BYTES: Final = 32 << 20


class Bounds(NamedTuple):
    """What a container may use at most; None: no bound."""

    cpu_milli: int | None = None
    mem_bytes: int | None = None
    pids: int | None = None


class Born(NamedTuple):
    """The first process of a container, and where its groups are (empty: it has none)."""

    pid: int
    group: str


class Usage(NamedTuple):
    """The kernel's own counters over a container's life; 0 where nothing counts."""

    oom_kills: int = 0
    mem_peak_bytes: int = 0


class Trees(Protocol):
    """The process trees of one supervisor, by container name."""

    @property
    def label(self) -> str:
        """Return "cgroups-v1", "cgroups-v2" or "posix"."""

    def start(self, name: str, command: Command, bounds: Bounds) -> Born:
        """Start a tree. Raises IsolationError, and then nothing is left of it."""

    def resize(self, name: str, bounds: Bounds) -> None:
        """Set other bounds, memory only to raise it; None leaves what is. Raises OSError."""

    def terminate(self, name: str) -> None:
        """SIGTERM."""

    def first_ended(self, name: str) -> None:
        """The first process is a zombie, about to be reaped: its pid is still its own."""

    def kill(self, name: str) -> bool:
        """SIGKILL to all that lives; True if nothing did, and its first process was reaped."""

    def bury(self, name: str) -> Usage | None:
        """Remove what is left of a dead tree; None if the kernel is not ready yet: ask again soon."""

    def close(self) -> None:
        """Leave nothing behind; no tree lives."""
