"""Builders for tests of the drivers' cores: they fill in the dull fields."""

from meseta.driver_events import Received, SchedulerEffect, Send, SessionOpened
from meseta.ids import ExecutorId, FrameworkId, OfferId, SlaveId, StatusUuid, TaskId
from meseta.log import Log
from meseta.messages import AcceptOffers, FrameworkRegistered, Message, ResourceOffers, StatusUpdate
from meseta.model import (
    Address,
    CommandInfo,
    FrameworkInfo,
    Launch,
    Offer,
    Reason,
    TaskInfo,
    TaskState,
    TaskStatus,
)
from meseta.resources import resources
from meseta.scheduler_core import SchedulerCore, SchedulerInit

FRAMEWORK_ID = FrameworkId("f-1")
SLAVE_ID = SlaveId("s-1")
EXECUTOR_ID = ExecutorId("e-1")
ADDRESS = Address(endpoint="tcp://127.0.0.1:1")
EPOCH = 7


def framework(*, roles: tuple[str, ...] = ("*",), framework_id: FrameworkId | None = None) -> FrameworkInfo:
    return FrameworkInfo(name="tests", user="nobody", roles=roles, id=framework_id)


def offer(name: str, *, slave_id: SlaveId = SLAVE_ID) -> Offer:
    return Offer(
        offer_id=OfferId(name),
        framework_id=FRAMEWORK_ID,
        slave_id=slave_id,
        hostname="h",
        resources=resources(cpus=1),
        address=ADDRESS,
    )


def task(name: str, *, slave_id: SlaveId = SLAVE_ID) -> TaskInfo:
    return TaskInfo(
        task_id=TaskId(name), slave_id=slave_id, resources=resources(cpus=1), command=CommandInfo(value="true")
    )


def launch(offer_names: tuple[str, ...], *tasks: TaskInfo) -> AcceptOffers:
    return AcceptOffers(offer_ids=tuple(OfferId(name) for name in offer_names), operations=(Launch(task_infos=tasks),))


def status(name: str, state: TaskState, *, uuid: str | None = None, reason: Reason | None = None) -> TaskStatus:
    return TaskStatus(
        task_id=TaskId(name),
        state=state,
        slave_id=SLAVE_ID,
        uuid=None if uuid is None else StatusUuid(uuid),
        reason=reason,
    )


def received(message: Message, *, epoch: int | None = EPOCH) -> Received:
    return Received(message=message, epoch=epoch)


def update(name: str, state: TaskState, *, uuid: str | None = None, reason: Reason | None = None) -> Received:
    return received(StatusUpdate(status=status(name, state, uuid=uuid, reason=reason)))


def offers(*names: str) -> Received:
    return received(ResourceOffers(offers=tuple(offer(name) for name in names)))


def scheduler_core(
    *,
    roles: tuple[str, ...] = ("*",),
    framework_id: FrameworkId | None = None,
    explicit_acknowledgement: bool = False,
    auto_suppress: bool = True,
) -> SchedulerCore:
    return SchedulerCore(
        SchedulerInit(
            framework_info=framework(roles=roles, framework_id=framework_id),
            seed=1,
            explicit_acknowledgement=explicit_acknowledgement,
            auto_suppress=auto_suppress,
            unix_offset_s=1000.0,
        )
    )


def register(core: SchedulerCore, now: float = 0.0, *, epoch: int = EPOCH) -> list[SchedulerEffect]:
    """Open a session and register; return the effects of the registration."""
    core.handle(SessionOpened(epoch=epoch), now)
    return core.handle(received(FrameworkRegistered(framework_id=FRAMEWORK_ID), epoch=epoch), now)


def registered_core(
    *, roles: tuple[str, ...] = ("*",), explicit_acknowledgement: bool = False, auto_suppress: bool = True
) -> SchedulerCore:
    core = scheduler_core(roles=roles, explicit_acknowledgement=explicit_acknowledgement, auto_suppress=auto_suppress)
    register(core)
    return core


def sent(effects: list[SchedulerEffect]) -> list[Message]:
    return [effect.message for effect in effects if isinstance(effect, Send)]


def without_logs(effects: list[SchedulerEffect]) -> list[SchedulerEffect]:
    return [effect for effect in effects if not isinstance(effect, Log)]


def running_core() -> SchedulerCore:
    """A registered core with task t-1 running."""
    core = registered_core()
    core.handle(offers("o-1"), 0.0)
    core.handle(launch(("o-1",), task("t-1")), 0.0)
    core.handle(update("t-1", TaskState.RUNNING, uuid="u-1"), 0.0)
    return core
