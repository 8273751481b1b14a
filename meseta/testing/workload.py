"""A scheduler for simulations: it wants a number of tasks to finish, and remembers what it was told.

It is written as a careful framework would be: what it is about to launch is saved first, after a
restart it takes over by its framework id and asks after every task whose end it does not know, and
a task that was lost is launched again under a new id.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from meseta.ids import FrameworkId, SlaveId, TaskId
from meseta.model import CommandInfo, Filters, Offer, TaskInfo, TaskQuery, TaskState, TaskStatus
from meseta.resources import Resources
from meseta.scheduler import Scheduler, SchedulerDriver
from meseta.testing.machine import PROGRAM
from meseta.testing.world import World

REFUSE_S = 10.0


@dataclass
class TaskRecord:
    """One attempt at a unit of work: `statuses` are distinct updates in the order of their arrival."""

    task_id: TaskId
    slave_id: SlaveId
    unit_index: int
    statuses: list[TaskStatus] = field(default_factory=list)
    end: TaskStatus | None = None
    kill_asked: bool = False


@dataclass
class WorkloadStore:
    """The framework's disk: survives crashes of its process."""

    framework_id: FrameworkId | None = None
    records: dict[TaskId, TaskRecord] = field(default_factory=dict)
    finished_units: set[int] = field(default_factory=set)
    ended_twice: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Workload(Scheduler):
    """Runs `unit_count` tasks of `resources` to their end, for `durations_s` seconds each."""

    def __init__(
        self,
        world: World,
        store: WorkloadStore,
        *,
        name: str,
        unit_count: int,
        resources: Resources,
        duration_s: tuple[float, float],
        failing_share: float = 0.1,
        kill_share: float = 0.05,
        checks_filters: bool = False,
    ) -> None:
        self._world = world
        self._store = store
        self._name = name
        self._unit_count = unit_count
        self._resources = resources
        self._duration_s = duration_s
        self._failing_share = failing_share
        self._kill_share = kill_share
        self._checks_filters = checks_filters
        self._refused: dict[SlaveId, tuple[Resources, float]] = {}

    def registered(self, driver: SchedulerDriver, framework_id: FrameworkId) -> None:
        """See `Scheduler`."""
        self._store.framework_id = framework_id
        self._ask_after_open_tasks(driver)

    def reregistered(self, driver: SchedulerDriver) -> None:
        """See `Scheduler`."""
        self._ask_after_open_tasks(driver)

    def resource_offers(self, driver: SchedulerDriver, offers: Sequence[Offer]) -> None:
        """See `Scheduler`."""
        for offer in offers:
            self._check_filter(offer)
            self._use(driver, offer)

    def status_update(self, driver: SchedulerDriver, status: TaskStatus) -> None:
        """See `Scheduler`."""
        record = self._store.records.get(status.task_id)
        if record is None:
            self._store.errors.append(f"update for {status.task_id}, which was never launched")
            return
        if any(known.uuid == status.uuid and known.state == status.state for known in record.statuses):
            return  # At least once: this one is known.
        record.statuses.append(status)
        if status.state.is_terminal:
            self._end(driver, record, status)
        elif status.state is TaskState.RUNNING and self._world.chance(self._kill_share):
            record.kill_asked = True
            driver.kill_task(record.task_id)

    def error(self, driver: SchedulerDriver, message: str) -> None:
        """See `Scheduler`."""
        self._store.errors.append(message)

    def _end(self, driver: SchedulerDriver, record: TaskRecord, status: TaskStatus) -> None:
        if record.end is not None:
            if record.end.state is not status.state:
                told = f"{record.end.state} ({record.end.message}) and {status.state} ({status.message})"
                self._store.ended_twice.append(f"{record.task_id}: {told}")
            return
        record.end = status
        if status.state in (TaskState.FINISHED, TaskState.FAILED, TaskState.KILLED):
            self._store.finished_units.add(record.unit_index)  # It had its run; only lost ones are repeated.
        else:
            self._revive(driver)

    def _revive(self, driver: SchedulerDriver) -> None:
        self._refused.clear()
        driver.revive_offers()

    def _check_filter(self, offer: Offer) -> None:
        """A refused subset must not be offered again while the filter lasts (no fault may have removed it)."""
        if not self._checks_filters or len(self._store.finished_units) == self._unit_count:
            return  # A driver whose scheduler wants nothing suppresses and revives by itself.
        refused = self._refused.get(offer.slave_id)
        if refused and offer.resources <= refused[0] and self._world.now < refused[1]:
            self._store.errors.append(f"offer {offer.offer_id} of {offer.resources}, refused until {refused[1]:.3f}")

    def _use(self, driver: SchedulerDriver, offer: Offer) -> None:
        tasks: list[TaskInfo] = []
        left = offer.resources
        busy = {record.unit_index for record in self._store.records.values() if record.end is None}
        waiting = [
            index for index in range(self._unit_count) if index not in busy and index not in self._store.finished_units
        ]
        for index in waiting:
            if not self._resources <= left:
                break
            left = left - self._resources
            tasks.append(self._task(offer.slave_id, index))
        if not tasks:
            self._refused[offer.slave_id] = (offer.resources, self._world.now + REFUSE_S)
            driver.decline_offer(offer.offer_id, Filters(refuse_s=REFUSE_S))
            return
        driver.launch_tasks([offer.offer_id], tasks, Filters(refuse_s=REFUSE_S))

    def _task(self, slave_id: SlaveId, unit_index: int) -> TaskInfo:
        task_id = TaskId(f"{self._name}-{unit_index}-{len(self._store.records)}")
        self._store.records[task_id] = TaskRecord(task_id, slave_id, unit_index)
        seconds = self._world.rng.uniform(*self._duration_s)
        exit_status = 3 if self._world.chance(self._failing_share) else 0
        command = CommandInfo(arguments=(PROGRAM, f"{seconds:.3f}", str(exit_status)))
        return TaskInfo(task_id=task_id, slave_id=slave_id, resources=self._resources, command=command)

    def _ask_after_open_tasks(self, driver: SchedulerDriver) -> None:
        queries = [
            TaskQuery(task_id=record.task_id, slave_id=record.slave_id)
            for record in self._store.records.values()
            if record.end is None
        ]
        if queries:
            driver.reconcile_tasks(queries)
        if len(self._store.finished_units) < self._unit_count:
            self._revive(driver)
