"""Process trees without cgroups: sessions, parents, and a mark in the environment.

No limit is enforced here. Whatever a tree does, its processes stay descendants of the supervisor
(a subreaper), so none is lost; the question is only whose it is. A process that left its
session, lost its parents and wiped its environment all at once can belong to any of the
containers that lived when it was found: it is killed when the last of those has ended.
"""

import contextlib
import os
import signal
from dataclasses import dataclass, field

from isolation.processes import Stat, environment_value, own_children, read_stat
from isolation.spawn import Command, spawn
from isolation.trees import CONTAINER_MARK, Born, Bounds, Usage


@dataclass(slots=True)
class _Tree:
    first_pid: int
    is_first_reaped: bool = False


@dataclass(slots=True)
class PosixTrees:
    """The trees of one supervisor, which must be single-threaded and a subreaper."""

    label: str = "posix"
    _trees: dict[str, _Tree] = field(default_factory=dict)
    _living_first_pids: dict[int, str] = field(default_factory=dict)
    # By (pid, start_ticks): whose an unmarked orphan may be.
    _suspects: dict[tuple[int, int], tuple[str, ...]] = field(default_factory=dict)

    def start(self, name: str, command: Command, bounds: Bounds) -> Born:
        """Start a tree; `bounds` cannot be enforced."""
        pid = spawn(command)
        self._trees[name] = _Tree(pid)
        self._living_first_pids[pid] = name
        return Born(pid=pid, group="")

    def terminate(self, name: str) -> None:
        """SIGTERM to the first process's group."""
        self._signal_group(name, signal.SIGTERM)

    def first_ended(self, name: str) -> None:
        """Kill its group while the zombie still holds the group's number."""
        self._signal_group(name, signal.SIGKILL)
        tree = self._trees[name]
        tree.is_first_reaped = True
        del self._living_first_pids[tree.first_pid]

    def kill(self, name: str) -> bool:
        """Kill the group of a living first process, or the orphans of a dead one.

        As long as the first process lives, orphans are left alone: its death is at hand.
        """
        if not self._trees[name].is_first_reaped:
            self._signal_group(name, signal.SIGKILL)
            return False
        return not self._kill_orphans(name)

    def bury(self, name: str) -> Usage | None:
        """Forget a dead tree."""
        del self._trees[name]
        return Usage()

    def close(self) -> None:
        """Nothing is ever left behind."""

    def _signal_group(self, name: str, signum: int) -> None:
        tree = self._trees[name]
        if not tree.is_first_reaped:  # Else the number may be another's by now.
            with contextlib.suppress(ProcessLookupError, PermissionError):  # As in `_kill_child`.
                os.killpg(tree.first_pid, signum)

    def _kill_orphans(self, name: str) -> bool:
        """Kill what `name` left among our children; True if there was any. Its children come to us next."""
        found = False
        children = own_children()
        if len(children) == len(self._living_first_pids):
            return False
        for pid in children:
            stat = None if pid in self._living_first_pids else read_stat(pid)
            if stat is not None and stat.is_alive and self._belongs_to(name, stat):
                found = True
                self._kill_child(pid)
        return found

    def _kill_child(self, pid: int) -> None:
        # Not reaped yet, so surely the one we looked at. No permission: a setuid program, started
        # by a slave that is not root; the container has not ended before it has.
        with contextlib.suppress(PermissionError):
            os.kill(pid, signal.SIGKILL)

    def _belongs_to(self, name: str, orphan: Stat) -> bool:
        if orphan.session == self._trees[name].first_pid:
            return True
        mark = environment_value(orphan.pid, CONTAINER_MARK)
        if mark in self._trees:
            return mark == name
        if any(orphan.session == tree.first_pid for tree in self._trees.values()):
            return False
        key = (orphan.pid, orphan.start_ticks)
        suspects = tuple(each for each in self._suspects.get(key, tuple(self._trees)) if each in self._trees)
        if suspects == (name,) or not suspects:
            self._suspects.pop(key, None)
            return True
        self._suspects[key] = suspects
        return False
