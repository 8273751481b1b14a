"""What all messages have in common, and those about sessions; `meseta/messages.py` is the door."""

from typing import Annotated

import msgspec

from meseta.model import Name, Record, Seconds, Text

PROTOCOL_VERSION = 1
PAGE_LIMIT = 1000  # Objects in one answer: some 300 kB, a few milliseconds of the master's time.

RequestId = Annotated[int, msgspec.Meta(ge=0)]
Limit = Annotated[int, msgspec.Meta(ge=1, le=PAGE_LIMIT)]
Sequence = Annotated[int, msgspec.Meta(ge=0)]  # How many events the master published in its term so far.


class WireMessage(Record, frozen=True, kw_only=True, tag_field="type", tag=True):
    """Base of all messages: the tag is the class's name."""


# --- Sessions -----------------------------------------------------------------------------------


class Hello(WireMessage, frozen=True, kw_only=True):
    """First message of a session, from the one who connects."""

    kind: Name  # "slave", "framework", "executor", "operator" or "task"
    version: int = PROTOCOL_VERSION
    capabilities: tuple[str, ...] = ()
    name: Name = ""
    token: str = ""  # Executors prove the token that their slave gave them.


class Welcome(WireMessage, frozen=True, kw_only=True):
    """Answer to `Hello`: the session is open."""

    version: int = PROTOCOL_VERSION
    capabilities: tuple[str, ...] = ()
    principal: Name = ""  # As the server knows the caller.


class Epoch(WireMessage, frozen=True, kw_only=True):
    """First element of every payload of a master: the term in which it was sent."""

    epoch: int


class Ping(WireMessage, frozen=True, kw_only=True):
    """Sent by the master; a peer that misses too many is taken for dead, and so is a silent master.

    `interval_s` is the time to the next one and `missed_limit` how many may be missed.
    """

    interval_s: Seconds
    missed_limit: int


class Pong(WireMessage, frozen=True, kw_only=True):
    """Answer to `Ping`."""


class Goodbye(WireMessage, frozen=True, kw_only=True):
    """The session ends on purpose."""

    message: Text = ""


class Error(WireMessage, frozen=True, kw_only=True):
    """A refusal. `code` is for programs, `message` for people; `request_id` names the request if there was one.

    Codes: unknown_session, bad_message, bad_version, overflow, unauthorized, not_found, invalid, removed, expired,
    failed.
    """

    code: Name
    message: Text
    index: int | None = None
    field: str | None = None
    request_id: RequestId | None = None
