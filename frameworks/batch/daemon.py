"""The batch daemon: the shell around the batch core. A framework with a service of its own."""

import asyncio
import contextlib
import logging
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from frameworks.batch.core import EXECUTOR_RESOURCES, BatchCore, BatchInit
from frameworks.batch.events import (
    Acknowledge,
    Answer,
    Decline,
    Disconnected,
    Effect,
    EndExecutor,
    Event,
    ForgetJob,
    ForgetTasks,
    HeartbeatReceived,
    JobChanged,
    JobSaved,
    KillAttempt,
    KillJob,
    Launch,
    LaunchItem,
    OffersReceived,
    Reconcile,
    Registered,
    Revive,
    SaveJob,
    SaveTask,
    SlaveWasLost,
    StatusReceived,
    SubmitJob,
    Suppress,
)
from frameworks.batch.jobstore import JobStore
from frameworks.batch.model import Heartbeat, JobPackage, JobSpec, JobView
from frameworks.batch.service import (
    FRAMEWORK_NAME,
    KILL,
    LIST,
    SHOW,
    SUBMIT,
    WATCH,
    Jobs,
    ListJobs,
    NameJob,
    Submitted,
    check_spec,
)
from meseta.errors import RequestRefused, StoreError
from meseta.ids import ExecutorId, FrameworkId, Principal, SlaveId
from meseta.keys import KeyFile, read_key_file, write_key_file
from meseta.log import INFO, Log, log_event, perform_log
from meseta.model import Capability, CommandInfo, ExecutorInfo, FrameworkInfo, Offer, TaskInfo, TaskStatus
from meseta.runner import CoreRunner, Recorder
from meseta.scheduler import MesetaSchedulerDriver, Scheduler, SchedulerDriver
from meseta.service import Service
from meseta.transport import KeyPair, generate_keypair

_LOG: Final = logging.getLogger("batch")
_SEED_BITS: Final = 62
WATCH_INTERVAL_S: Final = 0.1  # A bar that moves more often does not tell more.
_EXECUTOR_COMMAND: Final = 'exec "$MESETA_PYTHON" -P -m frameworks.batch.executor'
_HEARTBEATS = msgspec.msgpack.Decoder(Heartbeat)


class BatchSettings(msgspec.Struct, frozen=True):
    """What the daemon is started with. `keys` None: a cluster that runs with --insecure."""

    master: str
    master_public_key: str | None
    keys: KeyPair | None
    principals: Mapping[str, Principal]
    work_dir: Path
    user: str
    bind: str = "tcp://127.0.0.1:0"
    record: Path | None = None


class BatchDaemon(Scheduler):
    """Runs until SIGTERM, or until the master will not have it."""

    def __init__(self, settings: BatchSettings) -> None:
        self._settings = settings
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._request_count = 0
        self._changed: dict[str, asyncio.Event] = {}

    async def run(self) -> int:
        """Serve; return the process's exit code."""
        settings = self._settings
        settings.work_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._task_keys = None if settings.keys is None else _task_keys(settings.work_dir / "task-key.json")
        self._store = JobStore(settings.work_dir / "jobs.sqlite", self._store_failed)
        jobs, tasks = self._store.load()
        init = BatchInit(
            seed=secrets.randbits(_SEED_BITS), unix_offset_s=time.time() - time.monotonic(), jobs=jobs, tasks=tasks
        )
        self._core = BatchCore(init)
        recorder = None if settings.record is None else Recorder(settings.record, init)
        self._runner: CoreRunner[Event, Effect] = CoreRunner(self._core, self._perform, recorder=recorder)
        service = self._start_service()
        try:
            return await self._drive(service)
        finally:
            service.close()
            self._runner.close()
            self._store.close()

    async def _drive(self, service: Service) -> int:
        settings = self._settings
        info = FrameworkInfo(
            name=FRAMEWORK_NAME,
            user=settings.user,
            id=self._store.framework_id,
            hostname=socket.gethostname(),
            capabilities=(Capability.PARTITION_AWARE,),
            address=service.address,
            task_public_key=None if self._task_keys is None else self._task_keys.public,
        )
        self._driver = MesetaSchedulerDriver(
            self,
            info,
            endpoint=settings.master,
            keys=settings.keys,
            master_public_key=settings.master_public_key,
            explicit_acknowledgement=True,  # What a status changes is durable before it is acknowledged.
            auto_suppress=False,
        )
        self._runner.start()
        self._endpoint = service.address.endpoint
        self._driver.start()
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, lambda: self._driver.stop(failover=True))
        return await self._driver.join()

    # --- Callbacks of the driver ----------------------------------------------------------------------

    def registered(self, driver: SchedulerDriver, framework_id: FrameworkId) -> None:
        """Keep the id: after a crash it is our claim to the tasks that run."""
        self._store.save_framework_id(framework_id)
        log_event(_LOG, INFO, "ready", endpoint=self._endpoint, framework_id=framework_id)
        self._runner.handle(Registered())

    def reregistered(self, driver: SchedulerDriver) -> None:
        self._runner.handle(Registered())

    def disconnected(self, driver: SchedulerDriver) -> None:
        self._runner.handle(Disconnected())

    def resource_offers(self, driver: SchedulerDriver, offers: Sequence[Offer]) -> None:
        self._runner.handle(OffersReceived(offers=tuple(offers)))

    def status_update(self, driver: SchedulerDriver, status: TaskStatus) -> None:
        self._runner.handle(StatusReceived(status=status))

    def slave_lost(self, driver: SchedulerDriver, slave_id: SlaveId) -> None:
        self._runner.handle(SlaveWasLost(slave_id=slave_id))

    def framework_message(
        self, driver: SchedulerDriver, executor_id: ExecutorId, slave_id: SlaveId, data: bytes
    ) -> None:
        with contextlib.suppress(msgspec.DecodeError):  # Of an executor of another version: it is only a heartbeat.
            heartbeat = _HEARTBEATS.decode(data)
            self._runner.handle(HeartbeatReceived(slave_id=slave_id, executor_id=executor_id, heartbeat=heartbeat))

    def error(self, driver: SchedulerDriver, message: str) -> None:
        log_event(_LOG, logging.ERROR, "the master will not have this framework", message=message)

    def _store_failed(self, error: StoreError) -> None:
        log_event(_LOG, logging.ERROR, "jobs cannot be kept", error=error)
        self._driver.abort()

    # --- Effects --------------------------------------------------------------------------------------

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Launch():
                tasks = [self._task_info(effect.slave_id, item) for item in effect.items]
                self._driver.launch_tasks((effect.offer_id,), tasks)
            case Decline():
                self._driver.decline_offer(effect.offer_id)
            case Revive():
                self._driver.revive_offers()
            case Suppress():
                self._driver.suppress_offers()
            case Reconcile():
                self._driver.reconcile_tasks()
            case Acknowledge():
                status = effect.status
                self._store.after_writes(lambda: self._driver.acknowledge_status(status))
            case KillAttempt():
                self._driver.kill_task(effect.task_id)
            case EndExecutor():
                self._driver.shutdown_executor(effect.executor_id, effect.slave_id)
            case SaveJob():
                saved = JobSaved(job_id=effect.record.job_id)
                self._store.save_job(effect.record, (lambda: self._runner.handle(saved)) if effect.is_new else None)
            case SaveTask():
                self._store.save_task(effect.record)
            case ForgetTasks():
                self._store.forget_tasks(effect.job_id)
            case ForgetJob():
                self._store.forget_job(effect.job_id)
                self._changed.pop(effect.job_id, None)
            case Answer():
                future = self._waiting.pop(effect.request_id, None)
                if future is not None and not future.done():
                    future.set_result(effect)
            case JobChanged():
                changed = self._changed.pop(effect.job_id, None)
                if changed is not None:
                    changed.set()
            case Log():
                perform_log(_LOG, effect)

    def _task_info(self, slave_id: SlaveId, item: LaunchItem) -> TaskInfo:
        spec = self._core.job(item.job_id).spec
        executor = ExecutorInfo(
            executor_id=ExecutorId(item.job_id),
            command=CommandInfo(value=_EXECUTOR_COMMAND, user=spec.user),
            resources=EXECUTOR_RESOURCES,
            name=f"batch {spec.name}"[:255],
            data=self._package(item.job_id, spec),
        )
        return TaskInfo(
            task_id=item.task_id,
            slave_id=slave_id,
            name=f"{item.kind} of {spec.name}"[:255],
            resources=item.resources,
            executor=executor,
            data=msgspec.msgpack.encode(item.order),
        )

    def _package(self, job_id: str, spec: JobSpec) -> bytes:
        keys = self._task_keys
        package = JobPackage(
            job_id=job_id,
            name=spec.name,
            reducers=spec.reducers,
            file_name=spec.file_name,
            job_file=spec.job_file,
            mapper=spec.mapper,
            reducer=spec.reducer,
            files=spec.files,
            task_public_key=None if keys is None else keys.public,
            task_secret_key=None if keys is None else keys.secret,
        )
        return msgspec.msgpack.encode(package)

    # --- The service ----------------------------------------------------------------------------------

    def _start_service(self) -> Service:
        settings = self._settings
        service = Service(
            settings.bind,
            keys=settings.keys,
            principals=None if settings.keys is None else settings.principals.get,
        )
        service.add(SUBMIT, self._submit)
        service.add(LIST, self._list)
        service.add(SHOW, self._show)
        service.add(WATCH, self._watch)
        service.add(KILL, self._kill)
        service.start()
        return service

    async def _submit(self, principal: Principal, params: JobSpec) -> Submitted:
        check_spec(params)
        request_id, future = self._new_request()
        self._runner.handle(SubmitJob(request_id=request_id, spec=params, unix_s=time.time()))
        return await _answered(future)

    async def _kill(self, principal: Principal, params: NameJob) -> Submitted:
        job_id = self._find(params.job_id).job_id
        request_id, future = self._new_request()
        self._runner.handle(KillJob(request_id=request_id, job_id=job_id))
        return await _answered(future)

    async def _list(self, principal: Principal, params: ListJobs) -> Jobs:
        views = self._core.views()
        return Jobs(jobs=tuple(msgspec.structs.replace(view, counters={}, running=(), inputs=()) for view in views))

    async def _show(self, principal: Principal, params: NameJob) -> JobView:
        return self._find(params.job_id)

    async def _watch(self, principal: Principal, params: NameJob) -> AsyncIterator[JobView]:
        view: JobView | None = self._find(params.job_id)
        while view is not None:
            yield view
            if view.state.is_terminal:
                return
            job_id = view.job_id
            changed = self._changed.setdefault(job_id, asyncio.Event())
            await changed.wait()
            await asyncio.sleep(WATCH_INTERVAL_S)
            view = self._core.view(job_id)

    def _find(self, prefix: str) -> JobView:
        views = [view for view in self._core.views() if view.job_id.startswith((prefix, f"job-{prefix}"))]
        exact = [view for view in views if view.job_id == prefix]
        if len(exact or views) != 1:
            many = f"{prefix} is the beginning of {len(views)} jobs; give more of the id"
            none = f"there is no job {prefix}; `dcos batch list` names them"
            raise RequestRefused(many if views else none, code="not_found")
        return (exact or views)[0]

    def _new_request(self) -> tuple[int, asyncio.Future[Answer]]:
        self._request_count += 1
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[self._request_count] = future
        return self._request_count, future


async def _answered(future: asyncio.Future[Answer]) -> Submitted:
    answer = await future
    if answer.error:
        raise RequestRefused(answer.error, code="invalid")
    return Submitted(job_id=answer.job_id)


def _task_keys(path: Path) -> KeyPair:
    """Return the key that opens our tasks' sandboxes; made once, since running executors hold it."""
    if not path.exists():
        pair = generate_keypair()
        write_key_file(path, KeyFile(principal="batch-tasks", public=pair.public, secret=pair.secret))
    return read_key_file(path).pair
