"""What the master's core is told, what it wants done, and what it starts from.

Events and effects are frozen values with a `type` tag, so that a daemon can record them. Effects
are performed in the order given. What must be durable before anyone is told goes out as
`PersistRecords` with a token; the rest follows when `Persisted` brings the token back.
"""

from meseta.ids import Principal, SessionId
from meseta.log import Log
from meseta.messages import (
    FrameworkChanged,
    FrameworkRemoved,
    Hello,
    Message,
    NodeChanged,
    NodeRemoved,
    StreamPosition,
    TaskChanged,
    TaskRemoved,
)
from meseta.model import Record

PING_TIMEOUT_S = 15.0  # Mesos's defaults: a peer is given up after 75 s of silence.
MAX_MISSED_PINGS = 5
OFFER_TIMEOUT_S = 30.0  # Longer than any scheduler should think, short enough that nobody hoards.
REREGISTER_TIMEOUT_S = 600.0  # Mesos's time for slaves to come back to a new master.
SLAVE_REMOVAL_INTERVAL_S = 1.0  # A broken switch must not cost a whole rack its tasks within seconds.
ALLOCATION_DELAY_S = 0.002  # What changes within it is offered in one round.
MIN_REFUSE_S = 1.0

StreamEvent = (
    NodeChanged | NodeRemoved | FrameworkChanged | FrameworkRemoved | TaskChanged | TaskRemoved | StreamPosition
)


class _Event(Record, frozen=True, kw_only=True, tag_field="type", tag=True):
    """Base: the tag is the class's name."""


class StoredRecord(Record, frozen=True, kw_only=True):
    """One durable record; without a `value` it is removed."""

    table: str
    key: str
    value: bytes | None = None


class MasterConfig(Record, frozen=True, kw_only=True):
    """What operators choose. Times in seconds; `acls` is the text of the ACL file, empty: the default rules."""

    ping_timeout_s: float = PING_TIMEOUT_S
    max_missed_pings: int = MAX_MISSED_PINGS
    offer_timeout_s: float = OFFER_TIMEOUT_S
    reregister_timeout_s: float = REREGISTER_TIMEOUT_S
    slave_removal_interval_s: float = SLAVE_REMOVAL_INTERVAL_S
    allocation_delay_s: float = ALLOCATION_DELAY_S
    min_refuse_s: float = MIN_REFUSE_S
    weights: dict[str, float] = {}  # noqa: RUF012 - msgspec copies it for each value
    acls: str = ""
    is_insecure: bool = False
    version: str = ""


class MasterInit(Record, frozen=True, kw_only=True):
    """All that a core starts from.

    `epoch` is this term's, given by the store; `records` are what the store holds. `started_s` is
    the monotonic time of the start, `unix_offset_s` wall-clock time minus monotonic time.
    """

    config: MasterConfig
    seed: int
    epoch: int
    records: tuple[StoredRecord, ...] = ()
    started_s: float = 0.0
    unix_offset_s: float = 0.0
    events_endpoint: str = ""  # Where the event stream is bound; told to those who ask.


# --- Events --------------------------------------------------------------------------------------


class SessionOpened(_Event, frozen=True, kw_only=True):
    """A peer that `MasterCore.refusal` has nothing against opened a session."""

    session: SessionId
    principal: Principal
    hello: Hello


class SessionClosed(_Event, frozen=True, kw_only=True):
    """A session ended by itself."""

    session: SessionId
    reason: str


class Received(_Event, frozen=True, kw_only=True):
    """A message of an open session."""

    session: SessionId
    message: Message


class Persisted(_Event, frozen=True, kw_only=True):
    """The records of that `PersistRecords` are safe."""

    token: int


class FollowersChanged(_Event, frozen=True, kw_only=True):
    """Somebody has begun to follow the event stream, or nobody does any more."""

    is_followed: bool


# --- Effects -------------------------------------------------------------------------------------


class Send(_Event, frozen=True, kw_only=True):
    """Send to a peer. If its session is gone the message is lost; `SessionClosed` tells."""

    session: SessionId
    message: Message


class CloseSession(_Event, frozen=True, kw_only=True):
    """Forget a session, after what was sent to it before. No `SessionClosed` follows."""

    session: SessionId
    reason: str


class PersistRecords(_Event, frozen=True, kw_only=True):
    """Write in the order of these effects, all records of one together; then `Persisted(token)`."""

    token: int
    records: tuple[StoredRecord, ...]


class Publish(_Event, frozen=True, kw_only=True):
    """Tell all who follow the event stream; in the order of the events' sequence."""

    events: tuple[StreamEvent, ...]


MasterEvent = SessionOpened | SessionClosed | Received | Persisted | FollowersChanged
MasterEffect = Send | CloseSession | PersistRecords | Publish | Log
