"""How the master admits slaves, pings them, gives them up and takes them back."""

import msgspec
import pytest

from master.events import CloseSession, PersistRecords, Send, StoredRecord
from master.registry import AdmittedSlave
from meseta.ids import ContainerId, FrameworkId, SessionId, SlaveId, StatusUuid, TaskId
from meseta.log import Log
from meseta.messages import (
    AcknowledgeStatus,
    Error,
    KillTask,
    Ping,
    Pong,
    RegisterSlave,
    ReregisterSlave,
    RescindOffer,
    ResourceOffers,
    RunTask,
    ShutdownFramework,
    SlaveLost,
    SlaveRegistered,
    StatusUpdate,
    TeardownFramework,
)
from meseta.model import ExecutorInfo, Reason, RunningExecutor, TaskState
from meseta.resources import parse_resources
from tests.unit.master_builders import (
    LARGE,
    SMALL,
    Harness,
    executor_info,
    framework_info,
    slave_info,
    slave_task,
    status,
    task_info,
    update,
)


def _running(harness: Harness, *, is_partition_aware: bool) -> tuple[SessionId, FrameworkId, SessionId, SlaveId]:
    """Return framework and slave with one RUNNING task `t`, acknowledged."""
    slave, slave_id = harness.slave()
    framework, framework_id = harness.framework(is_partition_aware=is_partition_aware)
    (offer,) = harness.offers(framework)
    harness.launch(framework, offer, task_info("t", slave_id))
    harness.say(slave, update(framework_id, status("t", TaskState.RUNNING, "u1", slave_id)))
    harness.say(framework, AcknowledgeStatus(task_id=TaskId("t"), uuid=StatusUuid("u1"), slave_id=slave_id))
    harness.take_all(framework)
    harness.take_all(slave)
    return framework, framework_id, slave, slave_id


def test_slave_is_told_its_id_after_the_record_is_safe() -> None:
    harness = Harness()
    harness.is_disk_slow = True
    session = harness.open("slave")
    effects = harness.say(session, RegisterSlave(slave_info=slave_info()))
    (persist,) = effects
    assert isinstance(persist, PersistRecords)
    (record,) = persist.records
    slave_id = SlaveId(record.key)
    assert record == StoredRecord(table="slaves", key=slave_id, value=record.value)
    assert record.value is not None
    admitted = msgspec.msgpack.decode(record.value, type=AdmittedSlave)
    assert admitted.slave_info == slave_info(slave_id=slave_id)
    assert harness.inboxes[session] == []
    after = [effect for effect in harness.write_all() if not isinstance(effect, Log)]
    assert after == [
        Send(session=session, message=SlaveRegistered(slave_id=slave_id)),
        Send(session=session, message=Ping(interval_s=15.0, missed_limit=5)),
    ]


def test_slave_that_asks_again_while_its_record_is_written_is_admitted_once() -> None:
    harness = Harness()
    harness.is_disk_slow = True
    session = harness.open("slave")
    for _ in range(3):
        harness.say(session, RegisterSlave(slave_info=slave_info()))
    harness.write_all()
    assert len(harness.take(session, SlaveRegistered)) == 1
    assert len(harness.records) == 1


def test_slave_whose_session_ends_before_it_has_an_id_leaves_no_record() -> None:
    harness = Harness()
    harness.is_disk_slow = True
    session = harness.open("slave")
    harness.say(session, RegisterSlave(slave_info=slave_info()))
    harness.close(session)
    harness.write_all()
    assert harness.records == {}


def test_nothing_of_a_new_slave_is_offered_before_it_shows_that_it_knows_its_id() -> None:
    harness = Harness()
    framework, _ = harness.framework()
    session = harness.open("slave")
    harness.say(session, RegisterSlave(slave_info=slave_info()))
    assert harness.offers(framework) == []
    harness.say(session, Pong())
    assert [offer.resources for offer in harness.offers(framework)] == [LARGE]


def test_registered_slave_that_asks_again_gets_the_same_answer() -> None:
    harness = Harness()
    session, slave_id = harness.slave()
    assert harness.say(session, RegisterSlave(slave_info=slave_info())) == [
        Send(session=session, message=SlaveRegistered(slave_id=slave_id))
    ]


def test_silent_slave_is_unreachable_after_five_pings_and_its_record_is_safe_first() -> None:
    harness = Harness()
    framework, _, slave, slave_id = _running(harness, is_partition_aware=True)
    harness.is_disk_slow = True
    harness.advance(74.0)
    assert len(harness.take(slave, Ping)) == 4
    assert not harness.unsafe
    harness.advance(1.0)
    assert harness.closed[slave] == "unreachable: too many pings were missed"
    assert harness.take(framework, SlaveLost) == []
    harness.write_all()
    lost, told = harness.inboxes[framework][-2:]
    assert lost == SlaveLost(slave_id=slave_id)
    assert isinstance(told, StatusUpdate)
    assert (told.status.state, told.status.reason) == (TaskState.UNREACHABLE, Reason.SLAVE_REMOVED)
    assert told.status.uuid is None


def test_tasks_of_unreachable_slaves_are_lost_to_frameworks_that_know_no_better() -> None:
    harness = Harness()
    framework, _, _, _ = _running(harness, is_partition_aware=False)
    harness.advance(76.0)
    assert harness.updates(framework) == [("t", TaskState.LOST, Reason.SLAVE_REMOVED)]


def test_pong_cancels_a_removal_that_waits_for_its_turn() -> None:
    harness = Harness(slave_removal_interval_s=60.0)
    slaves = [harness.slave() for _ in range(2)]
    harness.advance(76.0)
    assert len(harness.closed) == 1
    waiting = next(session for session, _ in slaves if session not in harness.closed)
    harness.say(waiting, Pong())
    for _ in range(10):
        harness.advance(14.0)
        harness.say(waiting, Pong())
    assert waiting not in harness.closed


def test_silent_slaves_are_given_up_one_at_a_time() -> None:
    harness = Harness(slave_removal_interval_s=10.0)
    for _ in range(4):
        harness.slave()
    harness.advance(75.5)
    assert len(harness.closed) == 1
    harness.advance(10.0)
    assert len(harness.closed) == 2
    harness.advance(20.0)
    assert len(harness.closed) == 4


def test_offers_of_a_disconnected_slave_are_rescinded() -> None:
    harness = Harness()
    slave, slave_id = harness.slave()
    framework, _ = harness.framework()
    (offer,) = harness.offers(framework)
    harness.close(slave)
    assert harness.take(framework, RescindOffer) == [RescindOffer(offer_id=offer.offer_id)]
    harness.launch(framework, offer, task_info("t", slave_id))
    assert harness.updates(framework) == [("t", TaskState.DROPPED, Reason.SLAVE_DISCONNECTED)]
    assert harness.offers(framework) == []


def test_disconnected_slave_is_given_up_without_a_session_too() -> None:
    harness = Harness()
    framework, _, slave, _ = _running(harness, is_partition_aware=True)
    harness.close(slave)
    harness.advance(76.0)
    assert harness.updates(framework) == [("t", TaskState.UNREACHABLE, Reason.SLAVE_REMOVED)]


def test_tasks_of_partition_aware_frameworks_live_on_when_their_slave_is_back() -> None:
    harness = Harness()
    framework, framework_id, _, slave_id = _running(harness, is_partition_aware=True)
    harness.advance(76.0)
    harness.updates(framework)
    task = slave_task("t", framework_id, slave_id, TaskState.RUNNING)
    session = harness.back(slave_id, tasks=(task,), frameworks=(framework_info(framework_id),))
    assert harness.updates(framework) == [("t", TaskState.RUNNING, Reason.SLAVE_REREGISTERED)]
    assert harness.take(session, KillTask) == []
    (offer,) = harness.offers(framework)
    assert offer.resources == LARGE - SMALL


def test_tasks_that_were_lost_are_killed_when_their_slave_is_back_and_not_mentioned_again() -> None:
    harness = Harness()
    framework, framework_id, _, slave_id = _running(harness, is_partition_aware=False)
    harness.advance(76.0)
    harness.updates(framework)
    info = framework_info(framework_id, is_partition_aware=False)
    task = slave_task("t", framework_id, slave_id, TaskState.RUNNING)
    session = harness.back(slave_id, tasks=(task,), frameworks=(info,))
    assert [kill.task_id for kill in harness.take(session, KillTask)] == ["t"]
    (offer,) = harness.offers(framework)
    assert offer.resources == LARGE - SMALL  # Until it is dead it holds them.
    harness.say(session, update(framework_id, status("t", TaskState.KILLED, "u2", slave_id)))
    assert [one.uuid for one in harness.take(session, AcknowledgeStatus)] == ["u2"]
    assert harness.updates(framework) == []


def test_lost_tasks_stay_lost_when_the_master_restarts_before_they_are_dead() -> None:
    harness = Harness()
    _, framework_id, _, slave_id = _running(harness, is_partition_aware=False)
    harness.advance(76.0)
    info = framework_info(framework_id, is_partition_aware=False)
    task = slave_task("t", framework_id, slave_id, TaskState.RUNNING)
    harness.back(slave_id, tasks=(task,), frameworks=(info,))
    harness.start()
    framework, _ = harness.framework(framework_id=framework_id, is_partition_aware=False)
    session = harness.back(slave_id, tasks=(task,), frameworks=(info,))
    assert [kill.task_id for kill in harness.take(session, KillTask)] == ["t"]
    harness.say(session, update(framework_id, status("t", TaskState.KILLED, "u2", slave_id)))
    assert harness.updates(framework) == []


def test_unreachable_task_that_the_slave_lost_is_gone() -> None:
    harness = Harness()
    framework, _, _, slave_id = _running(harness, is_partition_aware=True)
    harness.advance(76.0)
    harness.updates(framework)
    harness.back(slave_id)
    assert harness.updates(framework) == [("t", TaskState.GONE, Reason.SLAVE_RESTARTED)]


@pytest.mark.parametrize(("is_aware", "state"), [(True, TaskState.DROPPED), (False, TaskState.LOST)])
def test_launch_that_never_reached_the_slave_is_dropped(is_aware: bool, state: TaskState) -> None:
    harness = Harness()
    slave, slave_id = harness.slave()
    framework, _ = harness.framework(is_partition_aware=is_aware)
    (offer,) = harness.offers(framework)
    harness.launch(framework, offer, task_info("t", slave_id))
    assert len(harness.take(slave, RunTask)) == 1
    harness.close(slave)
    harness.back(slave_id)
    assert harness.updates(framework) == [("t", state, Reason.SLAVE_RESTARTED)]
    (offer,) = harness.offers(framework)
    assert offer.resources == LARGE


def test_new_session_of_a_slave_replaces_the_old_one() -> None:
    harness = Harness()
    old, slave_id = harness.slave()
    new = harness.open("slave")
    effects = harness.say(new, ReregisterSlave(slave_info=slave_info(slave_id=slave_id)))
    assert CloseSession(session=old, reason="replaced by a new session of this slave") in effects
    assert harness.say(old, Pong()) == []
    assert harness.take(new, SlaveRegistered) == [SlaveRegistered(slave_id=slave_id, reregistered=True)]


def test_repeated_registration_does_not_undo_launches_that_followed_the_first() -> None:
    harness = Harness()
    _, slave_id = harness.slave()
    slave = harness.back(slave_id)
    framework, _ = harness.framework()
    (offer,) = harness.offers(framework)
    harness.launch(framework, offer, task_info("t", slave_id))
    harness.say(slave, ReregisterSlave(slave_info=slave_info(slave_id=slave_id)))
    assert harness.updates(framework) == []


def test_slave_unknown_to_the_registry_is_admitted_with_its_tasks() -> None:
    harness = Harness()
    task = slave_task("t", FrameworkId("f-1"), SlaveId("s-1"), TaskState.RUNNING)
    info = framework_info(FrameworkId("f-1"))
    session = harness.back(SlaveId("s-1"), tasks=(task,), frameworks=(info,))
    assert harness.take(session, SlaveRegistered) == [SlaveRegistered(slave_id=SlaveId("s-1"), reregistered=True)]
    framework, framework_id = harness.framework(framework_id=FrameworkId("f-1"))
    assert framework_id == "f-1"
    (offer,) = harness.offers(framework)
    assert offer.resources == LARGE - SMALL


def test_slave_of_the_registry_that_stays_away_is_unreachable_after_its_time() -> None:
    harness = Harness(reregister_timeout_s=600.0)
    _, slave_id = harness.slave()
    harness.start()
    framework, _ = harness.framework()
    harness.advance(598.0)
    assert harness.take(framework, SlaveLost) == []
    harness.advance(5.0)
    assert harness.take(framework, SlaveLost) == [SlaveLost(slave_id=slave_id)]


def test_slave_that_returns_while_it_is_given_up_is_taken_back_afterwards() -> None:
    harness = Harness()
    framework, framework_id, _, slave_id = _running(harness, is_partition_aware=True)
    harness.is_disk_slow = True
    harness.advance(76.0)
    task = slave_task("t", framework_id, slave_id, TaskState.RUNNING)
    session = harness.back(slave_id, tasks=(task,), frameworks=(framework_info(framework_id),))
    assert harness.take(session, SlaveRegistered) == []
    harness.write_all()
    assert harness.take(session, SlaveRegistered) == [SlaveRegistered(slave_id=slave_id, reregistered=True)]
    assert [state for _, state, _ in harness.updates(framework)] == [TaskState.UNREACHABLE, TaskState.RUNNING]


def test_report_that_contradicts_itself_is_refused_in_words() -> None:
    harness = Harness()
    slave, slave_id = harness.slave()
    framework_id = FrameworkId("f-1")
    port = parse_resources("ports:[31000]")
    twice = tuple(slave_task(name, framework_id, slave_id, TaskState.RUNNING, resources=port) for name in "ab")
    infos = (framework_info(framework_id),)
    for tasks, frameworks, words in (
        (twice, infos, "hold the same resources"),
        ((twice[0], twice[0]), infos, "listed twice"),
        (twice[:1], (), "no FrameworkInfo"),
        ((slave_task("a", framework_id, slave_id, TaskState.UNREACHABLE),), infos, "which a slave cannot say"),
        ((slave_task("a", framework_id, slave_id, TaskState.UNKNOWN),), infos, "which a slave cannot say"),
    ):
        session = harness.open("slave")
        info = slave_info(slave_id=slave_id)
        harness.say(session, ReregisterSlave(slave_info=info, tasks=tasks, frameworks=frameworks))
        (error,) = harness.take(session, Error)
        assert error.code == "invalid"
        assert words in error.message
    assert slave not in harness.closed


def test_running_task_that_holds_something_else_than_it_was_launched_with_is_refused() -> None:
    harness = Harness()
    framework_id, slave, slave_id = _running(harness, is_partition_aware=True)[1:]
    other = slave_task("t", framework_id, slave_id, TaskState.RUNNING, resources=LARGE)
    session = harness.back(slave_id, tasks=(other,), frameworks=(framework_info(framework_id),))
    (error,) = harness.take(session, Error)
    assert "it was launched with" in error.message
    assert slave not in harness.closed


@pytest.mark.parametrize("is_first", [False, True])
def test_port_of_a_task_that_has_ended_may_be_reported_with_another(*, is_first: bool) -> None:
    harness = Harness()
    slave, slave_id = harness.slave()
    framework, framework_id = harness.framework()
    (offer,) = harness.offers(framework)
    port = parse_resources("ports:[31000]")
    harness.launch(framework, offer, task_info("t", slave_id, port))
    assert harness.take(slave, RunTask)
    ended = slave_task("t", framework_id, slave_id, TaskState.FINISHED, resources=port)
    newer = slave_task("n", framework_id, slave_id, TaskState.RUNNING, resources=port)
    tasks = (newer, ended) if is_first else (ended, newer)
    harness.back(slave_id, tasks=tasks, frameworks=(framework_info(framework_id),))
    harness.advance(6.0)  # The filter on what the launch left over ends.
    assert [offer.resources for offer in harness.take(framework, ResourceOffers)[-1].offers] == [LARGE - port]


def test_executors_are_accounted_for_as_their_slave_reports_them() -> None:
    harness = Harness()
    _, slave_id = harness.slave()
    framework, framework_id = harness.framework()
    info: ExecutorInfo = executor_info()
    running = RunningExecutor(framework_id=framework_id, executor=info, container_id=ContainerId("c"))
    harness.back(slave_id, executors=(running,), frameworks=(framework_info(framework_id),))
    (offer,) = harness.offers(framework)
    assert offer.resources == LARGE - SMALL
    assert offer.executor_ids == (info.executor_id,)
    harness.back(slave_id)
    (offer,) = harness.offers(framework)
    assert offer.resources == LARGE


def test_slave_with_tasks_of_a_removed_framework_is_told_to_kill_them() -> None:
    harness = Harness()
    framework, framework_id, slave, slave_id = _running(harness, is_partition_aware=True)
    harness.close(slave)
    harness.say(framework, TeardownFramework())
    task = slave_task("t", framework_id, slave_id, TaskState.RUNNING)
    session = harness.back(slave_id, tasks=(task,), frameworks=(framework_info(framework_id),))
    assert harness.take(session, ShutdownFramework) == [ShutdownFramework(framework_id=framework_id)]


def test_kill_is_sent_again_when_the_slave_is_back() -> None:
    harness = Harness()
    framework, framework_id, slave, slave_id = _running(harness, is_partition_aware=True)
    harness.close(slave)
    harness.say(framework, KillTask(task_id=TaskId("t"), slave_id=slave_id, grace_period_s=1.0))
    task = slave_task("t", framework_id, slave_id, TaskState.RUNNING)
    session = harness.back(slave_id, tasks=(task,), frameworks=(framework_info(framework_id),))
    (kill,) = harness.take(session, KillTask)
    assert (kill.task_id, kill.grace_period_s, kill.framework_id) == ("t", 1.0, framework_id)


def test_slaves_need_a_principal_that_may_register_them() -> None:
    rules = 'default = "allow"\n[[rules]]\nallow = false\nprincipals = ["eve"]\nactions = ["register_slave"]\n'
    harness = Harness(acls=rules)
    session = harness.open("slave", "eve")
    harness.say(session, RegisterSlave(slave_info=slave_info()))
    (error,) = harness.take(session, Error)
    assert error.code == "unauthorized"
    assert harness.records == {}


def test_unreachable_slave_is_forgotten_after_two_weeks() -> None:
    harness = Harness()
    _, slave_id = harness.slave()
    harness.advance(76.0)
    harness.start()
    assert ("slaves", slave_id) in harness.records
    harness.advance(14 * 24 * 3600.0)
    assert harness.records == {}
