"""The slave daemon: sockets, files and processes around `SlaveCore`. It decides nothing.

Tasks are none of its children: they belong to the supervisor, so that this process can be ended,
upgraded or killed at any time.
"""

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import secrets
import signal
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from isolation.cgroups import CGROUP_ROOT, available
from meseta import __version__
from meseta.acls import ANONYMOUS, Acls, Action
from meseta.errors import InvalidInput, IsolationError, SessionLost, StoreError
from meseta.file_server import FileServer
from meseta.ids import ContainerId, FrameworkId, Principal, SessionId
from meseta.log import DEBUG, ERROR, INFO, WARNING, Log, log_event
from meseta.messages import Error, Hello, Message, Welcome
from meseta.model import Address
from meseta.runner import CoreRunner, Recorder
from meseta.transport import Client, KeyPair, Server
from slave.checkpoint import Checkpoint
from slave.core import SlaveCore
from slave.discovery import boot_id, discover, hostname, own_user
from slave.events import (
    Begin,
    CloseExecutor,
    ExecutorConnected,
    ExecutorDisconnected,
    ExecutorSaid,
    Exit,
    KillOrphans,
    LaunchContainer,
    LaunchFailed,
    Leave,
    MasterConnected,
    MasterDisconnected,
    MasterRefused,
    MasterSaid,
    OrphansKilled,
    Persist,
    PersistSlaveId,
    RemoveCheckpoint,
    ResetSession,
    SendExecutor,
    SendMaster,
    SendSupervisor,
    SlaveConfig,
    SlaveEffect,
    SlaveEvent,
    SlaveInit,
    StartSupervisor,
    SupervisorLost,
    SupervisorReady,
    SupervisorSaid,
    SupervisorStartFailed,
)
from slave.sandbox import Sandboxes, owner
from slave.supervisor_client import SupervisorClient, find_supervisors, kill_orphans, start_supervisor
from slave.supervisor_messages import FromSupervisor, ToSupervisor

FRAMEWORK_PRINCIPAL: Final = "framework:"
_ORPHAN_RETRY_S: Final = 5.0
_EXIT_BROKEN: Final = 70  # EX_SOFTWARE: our bug, named in the log.

log = logging.getLogger("slave")


class SlaveSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a daemon is started with. `keys` None: a cluster without CURVE (--insecure)."""

    master: str
    work_dir: Path
    master_public_key: str | None = None
    keys: KeyPair | None = None
    principals: Mapping[str, Principal] = {}
    runtime_dir: Path | None = None
    bind: str = "tcp://127.0.0.1:0"
    hostname: str | None = None
    resources: str | None = None
    attributes: Mapping[str, str] = {}
    isolation: str = "auto"
    record: Path | None = None
    acls: Acls | None = None  # Who may see whose sandboxes; None: every known key all of them.


class SlaveDaemon:
    """One slave. `run` returns the exit status."""

    def __init__(self, settings: SlaveSettings) -> None:
        self._settings = settings
        self._runtime_dir = settings.runtime_dir or default_runtime_dir(settings.work_dir)
        self._checkpoint = Checkpoint(settings.work_dir)
        self._sandboxes = Sandboxes(settings.work_dir)
        self._supervisors: dict[str, SupervisorClient] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._is_compacting = False
        self._master: Client | None = None
        self._performers: dict[type[Any], Callable[[Any], object]] = {
            Persist: self._persist,
            SendMaster: self._send_master,
            SendSupervisor: self._send_supervisor,
            LaunchContainer: self._launch,
            Log: self._log,
            SendExecutor: lambda effect: self._executor_server.send(effect.session, effect.message),
            CloseExecutor: lambda effect: self._executor_server.forget(effect.session, effect.reason),
            PersistSlaveId: lambda effect: self._checkpoint.write_slave_id(effect.slave_id),
            RemoveCheckpoint: lambda _: self._checkpoint.remove(),
            ResetSession: self._reset_session,
            StartSupervisor: lambda _: self._job(self._start_supervisor()),
            KillOrphans: lambda effect: self._job(self._kill_orphans(effect)),
            Exit: self._exit,
        }

    async def run(self) -> int:
        """Run until the core or a signal ends it.

        Raises:
            MesetaError: it cannot start; the text says why and what helps.
        """
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._loop.set_exception_handler(self._on_broken)
        with contextlib.ExitStack() as stack:
            # First: what comes while we open is heard when the core runs. Nothing is awaited before.
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self._finish, 0)
            self._loop.add_signal_handler(signal.SIGUSR1, self.feed, Leave())
            self._open(stack)
            gc.collect()
            gc.freeze()
            self.feed(Begin())
            self._runner.start()
            self._dial()
            self._job(self._index_sandboxes())
            log_event(log, INFO, "ready", endpoint=self._address.endpoint, work_dir=self._settings.work_dir)
            status = await self._ended
            await self._end_jobs()
        log_event(log, INFO, "ended", status=status)
        return status

    def feed(self, event: SlaveEvent) -> None:
        """Give the core an event; a core that breaks is our bug and ends the daemon."""
        if self._ended.done():
            return  # What the core knows may not be written: nothing of it may be told.
        try:
            self._runner.handle(event)
        except Exception as error:
            self._break(event, error)

    # --- Start ----------------------------------------------------------------------------------

    def _open(self, stack: contextlib.ExitStack) -> None:
        settings = self._settings
        _make_folder(settings.work_dir, 0o755)
        can_switch_user = os.geteuid() == 0
        # Executors of any user connect in it, and prove their token; nobody else can list it.
        _make_folder(self._runtime_dir, 0o711 if can_switch_user else 0o700)
        stack.callback(os.close, _lock(settings.work_dir))
        self._check_isolation()
        slave_id, records = self._checkpoint.open()
        stack.callback(self._checkpoint.close)
        if self._checkpoint.torn_bytes:
            log_event(log, WARNING, "checkpoint had a torn tail", bytes=self._checkpoint.torn_bytes)
        self._bind(stack, can_switch_user=can_switch_user)
        stack.callback(self._close_peers)
        for path in find_supervisors(self._runtime_dir):
            self._connect_supervisor(path)
        init = SlaveInit(
            config=self._config(can_switch_user=can_switch_user),
            seed=secrets.randbits(64),
            token_secret=secrets.token_bytes(32),
            slave_id=slave_id,
            records=records,
            supervisors=tuple(self._supervisors),
            unix_offset_s=time.time() - self._loop.time(),
        )
        self._core = SlaveCore(init)
        recorder = None if settings.record is None else Recorder(settings.record, init)
        self._runner: CoreRunner[SlaveEvent, SlaveEffect] = CoreRunner(self._core, self._perform, recorder=recorder)
        stack.callback(self._runner.close)

    def _bind(self, stack: contextlib.ExitStack, *, can_switch_user: bool) -> None:
        settings = self._settings
        socket_path = self._runtime_dir / "executors.sock"
        self._executor_server = Server(f"ipc://{socket_path}", _FromExecutors(self), keys=None, principals=None)
        stack.callback(self._executor_server.close)
        if can_switch_user:
            socket_path.chmod(0o666)
        self._file_server = FileServer(
            settings.bind,
            self._sandbox,
            keys=settings.keys,
            principals=None if settings.keys is None else self._principal,
        )
        stack.callback(self._file_server.close)
        name = settings.hostname or hostname()
        endpoint = self._file_server.endpoint.replace("//0.0.0.0:", f"//{name}:").replace("//[::]:", f"//{name}:")
        self._address = Address(endpoint=endpoint, public_key=None if settings.keys is None else settings.keys.public)

    def _config(self, *, can_switch_user: bool) -> SlaveConfig:
        settings = self._settings
        return SlaveConfig(
            hostname=settings.hostname or hostname(),
            resources=discover(settings.work_dir, settings.resources),
            address=self._address,
            work_dir=str(settings.work_dir),
            executor_endpoint=self._executor_server.endpoint,
            boot_id=boot_id(),
            attributes=dict(settings.attributes),
            version=__version__,
            user=own_user(),
            can_switch_user=can_switch_user,
            python=sys.executable,
        )

    def _check_isolation(self) -> None:
        if self._settings.isolation == "cgroups":
            missing = available(CGROUP_ROOT, f"{zlib.crc32(os.fsencode(self._runtime_dir)):08x}")
            if missing is not None:
                raise InvalidInput(f"--isolation cgroups: {missing}; use auto or posix to run without limits")

    def _dial(self) -> None:
        settings = self._settings
        self._master = Client(
            settings.master,
            _FromMaster(self),
            hello=Hello(kind="slave", name=settings.hostname or hostname()),
            keys=settings.keys,
            server_public_key=settings.master_public_key,
        )

    def is_executor_admitted(self, token: str) -> bool:
        """Ask the core, which knows the tokens."""
        return self._core.is_executor_admitted(token)

    # --- End ------------------------------------------------------------------------------------

    def _finish(self, status: int) -> None:
        if not self._ended.done():
            self._ended.set_result(status)

    def _break(self, event: object, error: BaseException) -> None:
        shown = event if isinstance(event, str) else type(event).__name__
        if isinstance(event, MasterSaid | ExecutorSaid):
            shown = type(event.message).__name__  # Not its fields: they may hold a task's environment.
        log.critical("core broken by %s", shown, exc_info=error)
        self._finish(_EXIT_BROKEN)

    def _on_broken(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        log.critical("%s", context.get("message", "the loop broke"), exc_info=context.get("exception"))
        self._finish(_EXIT_BROKEN)

    async def _end_jobs(self) -> None:
        jobs = list(self._jobs)
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)

    def _close_peers(self) -> None:
        if self._master is not None:
            self._master.close()
        for client in self._supervisors.values():
            client.close()

    # --- Effects --------------------------------------------------------------------------------

    def _perform(self, effect: SlaveEffect) -> None:
        self._performers[type(effect)](effect)

    def _persist(self, effect: Persist) -> None:
        self._checkpoint.append(effect.records)
        if self._checkpoint.is_large and not self._is_compacting:
            # Not now: the core's state is ahead of what is written until this turn's effects are done.
            self._is_compacting = True
            self._loop.call_soon(self._compact)

    def _compact(self) -> None:
        self._is_compacting = False
        if self._ended.done():
            return  # The core may be ahead of what could be written.
        try:
            self._checkpoint.rewrite(self._core.snapshot())
        except StoreError as error:
            log_event(log, ERROR, "checkpoint not rewritten", error=str(error))
        else:
            log_event(log, DEBUG, "checkpoint rewritten")

    def _send_master(self, effect: SendMaster) -> None:
        if self._master is not None:
            self._master.send(effect.message)

    def _send_supervisor(self, effect: SendSupervisor) -> None:
        self._to_supervisor(effect.supervisor, effect.message)

    def _to_supervisor(self, supervisor: str, message: ToSupervisor) -> None:
        client = self._supervisors.get(supervisor)
        if client is not None:  # Else its loss is told, and what it should do with it.
            client.send(message)

    def _launch(self, effect: LaunchContainer) -> None:
        start = effect.start
        try:
            self._sandboxes.make(effect.framework_id, start.container_id, start.sandbox, start.user)
        except IsolationError as error:
            self.feed(LaunchFailed(container_id=start.container_id, message=str(error)))
        else:
            self._to_supervisor(effect.supervisor, start)

    def _log(self, effect: Log) -> None:
        log_event(log, effect.level, effect.phrase, **effect.values)

    def _reset_session(self, effect: ResetSession) -> None:
        if self._master is not None:
            self._master.reset(effect.reason)

    def _exit(self, effect: Exit) -> None:
        log_event(log, INFO, "exit", why=effect.message)
        # After this turn: what was sent before must leave the outboxes.
        self._loop.call_soon(self._finish, effect.status)

    # --- Jobs -----------------------------------------------------------------------------------

    def _job(self, work: Any) -> None:
        job = self._loop.create_task(work)
        self._jobs.add(job)
        job.add_done_callback(self._job_done)

    def _job_done(self, job: "asyncio.Task[None]") -> None:
        self._jobs.discard(job)
        if not job.cancelled() and (error := job.exception()) is not None:
            self._break("a job of the daemon", error)

    async def _start_supervisor(self) -> None:
        try:
            path = await start_supervisor(
                self._runtime_dir,
                isolation=self._settings.isolation,
                cgroup_root=CGROUP_ROOT,
                log_file=self._settings.work_dir / "supervisor.log",
            )
        except (IsolationError, OSError) as error:
            self.feed(SupervisorStartFailed(message=str(error)))
            return
        if self._connect_supervisor(path):
            self.feed(SupervisorReady(supervisor=str(path)))
        else:
            self.feed(SupervisorStartFailed(message=f"{path} is gone at once; see supervisor.log in the work folder"))

    def _connect_supervisor(self, path: Path) -> bool:
        name = str(path)
        try:
            self._supervisors[name] = SupervisorClient(
                path,
                lambda report: self._on_report(name, report),
                lambda reason: self._on_supervisor_lost(name, reason),
            )
        except SessionLost as error:
            log_event(log, WARNING, "supervisor not reached", supervisor=name, error=str(error))
            return False
        return True

    def _on_report(self, supervisor: str, report: FromSupervisor) -> None:
        self.feed(SupervisorSaid(supervisor=supervisor, report=report))

    def _on_supervisor_lost(self, supervisor: str, reason: str) -> None:
        del self._supervisors[supervisor]
        self.feed(SupervisorLost(supervisor=supervisor, reason=reason))

    async def _kill_orphans(self, effect: KillOrphans) -> None:
        while True:
            try:
                killed = await asyncio.to_thread(kill_orphans, effect.containers, effect.isolation)
            except (IsolationError, OSError) as error:
                log_event(log, ERROR, "containers of a dead supervisor live on", error=str(error))
                await asyncio.sleep(_ORPHAN_RETRY_S)
                continue
            log_event(log, INFO, "orphans killed", supervisor=effect.supervisor, killed=len(killed))
            self.feed(OrphansKilled(supervisor=effect.supervisor))
            return

    async def _index_sandboxes(self) -> None:
        self._sandboxes.index(await asyncio.to_thread(self._sandboxes.scan))

    # --- Files ----------------------------------------------------------------------------------

    def _principal(self, public_key: str) -> Principal | None:
        principal = self._settings.principals.get(public_key)
        if principal is None and (framework_id := self._core.framework_of_key(public_key)) is not None:
            return Principal(FRAMEWORK_PRINCIPAL + framework_id)
        return principal

    def _sandbox(self, principal: Principal, framework_id: FrameworkId, container_id: ContainerId) -> Path | str:
        if principal.startswith(FRAMEWORK_PRINCIPAL) and principal != FRAMEWORK_PRINCIPAL + framework_id:
            return f"{principal} may not read sandboxes of framework {framework_id}"
        path = self._sandboxes.find(framework_id, container_id)
        if path is None:
            return f"this slave has no sandbox of container {container_id} of framework {framework_id}"
        if self._settings.acls is None or principal.startswith(FRAMEWORK_PRINCIPAL):
            return path
        try:
            user = owner(path)
        except OSError as error:  # Somebody has removed it: its reader is told, the daemon stays up.
            return f"sandbox of container {container_id} is gone: {error.strerror}"
        return self._settings.acls.refusal(principal or ANONYMOUS, Action.ACCESS_SANDBOX, user) or path


class _FromMaster:
    """The client's calls as events."""

    def __init__(self, daemon: SlaveDaemon) -> None:
        self._feed = daemon.feed

    def connected(self, welcome: Welcome, epoch: int | None) -> None:
        self._feed(MasterConnected(epoch=epoch))

    def received(self, message: Message, epoch: int | None) -> None:
        self._feed(MasterSaid(message=message, epoch=epoch))

    def disconnected(self, reason: str) -> None:
        self._feed(MasterDisconnected(reason=reason))

    def refused(self, error: Error) -> None:
        self._feed(MasterRefused(code=error.code, message=error.message))


class _FromExecutors:
    """The executors' server's calls as events."""

    def __init__(self, daemon: SlaveDaemon) -> None:
        self._daemon = daemon

    def session_opened(self, session: SessionId, principal: Principal, hello: Hello) -> str | None:
        if hello.kind != "executor" or not self._daemon.is_executor_admitted(hello.token):
            return "this token belongs to no executor here"
        self._daemon.feed(ExecutorConnected(session=session, token=hello.token))
        return None

    def received(self, session: SessionId, message: Message) -> None:
        self._daemon.feed(ExecutorSaid(session=session, message=message))

    def session_closed(self, session: SessionId, reason: str) -> None:
        self._daemon.feed(ExecutorDisconnected(session=session, reason=reason))


def default_runtime_dir(work_dir: Path) -> Path:
    """Return a short folder for sockets, the same for the same work folder: a socket's path has 107 bytes."""
    name = f"{zlib.crc32(os.fsencode(work_dir.absolute())):08x}"
    if os.geteuid() == 0:
        return Path("/run/meseta") / name
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/meseta-{os.geteuid()}") / "meseta" / name


def _make_folder(path: Path, mode: int) -> None:
    try:
        path.mkdir(0o755, parents=True, exist_ok=True)
        if path.stat().st_uid != os.geteuid():
            raise InvalidInput(f"{path} belongs to another user; name a folder of your own")
        path.chmod(mode)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be used: {error.strerror}") from error


def _lock(work_dir: Path) -> int:
    """Return the descriptor of the lock that keeps a second daemon out."""
    fd = os.open(work_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise StoreError(f"another slave daemon uses {work_dir}; give each a --work-dir of its own") from error
    return fd
