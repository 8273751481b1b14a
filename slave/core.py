"""The slave's state machine: what the master, supervisors and executors say becomes effects. No I/O.

It keeps the promises of the design's part 6 on this machine: a task that was reported running is
running or its end will be reported; an update is written before it is sent and sent until it is
acknowledged; what cannot be accounted for is killed.
"""

from meseta.errors import InvariantError
from meseta.ids import ContainerId, FrameworkId
from meseta.log import ERROR, INFO, WARNING
from meseta.messages import (
    AcknowledgeStatus,
    Error,
    FrameworkToExecutor,
    KillTask,
    Message,
    Ping,
    RegisterSlave,
    ReregisterSlave,
    RunTask,
    ShutdownExecutor,
    ShutdownFramework,
    ShutdownSlave,
    SlaveRegistered,
    UpdateFramework,
)
from meseta.model import Capability, Reason, SlaveInfo, TaskState
from slave.containers import ContainerEnded, Containers, ContainerStarted, Outcome
from slave.endings import Ending, ending_of_command
from slave.events import (
    Begin,
    ExecutorConnected,
    ExecutorDisconnected,
    ExecutorSaid,
    Exit,
    LaunchFailed,
    Leave,
    MasterConnected,
    MasterDisconnected,
    MasterRefused,
    MasterSaid,
    OrphansKilled,
    RemoveCheckpoint,
    SlaveEffect,
    SlaveEvent,
    SlaveInit,
    SupervisorLost,
    SupervisorReady,
    SupervisorSaid,
    SupervisorStartFailed,
)
from slave.executors import REMOVAL_GRACE_LIMIT_S, Executors
from slave.launch import start_of_task, task_fault, user_fault, user_of
from slave.records import BootRecord, CheckpointRecord
from slave.recovery import Recovery, snapshot
from slave.registration import MasterLink
from slave.state import Container, Context, Framework, SlaveTask
from slave.tasks import Tasks

EXIT_DONE = 0
EXIT_REFUSED = 1
EXIT_REMOVED = 75  # EX_TEMPFAIL: started again, it joins as a new slave.
LEAVE_GRACE_LIMIT_S = 5.0  # An operator who takes a slave down waits for it.
LEAVE_LIMIT_S = 30.0  # What is not dead by then hangs in the kernel; its supervisor goes on with it.


class SlaveCore:
    """Use it through `handle`, `tick` and `next_deadline`; the first event is `Begin`."""

    def __init__(self, init: SlaveInit) -> None:
        self._init = init
        self._context = Context(init)
        self._tasks = Tasks(self._context)
        self._containers = Containers(self._context)
        self._executors = Executors(self._context, self._tasks, self._containers)
        recovered = Recovery(init, self._tasks, self._executors, self._containers).run()
        self._boot_id = recovered.boot_id
        self._link = MasterLink(self._context, self._registration, recovered.epoch)
        self._leave_due: float | None = None
        self._is_removed = False  # By the master: nothing of this slave is kept.
        self._has_exited = False

    # --- For the shell --------------------------------------------------------------------------

    def handle(self, event: SlaveEvent, now: float) -> list[SlaveEffect]:
        """Take one input and return what is to be done, in order."""
        self._context.now = now
        if not self._has_exited:
            self._settle(self._dispatch(event))
        return self._context.take()

    def tick(self, now: float) -> list[SlaveEffect]:
        """Do what is due at `now` or before."""
        self._context.now = now
        if self._has_exited:
            return []
        self._link.tick()
        self._sync_master()
        self._containers.tick()
        self._tasks.perform(self._tasks.updates.tick(now))
        outcomes = self._executors.tick()
        if self._leave_due is not None and now >= self._leave_due:
            self._context.log(ERROR, "containers did not end", containers=len(self._containers.by_id))
            self._exit()
        self._settle(outcomes)
        return self._context.take()

    def next_deadline(self) -> float | None:
        """Return when `tick` must be called next, None if nothing is due ever."""
        if self._has_exited:
            return None
        dues = (
            self._link.next_deadline(),
            self._containers.next_deadline(),
            self._executors.next_deadline(),
            self._tasks.updates.next_deadline(),
            self._leave_due,
        )
        return min((due for due in dues if due is not None), default=None)

    def snapshot(self) -> list[CheckpointRecord]:
        """Return the records that a checkpoint must hold now: what is over is left out."""
        return list(snapshot(self._context.config, self._link.epoch, self._tasks, self._containers))

    def is_executor_admitted(self, token: str) -> bool:
        """True for the token of an executor that is here."""
        return self._executors.is_admitted(token)

    def framework_of_key(self, public_key: str) -> FrameworkId | None:
        """Return the framework here whose tasks prove themselves with this key."""
        for framework_id, framework in self._tasks.frameworks.items():
            if framework.info.task_public_key == public_key:
                return framework_id
        return None

    @property
    def slave_id(self) -> str | None:
        """Who the slave is; None before it was ever admitted."""
        return self._context.slave_id

    @property
    def is_registered(self) -> bool:
        """True while the master knows us."""
        return self._link.is_registered

    def check(self) -> None:
        """Raise InvariantError if what is kept in two places differs."""
        self._link.check()
        self._containers.check()
        self._tasks.check()
        self._executors.check()
        if self._context.is_master_ready != self._link.is_registered:
            raise InvariantError("the parts differ on whether the slave is registered")
        owners = {**self._tasks.by_container, **self._executors.by_container}
        if owners.keys() != self._containers.by_id.keys() and not self._has_exited:
            differing = sorted(owners.keys() ^ self._containers.by_id.keys())
            raise InvariantError(f"containers without task, or the reverse: {differing}")

    # --- Dispatch -------------------------------------------------------------------------------

    def _dispatch(self, event: SlaveEvent) -> list[Outcome]:
        match event:
            case MasterSaid():
                return self._on_master(event)
            case SupervisorSaid():
                return self._containers.report(event.supervisor, event.report)
            case ExecutorSaid():
                self._executors.said(event.session, event.message)
            case ExecutorConnected():
                self._executors.connected(event.session, event.token)
            case ExecutorDisconnected():
                self._executors.disconnected(event.session)
            case Begin():
                return self._begin()
            case MasterConnected():
                self._link.connected(event.epoch)
            case MasterDisconnected():
                self._link.disconnected(event.reason)
            case MasterRefused():
                self._context.log(ERROR, "master refused this slave", code=event.code, error=event.message)
                self._exit(EXIT_REFUSED, f"the master refused this slave: {event.message}")
            case SupervisorReady():
                self._containers.supervisor_ready(event.supervisor)
            case SupervisorStartFailed():
                return self._containers.supervisor_start_failed(event.message)
            case SupervisorLost():
                self._containers.supervisor_lost(event.supervisor, event.reason)
            case OrphansKilled():
                return self._containers.orphans_killed(event.supervisor)
            case LaunchFailed():
                return self._containers.launch_failed(event.container_id, event.message)
            case Leave():
                return self._leave("taken out of service")
        return []

    def _settle(self, outcomes: list[Outcome]) -> None:
        """Tell tasks and executors what became of their containers, then what that changes for us."""
        for outcome in outcomes:
            task = self._tasks.by_container.get(outcome.container_id)
            executor = self._executors.by_container.get(outcome.container_id)
            if isinstance(outcome, ContainerEnded):
                if task is not None:
                    self._tasks.update(task, ending_of_command(outcome, task.kill_reason))
                elif executor is not None:
                    self._executors.ended(executor, outcome)
            elif isinstance(outcome, ContainerStarted) and task is not None and task.state is TaskState.STAGING:
                self._tasks.update(task, Ending(state=TaskState.RUNNING))
        self._sync_master()
        if self._leave_due is not None and not self._containers.by_id and not self._containers.is_starting:
            self._exit()
        elif not self._link.is_allowed and self._leave_due is None and self._containers.is_recovered:
            self._link.allow()

    def _sync_master(self) -> None:
        """Start or stop sending updates with the registration."""
        is_ready = self._link.is_registered
        if self._context.is_master_ready != is_ready:
            self._context.is_master_ready = is_ready
            self._tasks.master_changed(is_ready=is_ready)

    # --- Start and end --------------------------------------------------------------------------

    def _begin(self) -> list[Outcome]:
        config = self._context.config
        is_rebooted = self._boot_id not in {config.boot_id, ""}
        if self._boot_id != config.boot_id:
            self._context.persist(BootRecord(boot_id=config.boot_id))
            self._boot_id = config.boot_id
        if is_rebooted:
            self._give_up_all()
        self._containers.begin(self._init.supervisors)
        for executor in self._executors.by_container.values():
            self._executors.recovered(executor)
        outcomes: list[Outcome] = []
        for framework_id, framework in list(self._tasks.frameworks.items()):
            if framework.is_shutting_down:
                outcomes += self._shut_down_framework(framework_id, framework)
        self._context.log(
            INFO,
            "recovered" if self._init.records else "started",
            tasks=len(self._tasks.by_key),
            executors=len(self._executors.by_container),
            supervisors=len(self._init.supervisors),
        )
        return outcomes

    def _give_up_all(self) -> None:
        """Report what the checkpoint holds of an earlier boot: no process outlived it."""
        text = "the slave's machine was restarted"
        self._context.log(WARNING, "machine was restarted: its tasks are lost", tasks=len(self._tasks.by_key))
        for executor in list(self._executors.by_container.values()):
            executor.tasks.clear()
            self._executors.give_up(executor)
        for task in list(self._tasks.by_key.values()):
            if not task.state.is_terminal:
                state = self._tasks.lost_state(task.key[0], was_running=task.state is not TaskState.STAGING)
                self._tasks.update(task, Ending(state=state, reason=Reason.SLAVE_RESTARTED, message=text))
        self._containers.by_id.clear()

    def _leave(self, why: str) -> list[Outcome]:
        if self._leave_due is not None:
            return []
        self._context.log(INFO, "leaving", why=why, containers=len(self._containers.by_id))
        self._leave_due = self._context.now + LEAVE_LIMIT_S
        self._containers.retire()
        outcomes: list[Outcome] = []
        for task in list(self._tasks.by_container.values()):
            task.kill_reason = Reason.SLAVE_REMOVED
            outcomes += self._containers.kill(
                task.container_id, min(task.info.kill_policy.grace_period_s, LEAVE_GRACE_LIMIT_S)
            )
        for executor in list(self._executors.by_container.values()):
            executor.end_reason = Reason.SLAVE_REMOVED
            executor.end_message = f"the slave was {why}"
            grace_s = min(executor.info.shutdown_grace_period_s, LEAVE_GRACE_LIMIT_S)
            outcomes += self._containers.kill(executor.container_id, grace_s)
        return outcomes

    def _exit(self, status: int | None = None, message: str = "all tasks have ended") -> None:
        if self._has_exited:
            return
        self._has_exited = True
        if self._is_removed:
            self._context.emit(RemoveCheckpoint())
        default = EXIT_REMOVED if self._is_removed else EXIT_DONE
        self._context.emit(Exit(status=default if status is None else status, message=message))

    # --- The master -----------------------------------------------------------------------------

    def _registration(self) -> Message:
        config = self._context.config
        info = SlaveInfo(
            hostname=config.hostname,
            resources=config.resources,
            address=config.address,
            attributes=config.attributes,
            id=self._context.slave_id,
            boot_id=config.boot_id,
            version=config.version,
        )
        if self._context.slave_id is None:
            return RegisterSlave(slave_info=info)
        return ReregisterSlave(
            slave_info=info,
            tasks=self._tasks.views(),
            executors=self._executors.views(),
            frameworks=tuple(entry.info for entry in self._tasks.frameworks.values() if not entry.is_idle),
        )

    def _on_master(self, event: MasterSaid) -> list[Outcome]:
        if not self._link.accepts(event.epoch):
            return []
        self._link.heard()
        message = event.message
        match message:
            case RunTask():
                return self._on_run_task(message)
            case AcknowledgeStatus():
                self._tasks.acknowledge(message)
            case Ping():
                self._link.pinged(message)
            case KillTask():
                return self._on_kill_task(message)
            case FrameworkToExecutor():
                self._executors.to_executor(message)
            case _:
                return self._on_rare(message)
        return []

    def _on_rare(self, message: Message) -> list[Outcome]:
        match message:
            case SlaveRegistered():
                self._link.registered(message)
            case UpdateFramework():
                framework_id = message.framework_info.id
                if framework_id in self._tasks.frameworks:
                    self._tasks.framework(message.framework_info)
            case ShutdownExecutor():
                framework = self._tasks.frameworks.get(message.framework_id or FrameworkId(""))
                executor = None if framework is None else framework.executors.get(message.executor_id)
                if executor is not None:
                    text = "the framework shut its executor down"
                    return self._executors.shut_down(executor, Reason.EXECUTOR_TERMINATED, text)
            case ShutdownFramework():
                framework = self._tasks.frameworks.get(message.framework_id)
                if framework is not None:
                    return self._shut_down_framework(message.framework_id, framework)
            case ShutdownSlave():
                self._is_removed = True
                return self._leave(f"removed by the master: {message.message}")
            case Error():
                self._context.log(ERROR, "master answered with an error", code=message.code, error=message.message)
                if message.code == "removed":
                    self._is_removed = True
                    return self._leave(f"removed by the master: {message.message}")
            case _:
                self._context.log(WARNING, "message ignored", message=type(message).__name__)
        return []

    # --- Tasks ----------------------------------------------------------------------------------

    def _on_run_task(self, message: RunTask) -> list[Outcome]:
        task, framework_id = message.task, message.framework_info.id or FrameworkId("")
        key = (framework_id, task.task_id)
        if key in self._tasks.by_key:
            self._context.log(WARNING, "task is here already", task_id=task.task_id, framework_id=framework_id)
            self._executors.refused(message, framework_id)
            return []
        refusal = self._refusal(message, framework_id)
        if refusal is not None:
            self._tasks.answer(framework_id, task.task_id, *refusal)
            self._executors.refused(message, framework_id)
            return []
        framework = self._tasks.framework(message.framework_info)
        if task.executor is not None:
            self._executors.launch(framework, message, task.executor)
            return []
        self._launch_command(framework, message)
        return []

    def _refusal(self, message: RunTask, framework_id: FrameworkId) -> tuple[TaskState, Reason, str] | None:
        """Return why a task is not even taken, None if it is."""
        if (fault := task_fault(message)) is not None:
            return TaskState.ERROR, Reason.TASK_INVALID, fault
        is_aware = Capability.PARTITION_AWARE in message.framework_info.capabilities
        dropped = TaskState.DROPPED if is_aware else TaskState.LOST
        if self._context.slave_id is None or message.task.slave_id != self._context.slave_id:
            text = f"the task is for slave {message.task.slave_id}, this one is {self._context.slave_id}"
            return dropped, Reason.SLAVE_REMOVED, text
        if self._leave_due is not None:
            return dropped, Reason.SLAVE_REMOVED, "the slave is being shut down"
        framework = self._tasks.frameworks.get(framework_id)
        if framework is not None and framework.is_shutting_down:
            return dropped, Reason.FRAMEWORK_REMOVED, f"framework {framework_id} is being shut down"
        if self._tasks.was_used((framework_id, message.task.task_id)):
            text = f"task_id {message.task.task_id} was used before; give each task an id of its own"
            return TaskState.ERROR, Reason.TASK_INVALID, text
        if message.task.command is not None:
            fault = user_fault(self._context.config, user_of(message.task.command, message.framework_info))
            if fault is not None:
                return TaskState.ERROR, Reason.TASK_INVALID, fault
        return None

    def _launch_command(self, framework: Framework, message: RunTask) -> None:
        task, info, slave_id = message.task, framework.info, self._context.slave_id
        assert info.id is not None, f"framework {info.name} has no id"
        assert task.command is not None, f"task {task.task_id} has no command"
        assert slave_id is not None, "a slave without id runs nothing"
        container_id = ContainerId(self._context.ids.new("c"))
        supervisor = self._containers.choose()
        user = user_of(task.command, info)
        entry = SlaveTask((info.id, task.task_id), task, container_id, role=message.role, user=user)
        self._tasks.add(framework, entry, supervisor)
        start = start_of_task(self._context.config, slave_id, info, task, container_id)
        self._containers.add(Container(info.id, container_id, start), supervisor)

    def _on_kill_task(self, message: KillTask) -> list[Outcome]:
        framework_id = message.framework_id or FrameworkId("")
        task = self._tasks.by_key.get((framework_id, message.task_id))
        if task is None:
            # Nothing of it is here: its framework waits for an end that nobody else will report.
            state = self._tasks.lost_state(framework_id, was_running=False)
            text = "the slave has no such task"
            self._tasks.answer(framework_id, message.task_id, state, Reason.RECONCILIATION, text)
            return []
        if task.state.is_terminal:
            return []  # Its update is on its way.
        grace_s = task.info.kill_policy.grace_period_s if message.grace_period_s is None else message.grace_period_s
        return self._kill_task(task, grace_s, None)

    def _kill_task(self, task: SlaveTask, grace_s: float, reason: Reason | None) -> list[Outcome]:
        task.kill_reason = task.kill_reason or reason
        if task.executor_id is not None:
            self._executors.kill_task(task, grace_s)
            return []
        is_first = task.kill_grace_s is None
        task.kill_grace_s = grace_s if task.kill_grace_s is None else min(grace_s, task.kill_grace_s)
        outcomes = self._containers.kill(task.container_id, grace_s)
        framework = self._tasks.frameworks[task.key[0]]
        if is_first and not outcomes and Capability.TASK_KILLING_STATE in framework.info.capabilities:
            self._tasks.update(task, Ending(state=TaskState.KILLING))
        return outcomes

    def _shut_down_framework(self, framework_id: FrameworkId, framework: Framework) -> list[Outcome]:
        self._context.log(INFO, "framework is shut down", framework_id=framework_id, tasks=len(framework.tasks))
        self._tasks.shut_down_framework(framework, framework_id)
        outcomes: list[Outcome] = []
        for task in list(framework.tasks.values()):
            if task.executor_id is None:
                grace_s = min(task.info.kill_policy.grace_period_s, REMOVAL_GRACE_LIMIT_S)
                outcomes += self._kill_task(task, grace_s, Reason.FRAMEWORK_REMOVED)
        for executor in list(framework.executors.values()):
            text = "its framework was removed"
            outcomes += self._executors.shut_down(executor, Reason.FRAMEWORK_REMOVED, text)
        return outcomes
