"""cgroups behind one face: v1, hybrid or v2, whichever holds this machine's controllers."""

import os
import re
from collections.abc import Mapping
from typing import Final, Protocol

from isolation.cgroup_files import kill_groups, own_hierarchies, remove_dead_supervisors, walk
from isolation.cgroups_v1 import CgroupsV1
from isolation.cgroups_v2 import CgroupsV2
from isolation.trees import Bounds, Usage
from meseta.errors import IsolationError

_KILL_LIMIT_S: Final = 30.0  # A killed process that has not died by then hangs in the kernel.
_SUPERVISOR: Final = re.compile(r"[0-9a-f]{8}\Z")

CGROUP_ROOT: Final = "meseta"  # Below the daemon's own group: what confines us confines our tasks.


class Cgroups(Protocol):
    """The groups of one supervisor's containers, by the container's name."""

    @property
    def label(self) -> str:
        """Return "cgroups-v1" or "cgroups-v2"."""

    @property
    def group(self) -> str:
        """Return where the groups are, as it was asked for: `<root>/<supervisor>`."""

    def create(self, name: str, bounds: Bounds) -> None:
        """Make a container's groups and set its bounds. Raises OSError."""

    def resize(self, name: str, bounds: Bounds) -> None:
        """Set other bounds, memory only to raise it; None leaves what is. Raises OSError."""

    def attach(self, name: str) -> None:
        """Move this process (single-threaded) into them, so that what it starts is born there. Raises OSError."""

    def detach(self, name: str) -> None:
        """Move it back home. Raises OSError."""

    def processes(self, name: str) -> list[int]:
        """Return the container's living processes."""

    def kill(self, name: str) -> bool:
        """SIGKILL to all; True if there was nobody."""

    def usage(self, name: str) -> Usage:
        """Return the kernel's counters."""

    def remove(self, name: str) -> bool:
        """Remove a dead container's groups; False if the kernel still holds one: ask again soon."""

    def close(self) -> None:
        """Remove what is empty of the supervisor's own folders."""


def open_cgroups(root: str, supervisor: str) -> Cgroups:
    """Return the groups of `supervisor` (8 hexadecimal digits, unique on this machine).

    They are made in `<root>/<supervisor>`; `root` is relative to our own group ("meseta"), or
    absolute ("/meseta") from the hierarchy's top.

    Raises:
        IsolationError: they cannot be had; says why.
    """
    try:
        hierarchies = own_hierarchies()
    except OSError as error:
        raise IsolationError(f"cannot read {error.filename}: {error.strerror}") from error
    if any("memory" in hierarchy.controllers for hierarchy in hierarchies):
        return CgroupsV1(hierarchies, root, supervisor)
    for hierarchy in hierarchies:
        if hierarchy.is_v2:
            return CgroupsV2(hierarchy, root, supervisor)
    raise IsolationError("no cgroup hierarchy with the controllers cpu, memory and pids is mounted")


def available(root: str, supervisor: str) -> str | None:
    """Return why there are no cgroups for us, None if there are."""
    try:
        open_cgroups(root, supervisor).close()
    except IsolationError as error:
        return str(error)
    return None


def kill_leftover_groups(groups_by_name: Mapping[str, str]) -> set[str]:
    """Kill and remove the groups of containers whose supervisor died; return those in which anything lived.

    A container's group is its path as it was reported, or "" if it never was: then any
    supervisor's container of that name is meant. All hierarchies are searched as a whole: our own
    group may not be the dead one's.

    Raises:
        IsolationError: something lives on.
    """
    killed: set[str] = set()
    for hierarchy in own_hierarchies():
        if not hierarchy.is_v2 and hierarchy.controllers.isdisjoint(("cpu", "memory", "pids")):
            continue
        folders = [path for path in walk(hierarchy.mount) if _is_container(path, groups_by_name)]
        killed.update(os.path.basename(path) for path in kill_groups(folders, limit_s=_KILL_LIMIT_S))
        for parent in dict.fromkeys(os.path.dirname(os.path.dirname(path)) for path in folders):
            remove_dead_supervisors(parent)
    return killed


def _is_container(path: str, groups_by_name: Mapping[str, str]) -> bool:
    _, supervisor, name = path.rsplit("/", 2)
    group = groups_by_name.get(name)
    if group is None or not _SUPERVISOR.match(supervisor):
        return False
    return path.endswith("/" + group.lstrip("/")) if group else True
