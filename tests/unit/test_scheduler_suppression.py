"""When the scheduler's driver suppresses offers by itself."""

from meseta.driver_events import (
    SessionClosed,
    SessionOpened,
)
from meseta.ids import OfferId
from meseta.messages import (
    DeclineOffers,
    FrameworkRegistered,
    Ping,
    RegisterFramework,
    RescindOffer,
    ReviveOffers,
    SuppressOffers,
)
from meseta.model import TaskState
from meseta.reconciler import PERIOD_S
from meseta.scheduler_core import SchedulerCore
from meseta.suppression import PATIENCE_S, PAUSE_BASE_S, PAUSE_LIMIT_S, WINDOW_S
from tests.unit.driver_builders import (
    EPOCH,
    FRAMEWORK_ID,
    framework,
    launch,
    offers,
    received,
    registered_core,
    running_core,
    sent,
    task,
    update,
)


def decline_all(core: SchedulerCore, name: str, now: float) -> list[object]:
    core.handle(offers(name), now)
    return list(sent(core.handle(DeclineOffers(offer_ids=(OfferId(name),)), now)))


def quiet_core() -> SchedulerCore:
    """A registered core whose next deadline is not the silence of its master."""
    core = registered_core()
    core.handle(received(Ping(interval_s=1e6, missed_limit=5)), 0.0)
    return core


def test_idle_scheduler_is_suppressed_and_revived_with_growing_pauses() -> None:
    core = quiet_core()
    now, pauses = 1.0, []
    patience_s = PATIENCE_S
    for index in range(6):
        decline_all(core, f"o-{index}", now)
        assert core.next_deadline() == now + patience_s
        now += patience_s
        assert sent(core.tick(now)) == [SuppressOffers(roles=("*",))]
        revive_due = core.next_deadline()
        assert revive_due is not None
        pauses.append(revive_due - now)
        now = revive_due
        assert sent(core.tick(now)) == [ReviveOffers(roles=("*",))]
        patience_s = WINDOW_S
    assert pauses == [PAUSE_BASE_S, 10.0, 20.0, 40.0, PAUSE_LIMIT_S, PAUSE_LIMIT_S]
    core.check()


def test_offer_in_hand_postpones_the_suppression() -> None:
    core = quiet_core()
    decline_all(core, "o-1", 1.0)
    core.handle(offers("o-2"), 2.0)
    assert core.tick(1.0 + PATIENCE_S) == []
    assert core.next_deadline() == PERIOD_S
    effects = core.handle(received(RescindOffer(offer_id=OfferId("o-2"))), 30.0)
    assert sent(effects) == [SuppressOffers(roles=("*",))]


def test_scheduler_with_a_task_is_never_suppressed() -> None:
    core = running_core()
    for index in range(100):
        assert len(decline_all(core, f"o-{index + 2}", float(index))) == 1
    assert sent(core.tick(100.0)) == []


def test_launch_starts_the_patience_anew() -> None:
    core = quiet_core()
    decline_all(core, "o-1", 1.0)
    core.handle(offers("o-2"), 10.0)
    core.handle(launch(("o-2",), task("t-1")), 10.0)
    core.handle(update("t-1", TaskState.FINISHED, uuid="u-1"), 11.0)
    decline_all(core, "o-3", 12.0)
    assert core.next_deadline() == 12.0 + PATIENCE_S


def test_revive_ends_the_drivers_own_suppression() -> None:
    core = quiet_core()
    decline_all(core, "o-1", 1.0)
    core.tick(1.0 + PATIENCE_S)
    assert sent(core.handle(ReviveOffers(), 17.0)) == [ReviveOffers(roles=("*",))]
    assert core.next_deadline() == PERIOD_S


def test_launch_on_an_offer_that_crossed_the_suppression_revives() -> None:
    core = quiet_core()
    decline_all(core, "o-1", 1.0)
    core.tick(1.0 + PATIENCE_S)
    core.handle(offers("o-2"), 16.1)
    call = launch(("o-2",), task("t-1"))
    assert sent(core.handle(call, 16.2)) == [call, ReviveOffers(roles=("*",))]


def test_suppressed_scheduler_registers_as_suppressed_until_the_pause_ends() -> None:
    core = quiet_core()
    decline_all(core, "o-1", 1.0)
    core.tick(1.0 + PATIENCE_S)
    core.handle(SessionClosed(reason="test"), 17.0)
    (message,) = sent(core.handle(SessionOpened(epoch=EPOCH), 17.5))
    assert isinstance(message, RegisterFramework)
    assert message.suppressed_roles == ("*",)
    core.handle(received(FrameworkRegistered(framework_id=FRAMEWORK_ID)), 17.6)
    assert sent(core.tick(1.0 + PATIENCE_S + PAUSE_BASE_S)) == [ReviveOffers(roles=("*",))]


def test_pause_that_ends_while_disconnected_is_not_registered() -> None:
    core = quiet_core()
    decline_all(core, "o-1", 1.0)
    core.tick(1.0 + PATIENCE_S)
    core.handle(SessionClosed(reason="test"), 17.0)
    due = core.next_deadline()
    assert due == 1.0 + PATIENCE_S + PAUSE_BASE_S
    assert core.tick(due) == []
    (message,) = sent(core.handle(SessionOpened(epoch=EPOCH), due))
    assert message == RegisterFramework(framework_info=framework(framework_id=FRAMEWORK_ID))


def test_automatic_suppression_can_be_switched_off() -> None:
    core = registered_core(auto_suppress=False)
    core.handle(received(Ping(interval_s=1e6, missed_limit=5)), 0.0)
    decline_all(core, "o-1", 1.0)
    assert core.next_deadline() == PERIOD_S
