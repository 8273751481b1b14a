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

from isolation.processes import Stat, find_mark, own_children, read_stat
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

    def resize(self, name: str, bounds: Bounds) -> None:
        """Do nothing: no bounds are enforced."""

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
        """Kill what `name` left among our children; True if anything may be left. Its children come to us next."""
        is_left = False
        seen: set[int] = set()
        while True:
            # Again until there is nobody new: one that died after the list was made has left us its children.
            new = [pid for pid in own_children() if pid not in self._living_first_pids and pid not in seen]
            if not new:
                return is_left
            seen.update(new)
            for pid in new:
                stat = read_stat(pid)
                if stat is None or not stat.is_alive:
                    continue
                owner = self._owner(name, stat)
                if owner == name:
                    self._kill_child(pid)
                is_left = is_left or owner in (name, None)

    def _kill_child(self, pid: int) -> None:
        # Not reaped yet, so surely the one we looked at. No permission: a setuid program, started
        # by a slave that is not root; the container has not ended before it has.
        with contextlib.suppress(PermissionError):
            os.kill(pid, signal.SIGKILL)

    def _owner(self, name: str, orphan: Stat) -> str | None:
        """Return whose the orphan is, `name` being asked for; None if that cannot be told yet: look again soon."""
        mark = find_mark(orphan.pid, CONTAINER_MARK)
        if mark.value in self._trees:
            return mark.value
        for owner, tree in self._trees.items():
            if orphan.session == tree.first_pid:
                return owner
        if not mark.is_final:
            return None
        key = (orphan.pid, orphan.start_ticks)
        suspects = tuple(each for each in self._suspects.get(key, tuple(self._trees)) if each in self._trees)
        if suspects == (name,) or not suspects:
            self._suspects.pop(key, None)
            return name
        self._suspects[key] = suspects
        return next(each for each in suspects if each != name)
