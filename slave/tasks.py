"""Tasks and their frameworks: acceptance, status updates, the end.

Every change of a task's state goes through `update`, which writes and sends it. A task is kept
until its terminal update is acknowledged; then it, its updates and its accounting are gone.
"""

import msgspec

from meseta.errors import InvariantError
from meseta.ids import ContainerId, ExecutorId, FrameworkId, TaskId
from meseta.log import DEBUG, INFO, WARNING
from meseta.messages import AcknowledgeStatus, StatusUpdate
from meseta.model import Capability, FrameworkInfo, Reason, Source, Task, TaskInfo, TaskState, TaskStatus
from slave.endings import Ending
from slave.events import Persist, SendMaster
from slave.records import FrameworkRecord, FrameworkShutdownRecord, TaskDroppedRecord, TaskRecord
from slave.state import Context, Framework, SlaveTask, TaskKey
from slave.status_updates import (
    MasterGone,
    MasterReady,
    StatusUpdateManager,
    StreamDropped,
    StreamEnded,
    UpdateAcknowledged,
    UpdateEffect,
    UpdateMade,
)

IDLE_FRAMEWORK_LIMIT = 200  # Frameworks without tasks whose info is kept: their sandboxes can still be read.
FINISHED_LIMIT = 1000  # Ended tasks whose ids are known to be used up.


class Tasks:
    """All tasks that are not over, and the frameworks they belong to."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.updates = StatusUpdateManager()
        self.frameworks: dict[FrameworkId, Framework] = {}
        self.by_key: dict[TaskKey, SlaveTask] = {}
        self.by_container: dict[ContainerId, SlaveTask] = {}  # Command tasks that are not terminal.
        self._finished: dict[TaskKey, None] = {}

    # --- Frameworks -----------------------------------------------------------------------------

    def framework(self, info: FrameworkInfo) -> Framework:
        """Return the framework, known from now on; the newest info counts."""
        assert info.id is not None, f"framework {info.name} has no id"
        framework = self.frameworks.get(info.id)
        if framework is None:
            framework = self.frameworks[info.id] = Framework(info)
            self._context.persist(FrameworkRecord(framework_info=info))
            self.forget_idle()
        elif framework.info != info:
            framework.info = info
            self._context.persist(FrameworkRecord(framework_info=info))
        if framework.is_idle and len(self.frameworks) > 1:
            del self.frameworks[info.id]  # To the end: the longest idle ones are forgotten first.
            self.frameworks[info.id] = framework
        return framework

    def forget_idle(self) -> None:
        """Keep no more frameworks without tasks than the limit; the newest stays."""
        excess = len(self.frameworks) - IDLE_FRAMEWORK_LIMIT
        if excess > 0:
            older = list(self.frameworks)[:-1]
            for framework_id in [key for key in older if self.frameworks[key].is_idle][:excess]:
                del self.frameworks[framework_id]

    def shut_down_framework(self, framework: Framework, framework_id: FrameworkId) -> None:
        """Mark a framework as over: its updates are no longer kept."""
        if not framework.is_shutting_down:
            framework.is_shutting_down = True
            self._context.persist(FrameworkShutdownRecord(framework_id=framework_id))
        for task in list(framework.tasks.values()):
            if task.state.is_terminal:
                self._drop(task)
        self.forget_if_over(framework_id)

    def forget_if_over(self, framework_id: FrameworkId) -> None:
        """Forget a framework that was shut down and has nothing left."""
        framework = self.frameworks.get(framework_id)
        if framework is not None and framework.is_shutting_down and framework.is_idle:
            del self.frameworks[framework_id]

    def lost_state(self, framework_id: FrameworkId, *, was_running: bool) -> TaskState:
        """Return the name for a lost task that this framework understands."""
        framework = self.frameworks.get(framework_id)
        if framework is None or Capability.PARTITION_AWARE not in framework.info.capabilities:
            return TaskState.LOST
        return TaskState.GONE if was_running else TaskState.DROPPED

    # --- Tasks ----------------------------------------------------------------------------------

    def was_used(self, key: TaskKey) -> bool:
        """True if a task of this id ended here lately."""
        return key in self._finished

    def add(self, framework: Framework, task: SlaveTask, supervisor: str) -> None:
        """Take a task; written before it is started."""
        self.insert(framework, task)
        task.started_unix_s = self._context.unix_s()
        self._context.persist(record_of(task, supervisor))

    def insert(self, framework: Framework, task: SlaveTask) -> None:
        """Put a task in all indexes."""
        self.by_key[task.key] = task
        framework.tasks[task.key[1]] = task
        if task.executor_id is None and not task.state.is_terminal:
            self.by_container[task.container_id] = task

    def update(self, task: SlaveTask, ending: Ending) -> None:
        """Change a task's state by our own observation and tell it."""
        self.put(
            task,
            TaskStatus(
                task_id=task.key[1],
                state=ending.state,
                reason=ending.reason,
                message=ending.message,
                exit_status=ending.exit_status,
                limitation=ending.limitation,
                uuid=self._context.ids.new_uuid(),
                timestamp_unix_s=self._context.unix_s(),
                slave_id=self._context.slave_id,
                executor_id=task.executor_id,
                container_id=task.container_id,
            ),
        )

    def put(self, task: SlaveTask, status: TaskStatus) -> None:
        """Change a task's state as `status` says, write it and send it on."""
        self.restore(task, status)
        if status.state.is_terminal:
            # Hundreds a second may end well; whoever looks for trouble looks for the others.
            self._context.log(
                DEBUG if status.state is TaskState.FINISHED else INFO,
                "task ended",
                task_id=task.key[1],
                framework_id=task.key[0],
                state=status.state,
                reason=status.reason,
                message=status.message[:200],
            )
        framework = self.frameworks[task.key[0]]
        if not framework.is_shutting_down:
            made = UpdateMade(framework_id=task.key[0], status=status)
            self.perform(self.updates.handle(made, self._context.now))
        elif status.state.is_terminal:
            # Nobody is left to acknowledge: the master is told once, and hears the rest by registration.
            self._tell(task.key[0], msgspec.structs.replace(status, uuid=None))
            self._drop(task)

    def restore(self, task: SlaveTask, status: TaskStatus) -> None:
        """Take an update of the checkpoint, which was told before."""
        task.change(status.state)
        task.status = status
        if status.state.is_terminal:
            self.by_container.pop(task.container_id, None)

    def answer(
        self, framework_id: FrameworkId, task_id: TaskId, state: TaskState, reason: Reason, message: str
    ) -> None:
        """Tell the state of a task that is not ours. Without a uuid: there is nothing to keep."""
        self._context.log(WARNING, "task refused", task_id=task_id, framework_id=framework_id, message=message)
        status = TaskStatus(
            task_id=task_id,
            state=state,
            source=Source.SLAVE,
            reason=reason,
            message=message,
            timestamp_unix_s=self._context.unix_s(),
            slave_id=self._context.slave_id,
        )
        self._tell(framework_id, status)

    def acknowledge(self, message: AcknowledgeStatus) -> None:
        """Take a framework's acknowledgement."""
        if message.framework_id is not None:
            event = UpdateAcknowledged(framework_id=message.framework_id, task_id=message.task_id, uuid=message.uuid)
            self.perform(self.updates.handle(event, self._context.now))

    def master_changed(self, *, is_ready: bool) -> None:
        """Send what waits, or stop sending."""
        self.perform(self.updates.handle(MasterReady() if is_ready else MasterGone(), self._context.now))

    def perform(self, effects: list[UpdateEffect]) -> None:
        """Do what the StatusUpdateManager wants."""
        for effect in effects:
            match effect:
                case Persist():
                    for record in effect.records:
                        self._context.persist(record)
                case SendMaster():
                    self._context.emit(effect)
                case StreamEnded():
                    self.remove(self.by_key[(effect.framework_id, effect.task_id)])

    def remove(self, task: SlaveTask) -> None:
        """Forget a task that is over."""
        del self.by_key[task.key]
        del self.frameworks[task.key[0]].tasks[task.key[1]]
        self._finished[task.key] = None
        if len(self._finished) > FINISHED_LIMIT:
            del self._finished[next(iter(self._finished))]
        self.forget_if_over(task.key[0])

    def views(self) -> tuple[Task, ...]:
        """Return all tasks as the master accounts for them."""
        slave_id = self._context.slave_id
        assert slave_id is not None, "a slave without id has tasks"
        return tuple(task.view(slave_id) for task in self.by_key.values())

    def check(self) -> None:
        """Raise InvariantError if indexes differ, or a task has an end that nobody will hear of."""
        count = 0
        for framework_id, framework in self.frameworks.items():
            count += len(framework.tasks)
            for task_id, task in framework.tasks.items():
                if self.by_key.get((framework_id, task_id)) is not task:
                    raise InvariantError(f"task {task_id} is in its framework only")
            if framework.is_shutting_down and framework.is_idle:
                raise InvariantError(f"framework {framework_id} is over and still there")
        if count != len(self.by_key):
            raise InvariantError(f"{len(self.by_key)} tasks, but {count} in frameworks")
        for key, task in self.by_key.items():
            is_command = task.executor_id is None and not task.state.is_terminal
            if is_command != (self.by_container.get(task.container_id) is task):
                raise InvariantError(f"task {key[1]} is {task.state} and its container's entry differs")
            pending = self.updates.pending(key)
            if task.state.is_terminal and (not pending or pending[-1].state is not task.state):
                raise InvariantError(f"task {key[1]} is {task.state} and no such update waits")
        self.updates.check()

    def _tell(self, framework_id: FrameworkId, status: TaskStatus) -> None:
        if self._context.is_master_ready:
            self._context.emit(SendMaster(message=StatusUpdate(status=status, framework_id=framework_id)))

    def _drop(self, task: SlaveTask) -> None:
        self._context.persist(TaskDroppedRecord(framework_id=task.key[0], task_id=task.key[1]))
        self.updates.handle(StreamDropped(framework_id=task.key[0], task_id=task.key[1]), self._context.now)
        self.remove(task)


def record_of(task: SlaveTask, supervisor: str) -> TaskRecord:
    """Return what must be written of a task; an executor's task is never sent again, so not its data."""
    info: TaskInfo = task.info
    executor_id: ExecutorId | None = task.executor_id
    if executor_id is not None:
        info = msgspec.structs.replace(info, executor=None, data=b"")
    return TaskRecord(
        framework_id=task.key[0],
        task=info,
        container_id=task.container_id,
        role=task.role,
        user=task.user,
        executor_id=executor_id,
        supervisor=supervisor,
        started_unix_s=task.started_unix_s,
    )
