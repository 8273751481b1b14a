"""Sessions between simulated processes, and what can happen to their messages.

A session behaves as one of `meseta/transport.py`: messages to a process that is gone vanish, either
end may learn of a break late or never, and a new session is a new socket. On top of that, while
faults are on, single messages are lost, doubled, delayed and so reordered, which TCP would not do to
them: a core that survives this survives a connection too. Messages whose order carries meaning (a launch, a kill,
a registration: `ORDERED`) keep it, as on TCP; when one of them is lost, its session breaks with it.
"""

from functools import partial
from typing import Protocol

from meseta.ids import Principal, SessionId
from meseta.messages import (
    AcceptOffers,
    FrameworkRegistered,
    Hello,
    KillTask,
    Message,
    RegisterFramework,
    RegisterSlave,
    ReregisterSlave,
    RunTask,
    ShutdownFramework,
    ShutdownSlave,
    SlaveRegistered,
    StatusUpdate,
    TeardownFramework,
)
from meseta.model import Record
from meseta.testing.world import World


class Faults(Record, frozen=True, kw_only=True):
    """How often each fault strikes: probabilities for each message, mean seconds between crashes."""

    lost: float = 0.0
    doubled: float = 0.0
    late: float = 0.0
    late_limit_s: float = 5.0
    outdated: float = 0.0  # A dead master's message that arrives in a session with its successor.
    break_notice_lost: float = 0.0  # An end of a broken session is not told.
    crash_between_effects: float = 0.0
    master_crash_s: float | None = None
    slave_crash_s: float | None = None
    supervisor_crash_s: float | None = None
    scheduler_crash_s: float | None = None
    session_break_s: float | None = None


NO_FAULTS = Faults()
ORDERED = (
    AcceptOffers,
    FrameworkRegistered,
    KillTask,
    RegisterFramework,
    RegisterSlave,
    ReregisterSlave,
    RunTask,
    ShutdownFramework,
    ShutdownSlave,
    SlaveRegistered,
    TeardownFramework,
)


class ClientEnd(Protocol):
    """The end that dials."""

    def session_opened(self, epoch: int | None) -> None:
        """The peer said Welcome."""

    def session_closed(self, reason: str) -> None:
        """The session is gone; the end is dialling again."""

    def message_arrived(self, message: Message, epoch: int | None) -> None:
        """One message of the peer."""

    def outdated_message_arrived(self, message: Message, epoch: int) -> None:
        """One message of a master whose term is over: it must have no effect but the session's end."""


class ServerEnd(Protocol):
    """The end that is dialled."""

    @property
    def epoch(self) -> int:
        """The term that every message is stamped with."""

    def session_opened(self, session: SessionId, principal: Principal, hello: Hello) -> None:
        """A peer said Hello."""

    def session_closed(self, session: SessionId, reason: str) -> None:
        """The session is gone."""

    def message_arrived(self, session: SessionId, message: Message) -> None:
        """One message of the peer."""


class Session:
    """One session; each side may be open while the other knows better."""

    __slots__ = (
        "client",
        "client_open",
        "epoch",
        "id",
        "last_to_client_s",
        "last_to_server_s",
        "server",
        "server_open",
    )

    def __init__(self, session_id: SessionId, client: ClientEnd, server: ServerEnd) -> None:
        self.id = session_id
        self.client = client
        self.server = server
        self.epoch = server.epoch
        self.client_open = True
        self.server_open = True
        self.last_to_client_s = 0.0
        self.last_to_server_s = 0.0


class Network:
    """Delivers messages between a listening server and its clients."""

    LATENCY_S = 0.0005
    DIAL_S = 0.05

    def __init__(self, world: World, faults: Faults) -> None:
        self._world = world
        self.faults = faults
        self.server: ServerEnd | None = None
        self._sessions: dict[SessionId, Session] = {}
        self._by_client: dict[int, Session] = {}
        self._outdated: list[tuple[ClientEnd, Message, int]] = []
        self._session_count = 0

    @property
    def open_sessions(self) -> list[Session]:
        """Sessions that at least one end holds open, oldest first."""
        return list(self._sessions.values())

    def dial(self, client: ClientEnd, principal: Principal, hello: Hello) -> None:
        """Open a session as soon as a server listens; a former session of `client` is given up silently."""
        self.hang_up(client)
        delay_s = self.DIAL_S * (0.5 + self._world.rng.random())
        self._world.call_later(delay_s, lambda: self._connect(client, principal, hello))

    def hang_up(self, client: ClientEnd) -> None:
        """The client's process closes its socket, or dies; its peer may learn of it late or never."""
        session = self._by_client.pop(id(client), None)
        if session is None:
            return
        session.client_open = False
        if session.server_open and not self._world.chance(self.faults.break_notice_lost):
            # What was sent before the end arrives before it, as on TCP.
            told_s = max(session.last_to_server_s, self._world.now + self._latency())
            self._world.call_at(told_s, lambda: self._tell_server(session, "peer disconnected"))

    def server_died(self) -> None:
        """The server's process is gone: every client is told, sooner or later, and dials again."""
        self.server = None
        for session in self.open_sessions:
            session.server_open = False
            self._drop(session)
            self._world.call_later(self._latency(), partial(self._tell_client, session, "connection lost"))

    def break_session(self, session: Session) -> None:
        """Cut the connection: what is under way is lost, and each end is told unless the notice is lost."""
        self._drop(session)
        if session.client_open and not self._world.chance(self.faults.break_notice_lost):
            self._world.call_later(self._latency(), lambda: self._tell_client(session, "connection lost"))
        if session.server_open and not self._world.chance(self.faults.break_notice_lost):
            self._world.call_later(self._latency(), lambda: self._tell_server(session, "connection lost"))

    def close_by_server(self, session_id: SessionId, reason: str) -> None:
        """The server forgets the session; the client hears so when it next speaks, here: soon."""
        session = self._sessions.get(session_id)
        if session is not None:
            session.server_open = False
            self._drop(session)
            self._world.call_later(self._latency(), lambda: self._tell_client(session, reason))

    def to_server(self, client: ClientEnd, message: Message) -> None:
        """Send from a client; without an open session the message vanishes."""
        session = self._by_client.get(id(client))
        if session is None or not session.client_open:
            return
        last_s, moments = self._arrivals(session, message, session.last_to_server_s)
        session.last_to_server_s = last_s
        for moment in moments:
            self._world.call_at(moment, lambda: self._arrive_at_server(session, message))

    def to_client(self, session_id: SessionId, message: Message) -> None:
        """Send from the server; to a session that is gone the message vanishes."""
        session = self._sessions.get(session_id)
        if session is None:
            return
        if self._world.chance(self.faults.outdated):
            self._outdated.append((session.client, message, session.epoch))
        last_s, moments = self._arrivals(session, message, session.last_to_client_s)
        session.last_to_client_s = last_s
        for moment in moments:
            self._world.call_at(moment, lambda: self._arrive_at_client(session, message))

    def release_outdated(self) -> None:
        """Let what a former master still had to say arrive, as from one that was paused and goes on."""
        held, self._outdated = self._outdated, []
        for client, message, epoch in held:
            delay_s = self._world.rng.uniform(0.1, self.faults.late_limit_s)
            self._world.call_later(delay_s, partial(self._arrive_outdated, client, message, epoch))

    def _arrivals(self, session: Session, message: Message, last_s: float) -> tuple[float, list[float]]:
        """Return when the next message in order may arrive at the earliest, and when the copies of this one do."""
        world, faults = self._world, self.faults
        in_order_s = max(last_s, world.now + self._latency())
        if world.chance(faults.lost):
            if _is_ordered(message):
                self.break_session(session)
            return last_s, []
        if _is_ordered(message):
            return in_order_s, [in_order_s]
        if world.chance(faults.late):
            return last_s, [world.now + world.rng.uniform(0.0, faults.late_limit_s)]
        if world.chance(faults.doubled):
            return in_order_s, [in_order_s, world.now + world.rng.uniform(0.0, faults.late_limit_s)]
        return in_order_s, [in_order_s]

    def _connect(self, client: ClientEnd, principal: Principal, hello: Hello) -> None:
        server = self.server
        if id(client) in self._by_client:
            return  # It dialled twice; the first call got through.
        if not self._is_dialling(client):
            return
        if server is None:
            self._world.call_later(self.DIAL_S, lambda: self._connect(client, principal, hello))
            return
        self._session_count += 1
        session = Session(SessionId(self._session_count.to_bytes(5, "big")), client, server)
        self._sessions[session.id] = session
        self._by_client[id(client)] = session
        server.session_opened(session.id, principal, hello)
        self._world.call_later(self._latency(), lambda: self._welcome(session))

    @staticmethod
    def _is_dialling(client: ClientEnd) -> bool:
        return bool(getattr(client, "is_alive", True))

    def _welcome(self, session: Session) -> None:
        if session.client_open and self._by_client.get(id(session.client)) is session:
            session.client.session_opened(session.epoch)

    def _tell_client(self, session: Session, reason: str) -> None:
        if session.client_open:
            session.client_open = False
            if self._by_client.get(id(session.client)) is session:
                del self._by_client[id(session.client)]
            session.client.session_closed(reason)

    def _tell_server(self, session: Session, reason: str) -> None:
        self._drop(session)
        if session.server_open:
            session.server_open = False
            if self.server is session.server:
                session.server.session_closed(session.id, reason)

    def _drop(self, session: Session) -> None:
        self._sessions.pop(session.id, None)

    def _arrive_at_server(self, session: Session, message: Message) -> None:
        if session.server_open and self.server is session.server and session.id in self._sessions:
            session.server.message_arrived(session.id, message)

    def _arrive_at_client(self, session: Session, message: Message) -> None:
        if session.client_open and self._by_client.get(id(session.client)) is session:
            session.client.message_arrived(message, session.epoch)

    def _arrive_outdated(self, client: ClientEnd, message: Message, epoch: int) -> None:
        session = self._by_client.get(id(client))
        if session is not None and session.client_open and session.epoch > epoch:
            client.outdated_message_arrived(message, epoch)

    def _latency(self) -> float:
        return self.LATENCY_S * (0.5 + self._world.rng.random())


def _is_ordered(message: Message) -> bool:
    """True if the order of `message` carries meaning; updates without uuid are sent once, so they do too."""
    return isinstance(message, ORDERED) or (isinstance(message, StatusUpdate) and message.status.uuid is None)
