"""The scheduler driver's decisions, through whole lists of effects."""

from itertools import product

import pytest

from meseta.driver_events import (
    ALLOWED_CHANGES,
    AbortAsked,
    CallbackFailed,
    DriverState,
    HelloRefused,
    OnDisconnected,
    OnError,
    OnExecutorLost,
    OnFrameworkMessage,
    OnOfferRescinded,
    OnRegistered,
    OnReregistered,
    OnResourceOffers,
    OnSlaveLost,
    OnStatusUpdate,
    ResetSession,
    Send,
    SessionClosed,
    SessionOpened,
    Stop,
    StopAsked,
    change,
)
from meseta.errors import InvalidTransition
from meseta.ids import FrameworkId, OfferId, SlaveId, StatusUuid, TaskId
from meseta.messages import (
    AcknowledgeStatus,
    DeclineOffers,
    Error,
    ExecutorLost,
    ExecutorToFramework,
    FrameworkError,
    FrameworkRegistered,
    FrameworkToExecutor,
    KillTask,
    Ping,
    Pong,
    ReconcileTasks,
    RegisterFramework,
    RescindOffer,
    ReviveOffers,
    SlaveLost,
    SuppressOffers,
    TeardownFramework,
)
from meseta.model import Reason, Source, TaskQuery, TaskState
from meseta.reconciler import PERIOD_S, RETRY_LIMIT_S
from meseta.scheduler_core import REGISTER_LIMIT_S, SILENCE_LIMIT_S, TEARDOWN_WAIT_S
from tests.unit.driver_builders import (
    EPOCH,
    EXECUTOR_ID,
    FRAMEWORK_ID,
    SLAVE_ID,
    framework,
    launch,
    offer,
    offers,
    received,
    register,
    registered_core,
    running_core,
    scheduler_core,
    sent,
    status,
    task,
    update,
    without_logs,
)


def acknowledgement(name: str, uuid: str) -> AcknowledgeStatus:
    return AcknowledgeStatus(task_id=TaskId(name), uuid=StatusUuid(uuid), slave_id=SLAVE_ID, framework_id=FRAMEWORK_ID)


# --- States ---


@pytest.mark.parametrize(("current", "wanted"), list(product(DriverState, DriverState)))
def test_state_changes_only_as_the_table_allows(current: DriverState, wanted: DriverState) -> None:
    if wanted in ALLOWED_CHANGES[current]:
        assert change("driver", current, wanted, "test") is wanted
    else:
        with pytest.raises(InvalidTransition):
            change("driver", current, wanted, "test")


# --- Registration ---


def test_driver_registers_at_once_and_repeats_with_growing_delay() -> None:
    core = scheduler_core()
    assert core.handle(SessionOpened(epoch=EPOCH), 0.0) == [Send(message=RegisterFramework(framework_info=framework()))]
    now, delays = 0.0, []
    for _ in range(8):
        deadline = core.next_deadline()
        assert deadline is not None
        delays.append(deadline - now)
        now = deadline
        core.handle(received(Ping(interval_s=1000.0, missed_limit=5)), now)
        assert sent(core.tick(now)) == [RegisterFramework(framework_info=framework())]
    assert delays[0] <= 2.0
    assert REGISTER_LIMIT_S / 2 <= delays[-1] <= REGISTER_LIMIT_S
    core.check()


def test_first_registration_calls_registered_with_the_id() -> None:
    core = scheduler_core()
    assert without_logs(register(core)) == [OnRegistered(framework_id=FRAMEWORK_ID)]
    core.check()


def test_reregistration_keeps_the_id_and_calls_reregistered() -> None:
    core = registered_core()
    core.handle(SessionClosed(reason="test"), 1.0)
    (message,) = sent(core.handle(SessionOpened(epoch=EPOCH + 1), 2.0))
    assert message == RegisterFramework(framework_info=framework(framework_id=FRAMEWORK_ID))
    again = received(FrameworkRegistered(framework_id=FRAMEWORK_ID, reregistered=True), epoch=EPOCH + 1)
    assert without_logs(core.handle(again, 2.0)) == [OnReregistered()]
    core.check()


def test_repeated_answer_to_a_registration_is_not_told_twice() -> None:
    core = registered_core()
    assert core.handle(received(FrameworkRegistered(framework_id=FRAMEWORK_ID)), 0.1) == []


def test_other_id_than_ours_aborts_the_driver() -> None:
    core = scheduler_core(framework_id=FrameworkId("f-9"))
    effects = without_logs(register(core))
    assert isinstance(effects[0], OnError)
    assert effects[-1] == Stop(exit_code=1)


def test_reregistration_repeats_the_suppressed_roles() -> None:
    core = registered_core(roles=("a", "b"))
    assert sent(core.handle(SuppressOffers(roles=("b",)), 0.0)) == [SuppressOffers(roles=("b",))]
    core.handle(SessionClosed(reason="test"), 1.0)
    (message,) = sent(core.handle(SessionOpened(epoch=EPOCH), 2.0))
    assert isinstance(message, RegisterFramework)
    assert message.suppressed_roles == ("b",)


def test_revive_while_disconnected_is_sent_after_registration() -> None:
    core = registered_core(roles=("a", "b"))
    core.handle(SuppressOffers(), 0.0)
    core.handle(SessionClosed(reason="test"), 1.0)
    assert core.handle(ReviveOffers(roles=("a",)), 1.0) == []
    assert ReviveOffers(roles=("a",)) in sent(register(core, 2.0))


@pytest.mark.parametrize("code", ["unauthorized", "removed", "invalid"])
def test_refused_registration_aborts_with_the_masters_words(code: str) -> None:
    core = scheduler_core()
    core.handle(SessionOpened(epoch=EPOCH), 0.0)
    effects = without_logs(core.handle(received(Error(code=code, message="no")), 0.0))
    assert effects == [OnError(message=f"{code}: no"), Stop(exit_code=1)]


def test_refused_hello_aborts_the_driver() -> None:
    core = scheduler_core()
    effects = without_logs(core.handle(HelloRefused(code="bad_version", message="too old"), 0.0))
    assert effects == [OnError(message="bad_version: too old"), Stop(exit_code=1)]


def test_framework_error_calls_error_and_aborts() -> None:
    core = registered_core()
    effects = without_logs(core.handle(received(FrameworkError(message="taken over")), 0.0))
    assert effects == [OnError(message="taken over"), Stop(exit_code=1)]
    assert core.handle(offers("o-1"), 0.0) == []
    core.check()


# --- Liveness and epochs ---


def test_ping_is_answered() -> None:
    core = registered_core()
    assert core.handle(received(Ping(interval_s=1.0, missed_limit=3)), 0.0) == [Send(message=Pong())]


def test_silent_master_is_left_after_the_missed_pings() -> None:
    core = registered_core()
    core.handle(received(Ping(interval_s=1.0, missed_limit=3)), 10.0)
    assert core.next_deadline() == 13.0
    core.handle(offers("o-1"), 11.0)  # Any message is a sign of life.
    assert core.tick(13.0) == []
    assert core.next_deadline() == 14.0
    effects = without_logs(core.tick(14.0))
    assert effects == [
        OnOfferRescinded(offer_id=OfferId("o-1")),
        OnDisconnected(),
        ResetSession(reason="the master was silent for 3.0 s"),
    ]
    core.check()


def test_master_that_never_pings_is_left_too() -> None:
    core = scheduler_core()
    core.handle(SessionOpened(epoch=EPOCH), 0.0)
    effects = core.tick(SILENCE_LIMIT_S)
    assert any(isinstance(effect, ResetSession) for effect in effects)


def test_session_of_an_outdated_master_is_refused() -> None:
    core = registered_core()
    core.handle(SessionClosed(reason="test"), 1.0)
    effects = without_logs(core.handle(SessionOpened(epoch=EPOCH - 1), 2.0))
    assert effects == [ResetSession(reason="epoch 6 is below 7")]
    assert core.state is DriverState.DISCONNECTED
    core.check()


def test_message_of_an_outdated_master_is_not_believed() -> None:
    core = running_core()
    core.handle(SessionClosed(reason="test"), 1.0)
    register(core, 1.0, epoch=EPOCH + 1)
    effects = without_logs(core.handle(update("t-1", TaskState.LOST), 2.0))
    assert effects == [OnDisconnected(), ResetSession(reason="epoch 7 is below 8")]


# --- Offers ---


def test_disconnection_rescinds_every_offer_in_hand() -> None:
    core = registered_core()
    assert core.handle(offers("o-1", "o-2"), 0.0) == [OnResourceOffers(offers=(offer("o-1"), offer("o-2")))]
    assert without_logs(core.handle(SessionClosed(reason="test"), 1.0)) == [
        OnOfferRescinded(offer_id=OfferId("o-1")),
        OnOfferRescinded(offer_id=OfferId("o-2")),
        OnDisconnected(),
    ]
    core.check()


def test_rescinded_offer_is_told_once() -> None:
    core = registered_core()
    core.handle(offers("o-1"), 0.0)
    rescind = received(RescindOffer(offer_id=OfferId("o-1")))
    assert core.handle(rescind, 0.0) == [OnOfferRescinded(offer_id=OfferId("o-1"))]
    assert core.handle(rescind, 0.0) == []


def test_offers_of_a_lost_slave_are_rescinded() -> None:
    core = registered_core()
    core.handle(offers("o-1"), 0.0)
    effects = core.handle(received(SlaveLost(slave_id=SLAVE_ID)), 0.0)
    assert effects == [OnOfferRescinded(offer_id=OfferId("o-1")), OnSlaveLost(slave_id=SLAVE_ID)]
    core.check()


def test_launch_on_valid_offers_is_sent_as_it_is() -> None:
    core = registered_core()
    core.handle(offers("o-1", "o-2"), 0.0)
    call = launch(("o-1", "o-2"), task("t-1"))
    assert core.handle(call, 0.0) == [Send(message=call)]
    core.check()


def test_launch_on_a_rescinded_offer_is_dropped_and_the_others_are_declined() -> None:
    core = registered_core()
    core.handle(offers("o-1", "o-2"), 0.0)
    core.handle(received(RescindOffer(offer_id=OfferId("o-1"))), 0.0)
    effects = core.handle(launch(("o-1", "o-2"), task("t-1"), task("t-2")), 5.0)
    updates = [effect.status for effect in effects if isinstance(effect, OnStatusUpdate)]
    assert [(one.task_id, one.state, one.reason, one.source) for one in updates] == [
        ("t-1", TaskState.DROPPED, Reason.INVALID_OFFERS, Source.MASTER),
        ("t-2", TaskState.DROPPED, Reason.INVALID_OFFERS, Source.MASTER),
    ]
    assert updates[0].timestamp_unix_s == 1005.0
    assert sent(effects) == [DeclineOffers(offer_ids=(OfferId("o-2"),))]
    core.check()


def test_launch_while_disconnected_is_dropped() -> None:
    core = registered_core()
    core.handle(offers("o-1"), 0.0)
    core.handle(SessionClosed(reason="test"), 1.0)
    (effect,) = core.handle(launch(("o-1",), task("t-1")), 1.0)
    assert isinstance(effect, OnStatusUpdate)
    assert (effect.status.state, effect.status.reason) == (TaskState.DROPPED, Reason.MASTER_DISCONNECTED)


def test_offer_cannot_be_used_twice() -> None:
    core = registered_core()
    core.handle(offers("o-1"), 0.0)
    core.handle(launch(("o-1",), task("t-1")), 0.0)
    (effect,) = core.handle(launch(("o-1",), task("t-2")), 0.0)
    assert isinstance(effect, OnStatusUpdate)


def test_accept_without_tasks_declines() -> None:
    core = registered_core()
    core.handle(offers("o-1"), 0.0)
    assert sent(core.handle(launch(("o-1",)), 0.0)) == [DeclineOffers(offer_ids=(OfferId("o-1"),))]
    assert core.handle(DeclineOffers(offer_ids=(OfferId("o-1"),)), 0.0) == []


# --- Status updates ---


def test_update_is_acknowledged_after_its_callback() -> None:
    core = registered_core()
    assert core.handle(update("t-1", TaskState.RUNNING, uuid="u-1"), 0.0) == [
        OnStatusUpdate(status=status("t-1", TaskState.RUNNING, uuid="u-1")),
        Send(message=acknowledgement("t-1", "u-1")),
    ]


def test_acknowledged_update_is_acknowledged_again_but_not_delivered_again() -> None:
    core = running_core()
    assert core.handle(update("t-1", TaskState.RUNNING, uuid="u-1"), 0.0) == [
        Send(message=acknowledgement("t-1", "u-1"))
    ]
    core.check()


def test_update_without_uuid_is_not_acknowledged() -> None:
    core = registered_core()
    assert core.handle(update("t-1", TaskState.LOST), 0.0) == [OnStatusUpdate(status=status("t-1", TaskState.LOST))]


def test_explicit_acknowledgement_is_left_to_the_scheduler() -> None:
    core = registered_core(explicit_acknowledgement=True)
    event = update("t-1", TaskState.RUNNING, uuid="u-1")
    delivery = OnStatusUpdate(status=status("t-1", TaskState.RUNNING, uuid="u-1"))
    assert core.handle(event, 0.0) == [delivery]
    assert core.handle(event, 10.0) == [delivery]  # Not acknowledged yet: at least once.
    call = AcknowledgeStatus(task_id=TaskId("t-1"), uuid=StatusUuid("u-1"), slave_id=SLAVE_ID)
    assert core.handle(call, 11.0) == [Send(message=acknowledgement("t-1", "u-1"))]
    assert core.handle(call, 11.0) == []
    assert core.handle(event, 12.0) == [Send(message=acknowledgement("t-1", "u-1"))]


def test_explicit_acknowledgement_while_disconnected_answers_the_next_copy() -> None:
    core = registered_core(explicit_acknowledgement=True)
    core.handle(update("t-1", TaskState.FINISHED, uuid="u-1"), 0.0)
    core.handle(SessionClosed(reason="test"), 1.0)
    call = AcknowledgeStatus(task_id=TaskId("t-1"), uuid=StatusUuid("u-1"), slave_id=SLAVE_ID)
    assert core.handle(call, 1.0) == []
    register(core, 2.0)
    effects = core.handle(update("t-1", TaskState.FINISHED, uuid="u-1"), 3.0)
    assert effects == [Send(message=acknowledgement("t-1", "u-1"))]


def test_update_before_registration_is_left_to_be_sent_again() -> None:
    core = scheduler_core()
    core.handle(SessionOpened(epoch=EPOCH), 0.0)
    assert without_logs(core.handle(update("t-1", TaskState.RUNNING, uuid="u-1"), 0.0)) == []


def test_failed_callback_ends_the_driver() -> None:
    core = registered_core()
    assert core.handle(CallbackFailed(name="status_update", message="boom"), 0.0) == [Stop(exit_code=1)]
    core.check()


def test_memory_of_acknowledged_updates_is_bounded() -> None:
    core = registered_core()
    for index in range(50_000):
        core.handle(update("t-1", TaskState.RUNNING, uuid=f"u-{index}"), 0.0)
    core.check()
    effects = core.handle(update("t-1", TaskState.RUNNING, uuid="u-49000"), 0.0)
    assert effects == [Send(message=acknowledgement("t-1", "u-49000"))]


# --- Kill and messages ---


def test_kill_names_the_tasks_slave_and_is_repeated_to_the_next_master() -> None:
    core = running_core()
    expected = KillTask(task_id=TaskId("t-1"), slave_id=SLAVE_ID)
    assert core.handle(KillTask(task_id=TaskId("t-1")), 0.0) == [Send(message=expected)]
    core.handle(SessionClosed(reason="test"), 1.0)
    assert expected in sent(register(core, 2.0))
    core.handle(update("t-1", TaskState.KILLED, uuid="u-2"), 3.0)
    core.handle(SessionClosed(reason="test"), 4.0)
    assert expected not in sent(register(core, 5.0))
    core.check()


def test_answer_to_the_kill_of_an_unknown_task_is_delivered() -> None:
    core = registered_core()
    assert sent(core.handle(KillTask(task_id=TaskId("t-9")), 0.0)) == [KillTask(task_id=TaskId("t-9"))]
    answer = update("t-9", TaskState.LOST, reason=Reason.RECONCILIATION)
    assert [type(effect) for effect in core.handle(answer, 0.1)] == [OnStatusUpdate]


def test_messages_to_and_from_executors_pass() -> None:
    core = registered_core()
    call = FrameworkToExecutor(slave_id=SLAVE_ID, executor_id=EXECUTOR_ID, data=b"x")
    (message,) = sent(core.handle(call, 0.0))
    assert isinstance(message, FrameworkToExecutor)
    assert message.framework_id == FRAMEWORK_ID
    back = received(ExecutorToFramework(executor_id=EXECUTOR_ID, slave_id=SLAVE_ID, data=b"y"))
    assert core.handle(back, 0.0) == [OnFrameworkMessage(executor_id=EXECUTOR_ID, slave_id=SLAVE_ID, data=b"y")]
    lost = received(ExecutorLost(executor_id=EXECUTOR_ID, slave_id=SLAVE_ID, exit_status=3))
    assert core.handle(lost, 0.0) == [OnExecutorLost(executor_id=EXECUTOR_ID, slave_id=SLAVE_ID, exit_status=3)]
    core.handle(SessionClosed(reason="test"), 1.0)
    assert without_logs(core.handle(call, 1.0)) == []


# --- Reconciliation ---


def test_reregistration_asks_for_the_tasks_in_hand_until_answered() -> None:
    core = running_core()
    core.handle(SessionClosed(reason="test"), 1.0)
    question = ReconcileTasks(tasks=(TaskQuery(task_id=TaskId("t-1"), slave_id=SLAVE_ID),))
    assert sent(register(core, 2.0)) == [question]
    now, delays = 2.0, []
    for _ in range(8):
        deadline = core.next_deadline()
        assert deadline is not None
        delays.append(deadline - now)
        now = deadline
        core.handle(received(Ping(interval_s=1000.0, missed_limit=5)), now)
        assert sent(core.tick(now)) == [question]
    assert delays[0] <= 2.0
    assert RETRY_LIMIT_S / 2 <= delays[-1] <= RETRY_LIMIT_S
    # The scheduler knows that the task runs: the answer is no news to it.
    assert core.handle(update("t-1", TaskState.RUNNING, reason=Reason.RECONCILIATION), now) == []
    assert core.next_deadline() is not None
    assert core.next_deadline() > now + RETRY_LIMIT_S  # type: ignore[operator]
    core.check()


def test_answer_that_is_news_is_delivered() -> None:
    core = running_core()
    core.handle(SessionClosed(reason="test"), 1.0)
    register(core, 2.0)
    answer = update("t-1", TaskState.UNKNOWN, reason=Reason.RECONCILIATION)
    assert [type(effect) for effect in core.handle(answer, 3.0)] == [OnStatusUpdate]
    core.check()


def test_late_answer_about_an_ended_task_does_not_take_its_end_back() -> None:
    core = running_core()
    core.handle(SessionClosed(reason="test"), 1.0)
    register(core, 2.0)
    core.handle(update("t-1", TaskState.FINISHED, uuid="u-2"), 3.0)
    assert core.handle(update("t-1", TaskState.UNKNOWN, reason=Reason.RECONCILIATION), 4.0) == []


def test_all_tasks_are_asked_for_every_15_minutes() -> None:
    core = running_core()
    core.handle(received(Ping(interval_s=1000.0, missed_limit=5)), 0.0)
    assert core.next_deadline() == PERIOD_S
    (message,) = sent(core.tick(PERIOD_S))
    assert isinstance(message, ReconcileTasks)
    assert len(message.tasks) == 1


def test_taking_over_asks_for_all_tasks_of_the_framework() -> None:
    core = scheduler_core(framework_id=FRAMEWORK_ID)
    assert sent(register(core)) == [ReconcileTasks()]
    answer = update("t-1", TaskState.RUNNING, reason=Reason.RECONCILIATION)
    assert [type(effect) for effect in core.handle(answer, 1.0)] == [OnStatusUpdate]
    (kill,) = sent(core.handle(KillTask(task_id=TaskId("t-1")), 2.0))
    assert kill == KillTask(task_id=TaskId("t-1"), slave_id=SLAVE_ID)


def test_question_of_the_scheduler_is_repeated_and_its_answer_delivered() -> None:
    core = running_core()
    question = ReconcileTasks(tasks=(TaskQuery(task_id=TaskId("t-1"), slave_id=SLAVE_ID),))
    assert sent(core.handle(question, 1.0)) == [question]
    deadline = core.next_deadline()
    assert deadline is not None
    assert sent(core.tick(deadline)) == [question]
    answer = update("t-1", TaskState.RUNNING, reason=Reason.RECONCILIATION)
    assert [type(effect) for effect in core.handle(answer, deadline)] == [OnStatusUpdate]


def test_question_while_disconnected_is_asked_after_registration() -> None:
    core = registered_core()
    core.handle(SessionClosed(reason="test"), 1.0)
    question = ReconcileTasks(tasks=(TaskQuery(task_id=TaskId("t-7")),))
    assert core.handle(question, 1.0) == []
    assert sent(register(core, 2.0)) == [question]


# --- The end ---


def test_stop_tears_the_framework_down() -> None:
    core = registered_core()
    assert core.handle(StopAsked(), 0.0) == [Send(message=TeardownFramework()), Stop(exit_code=0)]
    assert core.next_deadline() is None
    core.check()


def test_stop_for_a_successor_leaves_the_tasks_running() -> None:
    core = running_core()
    assert core.handle(StopAsked(failover=True), 0.0) == [Stop(exit_code=0)]


def test_stop_while_disconnected_waits_for_a_master_to_tear_down() -> None:
    core = registered_core()
    core.handle(SessionClosed(reason="test"), 1.0)
    assert without_logs(core.handle(StopAsked(), 1.0)) == []
    assert without_logs(register(core, 2.0)) == [Send(message=TeardownFramework()), Stop(exit_code=0)]


def test_stop_gives_up_when_no_master_comes() -> None:
    core = registered_core()
    core.handle(SessionClosed(reason="test"), 1.0)
    core.handle(StopAsked(), 1.0)
    assert core.next_deadline() == 1.0 + TEARDOWN_WAIT_S
    assert without_logs(core.tick(1.0 + TEARDOWN_WAIT_S)) == [Stop(exit_code=1)]


def test_stop_before_any_session_ends_at_once() -> None:
    core = scheduler_core()
    assert core.handle(StopAsked(), 0.0) == [Stop(exit_code=0)]


def test_abort_ends_with_exit_code_1_and_no_teardown() -> None:
    core = running_core()
    assert core.handle(AbortAsked(), 0.0) == [Stop(exit_code=1)]


def test_nothing_is_delivered_after_stop() -> None:
    core = registered_core()
    core.handle(SessionClosed(reason="test"), 1.0)
    core.handle(StopAsked(), 1.0)
    core.handle(SessionOpened(epoch=EPOCH), 2.0)
    assert core.handle(ReviveOffers(), 2.0) == []
    core.handle(received(ExecutorLost(executor_id=EXECUTOR_ID, slave_id=SlaveId("s-1"))), 2.0)
    core.check()
