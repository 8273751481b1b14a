"""Every exception that Meseta raises on purpose.

A refused request is no exception but an answer with a `Reason`; see `meseta/model.py`.
"""


class MesetaError(Exception):
    """The root of all our exceptions."""


class InvariantError(MesetaError):
    """A core found itself in a state that must not exist: our bug, the daemon stops."""


class InvalidTransition(InvariantError):
    """A lifecycle was asked for a change outside its table.

    Carries the object's last events, oldest first, so that the report explains itself.
    """

    def __init__(self, subject: str, current: str, wanted: str, history: tuple[str, ...] = ()) -> None:
        self.subject = subject
        self.current = current
        self.wanted = wanted
        self.history = history
        past = f" after {', '.join(history)}" if history else ""
        super().__init__(f"{subject} cannot go from {current} to {wanted}{past}")


class DecodeError(MesetaError):
    """Bytes from a peer are no message: names the index of the bad element and its field."""

    def __init__(self, message: str, *, index: int | None = None, field: str | None = None) -> None:
        self.index = index
        self.field = field
        super().__init__(message)


class ProtocolError(MesetaError):
    """A peer sent a well-formed message that it must not send now."""


class InvalidInput(MesetaError):
    """What a person wrote (flag, file, text form) is wrong: names field, value and remedy."""


class TransportError(MesetaError):
    """A socket could not be bound, opened or authenticated."""


class StoreError(MesetaError):
    """Durable records could not be read or written."""


class SessionLost(MesetaError):
    """The peer's session ended before it answered."""


class RequestRefused(MesetaError):
    """The peer answered a request with `Error`; the text is the peer's. A service's handler raises it to refuse."""

    def __init__(self, message: str, *, code: str = "failed", field: str | None = None) -> None:
        self.code = code
        self.field = field
        super().__init__(message)


class IsolationError(MesetaError):
    """A process, a user or a cgroup could not be set up on this machine: says what is in the way."""
