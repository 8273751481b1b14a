"""How the master hands on updates, acknowledgements, kills and messages, and reconciles."""

import pytest

from master.events import Send
from meseta.ids import ExecutorId, FrameworkId, SessionId, SlaveId, StatusUuid, TaskId
from meseta.messages import (
    AcknowledgeStatus,
    Error,
    ExecutorLost,
    ExecutorToFramework,
    FrameworkToExecutor,
    KillTask,
    ReconcileTasks,
    RegisterFramework,
    ShutdownExecutor,
    StatusUpdate,
    TeardownFramework,
)
from meseta.model import Reason, TaskQuery, TaskState
from tests.unit.master_builders import (
    LARGE,
    Harness,
    executor_info,
    framework_info,
    slave_task,
    status,
    task_info,
    update,
)


class Running:
    """One slave, one framework, one task `t` that was launched."""

    def __init__(self, *, is_partition_aware: bool = True, with_executor: bool = False) -> None:
        self.harness = Harness()
        self.slave, self.slave_id = self.harness.slave()
        self.framework, self.framework_id = self.harness.framework(is_partition_aware=is_partition_aware)
        (offer,) = self.harness.offers(self.framework)
        task = task_info("t", self.slave_id)
        if with_executor:
            task = task_info("t", self.slave_id, command=None, executor=executor_info())
        self.harness.launch(self.framework, offer, task, refuse_s=0.0)
        self.harness.take_all(self.slave)
        self.harness.take_all(self.framework)

    def report(self, state: TaskState, uuid: str | None, latest: TaskState | None = None) -> None:
        """Let the slave send an update."""
        self.harness.say(self.slave, update(self.framework_id, status("t", state, uuid, self.slave_id), latest))

    def acknowledge(self, uuid: str) -> None:
        """Let the framework acknowledge one."""
        call = AcknowledgeStatus(task_id=TaskId("t"), uuid=StatusUuid(uuid), slave_id=self.slave_id)
        self.harness.say(self.framework, call)

    def ask(self, task_id: str = "t", slave_id: SlaveId | None = None) -> list[tuple[str, TaskState, str | None]]:
        """Let the framework reconcile one task; return the answers."""
        query = TaskQuery(task_id=TaskId(task_id), slave_id=slave_id)
        self.harness.say(self.framework, ReconcileTasks(tasks=(query,)))
        return self.harness.updates(self.framework)


def test_update_and_acknowledgement_are_handed_on() -> None:
    run = Running()
    one = status("t", TaskState.RUNNING, "u", run.slave_id)
    assert run.harness.say(run.slave, update(run.framework_id, one)) == [
        Send(session=run.framework, message=StatusUpdate(status=one, framework_id=run.framework_id))
    ]
    call = AcknowledgeStatus(task_id=TaskId("t"), uuid=StatusUuid("u"), slave_id=run.slave_id)
    whole = AcknowledgeStatus(
        task_id=TaskId("t"), uuid=StatusUuid("u"), slave_id=run.slave_id, framework_id=run.framework_id
    )
    assert run.harness.say(run.framework, call) == [Send(session=run.slave, message=whole)]


def test_update_in_the_name_of_another_slave_is_refused() -> None:
    run = Running()
    forged = status("t", TaskState.FINISHED, "u", SlaveId("s-of-another"))
    run.harness.say(run.slave, update(run.framework_id, forged))
    (error,) = run.harness.take(run.slave, Error)
    assert error.message == f"status.slave_id: s-of-another is not who sends this, {run.slave_id}"
    assert run.harness.updates(run.framework) == []


def test_resources_are_free_at_the_terminal_update_before_it_is_acknowledged() -> None:
    run = Running()
    run.report(TaskState.FINISHED, "u")
    run.harness.advance(1.1)
    offers = run.harness.offers(run.framework)
    assert sum(offer.resources.get("cpus") for offer in offers) <= LARGE.get("cpus")
    assert run.harness.core._cluster.allocator.allocated(run.slave_id).get("cpus") == 4000  # All offered again.


def test_latest_state_rules_resources_while_an_older_update_is_handed_on() -> None:
    run = Running()
    run.report(TaskState.RUNNING, "u1", latest=TaskState.FINISHED)
    assert run.harness.updates(run.framework) == [("t", TaskState.RUNNING, None)]
    assert not any(task.is_charged for task in run.harness.core._cluster.slaves[run.slave_id].tasks.values())


def test_acknowledged_end_completes_the_task() -> None:
    run = Running()
    run.report(TaskState.FINISHED, "u")
    framework = run.harness.core._cluster.frameworks[run.framework_id]
    assert list(framework.tasks) == ["t"]
    run.acknowledge("u")
    assert framework.tasks == {}
    done = framework.completed[TaskId("t")]
    assert done.state is TaskState.FINISHED
    assert done.status is not None
    assert done.status.uuid == "u"


def test_update_sent_again_after_its_acknowledgement_was_lost_is_acknowledged_here() -> None:
    run = Running()
    for state, uuid in ((TaskState.RUNNING, "u1"), (TaskState.FINISHED, "u2")):
        run.report(state, uuid)
        run.acknowledge(uuid)
        run.harness.take_all(run.slave)
        run.harness.take_all(run.framework)
        run.report(state, uuid)
        assert [one.uuid for one in run.harness.take(run.slave, AcknowledgeStatus)] == [uuid]
        assert run.harness.updates(run.framework) == []


def test_update_waits_while_the_framework_is_disconnected() -> None:
    run = Running()
    run.harness.close(run.framework)
    run.report(TaskState.RUNNING, "u")
    session = run.harness.open("framework", "alice")
    assert run.harness.take_all(session) == []
    run.harness.say(session, RegisterFramework(framework_info=framework_info(run.framework_id)))
    assert [one.status.uuid for one in run.harness.take(session, StatusUpdate)] == ["u"]


def test_late_update_does_not_take_a_task_back() -> None:
    run = Running()
    run.report(TaskState.RUNNING, "u1")
    run.acknowledge("u1")
    run.report(TaskState.FINISHED, "u2")
    run.report(TaskState.RUNNING, "u1x")
    task = run.harness.core._cluster.frameworks[run.framework_id].tasks[TaskId("t")]
    assert task.state is TaskState.FINISHED
    run.acknowledge("u2")
    assert run.harness.core._cluster.frameworks[run.framework_id].tasks == {}


def test_update_without_uuid_that_ends_a_task_completes_it() -> None:
    run = Running()
    run.report(TaskState.DROPPED, None)
    assert run.harness.updates(run.framework) == [("t", TaskState.DROPPED, None)]
    assert run.harness.core._cluster.frameworks[run.framework_id].tasks == {}


def test_update_of_a_removed_framework_is_acknowledged_here() -> None:
    run = Running()
    run.report(TaskState.RUNNING, "u1")
    run.harness.say(run.framework, TeardownFramework())
    run.harness.take_all(run.slave)
    run.report(TaskState.KILLED, "u2")
    assert [one.uuid for one in run.harness.take(run.slave, AcknowledgeStatus)] == ["u2"]
    one = update(FrameworkId("f-unknown"), status("x", TaskState.RUNNING, "u3", run.slave_id))
    run.harness.say(run.slave, one)
    assert [one.uuid for one in run.harness.take(run.slave, AcknowledgeStatus)] == ["u3"]


def test_update_without_framework_is_refused_in_words() -> None:
    run = Running()
    run.harness.say(run.slave, StatusUpdate(status=status("t", TaskState.RUNNING, "u")))
    (error,) = run.harness.take(run.slave, Error)
    assert "framework_id" in error.message


# --- Kills ---------------------------------------------------------------------------------------


def test_kill_goes_to_the_tasks_slave() -> None:
    run = Running()
    call = KillTask(task_id=TaskId("t"), grace_period_s=2.0)
    whole = KillTask(task_id=TaskId("t"), grace_period_s=2.0, framework_id=run.framework_id, slave_id=run.slave_id)
    assert run.harness.say(run.framework, call) == [Send(session=run.slave, message=whole)]


@pytest.mark.parametrize(("is_aware", "state"), [(True, TaskState.UNKNOWN), (False, TaskState.LOST)])
def test_kill_of_an_unknown_task_tells_that_it_is_not_there(is_aware: bool, state: TaskState) -> None:
    run = Running(is_partition_aware=is_aware)
    run.harness.say(run.framework, KillTask(task_id=TaskId("x")))
    assert run.harness.updates(run.framework) == [("x", state, Reason.RECONCILIATION)]


def test_kill_of_a_task_whose_slave_is_not_back_yet_is_kept_for_it() -> None:
    run = Running()
    harness, framework_id, slave_id = run.harness, run.framework_id, run.slave_id
    harness.start()
    framework, _ = harness.framework(framework_id=framework_id)
    harness.say(framework, KillTask(task_id=TaskId("t"), slave_id=slave_id))
    assert harness.updates(framework) == []
    task = slave_task("t", framework_id, slave_id, TaskState.RUNNING)
    slave = harness.back(slave_id, tasks=(task,), frameworks=(framework_info(framework_id),))
    assert [kill.task_id for kill in harness.take(slave, KillTask)] == ["t"]


# --- Reconciliation ------------------------------------------------------------------------------


def test_reconciliation_tells_the_state_of_a_known_task() -> None:
    run = Running()
    assert run.ask() == [("t", TaskState.STAGING, Reason.RECONCILIATION)]
    run.report(TaskState.RUNNING, "u")
    run.acknowledge("u")
    run.harness.take_all(run.framework)
    assert run.ask() == [("t", TaskState.RUNNING, Reason.RECONCILIATION)]


def test_reconciliation_repeats_an_update_that_is_not_acknowledged_as_it_was() -> None:
    run = Running()
    run.report(TaskState.FINISHED, "u")
    run.harness.take_all(run.framework)
    query = TaskQuery(task_id=TaskId("t"))
    run.harness.say(run.framework, ReconcileTasks(tasks=(query,)))
    (again,) = run.harness.take(run.framework, StatusUpdate)
    assert again.status == status("t", TaskState.FINISHED, "u", run.slave_id)


def test_reconciliation_of_all_tells_of_every_task_that_has_not_ended() -> None:
    run = Running()
    run.harness.say(run.framework, ReconcileTasks())
    assert run.harness.updates(run.framework) == [("t", TaskState.STAGING, Reason.RECONCILIATION)]


def test_ended_task_keeps_its_end() -> None:
    run = Running()
    run.report(TaskState.FAILED, "u")
    run.acknowledge("u")
    run.harness.take_all(run.framework)
    assert run.ask() == [("t", TaskState.FAILED, Reason.RECONCILIATION)]


@pytest.mark.parametrize(("is_aware", "state"), [(True, TaskState.GONE), (False, TaskState.LOST)])
def test_task_that_its_slave_does_not_have_is_gone(is_aware: bool, state: TaskState) -> None:
    run = Running(is_partition_aware=is_aware)
    assert run.ask("x", run.slave_id) == [("x", state, Reason.RECONCILIATION)]


def test_task_of_an_unreachable_slave_is_unreachable() -> None:
    run = Running()
    run.harness.advance(76.0)
    run.harness.take_all(run.framework)
    assert run.ask("x", run.slave_id) == [("x", TaskState.UNREACHABLE, Reason.RECONCILIATION)]


def _restarted() -> tuple[Harness, SessionId, FrameworkId, SlaveId]:
    run = Running()
    run.harness.start()
    framework, _ = run.harness.framework(framework_id=run.framework_id)
    queries = (TaskQuery(task_id=TaskId("t"), slave_id=run.slave_id), TaskQuery(task_id=TaskId("x")))
    run.harness.say(framework, ReconcileTasks(tasks=queries))
    return run.harness, framework, run.framework_id, run.slave_id


def test_reconciliation_is_silent_until_the_slave_is_back_then_answers_at_once() -> None:
    harness, framework, framework_id, slave_id = _restarted()
    assert harness.updates(framework) == []
    task = slave_task("t", framework_id, slave_id, TaskState.RUNNING)
    harness.back(slave_id, tasks=(task,), frameworks=(framework_info(framework_id),))
    assert harness.updates(framework) == [
        ("t", TaskState.RUNNING, Reason.RECONCILIATION),
        ("x", TaskState.UNKNOWN, Reason.RECONCILIATION),
    ]


def test_reconciliation_answers_when_the_slave_is_back_without_the_task() -> None:
    harness, framework, _, slave_id = _restarted()
    harness.back(slave_id)
    assert harness.updates(framework)[0] == ("t", TaskState.GONE, Reason.RECONCILIATION)


def test_reconciliation_answers_when_the_slave_is_given_up() -> None:
    harness, framework, _, _ = _restarted()
    harness.advance(601.0)
    assert [state for _, state, _ in harness.updates(framework)] == [TaskState.UNREACHABLE, TaskState.UNKNOWN]


# --- Executors and messages -----------------------------------------------------------------------


def test_messages_between_scheduler_and_executor_are_handed_on() -> None:
    run = Running(with_executor=True)
    down = FrameworkToExecutor(slave_id=run.slave_id, executor_id=ExecutorId("e"), data=b"x")
    assert run.harness.say(run.framework, down) == [
        Send(
            session=run.slave,
            message=FrameworkToExecutor(
                slave_id=run.slave_id, executor_id=ExecutorId("e"), data=b"x", framework_id=run.framework_id
            ),
        )
    ]
    up = ExecutorToFramework(executor_id=ExecutorId("e"), data=b"y", framework_id=run.framework_id)
    run.harness.say(run.slave, up)
    (message,) = run.harness.take(run.framework, ExecutorToFramework)
    assert (message.data, message.slave_id) == (b"y", run.slave_id)


def test_lost_executor_frees_its_resources_and_is_told() -> None:
    run = Running(with_executor=True)
    lost = ExecutorLost(executor_id=ExecutorId("e"), framework_id=run.framework_id, exit_status=3)
    run.harness.say(run.slave, lost)
    (message,) = run.harness.take(run.framework, ExecutorLost)
    assert (message.slave_id, message.exit_status) == (run.slave_id, 3)
    assert run.harness.core._cluster.slaves[run.slave_id].executors == {}


def test_shutdown_of_an_executor_goes_to_its_slave() -> None:
    run = Running(with_executor=True)
    run.harness.say(run.framework, ShutdownExecutor(executor_id=ExecutorId("e"), slave_id=run.slave_id))
    (order,) = run.harness.take(run.slave, ShutdownExecutor)
    assert (order.framework_id, order.slave_id) == (run.framework_id, run.slave_id)


# --- Who may say what -----------------------------------------------------------------------------


def test_message_of_the_wrong_kind_of_peer_is_refused_and_harms_nobody() -> None:
    run = Running()
    for session, message, words in (
        (run.slave, KillTask(task_id=TaskId("t")), "KillTask: a slave may not send it"),
        (run.framework, ReconcileTasks(), None),
        (run.harness.open("framework"), ReconcileTasks(), "register first"),
        (run.harness.open("slave"), StatusUpdate(status=status("t", TaskState.RUNNING)), "register first"),
        (run.harness.open("operator"), KillTask(task_id=TaskId("t")), "a operator may not send it"),
    ):
        run.harness.take_all(session)
        run.harness.say(session, message)
        errors = run.harness.take(session, Error)
        assert [error.code for error in errors] == ([] if words is None else ["bad_message"])
        assert all(words is not None and words in error.message for error in errors)
