"""Process trees that cgroups hold: limits are enforced, and nothing of a tree gets away."""

import contextlib
import signal

from isolation.cgroups import Cgroups
from isolation.processes import signal_listed
from isolation.spawn import Command, spawn
from isolation.trees import Born, Bounds, Usage
from meseta.errors import InvariantError, IsolationError


class CgroupTrees:
    """The trees of one supervisor, which must be single-threaded."""

    def __init__(self, cgroups: Cgroups) -> None:
        self.label = cgroups.label
        self._cgroups = cgroups
        self._is_first_reaped: dict[str, bool] = {}

    def start(self, name: str, command: Command, bounds: Bounds) -> Born:
        """Start a tree inside its bounds: the process is born in its groups."""
        try:
            self._cgroups.create(name, bounds)
            try:
                self._cgroups.attach(name)
                pid = spawn(command)
            finally:
                self._leave(name)
        except (OSError, IsolationError) as error:
            with contextlib.suppress(OSError):
                self._cgroups.remove(name)  # If not now, then when the supervisor ends.
            if isinstance(error, IsolationError):
                raise
            raise IsolationError(f"cgroup of {name}: {error.strerror} ({error.filename})") from error
        self._is_first_reaped[name] = False
        return Born(pid=pid, group=f"{self._cgroups.group}/{name}")

    def resize(self, name: str, bounds: Bounds) -> None:
        """Set other bounds."""
        self._cgroups.resize(name, bounds)

    def terminate(self, name: str) -> None:
        """SIGTERM to every process."""
        signal_listed(lambda: self._cgroups.processes(name), signal.SIGTERM)

    def first_ended(self, name: str) -> None:
        """Remember it: a zombie is in no group any more."""
        self._is_first_reaped[name] = True

    def kill(self, name: str) -> bool:
        """SIGKILL to every process."""
        return self._cgroups.kill(name) and self._is_first_reaped[name]

    def bury(self, name: str) -> Usage | None:
        """Read the counters and remove the groups."""
        usage = self._cgroups.usage(name)
        if not self._cgroups.remove(name):
            return None
        del self._is_first_reaped[name]
        return usage

    def close(self) -> None:
        """Remove the supervisor's own groups."""
        self._cgroups.close()

    def _leave(self, name: str) -> None:
        try:
            self._cgroups.detach(name)
        except OSError as error:
            # Inside, we would be killed with the container. The slave kills what we leave, and reports it.
            raise InvariantError(f"the supervisor cannot leave the group of {name}: {error}") from error
