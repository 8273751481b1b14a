"""The framework behind `dcos run`: places the instances of one command, and knows how each of them ended.

Decisions only: what is seen of them (output, words) is its watcher's.
"""

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from meseta.ids import ContainerId, FrameworkId, OfferId, SlaveId, TaskId
from meseta.model import CommandInfo, Filters, KillPolicy, Offer, Reason, TaskInfo, TaskState, TaskStatus
from meseta.resources import Resources
from meseta.scheduler import Scheduler, SchedulerDriver

STARTS_LIMIT: Final = 10  # Of one instance whose offers were void each time: then something is wrong for good.
_EXIT_FAILED: Final = 1
_NEVER_RAN: Final = frozenset({Reason.INVALID_OFFERS, Reason.MASTER_DISCONNECTED, Reason.SLAVE_DISCONNECTED})


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to run, how often, with what."""

    task_prefix: str
    name: str
    instance_count: int
    command: CommandInfo
    resources: Resources
    kill_grace_s: float

    def task_id(self, index: int, start_count: int) -> TaskId:
        """Return an instance's task id; each new start has one of its own."""
        text = self.task_prefix if self.instance_count == 1 else f"{self.task_prefix}.{index}"
        return TaskId(text if start_count == 0 else f"{text}-again{start_count}")


class Watcher(Protocol):
    """Who shows what happens."""

    def started(self, index: int, slave_id: SlaveId, framework_id: FrameworkId, container_id: ContainerId) -> None:
        """Instance `index` has a sandbox now."""

    def ended(self, index: int) -> None:
        """Instance `index` has ended; its output is complete."""

    def all_ended(self) -> None:
        """Nothing runs or waits any more."""

    def tell(self, text: str) -> None:
        """Say something that is not output."""


class _Instance:
    def __init__(self, index: int) -> None:
        self.index = index
        self.start_count = 0
        self.task_id: TaskId | None = None  # None: waits for an offer.
        self.is_started = False
        self.exit_code: int | None = None


class RunScheduler(Scheduler):
    """Runs `plan.instance_count` tasks, each to its end once."""

    def __init__(self, plan: Plan, watcher: Watcher) -> None:
        self._plan = plan
        self._watcher = watcher
        self._instances = [_Instance(index) for index in range(plan.instance_count)]
        self._by_task: dict[TaskId, _Instance] = {}
        self._framework_id: FrameworkId | None = None
        self._is_killing = False
        self.problem = ""

    @property
    def waiting_count(self) -> int:
        """How many instances wait for an offer."""
        return sum(one.task_id is None and one.exit_code is None for one in self._instances)

    @property
    def framework_id(self) -> FrameworkId | None:
        """The id that the master gave, None before."""
        return self._framework_id

    @property
    def exit_code(self) -> int:
        """The greatest exit status of all instances; 1 where one has none."""
        return max(_EXIT_FAILED if one.exit_code is None else one.exit_code for one in self._instances)

    def kill_all(self, driver: SchedulerDriver) -> None:
        """End what runs, and do not start what waits."""
        self._is_killing = True
        for one in self._instances:
            if one.exit_code is not None:
                continue
            if one.task_id is None:
                self._end(one, _EXIT_FAILED)
            else:
                driver.kill_task(one.task_id)

    # --- Callbacks ------------------------------------------------------------------------------

    def registered(self, driver: SchedulerDriver, framework_id: FrameworkId) -> None:
        self._framework_id = framework_id

    def reregistered(self, driver: SchedulerDriver) -> None:
        self._watcher.tell("the master is back")

    def disconnected(self, driver: SchedulerDriver) -> None:
        self._watcher.tell("the master is gone; what runs goes on, and this waits for it")

    def resource_offers(self, driver: SchedulerDriver, offers: Sequence[Offer]) -> None:
        for offer in offers:
            self._use(driver, offer)
        if self.waiting_count == 0:
            driver.suppress_offers()

    def status_update(self, driver: SchedulerDriver, status: TaskStatus) -> None:
        one = self._by_task.get(status.task_id)
        if one is None or one.exit_code is not None or one.task_id != status.task_id:
            return
        could_start = status.reason is not Reason.CONTAINER_LAUNCH_FAILED  # Else there is no output to look for.
        if could_start and status.container_id is not None and status.slave_id is not None and not one.is_started:
            assert self._framework_id is not None, "a task runs before its framework is registered"
            one.is_started = True
            self._watcher.started(one.index, status.slave_id, self._framework_id, status.container_id)
        if status.state is TaskState.UNREACHABLE:
            self._watcher.tell(f"{status.task_id}: its slave is unreachable; waiting for news")
        elif status.state.is_terminal:
            self._on_end(driver, one, status)

    def error(self, driver: SchedulerDriver, message: str) -> None:
        self.problem = message

    # --- Decisions ------------------------------------------------------------------------------

    def _use(self, driver: SchedulerDriver, offer: Offer) -> None:
        free, tasks = offer.resources, []
        for one in self._instances:
            if self._is_killing or not self._plan.resources <= free:
                break
            if one.task_id is None and one.exit_code is None:
                free = free - self._plan.resources
                tasks.append(self._task(one, offer.slave_id))
        if tasks:
            driver.launch_tasks([OfferId(offer.offer_id)], tasks)
        else:
            driver.decline_offer(offer.offer_id, Filters())

    def _task(self, one: _Instance, slave_id: SlaveId) -> TaskInfo:
        one.task_id = self._plan.task_id(one.index, one.start_count)
        one.start_count += 1
        self._by_task[one.task_id] = one
        return TaskInfo(
            task_id=one.task_id,
            slave_id=slave_id,
            name=self._plan.name,
            resources=self._plan.resources,
            command=self._plan.command,
            kill_policy=KillPolicy(grace_period_s=self._plan.kill_grace_s),
        )

    def _on_end(self, driver: SchedulerDriver, one: _Instance, status: TaskStatus) -> None:
        never_ran = status.state is TaskState.DROPPED or (
            status.state is TaskState.LOST and status.reason in _NEVER_RAN and not one.is_started
        )
        if never_ran and not self._is_killing and one.start_count < STARTS_LIMIT:
            one.task_id = None
            driver.revive_offers()
            return
        code = status.exit_status
        if code is None:
            code = 0 if status.state is TaskState.FINISHED else _EXIT_FAILED
        is_told_by_code = status.exit_status is not None and status.reason is None
        if status.state is not TaskState.FINISHED and not (is_told_by_code or self._is_killing):
            self._watcher.tell(
                f"{status.task_id}: {status.state}: {status.message or status.reason or 'no reason given'}"
            )
        elif code and self._plan.instance_count > 1 and not self._is_killing:
            self._watcher.tell(f"{status.task_id}: {status.message or f'exited with status {code}'}")
        self._end(one, code)

    def _end(self, one: _Instance, code: int) -> None:
        one.exit_code = code
        self._watcher.ended(one.index)
        if all(other.exit_code is not None for other in self._instances):
            self._watcher.all_ended()
