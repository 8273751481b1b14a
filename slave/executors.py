"""Custom executors: started once for each (framework, executor id), registered, recovered and ended.

A task waits until its executor has registered. What an executor cannot name when it registers
again, it never had: such a task is reported as lost, never sent twice.
"""

import msgspec

from meseta.errors import InvariantError
from meseta.ids import ContainerId, ExecutorId, FrameworkId, SessionId
from meseta.log import INFO, WARNING
from meseta.messages import (
    AcknowledgeStatus,
    Error,
    ExecutorLost,
    ExecutorRegistered,
    ExecutorToFramework,
    FrameworkToExecutor,
    KillTask,
    LaunchTask,
    Message,
    RegisterExecutor,
    RunTask,
    ShutdownExecutor,
    StatusUpdate,
)
from meseta.model import ExecutorInfo, Reason, RunningExecutor, Source, TaskState, TaskStatus
from meseta.timers import Timers
from slave.containers import Cause, ContainerEnded, Containers, Outcome
from slave.endings import Ending, describe_exit, memory_ending
from slave.events import CloseExecutor, SendExecutor, SendMaster
from slave.launch import limits_of, start_of_executor, user_fault, user_of
from slave.records import ExecutorEndedRecord, ExecutorRecord, ExecutorRegisteredRecord
from slave.state import (
    TASK_CHANGES,
    Container,
    Context,
    ExecutorKey,
    ExecutorState,
    Framework,
    SlaveExecutor,
    SlaveTask,
)
from slave.tasks import Tasks

# What is left of a framework that is over may ask for no more: nobody else could end it, and others wait.
REMOVAL_GRACE_LIMIT_S = 60.0

_FROM_EXECUTORS = frozenset(
    {
        TaskState.STARTING,
        TaskState.RUNNING,
        TaskState.KILLING,
        TaskState.FINISHED,
        TaskState.FAILED,
        TaskState.KILLED,
        TaskState.ERROR,
        TaskState.LOST,
        TaskState.DROPPED,
        TaskState.GONE,
    }
)


class Executors:
    """All executors that are not over."""

    def __init__(self, context: Context, tasks: Tasks, containers: Containers) -> None:
        self._context = context
        self._tasks = tasks
        self._containers = containers
        self.by_container: dict[ContainerId, SlaveExecutor] = {}
        self._by_token: dict[str, SlaveExecutor] = {}
        self._by_session: dict[SessionId, SlaveExecutor] = {}
        self._timers: Timers[ExecutorKey] = Timers()

    # --- Launch ---------------------------------------------------------------------------------

    def launch(self, framework: Framework, message: RunTask, info: ExecutorInfo) -> None:
        """Hand a task to its executor, which is started if it is not there."""
        task = message.task
        framework_id = framework.info.id
        assert framework_id is not None, "a known framework has an id"
        executor = framework.executors.get(info.executor_id)
        refusal = self._refusal(framework, framework_id, message, executor)
        if refusal is not None:
            self._tasks.answer(framework_id, task.task_id, *refusal)
            self.refused(message, framework_id)
            return
        if executor is None:
            executor = self._start(framework, framework_id, message, info)
        entry = SlaveTask(
            (framework_id, task.task_id),
            task,
            executor.container_id,
            role=message.role,
            user=user_of(info.command, framework.info),
        )
        entry.executor_id = info.executor_id
        executor.tasks[task.task_id] = entry
        self._tasks.add(framework, entry, "")
        if len(executor.tasks) > 1 or executor.has_registered:
            self._resize(executor)
        if executor.session is not None:
            self._send_task(executor, entry)

    def refused(self, message: RunTask, framework_id: FrameworkId) -> None:
        """Tell the master, which accounts for the executor since it sent the task, that none was started for it."""
        info = message.task.executor
        framework = self._tasks.frameworks.get(framework_id)
        is_here = info is not None and framework is not None and info.executor_id in framework.executors
        if info is not None and message.launch_executor and not is_here:
            self._tell_lost(framework_id, info.executor_id, exit_status=0)

    def insert(self, framework: Framework, executor: SlaveExecutor) -> None:
        """Put an executor in all indexes."""
        framework.executors[executor.key[1]] = executor
        self.by_container[executor.container_id] = executor
        self._by_token[executor.token] = executor

    def remove(self, executor: SlaveExecutor) -> None:
        """Take an executor that is over out of all indexes."""
        self._timers.cancel(executor.key)
        del self.by_container[executor.container_id]
        del self._by_token[executor.token]
        del self._tasks.frameworks[executor.key[0]].executors[executor.key[1]]

    def recovered(self, executor: SlaveExecutor) -> None:
        """Wait for an executor of the checkpoint to register again."""
        timeout_s = self._context.config.executor_registration_timeout_s
        if executor.has_registered:
            executor.change(ExecutorState.RECOVERING)
            timeout_s = self._context.config.executor_reregistration_timeout_s
        self._timers.set(executor.key, self._context.now + timeout_s)

    # --- Sessions -------------------------------------------------------------------------------

    def is_admitted(self, token: str) -> bool:
        """True for the token of an executor that is here."""
        return token in self._by_token

    def connected(self, session: SessionId, token: str) -> None:
        """Note whose session this is."""
        executor = self._by_token.get(token)
        if executor is None:
            self._context.emit(CloseExecutor(session=session, reason="unknown token"))
        else:
            self._by_session[session] = executor

    def disconnected(self, session: SessionId) -> None:
        """Forget a session; the executor may come back, or its container's end tells."""
        executor = self._by_session.pop(session, None)
        if executor is not None and executor.session == session:
            executor.session = None

    def said(self, session: SessionId, message: Message) -> None:
        """Take an executor's message."""
        executor = self._by_session.get(session)
        if executor is None:
            return
        match message:
            case RegisterExecutor():
                self._register(executor, session, message)
            case StatusUpdate():
                if executor.session == session:
                    self._on_status(executor, message.status)
            case ExecutorToFramework():
                self._to_framework(executor, message)
            case _:
                self._refuse(session, "bad_message", f"an executor may not send {type(message).__name__}")

    # --- From the master ------------------------------------------------------------------------

    def kill_task(self, task: SlaveTask, grace_s: float) -> None:
        """Kill a task of an executor."""
        assert task.executor_id is not None, f"task {task.key[1]} has no executor"
        executor = self.by_container[task.container_id]
        is_repeated = task.kill_grace_s is not None
        task.kill_grace_s = grace_s if task.kill_grace_s is None else min(grace_s, task.kill_grace_s)
        if not task.is_sent and not task.is_recovered:
            reason = task.kill_reason or Reason.TASK_KILLED_DURING_LAUNCH
            self._end_task(
                executor,
                task,
                Ending(state=TaskState.KILLED, reason=reason, message="killed before its executor had it"),
            )
        elif executor.session is not None:
            self._send_kill(executor, task)
        elif not is_repeated:
            self._context.log(INFO, "kill waits for executor", task_id=task.key[1], executor_id=executor.key[1])

    def to_executor(self, message: FrameworkToExecutor) -> None:
        """Hand on a framework's message, if the executor is there."""
        framework = self._tasks.frameworks.get(message.framework_id or FrameworkId(""))
        executor = None if framework is None else framework.executors.get(message.executor_id)
        if executor is not None and executor.session is not None:
            self._context.emit(SendExecutor(session=executor.session, message=message))

    def shut_down(self, executor: SlaveExecutor, reason: Reason, message: str) -> list[Outcome]:
        """Ask an executor to end, and kill it after its grace period."""
        grace_s = executor.info.shutdown_grace_period_s
        if reason is Reason.FRAMEWORK_REMOVED:
            grace_s = min(grace_s, REMOVAL_GRACE_LIMIT_S)
        if executor.state is ExecutorState.TERMINATING:
            if reason is not Reason.FRAMEWORK_REMOVED:
                return []
            return self._containers.kill(executor.container_id, grace_s)  # Its framework may have given it years.
        executor.change(ExecutorState.TERMINATING)
        executor.end_reason = reason
        executor.end_message = message
        if executor.session is None:
            self._timers.cancel(executor.key)
            return self._containers.kill(executor.container_id, grace_s)
        self._timers.set(executor.key, self._context.now + grace_s)
        order = ShutdownExecutor(executor_id=executor.key[1], framework_id=executor.key[0])
        self._context.emit(SendExecutor(session=executor.session, message=order))
        return []

    # --- Time and ends --------------------------------------------------------------------------

    def tick(self) -> list[Outcome]:
        """End executors that did not register in time, or did not end in time."""
        outcomes: list[Outcome] = []
        for key in self._timers.pop_due(self._context.now):
            executor = self._tasks.frameworks[key[0]].executors[key[1]]
            if executor.state is ExecutorState.STARTING:
                limit_s = self._context.config.executor_registration_timeout_s
                executor.end_reason = Reason.EXECUTOR_REGISTRATION_TIMEOUT
                executor.end_message = f"the executor did not register within {limit_s:g} s"
                executor.change(ExecutorState.TERMINATING)
            elif executor.state is ExecutorState.RECOVERING:
                limit_s = self._context.config.executor_reregistration_timeout_s
                executor.end_reason = Reason.EXECUTOR_REREGISTRATION_TIMEOUT
                executor.end_message = f"the executor did not register again within {limit_s:g} s of the slave's start"
                executor.change(ExecutorState.TERMINATING)
            outcomes += self._containers.kill(executor.container_id, 0.0)
        return outcomes

    def next_deadline(self) -> float | None:
        """Return when `tick` has something to do."""
        return self._timers.next_due()

    def ended(self, executor: SlaveExecutor, ended: ContainerEnded) -> None:
        """Report the tasks of an executor whose container is over, then the executor itself."""
        executor.change(ExecutorState.ENDED)
        exit_status = 0 if ended.exited is None else ended.exited.exit_status
        ending = self._ending(executor, ended)
        for task in list(executor.tasks.values()):
            self._end_task(executor, task, ending)
        self.remove(executor)
        for session in [key for key, entry in self._by_session.items() if entry is executor]:
            del self._by_session[session]
            self._context.emit(CloseExecutor(session=session, reason="its process has ended"))
        framework_id, executor_id = executor.key
        self._context.persist(ExecutorEndedRecord(framework_id=framework_id, executor_id=executor_id))
        self._context.log(
            INFO, "executor ended", executor_id=executor_id, framework_id=framework_id, message=ending.message
        )
        self._tell_lost(framework_id, executor_id, exit_status=exit_status)
        self._tasks.forget_if_over(framework_id)

    def give_up(self, executor: SlaveExecutor) -> None:
        """Forget an executor of an earlier boot."""
        self.remove(executor)
        framework_id, executor_id = executor.key
        self._context.persist(ExecutorEndedRecord(framework_id=framework_id, executor_id=executor_id))

    def views(self) -> tuple[RunningExecutor, ...]:
        """Return all executors as the master accounts for them."""
        return tuple(executor.view() for executor in self.by_container.values())

    def check(self) -> None:
        """Raise InvariantError if indexes differ."""
        listed = [entry for framework in self._tasks.frameworks.values() for entry in framework.executors.values()]
        if len(listed) != len(self.by_container) or len(listed) != len(self._by_token):
            raise InvariantError(f"{len(listed)} executors, but {len(self.by_container)} have a container")
        for executor in listed:
            if self.by_container.get(executor.container_id) is not executor:
                raise InvariantError(f"executor {executor.key[1]} is in its framework only")
            if self._by_token.get(executor.token) is not executor:
                raise InvariantError(f"the token of executor {executor.key[1]} is not known")
            if executor.session is not None and self._by_session.get(executor.session) is not executor:
                raise InvariantError(f"the session of executor {executor.key[1]} is not known")
            for task_id, task in executor.tasks.items():
                if self._tasks.by_key.get((executor.key[0], task_id)) is not task or task.state.is_terminal:
                    raise InvariantError(f"executor {executor.key[1]} has task {task_id}, which is over")
        active = sum(len(executor.tasks) for executor in listed)
        known = sum(
            entry.executor_id is not None and not entry.state.is_terminal for entry in self._tasks.by_key.values()
        )
        if active != known:
            raise InvariantError(f"executors have {active} tasks, but {known} are not over")

    # --- Private --------------------------------------------------------------------------------

    def _refusal(
        self, framework: Framework, framework_id: FrameworkId, message: RunTask, executor: SlaveExecutor | None
    ) -> tuple[TaskState, Reason, str] | None:
        """Return why a task cannot go to its executor, None if it can; `executor` None: it is to be started."""
        info = message.task.executor
        assert info is not None, f"task {message.task.task_id} has no executor"
        dropped = self._tasks.lost_state(framework_id, was_running=False)
        if executor is not None and executor.state is ExecutorState.TERMINATING:
            return dropped, Reason.EXECUTOR_TERMINATED, f"executor {info.executor_id} is ending"
        if executor is not None and executor.info != info:
            text = f"executor {info.executor_id} runs here with another ExecutorInfo; give it another executor_id"
            return TaskState.ERROR, Reason.TASK_INVALID, text
        if executor is None and not message.launch_executor:
            return dropped, Reason.EXECUTOR_TERMINATED, f"executor {info.executor_id} has ended"
        fault = user_fault(self._context.config, user_of(info.command, framework.info))
        if executor is None and fault is not None:
            return TaskState.ERROR, Reason.TASK_INVALID, fault
        return None

    def _tell_lost(self, framework_id: FrameworkId, executor_id: ExecutorId, *, exit_status: int) -> None:
        if self._context.is_master_ready:
            lost = ExecutorLost(
                executor_id=executor_id,
                slave_id=self._context.slave_id,
                framework_id=framework_id,
                exit_status=exit_status,
            )
            self._context.emit(SendMaster(message=lost))

    def _start(
        self, framework: Framework, framework_id: FrameworkId, message: RunTask, info: ExecutorInfo
    ) -> SlaveExecutor:
        slave_id = self._context.slave_id
        assert slave_id is not None, "a slave without id runs nothing"
        container_id = ContainerId(self._context.ids.new("c"))
        token = self._context.token(container_id)
        key = (framework_id, info.executor_id)
        executor = SlaveExecutor(key, info, container_id, role=message.role, token=token)
        self.insert(framework, executor)
        supervisor = self._containers.choose()
        self._context.persist(
            ExecutorRecord(
                framework_id=framework_id,
                executor=info,
                container_id=container_id,
                token=token,
                role=message.role,
                supervisor=supervisor,
            )
        )
        start = start_of_executor(
            self._context.config,
            slave_id,
            framework.info,
            info,
            container_id,
            token=token,
            held=(info.resources, message.task.resources),
        )
        self._containers.add(Container(framework_id, container_id, start), supervisor)
        timeout_s = self._context.config.executor_registration_timeout_s
        self._timers.set(key, self._context.now + timeout_s)
        return executor

    def _register(self, executor: SlaveExecutor, session: SessionId, message: RegisterExecutor) -> None:
        if (message.framework_id, message.executor_id) != executor.key:
            text = f"this token belongs to executor {executor.key[1]} of framework {executor.key[0]}"
            self._refuse(session, "unauthorized", text)
            return
        if executor.state is ExecutorState.TERMINATING:
            order = ShutdownExecutor(executor_id=executor.key[1], framework_id=executor.key[0])
            self._context.emit(SendExecutor(session=session, message=order))
            return
        is_repeated = executor.session == session
        self._welcome(executor, session)
        for status in message.unacknowledged:
            self._on_status(executor, status)
        if not is_repeated:
            # A repeated one was written before the tasks arrived that went out with the first answer.
            self._match(executor, message)

    def _welcome(self, executor: SlaveExecutor, session: SessionId) -> None:
        slave_id = self._context.slave_id
        assert slave_id is not None, "a slave without id has no executors"
        was_registered = executor.has_registered
        executor.change(ExecutorState.REGISTERED)
        executor.session = session
        executor.has_registered = True
        self._timers.cancel(executor.key)
        if not was_registered:
            self._context.persist(ExecutorRegisteredRecord(framework_id=executor.key[0], executor_id=executor.key[1]))
        config = self._context.config
        answer = ExecutorRegistered(
            framework_info=self._tasks.frameworks[executor.key[0]].info,
            executor_info=executor.info,
            slave_id=slave_id,
            hostname=config.hostname,
            container_id=executor.container_id,
            address=config.address,
            reregistered=was_registered,
        )
        self._context.emit(SendExecutor(session=session, message=answer))
        if was_registered:
            self._resize(executor)  # The daemon may have died before it told.
        self._context.log(INFO, "executor registered", executor_id=executor.key[1], framework_id=executor.key[0])

    def _match(self, executor: SlaveExecutor, message: RegisterExecutor) -> None:
        """Send what waits, give up what got lost on the way, kill what is not accounted for."""
        named = {task.task_id for task in message.tasks}
        told = {status.task_id for status in message.unacknowledged}
        for task in list(executor.tasks.values()):
            task_id = task.key[1]
            if not task.is_sent and not task.is_recovered:
                self._send_task(executor, task)
            elif task_id in named or task_id in told:
                task.is_sent, task.is_recovered = True, False
                if task.kill_grace_s is not None:
                    self._send_kill(executor, task)
            else:
                state = self._tasks.lost_state(task.key[0], was_running=task.state is not TaskState.STAGING)
                text = "its executor registered again without it"
                self._end_task(executor, task, Ending(state=state, reason=Reason.SLAVE_RESTARTED, message=text))
        for info in message.tasks:
            if info.task_id not in executor.tasks and info.task_id not in told:
                self._context.log(WARNING, "unknown task of executor killed", task_id=info.task_id)
                kill = KillTask(task_id=info.task_id, framework_id=executor.key[0], grace_period_s=0.0)
                assert executor.session is not None, "an executor that registers has a session"
                self._context.emit(SendExecutor(session=executor.session, message=kill))

    def _on_status(self, executor: SlaveExecutor, status: TaskStatus) -> None:
        key = (executor.key[0], status.task_id)
        task = executor.tasks.get(status.task_id)
        if status.uuid is not None and self._tasks.updates.knows(key, status.uuid):
            self._acknowledge(executor, status)
            return
        if task is None or status.state not in _FROM_EXECUTORS or status.state not in TASK_CHANGES[task.state]:
            known = "no task of this executor" if task is None else f"a task that is {task.state}"
            self._context.log(WARNING, "update dropped", task_id=status.task_id, state=status.state, of=known)
            self._acknowledge(executor, status)
            return
        if self._tasks.updates.is_full(key) and not status.state.is_terminal:
            # Not acknowledged: the executor keeps it, and tells it again when it registers.
            self._context.log(WARNING, "update left with its executor", task_id=status.task_id)
            return
        now_unix_s = self._context.unix_s()
        whole = msgspec.structs.replace(
            status,
            uuid=status.uuid or self._context.ids.new_uuid(),
            slave_id=self._context.slave_id,
            executor_id=executor.key[1],
            source=Source.EXECUTOR,
            container_id=executor.container_id,
            timestamp_unix_s=status.timestamp_unix_s or now_unix_s,
        )
        task.is_sent, task.is_recovered = True, False
        if whole.state.is_terminal:
            del executor.tasks[status.task_id]
            self._resize(executor)
        self._tasks.put(task, whole)
        self._acknowledge(executor, status)

    def _resize(self, executor: SlaveExecutor) -> None:
        """Have its container hold what it and its tasks hold; without tasks it keeps what it had."""
        if executor.tasks:
            limits = limits_of(executor.held(), self._context.config.pids_limit)
            self._containers.resize(executor.container_id, limits)

    def _acknowledge(self, executor: SlaveExecutor, status: TaskStatus) -> None:
        if status.uuid is not None and executor.session is not None:
            answer = AcknowledgeStatus(
                task_id=status.task_id,
                uuid=status.uuid,
                slave_id=self._context.slave_id,
                framework_id=executor.key[0],
            )
            self._context.emit(SendExecutor(session=executor.session, message=answer))

    def _to_framework(self, executor: SlaveExecutor, message: ExecutorToFramework) -> None:
        if self._context.is_master_ready:
            whole = msgspec.structs.replace(
                message,
                executor_id=executor.key[1],
                framework_id=executor.key[0],
                slave_id=self._context.slave_id,
            )
            self._context.emit(SendMaster(message=whole))

    def _send_task(self, executor: SlaveExecutor, task: SlaveTask) -> None:
        assert executor.session is not None, f"executor {executor.key[1]} has no session"
        task.is_sent = True
        self._context.emit(SendExecutor(session=executor.session, message=LaunchTask(task=task.info)))

    def _send_kill(self, executor: SlaveExecutor, task: SlaveTask) -> None:
        assert executor.session is not None, f"executor {executor.key[1]} has no session"
        kill = KillTask(task_id=task.key[1], framework_id=task.key[0], grace_period_s=task.kill_grace_s)
        self._context.emit(SendExecutor(session=executor.session, message=kill))

    def _end_task(self, executor: SlaveExecutor, task: SlaveTask, ending: Ending) -> None:
        del executor.tasks[task.key[1]]
        self._tasks.update(task, ending)

    def _ending(self, executor: SlaveExecutor, ended: ContainerEnded) -> Ending:
        """Return what happens to the tasks that an executor leaves behind."""
        exit_status = None if ended.exited is None else ended.exited.exit_status
        if executor.end_reason in {Reason.FRAMEWORK_REMOVED, Reason.SLAVE_REMOVED}:
            return Ending(
                state=TaskState.KILLED,
                reason=executor.end_reason,
                message=executor.end_message,
                exit_status=exit_status,
            )
        if executor.end_reason is not None:
            return Ending(
                state=TaskState.FAILED,
                reason=executor.end_reason,
                message=executor.end_message,
                exit_status=exit_status,
            )
        if ended.cause is Cause.SUPERVISOR_LOST:
            return Ending(state=TaskState.FAILED, reason=Reason.SUPERVISOR_TERMINATED, message=ended.message)
        if ended.exited is None:
            reason = Reason.CONTAINER_LAUNCH_FAILED
            text = ended.message or "killed before it was started"
            return Ending(state=TaskState.FAILED, reason=reason, message=f"could not start the executor: {text}")
        if ended.exited.oom_kills > 0 and ended.exited.exit_status != 0:
            return memory_ending(ended.exited)
        return Ending(
            state=TaskState.FAILED,
            reason=Reason.EXECUTOR_TERMINATED,
            message=f"its executor {describe_exit(ended.exited.exit_status)}",
            exit_status=ended.exited.exit_status,
        )

    def _refuse(self, session: SessionId, code: str, text: str) -> None:
        self._context.log(WARNING, "executor refused", error=text)
        self._context.emit(SendExecutor(session=session, message=Error(code=code, message=text)))
        if code == "unauthorized":
            self.disconnected(session)
            self._context.emit(CloseExecutor(session=session, reason=text))
