"""The scheduler driver's core against a plain model, over random histories."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meseta.driver_events import (
    DriverState,
    OnOfferRescinded,
    OnResourceOffers,
    OnStatusUpdate,
    ResetSession,
    SchedulerEffect,
    SchedulerEvent,
    SessionClosed,
    SessionOpened,
    Stop,
)
from meseta.ids import OfferId, TaskId
from meseta.messages import (
    AcceptOffers,
    AcknowledgeStatus,
    DeclineOffers,
    FrameworkRegistered,
    KillTask,
    Ping,
    Pong,
    ReconcileTasks,
    RegisterFramework,
    RescindOffer,
    ReviveOffers,
    SuppressOffers,
)
from meseta.model import Reason, TaskState
from tests.unit.driver_builders import FRAMEWORK_ID, launch, offers, received, scheduler_core, sent, task, update

NAMES = st.integers(min_value=0, max_value=5)
LIVE = [TaskState.STAGING, TaskState.RUNNING, TaskState.KILLING, TaskState.UNREACHABLE]
ENDS = [TaskState.FINISHED, TaskState.FAILED, TaskState.KILLED, TaskState.LOST, TaskState.UNKNOWN]


class SchedulerDriverMachine(RuleBasedStateMachine):
    """The model: which offers are in hand, which updates were told, what the master last heard about suppression."""

    def __init__(self) -> None:
        super().__init__()
        self.core = scheduler_core(roles=("a", "b"))
        self.now = 0.0
        self.epoch = 1
        self.offers: set[str] = set()
        self.offer_count = 0
        self.delivered: set[str] = set()
        self.is_suppressed = False
        self.was_suppressed_by_user = False

    def give(self, event: SchedulerEvent) -> list[SchedulerEffect]:
        return self.look(self.core.handle(event, self.now))

    def look(self, effects: list[SchedulerEffect]) -> list[SchedulerEffect]:
        """Check what holds for all effects, and follow them in the model."""
        is_registered = self.core.state is DriverState.REGISTERED
        for effect in effects:
            if isinstance(effect, OnResourceOffers):
                self.offers |= {offer.offer_id for offer in effect.offers}
            elif isinstance(effect, OnOfferRescinded):
                self.offers.remove(effect.offer_id)
            elif isinstance(effect, OnStatusUpdate) and effect.status.uuid is not None:
                assert effect.status.uuid not in self.delivered
                self.delivered.add(effect.status.uuid)
            assert not isinstance(effect, Stop)
        for message in sent(effects):
            assert is_registered or isinstance(message, RegisterFramework | Pong)
            if isinstance(message, RegisterFramework):
                self.is_suppressed = message.suppressed_roles == ("a", "b")
            elif isinstance(message, ReviveOffers):
                self.is_suppressed = False
            elif isinstance(message, SuppressOffers):
                self.is_suppressed = True
        return effects

    @rule(step=st.integers(min_value=0, max_value=1))
    def connect(self, step: int) -> None:
        self.epoch += step
        self.give(SessionOpened(epoch=self.epoch))
        assert not self.offers
        self.give(received(FrameworkRegistered(framework_id=FRAMEWORK_ID), epoch=self.epoch))
        assert self.core.state is DriverState.REGISTERED

    @rule()
    def disconnect(self) -> None:
        self.give(SessionClosed(reason="test"))
        assert not self.offers

    @rule()
    def hear_an_outdated_master(self) -> None:
        was_connected = self.core.state is not DriverState.DISCONNECTED
        effects = self.give(received(Ping(interval_s=1.0, missed_limit=5), epoch=self.epoch - 1))
        if was_connected:
            assert isinstance(effects[-1], ResetSession)
        assert self.core.state is DriverState.DISCONNECTED

    @rule()
    def hear_a_ping(self) -> None:
        self.give(received(Ping(interval_s=15.0, missed_limit=5), epoch=self.epoch))

    @rule(count=st.integers(min_value=1, max_value=3))
    def offer(self, count: int) -> None:
        names = [f"o-{self.offer_count + index}" for index in range(count)]
        self.offer_count += count
        event = offers(*names)
        self.give(received(event.message, epoch=self.epoch))

    @rule(name=NAMES)
    def rescind(self, name: int) -> None:
        offer_id = OfferId(f"o-{self.offer_count - name}")
        self.give(received(RescindOffer(offer_id=offer_id), epoch=self.epoch))
        assert offer_id not in self.offers

    @rule(names=st.lists(NAMES, min_size=1, max_size=2, unique=True), count=st.integers(min_value=1, max_value=2))
    def launch(self, names: list[int], count: int) -> None:
        offer_ids = tuple(f"o-{self.offer_count - name}" for name in names)
        tasks = [task(f"t-{index}") for index in range(count)]
        is_valid = self.offers.issuperset(offer_ids)
        effects = self.give(launch(offer_ids, *tasks))
        dropped = [effect.status.task_id for effect in effects if isinstance(effect, OnStatusUpdate)]
        accepted = [message for message in sent(effects) if isinstance(message, AcceptOffers)]
        # Each task is told to the master or to the scheduler, never to both or none.
        assert len(accepted) == (1 if is_valid else 0)
        assert dropped == ([] if is_valid else [one.task_id for one in tasks])
        returned = {offer_id for one in sent(effects) if isinstance(one, DeclineOffers) for offer_id in one.offer_ids}
        assert returned == (set() if is_valid else self.offers & set(offer_ids))
        self.offers -= set(offer_ids)
        if is_valid:
            assert not self.is_suppressed or self.was_suppressed_by_user

    @rule(name=NAMES)
    def decline(self, name: int) -> None:
        offer_id = f"o-{self.offer_count - name}"
        effects = self.give(DeclineOffers(offer_ids=(OfferId(offer_id),)))
        declined = [message for message in sent(effects) if isinstance(message, DeclineOffers)]
        assert bool(declined) == (offer_id in self.offers)
        self.offers.discard(offer_id)

    @rule(name=NAMES, state=st.sampled_from(LIVE + ENDS), uuid=st.none() | st.integers(min_value=0, max_value=20))
    def hear_an_update(self, name: int, state: TaskState, uuid: int | None) -> None:
        text = None if uuid is None else f"u-{uuid}"
        was_delivered = text in self.delivered
        event = update(f"t-{name}", state, uuid=text)
        effects = self.give(received(event.message, epoch=self.epoch))
        if self.core.state is DriverState.REGISTERED and text is not None:
            assert [type(message) for message in sent(effects)] == [AcknowledgeStatus]
            assert any(isinstance(effect, OnStatusUpdate) for effect in effects) != was_delivered

    @rule(name=NAMES, state=st.sampled_from(LIVE + ENDS))
    def hear_an_answer(self, name: int, state: TaskState) -> None:
        event = update(f"t-{name}", state, reason=Reason.RECONCILIATION)
        self.give(received(event.message, epoch=self.epoch))

    @rule(name=NAMES)
    def kill(self, name: int) -> None:
        self.give(KillTask(task_id=TaskId(f"t-{name}")))

    @rule()
    def reconcile(self) -> None:
        self.give(ReconcileTasks())

    @rule()
    def revive(self) -> None:
        self.was_suppressed_by_user = False
        self.give(ReviveOffers())

    @rule()
    def suppress(self) -> None:
        self.was_suppressed_by_user = True
        self.give(SuppressOffers())

    @precondition(lambda self: self.core.next_deadline() is not None)
    @rule()
    def wait(self) -> None:
        deadline = self.core.next_deadline()
        assert deadline is not None
        self.now = max(self.now, deadline)
        self.look(self.core.tick(self.now))
        after = self.core.next_deadline()
        assert after is None or after > self.now  # Else the shell would spin.

    @precondition(lambda self: self.core.state is DriverState.REGISTERED and not self.was_suppressed_by_user)
    @rule()
    def nobody_is_suppressed_for_long(self) -> None:
        stop_at = self.now + 61.0
        while self.is_suppressed and (due := self.core.next_deadline()) is not None and due <= stop_at:
            self.now = max(self.now, due)
            self.look(self.core.tick(self.now))
        assert not self.is_suppressed or self.core.state is not DriverState.REGISTERED

    @invariant()
    def state_is_consistent(self) -> None:
        self.core.check()


SchedulerDriverMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestSchedulerDriver = SchedulerDriverMachine.TestCase
