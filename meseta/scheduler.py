"""What a framework developer writes a scheduler with: `Scheduler`, `SchedulerDriver` and `run`.

The decisions are in `meseta/scheduler_core.py`; `MesetaSchedulerDriver` is the shell around them
that talks with a real master. The simulator has a driver of its own and runs the same schedulers.
"""

import asyncio
import logging
import os
import pwd
import secrets
import signal
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeVar

import msgspec

from meseta.driver_events import (
    AbortAsked,
    OnDisconnected,
    OnError,
    OnExecutorLost,
    OnFrameworkMessage,
    OnOfferRescinded,
    OnRegistered,
    OnReregistered,
    OnResourceOffers,
    OnSlaveLost,
    OnStatusUpdate,
    SchedulerCallback,
    StopAsked,
    UserCall,
)
from meseta.driver_shell import SEED_BITS, DriverShell, Peer
from meseta.errors import InvalidInput
from meseta.ids import ExecutorId, FrameworkId, OfferId, SlaveId, TaskId
from meseta.keys import PRINCIPALS_NAME, Cluster, cluster_folder, read_cluster, read_key_file, read_principals
from meseta.messages import (
    AcceptOffers,
    AcknowledgeStatus,
    DeclineOffers,
    FrameworkToExecutor,
    Hello,
    KillTask,
    ReconcileTasks,
    ReviveOffers,
    ShutdownExecutor,
    SuppressOffers,
)
from meseta.model import WEEK_S, Filters, FrameworkInfo, Launch, Offer, Operation, TaskInfo, TaskQuery, TaskStatus
from meseta.scheduler_core import SchedulerCore, SchedulerInit
from meseta.service import Service
from meseta.transport_keys import KeyPair

_LOG: Final = logging.getLogger("meseta.scheduler")
_Item = TypeVar("_Item")
_Checked = (
    AcceptOffers
    | DeclineOffers
    | ReviveOffers
    | SuppressOffers
    | KillTask
    | ReconcileTasks
    | FrameworkToExecutor
    | ShutdownExecutor
)
_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(_Checked)


class Timer(Protocol):
    """What `SchedulerDriver.call_later` returns."""

    def cancel(self) -> None:
        """Do not call the function; nothing happens if it was called already."""


class SchedulerDriver(ABC):
    """A scheduler's way to its master. Methods may be called from any thread and return at once.

    What they ask for is done in the order of the calls, after the callback that is running. They
    raise InvalidInput, and do nothing, if an argument has the wrong type or is out of range.
    """

    @abstractmethod
    def submit(self, call: UserCall) -> None:
        """Hand a call to the driver's core. For drivers themselves; schedulers use the methods below."""

    @abstractmethod
    def now(self) -> float:
        """Return monotonic seconds: the real clock's, or the simulator's."""

    @abstractmethod
    def call_later(self, delay_s: float, function: Callable[[], object]) -> Timer:
        """Call `function` on the callbacks' thread after `delay_s` seconds. It is treated as a callback."""

    def accept_offers(
        self, offer_ids: Sequence[OfferId], operations: Sequence[Operation], filters: Filters | None = None
    ) -> None:
        """Use offers of one slave; what the operations leave over is declined with `filters` (5 s)."""
        call = AcceptOffers(
            offer_ids=_tuple("offer_ids", offer_ids),
            operations=_tuple("operations", operations),
            filters=filters or Filters(),
        )
        self.submit(_checked("accept_offers", call))

    def launch_tasks(
        self, offer_ids: Sequence[OfferId], tasks: Sequence[TaskInfo], filters: Filters | None = None
    ) -> None:
        """Start `tasks` on the slave of the offers. Each gets a status update, also if an offer is gone."""
        self.accept_offers(offer_ids, (Launch(task_infos=_tuple("tasks", tasks)),), filters)

    def decline_offer(self, offer_id: OfferId, filters: Filters | None = None) -> None:
        """Give an offer back; its resources are not offered again for `filters.refuse_s` (5 s)."""
        call = DeclineOffers(offer_ids=(offer_id,), filters=filters or Filters())
        self.submit(_checked("decline_offer", call))

    def revive_offers(self, roles: Sequence[str] = ()) -> None:
        """Want offers again for `roles` (none named: all) and forget all their filters."""
        self.submit(_checked("revive_offers", ReviveOffers(roles=_tuple("roles", roles))))

    def suppress_offers(self, roles: Sequence[str] = ()) -> None:
        """Want no offers for `roles` (none named: all) until `revive_offers`."""
        self.submit(_checked("suppress_offers", SuppressOffers(roles=_tuple("roles", roles))))

    def kill_task(self, task_id: TaskId, grace_period_s: float | None = None) -> None:
        """End a task: SIGTERM, and SIGKILL after `grace_period_s` (None: as its kill policy says).

        Repeated by the driver to each new master until the task's end is known.
        """
        self.submit(_checked("kill_task", KillTask(task_id=task_id, grace_period_s=grace_period_s)))

    def acknowledge_status(self, status: TaskStatus) -> None:
        """Say that `status` is safe. Only for drivers with `explicit_acknowledgement`; others do it themselves."""
        if status.uuid is not None:
            call = AcknowledgeStatus(task_id=status.task_id, uuid=status.uuid, slave_id=status.slave_id)
            self.submit(call)

    def reconcile_tasks(self, queries: Sequence[TaskQuery] = ()) -> None:
        """Ask for a status update of each task in `queries`, until answered; none named: of all tasks, once."""
        self.submit(_checked("reconcile_tasks", ReconcileTasks(tasks=_tuple("queries", queries))))

    def send_framework_message(self, executor_id: ExecutorId, slave_id: SlaveId, data: bytes) -> None:
        """Send at most 1 MiB to an executor. It may be lost, and nobody would tell."""
        call = FrameworkToExecutor(executor_id=executor_id, slave_id=slave_id, data=data)
        self.submit(_checked("send_framework_message", call))

    def shutdown_executor(self, executor_id: ExecutorId, slave_id: SlaveId) -> None:
        """End an executor and its tasks."""
        self.submit(_checked("shutdown_executor", ShutdownExecutor(executor_id=executor_id, slave_id=slave_id)))

    def stop(self, *, failover: bool = False) -> None:
        """End the driver. No callback follows.

        `failover`: the framework's tasks run on for `failover_timeout_s`, for a driver with the same
        framework id to take over. Otherwise the framework is torn down: its tasks are killed and its id
        never comes back.
        """
        self.submit(StopAsked(failover=failover))

    def abort(self) -> None:
        """End the driver as after an error: exit code 1, and the tasks run on as with `failover`."""
        self.submit(AbortAsked())


class Scheduler:
    """Base of a framework's scheduler. Override what you need.

    Callbacks come one at a time, on one thread. An exception from a callback ends the driver with exit code 1,
    since the scheduler's state is unknown then; the update that was being delivered is not acknowledged, so a
    successor gets it again.
    """

    def registered(self, driver: SchedulerDriver, framework_id: FrameworkId) -> None:
        """The master knows this driver. A scheduler that wants to survive its own end keeps `framework_id`."""

    def reregistered(self, driver: SchedulerDriver) -> None:
        """The driver is registered again, after `disconnected`."""

    def disconnected(self, driver: SchedulerDriver) -> None:
        """The master is gone, and with it all offers. The driver looks for it by itself."""

    def resource_offers(self, driver: SchedulerDriver, offers: Sequence[Offer]) -> None:
        """New offers: accept or decline each of them. By default all are declined."""
        for offer in offers:
            driver.decline_offer(offer.offer_id)

    def offer_rescinded(self, driver: SchedulerDriver, offer_id: OfferId) -> None:
        """The offer is void. Tasks launched on it get TASK_DROPPED."""

    def status_update(self, driver: SchedulerDriver, status: TaskStatus) -> None:
        """A task's state changed. In order for each task, at least once."""

    def framework_message(
        self, driver: SchedulerDriver, executor_id: ExecutorId, slave_id: SlaveId, data: bytes
    ) -> None:
        """An executor sent `data`."""

    def slave_lost(self, driver: SchedulerDriver, slave_id: SlaveId) -> None:
        """A slave is unreachable or gone. Updates for its tasks come apart."""

    def executor_lost(
        self, driver: SchedulerDriver, executor_id: ExecutorId, slave_id: SlaveId, exit_status: int
    ) -> None:
        """An executor's process ended. Updates for its tasks come apart."""

    def error(self, driver: SchedulerDriver, message: str) -> None:
        """The master will not have this framework; the driver ends with exit code 1."""


def deliver(callback: SchedulerCallback, scheduler: Scheduler, driver: SchedulerDriver) -> None:
    """Call the scheduler's method that `callback` stands for. For drivers."""
    match callback:
        case OnStatusUpdate():
            scheduler.status_update(driver, callback.status)
        case OnResourceOffers():
            scheduler.resource_offers(driver, callback.offers)
        case OnOfferRescinded():
            scheduler.offer_rescinded(driver, callback.offer_id)
        case OnRegistered():
            scheduler.registered(driver, callback.framework_id)
        case OnReregistered():
            scheduler.reregistered(driver)
        case OnDisconnected():
            scheduler.disconnected(driver)
        case OnFrameworkMessage():
            scheduler.framework_message(driver, callback.executor_id, callback.slave_id, callback.data)
        case OnSlaveLost():
            scheduler.slave_lost(driver, callback.slave_id)
        case OnExecutorLost():
            scheduler.executor_lost(driver, callback.executor_id, callback.slave_id, callback.exit_status)
        case OnError():
            scheduler.error(driver, callback.message)


class MesetaSchedulerDriver(SchedulerDriver):
    """The driver of a real cluster. `run` is the simple way to it.

    On a running asyncio loop: `driver.start()`, then `await driver.join()`.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        framework_info: FrameworkInfo,
        *,
        endpoint: str,
        keys: KeyPair | None,
        master_public_key: str | None,
        explicit_acknowledgement: bool = False,
        auto_suppress: bool = True,
        record: Path | None = None,
    ) -> None:
        self._peer = Peer(
            endpoint=endpoint,
            hello=Hello(kind="framework", name=framework_info.name, capabilities=framework_info.capabilities),
            keys=keys,
            public_key=master_public_key,
        )
        self._init = SchedulerInit(
            framework_info=framework_info,
            seed=secrets.randbits(SEED_BITS),
            explicit_acknowledgement=explicit_acknowledgement,
            auto_suppress=auto_suppress,
            unix_offset_s=time.time() - time.monotonic(),
        )
        self._record = record
        self._shell: DriverShell[UserCall, SchedulerCallback] = DriverShell(
            _LOG, lambda callback: deliver(callback, scheduler, self)
        )

    def start(self) -> None:
        """Begin to look for the master. Callbacks come on the running loop's thread."""
        self._shell.start(SchedulerCore(self._init), self._init, self._peer, record=self._record)

    async def join(self) -> int:
        """Wait for the driver's end; return 0 after `stop`, 1 after an error or `abort`."""
        return (await self._shell.join()).exit_code

    def submit(self, call: UserCall) -> None:
        """Hand a call to the core: at once on the loop's thread, else by waking the loop."""
        self._shell.submit(call)

    def now(self) -> float:
        """Return the monotonic clock in seconds."""
        return time.monotonic()

    def call_later(self, delay_s: float, function: Callable[[], object]) -> Timer:
        """Call `function` on the callbacks' thread after `delay_s` seconds, unless the driver has ended by then."""
        return self._shell.call_later(delay_s, function)


def run(
    scheduler: Scheduler,
    *,
    name: str,
    roles: Sequence[str] = ("*",),
    user: str | None = None,
    framework_id: FrameworkId | None = None,
    failover_timeout_s: float = WEEK_S,
    capabilities: Sequence[str] = (),
    webui_url: str = "",
    labels: dict[str, str] | None = None,
    cluster: Path | str | None = None,
    key: Path | str | None = None,
    service: Service | None = None,
    explicit_acknowledgement: bool = False,
    auto_suppress: bool = True,
    record: Path | str | None = None,
) -> int:
    """Run `scheduler` as a framework until it stops; return 0 after `stop`, 1 after an error.

    `user` runs the tasks (None: who runs this process). `framework_id` takes over from an earlier
    driver. `cluster` is a cluster file (None: $MESETA_CLUSTER, else cluster.json in
    $MESETA_DIR or ~/.meseta), `key` a key file (None: $MESETA_KEY, else keys/operator.json beside
    the cluster file). `service` is bound with that key before the framework registers, and announced.
    SIGINT and SIGTERM stop with `failover=True`.

    Raises:
        InvalidInput: an argument or a file of the cluster is wrong or missing.
    """
    info = FrameworkInfo(
        name=name,
        user=user or _user_name(),
        id=framework_id,
        roles=_tuple("roles", roles),
        failover_timeout_s=failover_timeout_s,
        capabilities=_tuple("capabilities", capabilities),
        hostname=socket.gethostname(),
        webui_url=webui_url,
        labels=labels or {},
    )
    where, keys = _find_cluster(cluster, key, service)
    return asyncio.run(
        _run(
            lambda info: MesetaSchedulerDriver(
                scheduler,
                info,
                endpoint=where.master,
                keys=keys,
                master_public_key=where.master_public_key,
                explicit_acknowledgement=explicit_acknowledgement,
                auto_suppress=auto_suppress,
                record=None if record is None else Path(record),
            ),
            info,
            service,
        )
    )


async def _run(
    make_driver: Callable[[FrameworkInfo], MesetaSchedulerDriver], info: FrameworkInfo, service: Service | None
) -> int:
    if service is not None:
        service.start()
        info = msgspec.structs.replace(info, address=service.address)
    driver = make_driver(info)
    driver.start()
    loop = asyncio.get_running_loop()
    if threading.current_thread() is threading.main_thread():  # Nobody else may set signal handlers.
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, lambda: driver.stop(failover=True))
    try:
        return await driver.join()
    finally:
        if service is not None:
            service.close()


def _find_cluster(
    cluster: Path | str | None, key: Path | str | None, service: Service | None
) -> tuple[Cluster, KeyPair | None]:
    """Read the cluster's files; give the service its key too."""
    cluster_path = Path(cluster or os.environ.get("MESETA_CLUSTER") or cluster_folder() / "cluster.json")
    where = read_cluster(cluster_path)
    keys = None
    if where.master_public_key is not None:  # Else the cluster runs with --insecure, and knows no keys.
        keys_folder = cluster_path.parent / "keys"
        keys = read_key_file(Path(key or os.environ.get("MESETA_KEY") or keys_folder / "operator.json")).pair
        if service is not None:
            service.keys = keys
            service.principals = service.principals or read_principals(keys_folder / PRINCIPALS_NAME).get
    return where, keys


def _user_name() -> str:
    uid = os.geteuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _tuple(field: str, values: Iterable[_Item]) -> tuple[_Item, ...]:
    """Return a tuple; refuse one text, which would be taken for a list of its letters."""
    if isinstance(values, str | bytes):
        raise InvalidInput(f"{field}: {values!r} is one value; pass a list of them")
    return tuple(values)


def _checked(method: str, call: _Checked) -> _Checked:
    """Return `call` as the master will read it.

    One wrong value on the wire would refuse everything that was sent together with it, and too late to say where it
    came from.
    """
    try:
        checked: _Checked = _DECODER.decode(_ENCODER.encode(call))
    except (msgspec.ValidationError, TypeError, OverflowError) as error:
        raise InvalidInput(f"{method}: {error}") from error
    return checked
