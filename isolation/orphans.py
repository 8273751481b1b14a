"""Kills what a dead supervisor left behind: nothing may run that nobody accounts for."""

import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from isolation.processes import Stat, all_stats, find_mark, signal_process
from isolation.trees import CONTAINER_MARK
from meseta.errors import IsolationError

_LIMIT_S: Final = 30.0  # A killed process that has not died by then hangs in the kernel, or is not ours to kill.
_PAUSE_S: Final = 0.005
_QUIET_ROUNDS: Final = 2  # In a row that find nothing: a list of processes is not made in one moment.

_Identity = tuple[int, int]  # pid, start_ticks


class Orphan(NamedTuple):
    """A container that lost its supervisor. pid and ticks 0, group "": not known."""

    name: str
    pid: int
    start_ticks: int
    group: str


def kill_leftover_processes(orphans: Sequence[Orphan]) -> set[str]:
    """Kill the trees of `orphans`; return the names of those that had life in them.

    Raises:
        IsolationError: something lives on.
    """
    by_name = {orphan.name: orphan for orphan in orphans}
    owners: dict[_Identity, str] = {}  # Of all that were ever found: also of parents that are dead by now.
    stopped: set[_Identity] = set()
    killed: set[str] = set()
    until = time.monotonic() + _LIMIT_S
    quiet_count = 0
    while by_name and quiet_count < _QUIET_ROUNDS:
        found, is_sure = _find(by_name, owners)
        killed.update(owners[stat.pid, stat.start_ticks] for stat in found)
        if time.monotonic() > until:
            if not found:
                break
            listed = ", ".join(str(stat.pid) for stat in found)
            raise IsolationError(f"processes {listed} still live {_LIMIT_S:.0f} s after they were killed")
        # Stopped first, and looked for again: a stopped parent makes no more children, and
        # shows whose those are that it had.
        new = [stat for stat in found if (stat.pid, stat.start_ticks) not in stopped]
        stopped.update((stat.pid, stat.start_ticks) for stat in new)
        for stat in new or found:
            _signal(stat, signal.SIGSTOP if new else signal.SIGKILL)
        quiet_count = quiet_count + 1 if is_sure and not found else 0
        if not new:
            time.sleep(_PAUSE_S)
    return killed


def _find(by_name: Mapping[str, Orphan], owners: dict[_Identity, str]) -> tuple[list[Stat], bool]:
    """Return the living processes of the containers, and note their owners; False if some could not be told yet."""
    stats = all_stats()
    by_pid = {stat.pid: stat for stat in stats}
    names_by_pid = {orphan.pid: orphan.name for orphan in by_name.values() if orphan.pid}
    own_pid = os.getpid()
    children: dict[int, list[Stat]] = {}
    found: list[Stat] = []
    is_sure = True
    for stat in stats:
        children.setdefault(stat.parent, []).append(stat)
        if stat.pid == own_pid:
            continue
        owner = owners.get((stat.pid, stat.start_ticks))
        if owner is None:
            mark = find_mark(stat.pid, CONTAINER_MARK)
            is_sure = is_sure and mark.is_final
            owner = _owner(stat, mark.value, by_pid, by_name, names_by_pid)
        if owner is not None:
            owners[stat.pid, stat.start_ticks] = owner
            found.append(stat)
    for parent in found:  # Grows as it goes, down to the last descendant.
        for child in children.get(parent.pid, ()):
            identity = (child.pid, child.start_ticks)
            if identity not in owners and child.pid != own_pid:
                owners[identity] = owners[parent.pid, parent.start_ticks]
                found.append(child)
    return [stat for stat in found if stat.is_alive], is_sure


def _owner(
    stat: Stat,
    mark: str | None,
    by_pid: Mapping[int, Stat],
    by_name: Mapping[str, Orphan],
    names_by_pid: Mapping[int, str],
) -> str | None:
    if mark is not None:
        return mark if mark in by_name else None
    name = names_by_pid.get(stat.session)
    if name is None:
        return None
    first = by_pid.get(stat.session)
    if first is not None and first.start_ticks != by_name[name].start_ticks:
        return None  # The pid, and with it the session's number, is another's by now.
    return name if stat.start_ticks >= by_name[name].start_ticks else None


def _signal(stat: Stat, signum: int) -> None:
    with contextlib.suppress(PermissionError):  # It took on another user. It is waited for all the same.
        signal_process(stat.pid, stat.start_ticks, signum)
