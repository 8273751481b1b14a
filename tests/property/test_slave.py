"""The slave's core against a plain model: any order of events, crashes of daemon and supervisor included.

The model is a witness of processes: which containers ran, and what the master was told. Promises
2 and 3 of the design are checked after each step, promise 1 and the single terminal state at the end.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from meseta.ids import ContainerId, SessionId, StatusUuid, TaskId
from meseta.messages import (
    ExecutorRegistered,
    KillTask,
    LaunchTask,
    RegisterExecutor,
    ShutdownExecutor,
    StatusUpdate,
)
from meseta.model import Reason, TaskInfo, TaskState, TaskStatus
from slave.events import (
    Begin,
    ExecutorConnected,
    ExecutorDisconnected,
    ExecutorSaid,
    LaunchFailed,
    MasterDisconnected,
    SupervisorLost,
    SupervisorSaid,
    SupervisorStartFailed,
)
from slave.supervisor_messages import StartContainer, Started
from tests.unit.slave_builders import (
    EXECUTOR,
    FRAMEWORK,
    World,
    command_task,
    executor_task,
    framework,
    run_task,
)

TASKS = st.sampled_from([f"t-{number}" for number in range(6)])
ENDS = {TaskState.FINISHED, TaskState.FAILED, TaskState.KILLED, TaskState.LOST, TaskState.DROPPED, TaskState.GONE}
CAPABILITIES = ("PARTITION_AWARE", "TASK_KILLING_STATE")


class SlaveMachine(RuleBasedStateMachine):
    """Rules are what can happen to a slave; the world performs the effects."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.asked: set[str] = set()
        self.received: dict[str, list[TaskState]] = {}
        self.seen: set[str] = set()
        self.session_count = 0
        self.update_count = 0
        # What the executor's process has in hand: it outlives the daemon.
        self.executor_tasks: dict[str, TaskInfo] = {}
        self.executor_updates: dict[str, TaskStatus] = {}

    @initialize()
    def begin(self) -> None:
        self.world.handle(Begin())
        self.connect()

    # --- Master ---

    def connect(self) -> None:
        self.world.register()
        self.listen()

    def listen(self) -> None:
        """Take what the master was told; an update is counted once by its uuid, in order."""
        for status in self.world.statuses():
            if status.uuid is None:
                assert status.task_id not in self.received or status.reason is Reason.RECONCILIATION
            elif status.uuid not in self.seen:
                self.seen.add(status.uuid)
                self.received.setdefault(status.task_id, []).append(status.state)
        self.serve_executor()

    @rule(task_id=TASKS, has_executor=st.booleans())
    def run_task(self, task_id: str, has_executor: bool) -> None:
        if task_id in self.asked or not self.world.core.is_registered:
            return
        self.asked.add(task_id)
        task = executor_task(task_id) if has_executor else command_task(task_id)
        self.world.master(run_task(task, framework(FRAMEWORK, *CAPABILITIES)))
        self.listen_to_refusal(task_id)

    def listen_to_refusal(self, task_id: str) -> None:
        """A task for an executor that is ending is refused without a uuid: that is its end."""
        for message in self.world.to_master:
            if isinstance(message, StatusUpdate) and message.status.task_id == task_id and message.status.uuid is None:
                self.received.setdefault(task_id, []).append(message.status.state)
                self.world.to_master.remove(message)
                break
        self.listen()

    @rule(task_id=TASKS)
    def run_task_again(self, task_id: str) -> None:
        """A doubled message, while the task is known."""
        if any(task_id == start.environment.get("MESETA_TASK_ID") for start in self.all_running()):
            self.world.master(run_task(command_task(task_id), framework(FRAMEWORK, *CAPABILITIES)))
            self.listen()

    @rule(task_id=TASKS, grace_s=st.sampled_from([None, 0.0, 2.0]))
    def kill_task(self, task_id: str, grace_s: float | None) -> None:
        if task_id in self.asked:
            self.world.master(KillTask(task_id=TaskId(task_id), framework_id=FRAMEWORK, grace_period_s=grace_s))
            self.listen()

    @rule()
    def shut_down_executor(self) -> None:
        self.world.master(ShutdownExecutor(executor_id=EXECUTOR, framework_id=FRAMEWORK))
        self.listen()

    @rule(index=st.integers(0, 5))
    def acknowledge(self, index: int) -> None:
        """The framework acknowledges one update that the slave still holds."""
        pending = self.pending()
        if pending:
            status = pending[index % len(pending)]
            if status.uuid in self.seen:
                self.world.acknowledge(status)
                self.listen()

    @rule()
    def lose_master(self) -> None:
        self.world.handle(MasterDisconnected(reason="cut"))

    @precondition(lambda self: not self.world.core.is_registered)
    @rule()
    def find_master(self) -> None:
        self.world.to_master.clear()
        self.connect()

    # --- Processes ---

    @rule(exit_status=st.sampled_from([0, 1, 137]))
    def exit_container(self, exit_status: int) -> None:
        if any(supervisor.running for supervisor in self.world.supervisors.values()):
            if self.first_is_executor():
                self.forget_executor()
            self.world.exit_task(exit_status)
            self.listen()

    @rule()
    def lose_supervisor(self) -> None:
        if self.world.supervisors:
            name = next(iter(self.world.supervisors))
            self.forget_executor()
            del self.world.supervisors[name]
            self.world.handle(SupervisorLost(supervisor=name, reason="killed"))
            self.listen()

    @rule()
    def fail_supervisor_start(self) -> None:
        self.world.handle(SupervisorStartFailed(message="no"))
        self.listen()

    @rule()
    def show_unknown_container(self) -> None:
        if self.world.supervisors:
            name, supervisor = next(iter(self.world.supervisors.items()))
            started = Started(container_id=ContainerId("c-unknown"), pid=9, start_ticks=9)
            supervisor.running[started.container_id] = started
            self.world.handle(SupervisorSaid(supervisor=name, report=started))
            assert started.container_id not in supervisor.running

    @rule()
    def fail_launch_that_is_over(self) -> None:
        for start in self.all_running():
            self.world.handle(LaunchFailed(container_id=start.container_id, message="late"))
            self.listen()

    @rule(loses_supervisor=st.booleans(), compacts=st.booleans())
    def kill_daemon(self, loses_supervisor: bool, compacts: bool) -> None:
        if compacts:
            self.world.compact()
        if loses_supervisor:
            self.world.supervisors.clear()
            self.forget_executor()
        self.world.to_executors.clear()
        self.world.restart()
        self.connect()

    @rule()
    def reboot(self) -> None:
        self.world.supervisors.clear()
        self.forget_executor()
        self.world.boot_id += "+"
        self.world.restart()
        self.connect()

    @rule(seconds=st.sampled_from([0.5, 5.0, 11.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.world.advance(seconds)
        if not self.world.core.is_registered:
            self.world.to_master.clear()
            self.connect()
        self.listen()

    # --- The executor ---

    def forget_executor(self) -> None:
        self.executor_tasks.clear()
        self.executor_updates.clear()

    def first_is_executor(self) -> bool:
        supervisor = next(entry for entry in self.world.supervisors.values() if entry.running)
        first = next(iter(supervisor.running))
        start = next(start for start in supervisor.starts if start.container_id == first)
        return "MESETA_EXECUTOR_ID" in start.environment

    def executor_token(self) -> str | None:
        tokens = [start.environment.get("MESETA_EXECUTOR_TOKEN") for start in self.all_running()]
        return next((token for token in tokens if token is not None), None)

    @rule()
    def connect_executor(self) -> None:
        token = self.executor_token()
        if token is None:
            self.forget_executor()
        elif self.world.core.is_executor_admitted(token):
            self.session_count += 1
            session = SessionId(str(self.session_count).encode())
            self.world.handle(ExecutorConnected(session=session, token=token))
            register = RegisterExecutor(
                executor_id=EXECUTOR,
                framework_id=FRAMEWORK,
                tasks=tuple(self.executor_tasks.values()),
                unacknowledged=tuple(self.executor_updates.values()),
            )
            self.world.handle(ExecutorSaid(session=session, message=register))
            self.listen()

    @rule()
    def disconnect_executor(self) -> None:
        self.world.handle(ExecutorDisconnected(session=SessionId(str(self.session_count).encode())))

    @rule(task_id=TASKS, state=st.sampled_from([TaskState.RUNNING, TaskState.FINISHED, TaskState.KILLING]))
    def say_of_executor(self, task_id: str, state: TaskState) -> None:
        if task_id in self.executor_tasks:
            self.update_count += 1
            status = TaskStatus(task_id=TaskId(task_id), state=state, uuid=StatusUuid(f"e{self.update_count}"))
            self.executor_updates[f"e{self.update_count}"] = status
            if state is TaskState.FINISHED:
                del self.executor_tasks[task_id]
            session = SessionId(str(self.session_count).encode())
            self.world.handle(ExecutorSaid(session=session, message=StatusUpdate(status=status)))
            self.listen()

    def serve_executor(self) -> None:
        for _, message in self.world.to_executors:
            if isinstance(message, LaunchTask):
                self.executor_tasks[message.task.task_id] = message.task
            elif isinstance(message, KillTask):
                self.executor_tasks.pop(message.task_id, None)
            elif not isinstance(message, ExecutorRegistered | ShutdownExecutor) and hasattr(message, "uuid"):
                self.executor_updates.pop(message.uuid, None)
        self.world.to_executors.clear()

    # --- What must hold ---

    def all_running(self) -> list[StartContainer]:
        return [
            start
            for supervisor in self.world.supervisors.values()
            for start in supervisor.starts
            if start.container_id in supervisor.running
        ]

    def pending(self) -> list[TaskStatus]:
        return [
            status for key in self.world.core._tasks.by_key for status in self.world.core._tasks.updates.pending(key)
        ]

    @invariant()
    def the_core_agrees_with_itself(self) -> None:
        self.world.core.check()

    @invariant()
    def no_task_ran_twice(self) -> None:
        ran = [
            start.environment["MESETA_TASK_ID"]
            for supervisor in self.world.supervisors.values()
            for start in supervisor.starts
            if "MESETA_TASK_ID" in start.environment
        ]
        assert len(ran) == len(set(ran))

    @invariant()
    def every_task_has_at_most_one_end_and_nothing_after_it(self) -> None:
        for task_id, states in self.received.items():
            ends = [state for state in states if state in ENDS]
            assert len(ends) <= 1, (task_id, states)
            assert not ends or states[-1] in ENDS, (task_id, states)

    @invariant()
    def what_runs_is_accounted_for(self) -> None:
        known = self.world.core._containers.by_id
        assert all(start.container_id in known for start in self.all_running())

    @invariant()
    def snapshot_and_log_hold_the_same(self) -> None:
        snapshot = self.world.core.snapshot()
        records, self.world.records = self.world.records, snapshot
        again = self.world._core().snapshot()
        self.world.records = records
        folded = self.world._core().snapshot()
        assert [repr(record) for record in again] == [repr(record) for record in snapshot]
        assert sorted(map(repr, folded)) == sorted(map(repr, snapshot))

    def teardown(self) -> None:
        """Faults end: every task that was asked for has its one end, and nothing is left."""
        self.world.handle(MasterDisconnected(reason="end"))
        self.world.to_master.clear()
        self.connect()
        for _ in range(200):
            for status in self.pending():
                if status.uuid in self.seen:
                    self.world.acknowledge(status)
            self.world.advance(11.0)
            self.listen()
            if not self.world.core.is_registered:
                self.world.to_master.clear()
                self.connect()
            while any(supervisor.running for supervisor in self.world.supervisors.values()):
                if self.first_is_executor():
                    self.forget_executor()
                self.world.exit_task(0)
                self.listen()
            if not self.world.core._tasks.by_key:
                break
        assert not self.world.core._tasks.by_key
        for task_id in self.asked:
            assert len([state for state in self.received.get(task_id, []) if state in ENDS]) == 1, task_id
        assert not any(supervisor.exits for supervisor in self.world.supervisors.values())


TestSlave = SlaveMachine.TestCase
TestSlave.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
