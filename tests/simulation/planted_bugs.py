"""Cores with one bug each: the simulator must find every one of them.

A bug is planted from outside, in what a core is told or in what it asks for, or in one method, so that
it is the bug that is tested and not the present wording of a core.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from master.allocator import Allocator
from master.core import MasterCore
from master.events import MasterEffect, MasterEvent, MasterInit, Received, Send
from meseta.driver_events import OnStatusUpdate, SchedulerEffect, SchedulerEvent, SessionOpened
from meseta.driver_events import Received as DriverReceived
from meseta.driver_events import Send as DriverSend
from meseta.ids import FrameworkId, SlaveId
from meseta.messages import AcknowledgeStatus, ReregisterSlave, StatusUpdate
from meseta.model import TaskState
from meseta.resources import Resources
from meseta.scheduler_core import SchedulerCore
from meseta.testing.cluster import Cores, Plan
from meseta.testing.network import NO_FAULTS, Faults
from slave.core import SlaveCore
from slave.events import (
    MasterConnected,
    MasterSaid,
    Persist,
    SendMaster,
    SendSupervisor,
    SlaveEffect,
    SlaveEvent,
    SupervisorLost,
    SupervisorSaid,
)
from slave.records import TaskRecord, UpdateRecord
from slave.supervisor_messages import Exited, Forget


class _SlaveEffectsChanged(SlaveCore):
    """Base: what the core asks for is changed on its way."""

    def handle(self, event: SlaveEvent, now: float) -> list[SlaveEffect]:
        return self.changed(super().handle(event, now))

    def tick(self, now: float) -> list[SlaveEffect]:
        return self.changed(super().tick(now))

    def changed(self, effects: list[SlaveEffect]) -> list[SlaveEffect]:
        raise NotImplementedError


class UpdateSentBeforeWritten(_SlaveEffectsChanged):
    """Acknowledged and sent first, written last: a crash in between forgets it."""

    def changed(self, effects: list[SlaveEffect]) -> list[SlaveEffect]:
        return sorted(effects, key=lambda effect: isinstance(effect, Persist))


class UpdateNeverWritten(_SlaveEffectsChanged):
    """The checkpoint lacks the updates."""

    def changed(self, effects: list[SlaveEffect]) -> list[SlaveEffect]:
        return _without_records(effects, UpdateRecord)


class TaskNeverWritten(_SlaveEffectsChanged):
    """The checkpoint lacks the tasks."""

    def changed(self, effects: list[SlaveEffect]) -> list[SlaveEffect]:
        return _without_records(effects, TaskRecord)


class ExitForgottenBeforeWritten(_SlaveEffectsChanged):
    """The supervisor is told to forget an exit before the end of the task is on disk."""

    def changed(self, effects: list[SlaveEffect]) -> list[SlaveEffect]:
        return sorted(effects, key=lambda effect: not _is_supervisor_message(effect, Forget))


class TasksLeftOutOfReregistration(_SlaveEffectsChanged):
    """A slave that comes back does not say what runs on it."""

    def changed(self, effects: list[SlaveEffect]) -> list[SlaveEffect]:
        return [
            SendMaster(message=msgspec.structs.replace(effect.message, tasks=()))
            if isinstance(effect, SendMaster) and isinstance(effect.message, ReregisterSlave)
            else effect
            for effect in effects
        ]


class SupervisorDeathIgnored(SlaveCore):
    """The tasks of a dead supervisor are thought to run on."""

    def handle(self, event: SlaveEvent, now: float) -> list[SlaveEffect]:
        return [] if isinstance(event, SupervisorLost) else super().handle(event, now)


class ExitStatusIgnored(SlaveCore):
    """Whatever ends, ends well."""

    def handle(self, event: SlaveEvent, now: float) -> list[SlaveEffect]:
        if isinstance(event, SupervisorSaid) and isinstance(event.report, Exited):
            event = msgspec.structs.replace(event, report=msgspec.structs.replace(event.report, exit_status=0))
        return super().handle(event, now)


class SlaveAcceptsStaleEpoch(SlaveCore):
    """A paused old master is obeyed."""

    def handle(self, event: SlaveEvent, now: float) -> list[SlaveEffect]:
        if isinstance(event, MasterSaid | MasterConnected):
            event = msgspec.structs.replace(event, epoch=None)
        return super().handle(event, now)


class SchedulerAcceptsStaleEpoch(SchedulerCore):
    """A paused old master is obeyed."""

    def handle(self, event: SchedulerEvent, now: float) -> list[SchedulerEffect]:
        if isinstance(event, DriverReceived | SessionOpened):
            event = msgspec.structs.replace(event, epoch=None)
        return super().handle(event, now)


class AcknowledgedBeforeDelivered(SchedulerCore):
    """The driver acknowledges first and tells its scheduler then."""

    def handle(self, event: SchedulerEvent, now: float) -> list[SchedulerEffect]:
        effects = super().handle(event, now)
        return sorted(effects, key=lambda effect: not isinstance(effect, DriverSend))


class UpdatesOutOfCallbacks(SchedulerCore):
    """One update in twenty never reaches the scheduler, though it is acknowledged."""

    count = 0

    def handle(self, event: SchedulerEvent, now: float) -> list[SchedulerEffect]:
        effects = super().handle(event, now)
        type(self).count += sum(isinstance(effect, OnStatusUpdate) for effect in effects)
        if type(self).count % 20 == 0:
            return [effect for effect in effects if not isinstance(effect, OnStatusUpdate)]
        return effects


class _MasterWithAllocator(MasterCore):
    """Base: the allocator of this master is another one."""

    allocator_type: type[Allocator] = Allocator

    def __init__(self, init: MasterInit) -> None:
        super().__init__(init)
        self._cluster.allocator.__class__ = self.allocator_type


class _Unfiltered(Allocator):
    def recover(
        self,
        framework_id: FrameworkId,
        role: str,
        slave_id: SlaveId,
        resources: Resources,
        now: float,
        *,
        refuse_s: float | None = None,
    ) -> None:
        super().recover(framework_id, role, slave_id, resources, now)


class FilterIgnored(_MasterWithAllocator):
    """A declined offer is made again at once."""

    allocator_type = _Unfiltered


class _Twice(Allocator):
    def allocate(self, now: float) -> list[Any]:
        allocations = super().allocate(now)
        return allocations + allocations[:1]


class OfferMadeTwice(_MasterWithAllocator):
    """The same free resources are in two offers."""

    allocator_type = _Twice


class MasterAcknowledgesByItself(MasterCore):
    """The master tells the slave that an update is safe before its framework has seen it."""

    def handle(self, event: MasterEvent, now: float) -> list[MasterEffect]:
        effects = super().handle(event, now)
        if isinstance(event, Received) and isinstance(event.message, StatusUpdate):
            status = event.message.status
            if status.uuid is not None:
                acknowledgement = AcknowledgeStatus(
                    task_id=status.task_id, uuid=status.uuid, framework_id=event.message.framework_id
                )
                effects.append(Send(session=event.session, message=acknowledgement))
        return effects


class UnreachableReportedLost(MasterCore):
    """Tasks on a slave that is silent are declared dead, though they may run."""

    def handle(self, event: MasterEvent, now: float) -> list[MasterEffect]:
        return self._changed(super().handle(event, now))

    def tick(self, now: float) -> list[MasterEffect]:
        return self._changed(super().tick(now))

    def _changed(self, effects: list[MasterEffect]) -> list[MasterEffect]:
        return [_lost(effect) for effect in effects]


class FreedWhenRunning(MasterCore):
    """A task's resources are offered again as soon as it runs."""

    def __init__(self, init: MasterInit) -> None:
        super().__init__(init)
        change_task: Callable[..., None] = self._cluster.change_task

        def change_and_free(task: Any, state: TaskState) -> None:
            change_task(task, state)
            if state is TaskState.RUNNING:
                self._cluster.free_task(task)

        self._cluster.change_task = change_and_free  # type: ignore[method-assign]


def _lost(effect: MasterEffect) -> MasterEffect:
    if isinstance(effect, Send) and isinstance(effect.message, StatusUpdate):
        status = effect.message.status
        if status.state is TaskState.UNREACHABLE:
            message = StatusUpdate(status=msgspec.structs.replace(status, state=TaskState.LOST))
            return Send(session=effect.session, message=message)
    return effect


def _without_records(effects: list[SlaveEffect], kind: type) -> list[SlaveEffect]:
    kept: list[SlaveEffect] = []
    for effect in effects:
        if isinstance(effect, Persist):
            records = tuple(record for record in effect.records if not isinstance(record, kind))
            if not records:
                continue
            kept.append(Persist(records=records))
        else:
            kept.append(effect)
    return kept


def _is_supervisor_message(effect: SlaveEffect, kind: type) -> bool:
    return isinstance(effect, SendSupervisor) and isinstance(effect.message, kind)


CALM = Plan(faults=NO_FAULTS, unit_count=12)
CRASHING = Plan(faults=Faults(crash_between_effects=0.004), unit_count=16)  # For what is done in the wrong order.
# The master remembers ends for a while and would cover up for a framework that does not.
FORGETFUL = Plan(faults=Faults(crash_between_effects=0.01, master_crash_s=5.0, scheduler_crash_s=10.0))
RACKED = Plan()

BUGS: dict[str, tuple[Cores, Plan]] = {
    "update sent before it is written": (Cores(slave=UpdateSentBeforeWritten), CRASHING),
    "update never written": (Cores(slave=UpdateNeverWritten), RACKED),
    "task never written": (Cores(slave=TaskNeverWritten), RACKED),
    "exit forgotten before it is written": (Cores(slave=ExitForgottenBeforeWritten), CRASHING),
    "tasks left out of re-registration": (Cores(slave=TasksLeftOutOfReregistration), RACKED),
    "supervisor's death ignored": (Cores(slave=SupervisorDeathIgnored), RACKED),
    "exit status ignored": (Cores(slave=ExitStatusIgnored), CALM),
    "slave accepts a stale epoch": (Cores(slave=SlaveAcceptsStaleEpoch), RACKED),
    "scheduler accepts a stale epoch": (Cores(scheduler=SchedulerAcceptsStaleEpoch), RACKED),
    "acknowledged before delivered": (Cores(scheduler=AcknowledgedBeforeDelivered), FORGETFUL),
    "update not delivered": (Cores(scheduler=UpdatesOutOfCallbacks), CALM),
    "filter ignored": (Cores(master=FilterIgnored), CALM),
    "offer made twice": (Cores(master=OfferMadeTwice), CALM),
    "master acknowledges by itself": (Cores(master=MasterAcknowledgesByItself), RACKED),
    "unreachable reported lost": (Cores(master=UnreachableReportedLost), RACKED),
    "resources freed when running": (Cores(master=FreedWhenRunning), CALM),
}
