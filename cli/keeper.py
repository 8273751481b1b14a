"""The process behind `dcos up`: starts the daemons, starts again those that die, takes all down in the end.

    python -P -m cli.keeper FOLDER LOCK_FD

It holds the folder's lock for life (LOCK_FD, from `dcos up`). SIGTERM and SIGINT end the cluster
with all tasks. Killed, it leaves the daemons running; `dcos up` takes them over. It has neither
asyncio nor ZeroMQ: the fewer parts, the longer it lives.
"""

import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from cli.ending import LeftBehind, end_cluster
from cli.layout import KEEPER, Layout, ServiceRecord, Settings, start_ticks
from cli.services import Backoff, Service, describe_end, services, spawn
from meseta.errors import MesetaError
from meseta.log import ERROR, INFO, WARNING, log_event
from meseta.log_output import start_logging

EXIT_FAILED: Final = 1

log = logging.getLogger("keeper")


class _Kept:
    """A daemon and its present process; `due` is when it starts again, None while it runs."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.backoff = Backoff()
        self.process: subprocess.Popen[bytes] | None = None
        self.pidfd = -1
        self.started_at = 0.0
        self.due: float | None = 0.0
        self.start_count = 0
        self.last_end = ""


class Keeper:
    """Keeps the daemons of one cluster alive, until a signal."""

    def __init__(self, layout: Layout, settings: Settings) -> None:
        self._layout = layout
        self._settings = settings
        self._kept = [_Kept(service) for service in services(layout, settings)]
        self._selector = selectors.DefaultSelector()
        self._is_ending = False

    def run(self) -> int:
        """Return the exit status when all is down."""
        reader, writer = socket.socketpair()
        os.set_blocking(writer.fileno(), False)
        signal.set_wakeup_fd(writer.fileno())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        self._selector.register(reader, selectors.EVENT_READ)
        while not self._is_ending:
            self._start_due()
            for key, _ in self._selector.select(self._timeout_s()):
                if isinstance(key.data, _Kept):
                    self._on_end(key.data)
                else:
                    reader.recv(1024)
        return self._end()

    def _on_signal(self, number: int, frame: object) -> None:
        self._is_ending = True

    def _timeout_s(self) -> float | None:
        dues = [kept.due for kept in self._kept if kept.due is not None]
        return max(0.0, min(dues) - time.monotonic()) if dues else None

    def _start_due(self) -> None:
        now = time.monotonic()
        for kept in self._kept:
            if kept.due is not None and kept.due <= now:
                self._start(kept)

    def _start(self, kept: _Kept) -> None:
        try:
            kept.process = spawn(
                self._layout,
                self._settings,
                kept.service,
                restart_count=kept.start_count,
                last_end=kept.last_end,
            )
        except OSError as error:
            delay_s = kept.backoff.after(0.0)
            kept.due = time.monotonic() + delay_s
            log_event(log, ERROR, "daemon could not start", name=kept.service.name, error=error, again_s=delay_s)
            return
        kept.start_count += 1
        kept.started_at = time.monotonic()
        kept.due = None
        kept.pidfd = os.pidfd_open(kept.process.pid)
        self._selector.register(kept.pidfd, selectors.EVENT_READ, kept)
        log_event(log, INFO, "daemon started", name=kept.service.name, pid=kept.process.pid)

    def _on_end(self, kept: _Kept) -> None:
        assert kept.process is not None, f"{kept.service.name} ended without a process"
        self._selector.unregister(kept.pidfd)
        os.close(kept.pidfd)
        kept.last_end = describe_end(kept.process.wait())
        kept.process = None
        delay_s = kept.backoff.after(time.monotonic() - kept.started_at)
        kept.due = time.monotonic() + delay_s
        log_event(log, WARNING, "daemon died", name=kept.service.name, end=kept.last_end, again_s=delay_s)

    def _end(self) -> int:
        log_event(log, INFO, "ending the cluster")
        status = 0
        try:
            end_cluster(self._layout, self._settings, lambda text: log.warning("%s", text))
        except LeftBehind as error:
            log.error("%s", error)
            status = EXIT_FAILED
        for kept in self._kept:
            if kept.process is not None and kept.process.poll() is not None:
                log_event(log, INFO, "daemon ended", name=kept.service.name, end=describe_end(kept.process.returncode))
        if status == 0:
            self._layout.settings_file.unlink(missing_ok=True)
        self._layout.remove_record(KEEPER)
        log_event(log, INFO, "ended", status=status)
        return status


def main() -> int:
    """Read the command line, which only `dcos up` writes."""
    layout = Layout(Path(sys.argv[1]))
    os.set_inheritable(int(sys.argv[2]), False)  # noqa: FBT003 - it takes no keyword.
    start_logging("info")
    settings = layout.read_settings()
    if settings is None:
        raise MesetaError(f"{layout.settings_file} does not exist; the keeper is started by `dcos up`")
    pid = os.getpid()
    record = ServiceRecord(name=KEEPER, pid=pid, start_ticks=start_ticks(pid) or 0, started_unix_s=time.time())
    layout.write_record(record)
    log_event(log, INFO, "keeper started", pid=pid, folder=layout.folder)
    return Keeper(layout, settings).run()


if __name__ == "__main__":
    sys.exit(main())
