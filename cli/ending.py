"""Taking a cluster down: frameworks first, then slaves with all their tasks, then the master.

Used by the keeper, and by `dcos down` and `dcos up` where the keeper was killed. Nothing is left:
a slave that is dead but may have left tasks is started once more, finds them, and ends them.
"""

import select
import shutil
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from cli.layout import Layout, Process, Settings, open_process
from cli.services import Service, services, spawn
from meseta.errors import MesetaError

STOP_LIMIT_S: Final = 10.0  # Of a daemon, from SIGTERM to its end.
LEAVE_LIMIT_S: Final = 40.0  # Of a slave with its tasks: it gives them 5 s and gives up after 30.
READY_LIMIT_S: Final = 15.0  # From a daemon's start to its signal handlers.
_KILL_LIMIT_S: Final = 5.0
_POLL_S: Final = 0.02

Tell = Callable[[str], None]


class LeftBehind(MesetaError):
    """Something of the cluster could not be ended."""


def end_cluster(layout: Layout, settings: Settings, tell: Tell) -> None:
    """End all daemons and all tasks; `tell` gets a line for what does not go as it should.

    Raises:
        LeftBehind: names what still runs.
    """
    daemons = services(layout, settings)
    frameworks = [one for one in daemons if one.kind == "framework"]
    slaves = [one for one in daemons if one.kind == "slave"]
    masters = [one for one in daemons if one.kind == "master"]
    _stop(layout, frameworks, tell)
    _leave(layout, settings, slaves, tell)
    _stop(layout, masters, tell)
    left = [str(path) for one in slaves for path in supervisors(layout.runtime_dir(one.name))]
    if left:
        raise LeftBehind(
            f"tasks may still run: the supervisors of {', '.join(left)} live;"
            f" look into {layout.logs_dir}, then repeat `{layout.command('down')}`"
        )
    for one in slaves:
        shutil.rmtree(layout.runtime_dir(one.name), ignore_errors=True)


def stop_daemons(layout: Layout, settings: Settings, tell: Tell) -> None:
    """End all daemons and leave the tasks running, to be found by the daemons that are started next."""
    daemons = services(layout, settings)
    for kind in ("framework", "slave", "master"):
        _stop(layout, [one for one in daemons if one.kind == kind], tell)


def supervisors(runtime_dir: Path) -> list[Path]:
    """Return the sockets of a slave's supervisors that live; they own its tasks."""
    living: list[Path] = []
    for path in sorted(runtime_dir.glob("supervisor-*.sock")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as probe:
            try:
                probe.connect(str(path))
            except (ConnectionRefusedError, FileNotFoundError):
                continue
            except BlockingIOError:
                pass  # Its queue is full: it lives.
        living.append(path)
    return living


def wait_for_end(processes: Sequence[Process], limit_s: float) -> list[Process]:
    """Wait for the end of all of them; return those that still live after `limit_s` seconds."""
    waiting = {process.pidfd: process for process in processes}
    poller = select.poll()
    for pidfd in waiting:
        poller.register(pidfd, select.POLLIN)
    until = time.monotonic() + limit_s
    while waiting and (remaining_s := until - time.monotonic()) > 0:
        for pidfd, _ in poller.poll(remaining_s * 1000):
            poller.unregister(pidfd)
            del waiting[pidfd]
    return list(waiting.values())


def _stop(layout: Layout, daemons: Sequence[Service], tell: Tell) -> None:
    """SIGTERM, wait, SIGKILL."""
    with ExitStack() as stack:
        living = _open(layout, daemons, stack)
        for process in living:
            process.send_signal(signal.SIGTERM)
        for process in wait_for_end(living, STOP_LIMIT_S):
            tell(f"{process.record.name} (pid {process.record.pid}) does not heed SIGTERM and is killed")
            process.send_signal(signal.SIGKILL)
        _demand_end(wait_for_end(living, _KILL_LIMIT_S))
    for daemon in daemons:
        layout.remove_record(daemon.name)


def _leave(layout: Layout, settings: Settings, slaves: Sequence[Service], tell: Tell) -> None:
    """Have slaves end their tasks and themselves; a second round is for those that died before they were done."""
    for is_last in (False, True):
        with ExitStack() as stack:
            for slave in slaves:
                if _needs_start(layout, slave):
                    tell(f"{slave.name} is dead and may have left tasks: it is started once more to end them")
                    process = spawn(layout, settings, slave)
                    stack.callback(process.wait)  # It is our child: nobody else can reap it.
            living = _open(layout, slaves, stack)
            _await_handlers(living)
            for one in living:
                one.send_signal(signal.SIGUSR1)
            for one in wait_for_end(living, LEAVE_LIMIT_S):
                tell(f"{one.record.name} (pid {one.record.pid}) does not heed SIGUSR1 and is killed")
                one.send_signal(signal.SIGKILL)
            _demand_end(wait_for_end(living, _KILL_LIMIT_S))
        _await_supervisors(layout, slaves)
        if is_last or not any(_needs_start(layout, slave) for slave in slaves):
            break
    for slave in slaves:
        layout.remove_record(slave.name)


def _needs_start(layout: Layout, slave: Service) -> bool:
    """True if the slave is dead and did not leave in order: then its executors' socket is still there."""
    record = layout.record(slave.name)
    process = None if record is None else open_process(record)
    if process is not None:
        process.close()
        return False
    return any(layout.runtime_dir(slave.name).glob("*.sock"))


def _open(layout: Layout, daemons: Sequence[Service], stack: ExitStack) -> list[Process]:
    living: list[Process] = []
    for daemon in daemons:
        record = layout.record(daemon.name)
        process = None if record is None else open_process(record)
        if process is not None:
            stack.callback(process.close)
            living.append(process)
    return living


def _await_handlers(processes: Sequence[Process]) -> None:
    """Wait until SIGUSR1 means something to them: before, it would kill them and leave their tasks."""
    until = time.monotonic() + READY_LIMIT_S
    for process in processes:
        while not process.catches(signal.SIGUSR1) and time.monotonic() < until:
            if not wait_for_end([process], _POLL_S):
                break


def _await_supervisors(layout: Layout, slaves: Sequence[Service]) -> None:
    """Supervisors end after their slave: when their last container is forgotten."""
    until = time.monotonic() + _KILL_LIMIT_S
    while time.monotonic() < until and any(supervisors(layout.runtime_dir(slave.name)) for slave in slaves):
        time.sleep(_POLL_S)


def _demand_end(processes: Sequence[Process]) -> None:
    if processes:
        names = ", ".join(f"{one.record.name} (pid {one.record.pid})" for one in processes)
        raise LeftBehind(f"{names} cannot be killed: the kernel holds it; look at `ps -o state,wchan -p PID`")
