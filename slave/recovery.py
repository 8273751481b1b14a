"""From checkpoint records to what the core knew, and back: fold and snapshot. Pure."""

from collections.abc import Iterator

import msgspec

from meseta.ids import ContainerId
from meseta.model import TaskStatus
from slave.containers import Containers
from slave.events import SlaveConfig, SlaveInit
from slave.executors import Executors
from slave.launch import start_of_executor, start_of_task
from slave.records import (
    AcknowledgedRecord,
    AssignedRecord,
    BootRecord,
    CheckpointRecord,
    EpochRecord,
    ExecutorEndedRecord,
    ExecutorRecord,
    ExecutorRegisteredRecord,
    FrameworkRecord,
    FrameworkShutdownRecord,
    StartedRecord,
    TaskRecord,
    UpdateRecord,
)
from slave.state import Container, Framework, SlaveExecutor, SlaveTask
from slave.supervisor_messages import Started
from slave.tasks import Tasks, record_of


class Recovered(msgspec.Struct):
    """What does not belong to tasks, executors and containers."""

    epoch: int = -1
    boot_id: str = ""


class Recovery:
    """Fills the core's parts from the checkpoint. A record about what is over is without effect."""

    def __init__(self, init: SlaveInit, tasks: Tasks, executors: Executors, containers: Containers) -> None:
        self._init = init
        self._tasks = tasks
        self._executors = executors
        self._containers = containers
        self._supervisor_by_container: dict[ContainerId, str] = {}
        self._started_by_container: dict[ContainerId, Started] = {}

    def run(self) -> Recovered:
        """Fold all records."""
        recovered = Recovered()
        for record in self._init.records:
            match record:
                case BootRecord():
                    recovered.boot_id = record.boot_id
                case EpochRecord():
                    recovered.epoch = max(recovered.epoch, record.epoch)
                case AssignedRecord():
                    self._supervisor_by_container[record.container_id] = record.supervisor
                case StartedRecord():
                    self._started_by_container[record.container_id] = Started(
                        container_id=record.container_id,
                        pid=record.pid,
                        start_ticks=record.start_ticks,
                        cgroup=record.cgroup,
                    )
                case _:
                    self._fold(record)
        self._tasks.forget_idle()
        self._claim()
        return recovered

    def _fold(self, record: CheckpointRecord) -> None:
        match record:
            case FrameworkRecord():
                self._on_framework(record)
            case FrameworkShutdownRecord():
                if (framework := self._tasks.frameworks.get(record.framework_id)) is not None:
                    framework.is_shutting_down = True
                    self._tasks.forget_if_over(record.framework_id)
            case TaskRecord():
                self._on_task(record)
            case ExecutorRecord():
                self._on_executor(record)
            case ExecutorRegisteredRecord():
                self._tasks.frameworks[record.framework_id].executors[record.executor_id].has_registered = True
            case ExecutorEndedRecord():
                self._executors.remove(self._tasks.frameworks[record.framework_id].executors[record.executor_id])
            case _:
                self._on_update(record)

    def _on_framework(self, record: FrameworkRecord) -> None:
        info = record.framework_info
        assert info.id is not None, f"framework {info.name} was written without its id"
        if info.id in self._tasks.frameworks:
            self._tasks.frameworks[info.id].info = info
        else:
            self._tasks.frameworks[info.id] = Framework(info)

    def _on_task(self, record: TaskRecord) -> None:
        framework = self._tasks.frameworks[record.framework_id]
        key = (record.framework_id, record.task.task_id)
        task = SlaveTask(key, record.task, record.container_id, role=record.role, user=record.user)
        task.started_unix_s = record.started_unix_s
        task.executor_id = record.executor_id
        task.is_recovered = True
        self._tasks.insert(framework, task)
        if record.executor_id is None:
            self._supervisor_by_container[record.container_id] = record.supervisor
        elif (executor := framework.executors.get(record.executor_id)) is not None:
            executor.tasks[record.task.task_id] = task
        # Else the executor is over: the task's terminal update follows in this snapshot.

    def _on_executor(self, record: ExecutorRecord) -> None:
        key = (record.framework_id, record.executor.executor_id)
        executor = SlaveExecutor(key, record.executor, record.container_id, role=record.role, token=record.token)
        self._executors.insert(self._tasks.frameworks[record.framework_id], executor)
        self._supervisor_by_container[record.container_id] = record.supervisor

    def _on_update(self, record: CheckpointRecord) -> None:
        if isinstance(record, UpdateRecord):
            task = self._tasks.by_key[(record.framework_id, record.status.task_id)]
            self._tasks.restore(task, record.status)
            if record.status.state.is_terminal:
                self._end(task)
        over = self._tasks.updates.recover(record)
        if over is not None:
            # One that was dropped has no terminal update in the checkpoint.
            self._end(self._tasks.by_key[over])
            self._tasks.remove(self._tasks.by_key[over])

    def _end(self, task: SlaveTask) -> None:
        """Take a task that has ended out of what runs."""
        self._tasks.by_container.pop(task.container_id, None)
        if task.executor_id is not None:
            executor = self._tasks.frameworks[task.key[0]].executors.get(task.executor_id)
            if executor is not None:
                executor.tasks.pop(task.key[1], None)

    def _claim(self) -> None:
        """Make the containers of what is not over."""
        slave_id = self._init.slave_id
        config = self._init.config
        for task in self._tasks.by_container.values():
            assert slave_id is not None, "there are tasks in the checkpoint, but the slave's id is gone"
            info = self._tasks.frameworks[task.key[0]].info
            start = start_of_task(config, slave_id, info, task.info, task.container_id)
            self._add(Container(task.key[0], task.container_id, start))
        for executor in self._executors.by_container.values():
            assert slave_id is not None, "there are executors in the checkpoint, but the slave's id is gone"
            self._add(
                Container(
                    executor.key[0],
                    executor.container_id,
                    start_of_executor(
                        config,
                        slave_id,
                        self._tasks.frameworks[executor.key[0]].info,
                        executor.info,
                        executor.container_id,
                        token=executor.token,
                        held=executor.held(),
                    ),
                )
            )

    def _add(self, container: Container) -> None:
        container.supervisor = self._supervisor_by_container.get(container.container_id, "")
        container.started = self._started_by_container.get(container.container_id)
        self._containers.recover(container)


def snapshot(config: SlaveConfig, epoch: int, tasks: Tasks, containers: Containers) -> Iterator[CheckpointRecord]:
    """Yield records that fold to what is known now, and nothing that is over."""
    yield BootRecord(boot_id=config.boot_id)
    if epoch >= 0:
        yield EpochRecord(epoch=epoch)
    for framework_id, framework in tasks.frameworks.items():
        yield FrameworkRecord(framework_info=framework.info)
        for executor_id, executor in framework.executors.items():
            yield ExecutorRecord(
                framework_id=framework_id,
                executor=executor.info,
                container_id=executor.container_id,
                token=executor.token,
                role=executor.role,
                supervisor=_supervisor_of(containers, executor.container_id),
            )
            yield from _started(containers, executor.container_id)
            if executor.has_registered:
                yield ExecutorRegisteredRecord(framework_id=framework_id, executor_id=executor_id)
        for task in framework.tasks.values():
            yield record_of(task, _supervisor_of(containers, task.container_id))
            if task.executor_id is None:
                yield from _started(containers, task.container_id)
            yield from _updates(task, tasks.updates.pending(task.key))
        if framework.is_shutting_down:
            yield FrameworkShutdownRecord(framework_id=framework_id)


def _supervisor_of(containers: Containers, container_id: ContainerId) -> str:
    container = containers.by_id.get(container_id)
    return "" if container is None else container.supervisor


def _started(containers: Containers, container_id: ContainerId) -> Iterator[CheckpointRecord]:
    container = containers.by_id.get(container_id)
    started = None if container is None else container.started
    if started is not None:
        yield StartedRecord(
            container_id=container_id, pid=started.pid, start_ticks=started.start_ticks, cgroup=started.cgroup
        )


def _updates(task: SlaveTask, pending: tuple[TaskStatus, ...]) -> Iterator[CheckpointRecord]:
    for status in pending:
        yield UpdateRecord(framework_id=task.key[0], status=status)
    if not pending and task.status is not None and task.status.uuid is not None:
        # Acknowledged, and yet it tells the task's state.
        yield UpdateRecord(framework_id=task.key[0], status=task.status)
        yield AcknowledgedRecord(framework_id=task.key[0], task_id=task.key[1], uuid=task.status.uuid)
