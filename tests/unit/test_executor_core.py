"""The executor driver's decisions, through whole lists of effects."""

import pytest

from meseta.driver_events import (
    AbortAsked,
    CallbackFailed,
    DataSent,
    ExecutorEffect,
    ExecutorSlave,
    HelloRefused,
    OnDisconnected,
    OnError,
    OnExecutorMessage,
    OnExecutorRegistered,
    OnExecutorReregistered,
    OnKillTask,
    OnLaunchTask,
    OnShutdown,
    Received,
    Send,
    SessionClosed,
    SessionOpened,
    StatusSent,
    Stop,
    StopAsked,
)
from meseta.executor_core import GRACE_SHARE, REGISTER_LIMIT_S, ExecutorCore, ExecutorInit
from meseta.ids import ContainerId, ExecutorId, FrameworkId, SlaveId, StatusUuid, TaskId
from meseta.log import Log
from meseta.messages import (
    AcknowledgeStatus,
    Error,
    ExecutorRegistered,
    ExecutorToFramework,
    FrameworkToExecutor,
    KillTask,
    LaunchTask,
    Message,
    Ping,
    Pong,
    RegisterExecutor,
    ShutdownExecutor,
    StatusUpdate,
)
from meseta.model import CommandInfo, ExecutorInfo, Source, TaskInfo, TaskState, TaskStatus
from tests.unit.driver_builders import ADDRESS, EXECUTOR_ID, FRAMEWORK_ID, SLAVE_ID, framework

GRACE_S = 5.0
RECOVERY_S = 60.0
EXECUTOR_INFO = ExecutorInfo(
    executor_id=EXECUTOR_ID, command=CommandInfo(value="x"), data=b"hello", shutdown_grace_period_s=GRACE_S
)
SLAVE = ExecutorSlave(slave_id=SLAVE_ID, hostname="h", container_id=ContainerId("c-1"), address=ADDRESS)


def executor_core() -> ExecutorCore:
    return ExecutorCore(
        ExecutorInit(
            framework_id=FRAMEWORK_ID,
            executor_id=EXECUTOR_ID,
            slave_id=SLAVE_ID,
            seed=1,
            started_at=0.0,
            recovery_timeout_s=RECOVERY_S,
            unix_offset_s=1000.0,
        )
    )


def answer() -> Received:
    return Received(
        message=ExecutorRegistered(
            framework_info=framework(),
            executor_info=EXECUTOR_INFO,
            slave_id=SLAVE_ID,
            hostname="h",
            container_id=ContainerId("c-1"),
            address=ADDRESS,
        )
    )


def register(core: ExecutorCore, now: float = 0.0) -> list[ExecutorEffect]:
    core.handle(SessionOpened(), now)
    return core.handle(answer(), now)


def registered_core() -> ExecutorCore:
    core = executor_core()
    register(core)
    return core


def task(name: str) -> TaskInfo:
    return TaskInfo(task_id=TaskId(name), slave_id=SLAVE_ID, executor=EXECUTOR_INFO)


def launch(name: str) -> Received:
    return Received(message=LaunchTask(task=task(name)))


def say(core: ExecutorCore, name: str, state: TaskState, now: float = 0.0) -> list[ExecutorEffect]:
    return core.handle(StatusSent(status=TaskStatus(task_id=TaskId(name), state=state)), now)


def updates(effects: list[ExecutorEffect]) -> list[TaskStatus]:
    messages = [effect.message for effect in effects if isinstance(effect, Send)]
    return [message.status for message in messages if isinstance(message, StatusUpdate)]


def acknowledge(core: ExecutorCore, status: TaskStatus, now: float = 0.0) -> list[ExecutorEffect]:
    assert status.uuid is not None
    return core.handle(Received(message=AcknowledgeStatus(task_id=status.task_id, uuid=status.uuid)), now)


def registration(effects: list[ExecutorEffect]) -> RegisterExecutor:
    (message,) = [effect.message for effect in effects if isinstance(effect, Send)]
    assert isinstance(message, RegisterExecutor)
    return message


def without_logs(effects: list[ExecutorEffect]) -> list[ExecutorEffect]:
    return [effect for effect in effects if not isinstance(effect, Log)]


# --- Registration ---


def test_executor_registers_and_hears_who_it_is() -> None:
    core = executor_core()
    assert registration(core.handle(SessionOpened(), 0.0)) == RegisterExecutor(
        executor_id=EXECUTOR_ID, framework_id=FRAMEWORK_ID
    )
    assert without_logs(core.handle(answer(), 0.0)) == [
        OnExecutorRegistered(executor_info=EXECUTOR_INFO, framework_info=framework(), slave=SLAVE)
    ]
    assert core.handle(answer(), 0.0) == []
    assert core.next_deadline() is None
    core.check()


def test_registration_is_repeated_until_answered() -> None:
    core = executor_core()
    core.handle(SessionOpened(), 0.0)
    now, delays = 0.0, []
    for _ in range(5):
        deadline = core.next_deadline()
        assert deadline is not None
        delays.append(deadline - now)
        now = deadline
        registration(core.tick(now))
    assert delays == [1.0, 2.0, 4.0, 8.0, REGISTER_LIMIT_S]


def test_restarted_slave_hears_tasks_in_hand_and_unacknowledged_updates_in_order() -> None:
    core = registered_core()
    core.handle(launch("t-1"), 0.0)
    core.handle(launch("t-2"), 0.0)
    first = updates(say(core, "t-1", TaskState.RUNNING))
    assert without_logs(core.handle(SessionClosed(reason="test"), 1.0)) == [OnDisconnected()]
    assert without_logs(say(core, "t-1", TaskState.FINISHED, 2.0)) == []
    message = registration(core.handle(SessionOpened(), 3.0))
    assert message.tasks == (task("t-2"),)
    assert message.unacknowledged[0] == first[0]
    assert [one.state for one in message.unacknowledged] == [TaskState.RUNNING, TaskState.FINISHED]
    assert without_logs(core.handle(answer(), 3.0)) == [OnExecutorReregistered(slave=SLAVE)]
    core.check()


def test_update_made_while_registering_is_sent_after_the_answer() -> None:
    core = registered_core()
    core.handle(launch("t-1"), 0.0)
    core.handle(SessionClosed(reason="test"), 1.0)
    core.handle(SessionOpened(), 2.0)
    say(core, "t-1", TaskState.RUNNING, 2.1)
    assert [one.state for one in updates(core.handle(answer(), 2.2))] == [TaskState.RUNNING]


@pytest.mark.parametrize("is_at_hello", [True, False])
def test_refused_token_ends_the_executor_with_the_slaves_words(is_at_hello: bool) -> None:
    core = executor_core()
    if is_at_hello:
        effects = core.handle(HelloRefused(code="unauthorized", message="wrong token"), 0.0)
    else:
        core.handle(SessionOpened(), 0.0)
        effects = core.handle(Received(message=Error(code="unauthorized", message="wrong token")), 0.0)
    text = "the slave refused this executor: unauthorized: wrong token"
    assert without_logs(effects) == [OnError(message=text), Stop(exit_code=1)]


def test_ping_is_answered() -> None:
    core = registered_core()
    ping = Received(message=Ping(interval_s=1.0, missed_limit=3))
    assert core.handle(ping, 0.0) == [Send(message=Pong())]


# --- Tasks and updates ---


def test_task_is_launched_once_until_its_end_is_acknowledged() -> None:
    core = registered_core()
    assert core.handle(launch("t-1"), 0.0) == [OnLaunchTask(task=task("t-1"))]
    assert core.handle(launch("t-1"), 0.0) == []
    (end,) = updates(say(core, "t-1", TaskState.FINISHED))
    assert core.handle(launch("t-1"), 0.0) == []
    acknowledge(core, end)
    assert core.handle(launch("t-1"), 0.0) == [OnLaunchTask(task=task("t-1"))]
    core.check()


def test_update_names_its_maker_and_its_time() -> None:
    core = registered_core()
    core.handle(launch("t-1"), 0.0)
    (status,) = updates(say(core, "t-1", TaskState.RUNNING, 5.0))
    assert (status.slave_id, status.executor_id, status.source) == (SLAVE_ID, EXECUTOR_ID, Source.EXECUTOR)
    assert status.timestamp_unix_s == 1005.0
    assert status.uuid is not None


def test_acknowledgement_is_taken_before_the_registration_is_answered() -> None:
    core = registered_core()
    core.handle(launch("t-1"), 0.0)
    (first,) = updates(say(core, "t-1", TaskState.RUNNING))
    core.handle(SessionClosed(reason="test"), 1.0)
    core.handle(SessionOpened(), 2.0)
    acknowledge(core, first, 2.0)
    core.handle(SessionClosed(reason="test"), 3.0)
    assert registration(core.handle(SessionOpened(), 4.0)).unacknowledged == ()


def test_update_after_a_tasks_end_is_dropped() -> None:
    core = registered_core()
    core.handle(launch("t-1"), 0.0)
    say(core, "t-1", TaskState.FAILED)
    assert without_logs(say(core, "t-1", TaskState.RUNNING)) == []


def test_acknowledged_update_is_not_told_again() -> None:
    core = registered_core()
    core.handle(launch("t-1"), 0.0)
    (first,) = updates(say(core, "t-1", TaskState.RUNNING))
    acknowledge(core, first)
    core.handle(SessionClosed(reason="test"), 1.0)
    message = registration(core.handle(SessionOpened(), 2.0))
    assert (message.tasks, message.unacknowledged) == ((task("t-1"),), ())
    stranger = AcknowledgeStatus(task_id=TaskId("t-1"), uuid=StatusUuid("other"))
    core.handle(answer(), 2.0)
    assert core.handle(Received(message=stranger), 2.0) == []
    core.check()


def test_kill_takes_the_tasks_grace_period_unless_it_names_one() -> None:
    core = registered_core()
    core.handle(launch("t-1"), 0.0)
    kill = KillTask(task_id=TaskId("t-1"))
    assert core.handle(Received(message=kill), 0.0) == [OnKillTask(task_id=TaskId("t-1"), grace_period_s=3.0)]
    kill = KillTask(task_id=TaskId("t-1"), grace_period_s=0.5)
    assert core.handle(Received(message=kill), 0.0) == [OnKillTask(task_id=TaskId("t-1"), grace_period_s=0.5)]
    assert without_logs(core.handle(Received(message=KillTask(task_id=TaskId("t-9"))), 0.0)) == []


def test_messages_pass_both_ways() -> None:
    core = registered_core()
    message: Message = FrameworkToExecutor(slave_id=SLAVE_ID, executor_id=EXECUTOR_ID, data=b"x")
    assert core.handle(Received(message=message), 0.0) == [OnExecutorMessage(data=b"x")]
    message = ExecutorToFramework(executor_id=EXECUTOR_ID, data=b"y", slave_id=SLAVE_ID, framework_id=FRAMEWORK_ID)
    assert core.handle(DataSent(data=b"y"), 0.0) == [Send(message=message)]
    core.handle(SessionClosed(reason="test"), 1.0)
    assert without_logs(core.handle(DataSent(data=b"y"), 1.0)) == []


# --- The end ---


def shutdown() -> Received:
    return Received(message=ShutdownExecutor(executor_id=EXECUTOR_ID))


def test_shutdown_without_tasks_ends_after_the_callback() -> None:
    core = registered_core()
    assert without_logs(core.handle(shutdown(), 0.0)) == [OnShutdown(), Stop(exit_code=0)]
    core.check()


def test_shutdown_waits_until_the_end_of_every_task_is_acknowledged() -> None:
    core = registered_core()
    core.handle(launch("t-1"), 0.0)
    assert without_logs(core.handle(shutdown(), 0.0)) == [OnShutdown()]
    assert core.handle(launch("t-2"), 0.0) == []
    (end,) = updates(say(core, "t-1", TaskState.KILLED, 1.0))
    assert acknowledge(core, end, 1.1) == [Stop(exit_code=0)]


def test_shutdown_ends_when_the_grace_period_is_nearly_over() -> None:
    core = registered_core()
    core.handle(launch("t-1"), 0.0)
    core.handle(shutdown(), 0.0)
    assert core.next_deadline() == GRACE_S * GRACE_SHARE
    assert without_logs(core.tick(GRACE_S * GRACE_SHARE)) == [Stop(exit_code=0, is_forced=True)]


def test_executor_without_its_slave_shuts_down_after_the_recovery_timeout() -> None:
    core = registered_core()
    core.handle(launch("t-1"), 0.0)
    core.handle(SessionClosed(reason="test"), 10.0)
    core.handle(SessionOpened(), 20.0)  # A session is no registration: the clock runs on.
    core.handle(SessionClosed(reason="test"), 21.0)
    assert core.next_deadline() == 10.0 + RECOVERY_S
    assert without_logs(core.tick(10.0 + RECOVERY_S)) == [OnShutdown()]
    assert say(core, "t-1", TaskState.KILLED, 71.0) == [Stop(exit_code=1)]


def test_executor_that_never_finds_its_slave_ends() -> None:
    core = executor_core()
    assert core.next_deadline() == RECOVERY_S
    assert without_logs(core.tick(RECOVERY_S)) == [OnShutdown(), Stop(exit_code=1)]


def test_registration_stops_the_recovery_clock() -> None:
    core = registered_core()
    core.handle(SessionClosed(reason="test"), 10.0)
    register(core, 20.0)
    assert core.next_deadline() is None


def test_stop_waits_for_the_last_acknowledgement() -> None:
    core = registered_core()
    core.handle(launch("t-1"), 0.0)
    (end,) = updates(say(core, "t-1", TaskState.FINISHED))
    assert core.handle(StopAsked(), 0.0) == []
    assert acknowledge(core, end, 0.1) == [Stop(exit_code=0)]


def test_stop_with_nothing_to_tell_ends_at_once() -> None:
    assert registered_core().handle(StopAsked(), 0.0) == [Stop(exit_code=0)]


def test_failed_callback_and_abort_end_with_exit_code_1() -> None:
    assert registered_core().handle(CallbackFailed(name="x", message="boom"), 0.0) == [Stop(exit_code=1)]
    core = registered_core()
    assert core.handle(AbortAsked(), 0.0) == [Stop(exit_code=1)]
    assert core.handle(launch("t-1"), 0.0) == []


def test_ids_are_the_executors_own() -> None:
    init = ExecutorInit(
        framework_id=FrameworkId("f"), executor_id=ExecutorId("e"), slave_id=SlaveId("s"), seed=3, started_at=5.0
    )
    one, two = ExecutorCore(init), ExecutorCore(init)
    register(one)
    register(two)
    assert updates(say(one, "t", TaskState.RUNNING)) == updates(say(two, "t", TaskState.RUNNING))
