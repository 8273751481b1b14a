"""The slave's side of its session with the master: registration, pings, epochs."""

from collections.abc import Callable
from enum import Enum

from meseta.errors import InvalidTransition, InvariantError
from meseta.ids import SlaveId
from meseta.log import ERROR, INFO, WARNING
from meseta.messages import Message, Ping, Pong, SlaveRegistered
from slave.events import PersistSlaveId, ResetSession, SendMaster
from slave.records import EpochRecord
from slave.state import Context

BACKOFF_BASE_S = 1.0  # Mesos's registration_backoff_factor and its limit.
BACKOFF_LIMIT_S = 60.0
SILENCE_LIMIT_S = 75.0  # Until the first ping tells better: Mesos's 15 s times 5.


class LinkState(Enum):
    """Where the slave stands with the master. WAITING: connected, and something must happen first."""

    DISCONNECTED = "disconnected"
    WAITING = "waiting"
    REGISTERING = "registering"
    REGISTERED = "registered"


_L = LinkState
# An answer that comes when nothing was asked (REGISTERED already, or DISCONNECTED) is ignored.
LINK_CHANGES: dict[LinkState, frozenset[LinkState]] = {
    _L.DISCONNECTED: frozenset({_L.DISCONNECTED, _L.WAITING}),
    _L.WAITING: frozenset({_L.DISCONNECTED, _L.WAITING, _L.REGISTERING}),
    _L.REGISTERING: frozenset({_L.DISCONNECTED, _L.WAITING, _L.REGISTERED}),
    _L.REGISTERED: frozenset({_L.DISCONNECTED, _L.WAITING}),
}


class MasterLink:
    """Registers until it is answered, and gives up a session that has gone silent."""

    def __init__(self, context: Context, describe: Callable[[], Message], epoch: int) -> None:
        self._context = context
        self._describe = describe
        self.epoch = epoch  # The highest that was ever heard.
        self.state = LinkState.DISCONNECTED
        self.is_allowed = False  # Not before the slave knows what runs on it.
        self._is_stale = False
        self._backoff_s = BACKOFF_BASE_S
        self._attempt_due: float | None = None
        self._heard_at = 0.0
        self._silence_limit_s = SILENCE_LIMIT_S

    @property
    def is_registered(self) -> bool:
        return self.state is LinkState.REGISTERED

    def connected(self, epoch: int | None) -> None:
        """A session is open."""
        self._change(LinkState.WAITING)
        self._heard_at = self._context.now
        self._silence_limit_s = SILENCE_LIMIT_S
        self._backoff_s = BACKOFF_BASE_S
        # A lower epoch is an old master that does not know yet: it is not registered with, and
        # the silence limit ends the session.
        self._is_stale = not self.accepts(epoch)
        self._begin()

    def disconnected(self, reason: str) -> None:
        """The session is gone."""
        if self.state is not LinkState.DISCONNECTED:
            self._context.log(WARNING, "master lost", reason=reason)
        self._leave()

    def allow(self) -> None:
        """The slave knows what runs on it: registration may begin."""
        if not self.is_allowed:
            self.is_allowed = True
            self._begin()

    def accepts(self, epoch: int | None) -> bool:
        """True if a message of this term may be obeyed; the term is remembered."""
        if epoch is None:
            return True
        if epoch < self.epoch:
            self._context.log(WARNING, "message of an old master refused", epoch=epoch, newest_epoch=self.epoch)
            return False
        if epoch > self.epoch:
            self.epoch = epoch
            self._context.persist(EpochRecord(epoch=epoch))
        return True

    def heard(self) -> None:
        """The master said something."""
        self._heard_at = self._context.now

    def pinged(self, message: Ping) -> None:
        """Answer, and learn how long the master may be silent."""
        self._silence_limit_s = max(message.interval_s * message.missed_limit, 1.0)
        self._context.emit(SendMaster(message=Pong()))

    def registered(self, message: SlaveRegistered) -> bool:
        """Take the master's answer; True if the slave is registered now."""
        if self.state is not LinkState.REGISTERING:
            return False
        if self._context.slave_id is None:
            self._context.slave_id = message.slave_id
            self._context.emit(PersistSlaveId(slave_id=message.slave_id))
        elif self._context.slave_id != message.slave_id:
            ours: SlaveId = self._context.slave_id
            self._context.log(ERROR, "answer for another slave ignored", slave_id=ours, answered=message.slave_id)
            return False
        self._change(LinkState.REGISTERED)
        self._attempt_due = None
        self._context.log(
            INFO, "registered", slave_id=message.slave_id, epoch=self.epoch, reregistered=message.reregistered
        )
        return True

    def tick(self) -> None:
        """Try again to register, or give the session up."""
        if self.state is LinkState.DISCONNECTED:
            return
        if self._context.now >= self._heard_at + self._silence_limit_s:
            reason = f"the master was silent for {self._silence_limit_s:g} s"
            self._context.log(WARNING, "session given up", reason=reason)
            self._leave()
            self._context.emit(ResetSession(reason=reason))
        elif self._attempt_due is not None and self._context.now >= self._attempt_due:
            self._attempt()

    def next_deadline(self) -> float | None:
        """Return when `tick` has something to do."""
        if self.state is LinkState.DISCONNECTED:
            return None
        silent_at = self._heard_at + self._silence_limit_s
        return silent_at if self._attempt_due is None else min(silent_at, self._attempt_due)

    def check(self) -> None:
        """Raise InvariantError if state and timer differ."""
        if (self._attempt_due is not None) != (self.state is LinkState.REGISTERING):
            raise InvariantError(f"the session is {self.state.value}, next attempt at {self._attempt_due}")
        if self.state is LinkState.REGISTERED and self._context.slave_id is None:
            raise InvariantError("registered without an id")

    def _begin(self) -> None:
        if self.is_allowed and not self._is_stale and self.state is LinkState.WAITING:
            self._change(LinkState.REGISTERING)
            self._attempt()

    def _attempt(self) -> None:
        self._context.emit(SendMaster(message=self._describe()))
        # After the first attempt at random, so that slaves of a new master do not all come at once.
        self._attempt_due = self._context.now + max(self._context.rng.uniform(0.0, self._backoff_s), 0.05)
        self._backoff_s = min(2 * self._backoff_s, BACKOFF_LIMIT_S)

    def _leave(self) -> None:
        self._change(LinkState.DISCONNECTED)
        self._attempt_due = None

    def _change(self, state: LinkState) -> None:
        if state not in LINK_CHANGES[self.state]:
            raise InvalidTransition("the session with the master", self.state.value, state.value)
        self.state = state
        self._attempt_due = None
