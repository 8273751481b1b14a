"""How the master registers frameworks, hands them over, waits for them and ends them."""

import pytest

from master import frameworks as frameworks_module
from master.events import CloseSession, PersistRecords, Send
from master.registry import KnownFramework, framework_record
from meseta.ids import FrameworkId, Principal, StatusUuid, TaskId
from meseta.log import Log
from meseta.messages import (
    AcknowledgeStatus,
    Done,
    Error,
    FrameworkError,
    FrameworkRegistered,
    KillTask,
    Ping,
    RegisterFramework,
    ShutdownExecutor,
    ShutdownFramework,
    StatusUpdate,
    TeardownFramework,
    UpdateFramework,
)
from meseta.model import TaskState
from tests.unit.master_builders import (
    LARGE,
    SMALL,
    Harness,
    executor_info,
    framework_info,
    slave_task,
    status,
    task_info,
    update,
)


def test_framework_is_answered_after_its_record_is_safe() -> None:
    harness = Harness()
    harness.is_disk_slow = True
    session = harness.open("framework", "alice")
    (persist,) = harness.say(session, RegisterFramework(framework_info=framework_info()))
    assert isinstance(persist, PersistRecords)
    framework_id = FrameworkId(persist.records[0].key)
    record = KnownFramework(
        framework_info=framework_info(framework_id),
        principal=Principal("alice"),
        registered_unix_s=harness.now + harness.unix_offset_s,
    )
    assert persist.records == (framework_record(framework_id, record),)
    assert [effect for effect in harness.write_all() if not isinstance(effect, Log)] == [
        Send(session=session, message=FrameworkRegistered(framework_id=framework_id)),
        Send(session=session, message=Ping(interval_s=15.0, missed_limit=5)),
    ]


def test_take_over_ends_the_old_session_and_voids_its_offers() -> None:
    harness = Harness()
    harness.slave()
    old, framework_id = harness.framework()
    (offer,) = harness.offers(old)
    new = harness.open("framework", "alice")
    effects = harness.say(new, RegisterFramework(framework_info=framework_info(framework_id)))
    assert CloseSession(session=old, reason="taken over") in effects
    assert harness.take(old, FrameworkError) == [FrameworkError(message="another scheduler took this framework over")]
    (again,) = harness.offers(new)
    assert again.resources == offer.resources
    assert again.offer_id != offer.offer_id


def test_take_over_gets_the_updates_that_were_not_acknowledged() -> None:
    harness = Harness()
    slave, slave_id = harness.slave()
    old, framework_id = harness.framework()
    (offer,) = harness.offers(old)
    harness.launch(old, offer, task_info("t", slave_id))
    harness.close(old)
    harness.say(slave, update(framework_id, status("t", TaskState.FINISHED, "u", slave_id)))
    new = harness.open("framework", "alice")
    harness.say(new, RegisterFramework(framework_info=framework_info(framework_id)))
    assert [one.status.uuid for one in harness.take(new, StatusUpdate)] == ["u"]
    harness.take_all(slave)
    harness.say(new, AcknowledgeStatus(task_id=TaskId("t"), uuid=StatusUuid("u")))
    assert [one.uuid for one in harness.take(slave, AcknowledgeStatus)] == ["u"]


def test_another_principal_cannot_take_a_framework_over() -> None:
    harness = Harness()
    _, framework_id = harness.framework(principal="alice")
    session = harness.open("framework", "eve")
    harness.say(session, RegisterFramework(framework_info=framework_info(framework_id)))
    (error,) = harness.take(session, Error)
    assert (error.code, error.message) == ("unauthorized", f"framework {framework_id} belongs to principal alice")


def test_framework_without_a_scheduler_is_removed_after_its_failover_timeout() -> None:
    harness = Harness()
    slave, slave_id = harness.slave()
    harness.alive.add(slave)
    session, framework_id = harness.framework(failover_timeout_s=30.0)
    (offer,) = harness.offers(session)
    harness.launch(session, offer, task_info("t", slave_id))
    harness.close(session)
    harness.advance(29.0)
    assert harness.take(slave, ShutdownFramework) == []
    harness.advance(1.5)
    assert harness.take(slave, ShutdownFramework) == [ShutdownFramework(framework_id=framework_id)]
    again = harness.open("framework", "alice")
    harness.say(again, RegisterFramework(framework_info=framework_info(framework_id)))
    (error,) = harness.take(again, Error)
    assert error.code == "removed"
    assert "Framework has been removed" in error.message


def test_framework_that_returns_in_time_keeps_its_tasks() -> None:
    harness = Harness()
    slave, slave_id = harness.slave()
    harness.alive.add(slave)
    session, framework_id = harness.framework(failover_timeout_s=30.0)
    (offer,) = harness.offers(session)
    harness.launch(session, offer, task_info("t", slave_id))
    harness.close(session)
    harness.advance(29.0)
    harness.framework(framework_id=framework_id, failover_timeout_s=30.0)
    harness.advance(60.0)
    assert harness.take(slave, ShutdownFramework) == []


def test_failover_timeout_goes_on_through_a_restart_of_the_master() -> None:
    harness = Harness()
    session, framework_id = harness.framework(failover_timeout_s=100.0)
    harness.close(session)
    harness.advance(60.0)
    harness.start()
    harness.advance(39.0)
    assert ("frameworks", framework_id) in harness.records
    harness.advance(2.0)
    assert set(harness.records) == {("removed_frameworks", framework_id)}


def test_restarted_master_gives_connected_frameworks_their_whole_failover_timeout() -> None:
    harness = Harness()
    _, framework_id = harness.framework(failover_timeout_s=100.0)
    harness.advance(500.0)
    harness.start()
    harness.advance(60.0)
    harness.start()
    harness.advance(39.0)
    assert ("frameworks", framework_id) in harness.records
    harness.advance(2.0)
    assert set(harness.records) == {("removed_frameworks", framework_id)}


def test_barred_id_stays_barred_after_a_restart_of_the_master() -> None:
    harness = Harness()
    session, framework_id = harness.framework()
    harness.say(session, TeardownFramework())
    harness.start()
    again = harness.open("framework", "alice")
    harness.say(again, RegisterFramework(framework_info=framework_info(framework_id)))
    assert [error.code for error in harness.take(again, Error)] == ["removed"]


def test_unknown_id_is_admitted_after_the_registry_was_lost() -> None:
    harness = Harness()
    session = harness.open("framework", "alice")
    harness.say(session, RegisterFramework(framework_info=framework_info(FrameworkId("f-old"))))
    assert harness.take(session, FrameworkRegistered) == [
        FrameworkRegistered(framework_id=FrameworkId("f-old"), reregistered=True)
    ]


def test_torn_down_framework_holds_its_resources_until_its_tasks_are_dead() -> None:
    harness = Harness()
    slave, slave_id = harness.slave()
    session, framework_id = harness.framework()
    (offer,) = harness.offers(session)
    harness.launch(session, offer, task_info("t", slave_id))
    harness.say(session, TeardownFramework())
    assert harness.take(slave, ShutdownFramework) == [ShutdownFramework(framework_id=framework_id)]
    other, _ = harness.framework()
    (rest,) = harness.offers(other)
    assert rest.resources == LARGE - SMALL
    harness.say(slave, update(framework_id, status("t", TaskState.KILLED, None, slave_id)))
    (freed,) = harness.offers(other)
    assert freed.resources == SMALL


def test_what_is_left_of_a_removed_framework_is_killed_again() -> None:
    harness = Harness()
    slave, slave_id = harness.slave()
    harness.alive.add(slave)
    session, framework_id = harness.framework()
    (offer,) = harness.offers(session)
    task = task_info("t", slave_id, command=None, executor=executor_info())
    harness.launch(session, offer, task)
    harness.say(session, TeardownFramework())
    harness.take_all(slave)
    harness.advance(10.5)
    orders = harness.take_all(slave)
    assert any(isinstance(order, KillTask) and order.task_id == "t" for order in orders)
    assert any(isinstance(order, ShutdownExecutor) and order.executor_id == "e" for order in orders)
    assert framework_id


def test_operator_is_told_that_a_framework_is_gone_after_its_id_is_barred() -> None:
    harness = Harness()
    session, framework_id = harness.framework()
    operator = harness.open("operator")
    harness.is_disk_slow = True
    harness.say(operator, TeardownFramework(framework_id=framework_id, request_id=7))
    assert harness.take(operator, Done) == []
    harness.write_all()
    assert harness.take(operator, Done) == [Done(request_id=7)]
    assert [error.message for error in harness.take(session, FrameworkError)] == [
        "the framework was removed: torn down by operator"
    ]


def test_silent_scheduler_is_taken_for_gone() -> None:
    harness = Harness()
    harness.slave()
    session, _ = harness.framework()
    harness.alive.discard(session)
    harness.offers(session)
    harness.advance(76.0)
    assert harness.closed[session] == "silent: too many pings were missed"


def test_new_description_reaches_the_slaves_that_run_the_frameworks_tasks() -> None:
    harness = Harness()
    slave, slave_id = harness.slave()
    session, framework_id = harness.framework()
    (offer,) = harness.offers(session)
    harness.launch(session, offer, task_info("t", slave_id))
    harness.take_all(slave)
    newer = framework_info(framework_id, webui_url="http://new")
    harness.say(harness.open("framework", "alice"), RegisterFramework(framework_info=newer))
    assert harness.take(slave, UpdateFramework) == [UpdateFramework(framework_info=newer)]


def test_framework_known_only_by_a_slave_is_removed_if_it_never_comes() -> None:
    harness = Harness()
    _, slave_id = harness.slave()
    framework_id = FrameworkId("f-1")
    task = slave_task("t", framework_id, slave_id, TaskState.RUNNING)
    info = framework_info(framework_id, failover_timeout_s=50.0)
    slave = harness.back(slave_id, tasks=(task,), frameworks=(info,))
    harness.alive.add(slave)
    assert ("frameworks", framework_id) in harness.records
    harness.advance(51.0)
    assert harness.take(slave, ShutdownFramework) == [ShutdownFramework(framework_id=framework_id)]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": ""}, "framework_info.name"),
        ({"user": ""}, "framework_info.user"),
        ({"framework_id": FrameworkId("../f")}, "framework_info.id"),
        ({"framework_id": FrameworkId("f" * 256)}, "framework_info.id"),
        ({"roles": ()}, "framework_info.roles: is empty"),
        ({"roles": ("a", "a")}, "named twice"),
        ({"roles": ("-a",)}, "is no role"),
        ({"roles": ("a/../b",)}, "is no role"),
        ({"roles": ("a b",)}, "is no role"),
    ],
)
def test_bad_description_is_refused_in_words(fields: dict[str, object], words: str) -> None:
    harness = Harness()
    session = harness.open("framework", "alice")
    harness.say(session, RegisterFramework(framework_info=framework_info(**fields)))  # type: ignore[arg-type]
    (error,) = harness.take(session, Error)
    assert error.code == "invalid"
    assert words in error.message
    assert harness.records == {}


def test_role_that_the_principal_may_not_use_is_refused() -> None:
    rules = 'default = "allow"\n[[rules]]\nallow = false\nprincipals = ["eve"]\nactions = ["register_framework"]\n'
    harness = Harness(acls=rules)
    session = harness.open("framework", "eve")
    harness.say(session, RegisterFramework(framework_info=framework_info()))
    assert [error.code for error in harness.take(session, Error)] == ["unauthorized"]


def test_framework_whose_session_ends_while_it_is_written_leaves_no_record() -> None:
    harness = Harness()
    harness.is_disk_slow = True
    session = harness.open("framework", "alice")
    harness.say(session, RegisterFramework(framework_info=framework_info()))
    harness.close(session)
    harness.write_all()
    assert harness.records == {}


def test_framework_torn_down_while_its_take_over_is_written_stays_down() -> None:
    harness = Harness()
    _, framework_id = harness.framework()
    harness.is_disk_slow = True
    session = harness.open("framework", "alice")
    harness.say(session, RegisterFramework(framework_info=framework_info(framework_id)))
    harness.say(harness.open("operator"), TeardownFramework(framework_id=framework_id, request_id=1))
    harness.write_all()
    assert [error.code for error in harness.take(session, Error)] == ["removed"]
    assert set(harness.records) == {("removed_frameworks", framework_id)}


def test_only_some_completed_frameworks_are_remembered() -> None:
    harness = Harness()
    for _ in range(55):
        session, _ = harness.framework()
        harness.say(session, TeardownFramework())
    assert len(harness.core._cluster.frameworks) == 50
    assert len(harness.records) == 55


def test_resources_used_by_recovered_frameworks_are_not_offered() -> None:
    harness = Harness()
    _, slave_id = harness.slave()
    task = slave_task("t", FrameworkId("f-1"), slave_id, TaskState.RUNNING)
    harness.back(slave_id, tasks=(task,), frameworks=(framework_info(FrameworkId("f-1")),))
    other, _ = harness.framework()
    (offer,) = harness.offers(other)
    assert offer.resources == LARGE - SMALL


def test_id_of_ones_own_making_is_no_way_round_the_limit_of_frameworks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frameworks_module, "FRAMEWORKS_LIMIT", 1)
    harness = Harness()
    session, framework_id = harness.framework()
    harness.close(session)
    other = harness.open("framework", "alice")
    harness.say(other, RegisterFramework(framework_info=framework_info(FrameworkId("f-mine"))))
    (error,) = harness.take(other, Error)
    assert "which is the limit" in error.message
    harness.framework(framework_id=framework_id)
