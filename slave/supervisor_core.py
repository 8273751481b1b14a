"""The supervisor's decisions: which containers there are, in which state, and what happens next.

A container is started once, killed in two steps, and reported as ended only when its whole tree
is dead; what the daemon must know is kept until it says `Forget`.
"""

import heapq
import re
from enum import Enum
from typing import Final

import msgspec

from meseta.errors import InvalidTransition, InvariantError
from meseta.ids import ContainerId
from slave.supervisor_messages import (
    Containers,
    Exited,
    Forget,
    FromSupervisor,
    KillContainer,
    Limits,
    ListContainers,
    ResizeContainer,
    RetireSupervisor,
    StartContainer,
    Started,
    StartFailed,
    SupervisorRefused,
    ToSupervisor,
)

CONTAINERS_LIMIT: Final = 20_000  # Running or not yet forgotten; more than one machine's processes and files bear.
KILL_RETRY_FIRST_S: Final = 0.001  # A killed process is mostly gone by then.
KILL_RETRY_LIMIT_S: Final = 0.25  # For what hangs in the kernel: seen soon after it wakes.
IDLE_LIMIT_S: Final = 60.0  # With nothing running and no daemon: then it is asked whether anyone can still come.

# Names a folder in cgroup hierarchies.
_CONTAINER_ID: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@=+-]{0,199}\Z")


class Life(Enum):
    """A container's life."""

    STARTING = "starting"
    RUNNING = "running"
    TERMINATING = "terminating"  # Told to end, SIGTERM.
    KILLING = "killing"  # SIGKILL, the first process has not ended yet.
    BURYING = "burying"  # The first process ended; the rest of its tree is being killed.
    EXITED = "exited"


TRANSITIONS: Final[dict[Life, tuple[Life, ...]]] = {
    Life.STARTING: (Life.RUNNING,),
    Life.RUNNING: (Life.TERMINATING, Life.KILLING, Life.BURYING),
    Life.TERMINATING: (Life.KILLING, Life.BURYING),
    Life.KILLING: (Life.BURYING,),
    Life.BURYING: (Life.EXITED,),
    Life.EXITED: (),
}


class _Value(msgspec.Struct, frozen=True, gc=False, kw_only=True, tag=True, tag_field="type"):
    """Base of events and effects."""


class Request(_Value, frozen=True, kw_only=True):
    """The daemon asks."""

    message: ToSupervisor


class DaemonCame(_Value, frozen=True, kw_only=True):
    """A connection is open."""


class DaemonWent(_Value, frozen=True, kw_only=True):
    """The last connection is gone."""


class ProcessStarted(_Value, frozen=True, kw_only=True):
    """Answer to `StartProcess`."""

    container_id: ContainerId
    pid: int
    start_ticks: int
    cgroup: str


class StartRefused(_Value, frozen=True, kw_only=True):
    """Answer to `StartProcess`: nothing runs."""

    container_id: ContainerId
    message: str


class FirstProcessEnded(_Value, frozen=True, kw_only=True):
    """Reaped. `exit_status` is as a shell shows it."""

    container_id: ContainerId
    exit_status: int


class TreeDead(_Value, frozen=True, kw_only=True):
    """Answer to `KillTree` when nothing lives any more, with what the kernel counted."""

    container_id: ContainerId
    oom_kills: int = 0
    mem_peak_bytes: int = 0


class AskedToEnd(_Value, frozen=True, kw_only=True):
    """SIGTERM for the supervisor itself."""


class SocketGone(_Value, frozen=True, kw_only=True):
    """Answer to `LookForSocket`: no daemon can reach this supervisor any more."""


class StartProcess(_Value, frozen=True, kw_only=True):
    """Start it; answered by `ProcessStarted` or `StartRefused`."""

    message: StartContainer


class TerminateTree(_Value, frozen=True, kw_only=True):
    """SIGTERM to the tree."""

    container_id: ContainerId


class KillTree(_Value, frozen=True, kw_only=True):
    """SIGKILL to the tree; answered by `TreeDead` if it was dead, else it is asked again."""

    container_id: ContainerId


class ResizeTree(_Value, frozen=True, kw_only=True):
    """Set new limits."""

    container_id: ContainerId
    limits: Limits


class Report(_Value, frozen=True, kw_only=True):
    """Tell the daemon, if there is one."""

    message: FromSupervisor


class LookForSocket(_Value, frozen=True, kw_only=True):
    """Is the socket still in its place? Answered by `SocketGone` if not."""


class Stop(_Value, frozen=True, kw_only=True):
    """The supervisor has nothing left to do."""

    reason: str


SupervisorEvent = (
    Request
    | DaemonCame
    | DaemonWent
    | ProcessStarted
    | StartRefused
    | FirstProcessEnded
    | TreeDead
    | AskedToEnd
    | SocketGone
)
SupervisorEffect = StartProcess | TerminateTree | ResizeTree | KillTree | Report | LookForSocket | Stop


class SupervisorInit(msgspec.Struct, frozen=True, kw_only=True):
    """What `Containers` says of this supervisor."""

    isolation: str
    isolation_note: str = ""
    pid: int = 0


class _Container:
    __slots__ = ("due", "exit_status", "exited", "life", "mem_limit_bytes", "retry_s", "started", "was_killed")

    def __init__(self, mem_limit_bytes: int) -> None:
        self.life = Life.STARTING
        self.mem_limit_bytes = mem_limit_bytes
        self.started: Started | None = None
        self.exit_status = 0
        self.exited: Exited | None = None
        self.was_killed = False
        self.due: float | None = None
        self.retry_s = KILL_RETRY_FIRST_S


class SupervisorCore:
    """See the module."""

    def __init__(self, init: SupervisorInit) -> None:
        self._init = init
        self._containers: dict[ContainerId, _Container] = {}
        self._due: list[tuple[float, ContainerId]] = []  # A heap; an entry counts if the container's `due` equals it.
        self._living_count = 0  # Of the containers, those that have not exited.
        self._is_retiring = False
        self._has_daemon = False
        self._idle_since: float | None = None

    def handle(self, event: SupervisorEvent, now: float) -> list[SupervisorEffect]:
        """Take one input and return what is to be done, in order."""
        effects: list[SupervisorEffect] = []
        match event:
            case Request():
                self._on_request(event.message, now, effects)
            case ProcessStarted():
                self._on_started(event, effects)
            case StartRefused():
                self._living_count -= 1
                del self._containers[event.container_id]
                effects.append(Report(message=StartFailed(container_id=event.container_id, message=event.message)))
            case FirstProcessEnded():
                self._on_first_ended(event, now, effects)
            case TreeDead():
                self._on_tree_dead(event, effects)
            case DaemonCame():
                self._has_daemon = True
            case DaemonWent():
                self._has_daemon = False
            case AskedToEnd():
                if not self._containers:
                    effects.append(Stop(reason="asked to end, and owns no container"))
            case SocketGone():
                if self._idle_since is not None:
                    effects.append(Stop(reason="nothing runs, and the socket is gone: no daemon can ask for the ends"))
        self._look_idle(now)
        return effects

    def tick(self, now: float) -> list[SupervisorEffect]:
        """Do what is due at `now` or before."""
        effects: list[SupervisorEffect] = []
        while self._due and self._due[0][0] <= now:
            at, container_id = heapq.heappop(self._due)
            container = self._containers.get(container_id)
            if container is not None and container.due == at:
                self._kill(container_id, container, now, effects)
        if self._idle_since is not None and now >= self._idle_since + IDLE_LIMIT_S:
            self._idle_since = now
            if self._containers:  # Their ends are kept for a daemon that may come back in a week.
                effects.append(LookForSocket())
            else:
                effects.append(Stop(reason=f"no container and no daemon for {IDLE_LIMIT_S:.0f} s"))
        return effects

    def next_deadline(self) -> float | None:
        """Return when `tick` must be called next, None if nothing is due ever."""
        while self._due:
            at, container_id = self._due[0]
            container = self._containers.get(container_id)
            if container is not None and container.due == at:
                break
            heapq.heappop(self._due)
        first = self._due[0][0] if self._due else None
        idle = None if self._idle_since is None else self._idle_since + IDLE_LIMIT_S
        return min((at for at in (first, idle) if at is not None), default=None)

    def check(self) -> None:
        """Raise InvariantError if the containers' facts contradict each other."""
        queued = set(self._due)
        living = [each for each in self._containers.values() if each.life is not Life.EXITED]
        if len(living) != self._living_count:
            raise InvariantError(f"{len(living)} containers live, {self._living_count} were counted")
        for container_id, container in self._containers.items():
            life = container.life
            if (container.started is None) != (life is Life.STARTING):
                raise InvariantError(f"container {container_id} is {life.value} with {container.started}")
            if (container.exited is None) != (life is not Life.EXITED):
                raise InvariantError(f"container {container_id} is {life.value} with {container.exited}")
            if (container.due is not None) != (life in (Life.TERMINATING, Life.KILLING, Life.BURYING)):
                raise InvariantError(f"container {container_id} is {life.value}, next step due at {container.due}")
            if container.due is not None and (container.due, container_id) not in queued:
                raise InvariantError(f"container {container_id} has a deadline that nobody watches")

    def _on_request(self, message: ToSupervisor, now: float, effects: list[SupervisorEffect]) -> None:
        match message:
            case StartContainer():
                self._on_start(message, effects)
            case KillContainer():
                self._on_kill(message, now, effects)
            case ResizeContainer():
                self._on_resize(message, effects)
            case Forget():
                self._on_forget(message.container_id, effects)
            case ListContainers():
                self._on_list(effects)
            case RetireSupervisor():
                self._is_retiring = True
                self._stop_if_done(effects)

    def _on_start(self, message: StartContainer, effects: list[SupervisorEffect]) -> None:
        container_id = message.container_id
        known = self._containers.get(container_id)
        if known is not None:
            self._repeat(known, effects)
        elif refusal := self._start_refusal(container_id):
            effects.append(Report(message=StartFailed(container_id=container_id, message=refusal)))
        else:
            self._living_count += 1
            self._containers[container_id] = _Container(message.limits.mem_bytes or 0)
            effects.append(StartProcess(message=message))

    def _start_refusal(self, container_id: ContainerId) -> str | None:
        if self._is_retiring:
            return "this supervisor retires and takes no new containers"
        if len(self._containers) >= CONTAINERS_LIMIT:
            return f"{CONTAINERS_LIMIT} containers are running or not yet forgotten, no more are taken"
        if _CONTAINER_ID.match(container_id) is None:
            return (
                f"container id {container_id!r} names no folder: letters, digits and _.:@=+- are allowed, 200 at most"
            )
        return None

    def _repeat(self, container: _Container, effects: list[SupervisorEffect]) -> None:
        if container.exited is not None:
            effects.append(Report(message=container.exited))
        elif container.started is not None:
            effects.append(Report(message=container.started))

    def _on_kill(self, message: KillContainer, now: float, effects: list[SupervisorEffect]) -> None:
        container_id = message.container_id
        container = self._containers.get(container_id)
        if container is None:
            effects.append(Report(message=SupervisorRefused(message=f"container {container_id} is not here")))
            return
        match container.life:
            case Life.EXITED:
                self._repeat(container, effects)
            case Life.RUNNING | Life.TERMINATING:
                container.was_killed = True
                end = now + message.grace_period_s
                if message.grace_period_s <= 0:
                    self._kill(container_id, container, now, effects)
                elif container.life is Life.RUNNING:
                    self._change(container_id, container, Life.TERMINATING)
                    self._schedule(container_id, container, end)
                    effects.append(TerminateTree(container_id=container_id))
                elif container.due is not None and end < container.due:
                    self._schedule(container_id, container, end)
            case _:
                pass  # It is dying already.

    def _on_resize(self, message: ResizeContainer, effects: list[SupervisorEffect]) -> None:
        container = self._containers.get(message.container_id)
        if container is None or container.life not in (Life.RUNNING, Life.TERMINATING):
            return
        mem_bytes = None
        if container.mem_limit_bytes and message.limits.mem_bytes is not None:
            mem_bytes = container.mem_limit_bytes = max(container.mem_limit_bytes, message.limits.mem_bytes)
        limits = msgspec.structs.replace(message.limits, mem_bytes=mem_bytes)
        effects.append(ResizeTree(container_id=message.container_id, limits=limits))

    def _on_forget(self, container_id: ContainerId, effects: list[SupervisorEffect]) -> None:
        container = self._containers.get(container_id)
        if container is None:
            return
        if container.life is not Life.EXITED:
            refusal = f"container {container_id} is {container.life.value}: it can be forgotten when it has exited"
            effects.append(Report(message=SupervisorRefused(message=refusal)))
            return
        del self._containers[container_id]
        self._stop_if_done(effects)

    def _on_list(self, effects: list[SupervisorEffect]) -> None:
        running = tuple(
            container.started
            for container in self._containers.values()
            if container.started is not None and container.exited is None
        )
        containers = Containers(
            running=running,
            isolation=self._init.isolation,
            isolation_note=self._init.isolation_note,
            supervisor_pid=self._init.pid,
        )
        effects.append(Report(message=containers))
        effects.extend(
            Report(message=container.exited) for container in self._containers.values() if container.exited is not None
        )

    def _on_started(self, event: ProcessStarted, effects: list[SupervisorEffect]) -> None:
        container = self._containers[event.container_id]
        self._change(event.container_id, container, Life.RUNNING)
        container.started = Started(
            container_id=event.container_id, pid=event.pid, start_ticks=event.start_ticks, cgroup=event.cgroup
        )
        effects.append(Report(message=container.started))

    def _on_first_ended(self, event: FirstProcessEnded, now: float, effects: list[SupervisorEffect]) -> None:
        container = self._containers[event.container_id]
        self._change(event.container_id, container, Life.BURYING)
        container.exit_status = event.exit_status
        container.retry_s = KILL_RETRY_FIRST_S
        self._kill(event.container_id, container, now, effects)

    def _on_tree_dead(self, event: TreeDead, effects: list[SupervisorEffect]) -> None:
        container = self._containers[event.container_id]
        self._change(event.container_id, container, Life.EXITED)
        self._living_count -= 1
        container.due = None
        container.exited = Exited(
            container_id=event.container_id,
            exit_status=container.exit_status,
            oom_kills=event.oom_kills,
            mem_peak_bytes=event.mem_peak_bytes,
            mem_limit_bytes=container.mem_limit_bytes,
            was_killed=container.was_killed,
        )
        effects.append(Report(message=container.exited))

    def _kill(
        self, container_id: ContainerId, container: _Container, now: float, effects: list[SupervisorEffect]
    ) -> None:
        """SIGKILL now, and again until the tree is dead: a fork may have slipped through."""
        if container.life in (Life.RUNNING, Life.TERMINATING):
            self._change(container_id, container, Life.KILLING)
        effects.append(KillTree(container_id=container_id))
        self._schedule(container_id, container, now + container.retry_s)
        container.retry_s = min(2 * container.retry_s, KILL_RETRY_LIMIT_S)

    def _schedule(self, container_id: ContainerId, container: _Container, at: float) -> None:
        container.due = at
        heapq.heappush(self._due, (at, container_id))

    def _change(self, container_id: ContainerId, container: _Container, wanted: Life) -> None:
        if wanted not in TRANSITIONS[container.life]:
            raise InvalidTransition(f"container {container_id}", container.life.value, wanted.value)
        container.life = wanted

    def _stop_if_done(self, effects: list[SupervisorEffect]) -> None:
        if self._is_retiring and not self._containers:
            effects.append(Stop(reason="retired, and the last container is forgotten"))

    def _look_idle(self, now: float) -> None:
        if self._living_count or self._has_daemon:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
