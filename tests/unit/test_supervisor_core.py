"""The supervisor's decisions: one start a container, two steps of killing, ends kept until they are forgotten."""

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from meseta.errors import InvalidTransition
from meseta.ids import ContainerId
from slave.supervisor_core import (
    IDLE_LIMIT_S,
    KILL_RETRY_FIRST_S,
    KILL_RETRY_LIMIT_S,
    TRANSITIONS,
    AskedToEnd,
    DaemonCame,
    DaemonWent,
    FirstProcessEnded,
    KillTree,
    Life,
    LookForSocket,
    ProcessStarted,
    Report,
    Request,
    ResizeTree,
    SocketGone,
    StartProcess,
    StartRefused,
    Stop,
    SupervisorCore,
    SupervisorEffect,
    SupervisorEvent,
    SupervisorInit,
    TerminateTree,
    TreeDead,
)
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

A = ContainerId("a")


def new_core() -> SupervisorCore:
    return SupervisorCore(SupervisorInit(isolation="posix", isolation_note="for the test", pid=7))


def start_message(container_id: ContainerId = A, mem_bytes: int | None = None) -> StartContainer:
    return StartContainer(
        container_id=container_id, arguments=("x",), environment={}, sandbox="/s", limits=Limits(mem_bytes=mem_bytes)
    )


def started(container_id: ContainerId = A) -> Started:
    return Started(container_id=container_id, pid=10, start_ticks=20, cgroup="g")


def process_started(container_id: ContainerId = A) -> ProcessStarted:
    return ProcessStarted(container_id=container_id, pid=10, start_ticks=20, cgroup="g")


def ask(core: SupervisorCore, message: ToSupervisor, now: float = 0.0) -> list[SupervisorEffect]:
    return core.handle(Request(message=message), now)


def running_core() -> SupervisorCore:
    core = new_core()
    ask(core, start_message())
    core.handle(process_started(), 0.0)
    return core


def exited_core() -> SupervisorCore:
    core = running_core()
    core.handle(FirstProcessEnded(container_id=A, exit_status=3), 1.0)
    core.handle(TreeDead(container_id=A), 1.0)
    return core


def reports(effects: list[SupervisorEffect]) -> list[FromSupervisor]:
    return [effect.message for effect in effects if isinstance(effect, Report)]


def test_start_is_performed_and_reported_once() -> None:
    core = new_core()
    message = start_message()
    assert ask(core, message) == [StartProcess(message=message)]
    assert core.handle(process_started(), 0.0) == [Report(message=started())]
    core.check()


def test_second_start_of_a_running_container_repeats_the_answer() -> None:
    core = running_core()
    assert ask(core, start_message()) == [Report(message=started())]
    core.check()


def test_second_start_of_an_ended_container_repeats_its_end() -> None:
    core = exited_core()
    assert reports(ask(core, start_message())) == [Exited(container_id=A, exit_status=3)]
    core.check()


def test_refused_start_leaves_nothing_to_forget() -> None:
    core = new_core()
    ask(core, start_message())
    effects = core.handle(StartRefused(container_id=A, message="no program"), 0.0)
    assert effects == [Report(message=StartFailed(container_id=A, message="no program"))]
    assert ask(core, start_message()) == [StartProcess(message=start_message())]
    core.check()


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a\nb", "x" * 201])
def test_id_that_names_no_folder_is_refused(name: str) -> None:
    core = new_core()
    (report,) = reports(ask(core, start_message(ContainerId(name))))
    assert isinstance(report, StartFailed)
    assert "names no folder" in report.message
    core.check()


def test_end_is_reported_only_when_the_tree_is_dead() -> None:
    core = new_core()
    ask(core, start_message(mem_bytes=99))
    core.handle(process_started(), 0.0)
    assert core.handle(FirstProcessEnded(container_id=A, exit_status=137), 1.0) == [KillTree(container_id=A)]
    assert core.next_deadline() == 1.0 + KILL_RETRY_FIRST_S
    assert core.tick(1.0 + KILL_RETRY_FIRST_S) == [KillTree(container_id=A)]
    end = Exited(container_id=A, exit_status=137, oom_kills=1, mem_peak_bytes=98, mem_limit_bytes=99)
    assert core.handle(TreeDead(container_id=A, oom_kills=1, mem_peak_bytes=98), 1.1) == [Report(message=end)]
    core.check()


def test_kill_is_repeated_with_growing_pauses_until_the_tree_is_dead() -> None:
    core = running_core()
    core.handle(FirstProcessEnded(container_id=A, exit_status=0), 0.0)
    pauses = []
    now = 0.0
    for _ in range(12):
        deadline = core.next_deadline()
        assert deadline is not None
        pauses.append(round(deadline - now, 6))
        now = deadline
        assert core.tick(now) == [KillTree(container_id=A)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == KILL_RETRY_LIMIT_S
    core.check()


def test_kill_terminates_first_and_kills_after_the_grace() -> None:
    core = running_core()
    kill = KillContainer(container_id=A, grace_period_s=3.0)
    assert ask(core, kill, 10.0) == [TerminateTree(container_id=A)]
    assert core.next_deadline() == 13.0
    assert core.tick(12.9) == []
    assert core.tick(13.0) == [KillTree(container_id=A)]
    core.handle(FirstProcessEnded(container_id=A, exit_status=137), 13.1)
    assert reports(core.handle(TreeDead(container_id=A), 13.1)) == [
        Exited(container_id=A, exit_status=137, was_killed=True)
    ]
    core.check()


def test_process_that_obeys_sigterm_ends_before_the_grace_does() -> None:
    core = running_core()
    ask(core, KillContainer(container_id=A, grace_period_s=3.0), 10.0)
    core.handle(FirstProcessEnded(container_id=A, exit_status=143), 10.5)
    core.handle(TreeDead(container_id=A), 10.5)
    assert core.tick(13.0) == []
    core.check()


def test_no_grace_kills_at_once() -> None:
    core = running_core()
    assert ask(core, KillContainer(container_id=A, grace_period_s=0.0), 1.0) == [KillTree(container_id=A)]
    core.check()


def test_second_kill_can_only_shorten_the_grace() -> None:
    core = running_core()
    ask(core, KillContainer(container_id=A, grace_period_s=5.0), 0.0)
    assert ask(core, KillContainer(container_id=A, grace_period_s=50.0), 1.0) == []
    assert core.next_deadline() == 5.0
    ask(core, KillContainer(container_id=A, grace_period_s=1.0), 1.0)
    assert core.next_deadline() == 2.0
    assert core.tick(2.0) == [KillTree(container_id=A)]
    core.check()


def test_kill_of_an_unknown_container_is_refused_and_of_an_ended_one_answered() -> None:
    core = exited_core()
    assert reports(ask(core, KillContainer(container_id=A, grace_period_s=1.0))) == [
        Exited(container_id=A, exit_status=3)
    ]
    (refusal,) = reports(ask(core, KillContainer(container_id=ContainerId("b"), grace_period_s=1.0)))
    assert refusal == SupervisorRefused(message="container b is not here")
    core.check()


def test_list_shows_what_runs_and_repeats_ends_until_they_are_forgotten() -> None:
    core = exited_core()
    b = ContainerId("b")
    ask(core, start_message(b))
    core.handle(process_started(b), 2.0)
    listed = Containers(running=(started(b),), isolation="posix", isolation_note="for the test", supervisor_pid=7)
    assert reports(ask(core, ListContainers())) == [listed, Exited(container_id=A, exit_status=3)]
    assert ask(core, Forget(container_id=A)) == []
    assert reports(ask(core, ListContainers())) == [listed]
    core.check()


def test_running_container_cannot_be_forgotten() -> None:
    core = running_core()
    (refusal,) = reports(ask(core, Forget(container_id=A)))
    assert isinstance(refusal, SupervisorRefused)
    assert ask(core, start_message()) == [Report(message=started())]
    core.check()


def test_retired_supervisor_takes_no_starts_and_stops_when_the_last_is_forgotten() -> None:
    core = running_core()
    assert ask(core, RetireSupervisor()) == []
    (refusal,) = reports(ask(core, start_message(ContainerId("b"))))
    assert isinstance(refusal, StartFailed)
    core.handle(FirstProcessEnded(container_id=A, exit_status=0), 1.0)
    core.handle(TreeDead(container_id=A), 1.0)
    (stop,) = ask(core, Forget(container_id=A))
    assert isinstance(stop, Stop)
    core.check()


def test_sigterm_stops_only_a_supervisor_without_containers() -> None:
    assert running_core().handle(AskedToEnd(), 1.0) == []
    assert exited_core().handle(AskedToEnd(), 1.0) == []
    (stop,) = new_core().handle(AskedToEnd(), 1.0)
    assert isinstance(stop, Stop)


def test_supervisor_without_containers_and_daemon_stops_after_a_while() -> None:
    core = new_core()
    core.handle(DaemonCame(), 0.0)
    assert core.next_deadline() is None
    core.handle(DaemonWent(), 5.0)
    assert core.next_deadline() == 5.0 + IDLE_LIMIT_S
    (stop,) = core.tick(5.0 + IDLE_LIMIT_S)
    assert isinstance(stop, Stop)


def test_supervisor_with_running_tasks_outlives_its_daemon_for_ever() -> None:
    core = running_core()
    core.handle(DaemonWent(), 5.0)
    assert core.next_deadline() is None


def test_unforgotten_ends_are_kept_as_long_as_a_daemon_can_come() -> None:
    core = exited_core()
    core.handle(DaemonWent(), 5.0)
    assert core.tick(5.0 + IDLE_LIMIT_S) == [LookForSocket()]
    assert core.next_deadline() == 5.0 + 2 * IDLE_LIMIT_S
    (stop,) = core.handle(SocketGone(), 70.0)
    assert isinstance(stop, Stop)


# How to bring a container into each state, and what brings it out.
HISTORIES: dict[Life, tuple[SupervisorEvent, ...]] = {
    Life.STARTING: (),
    Life.RUNNING: (process_started(),),
    Life.TERMINATING: (
        process_started(),
        Request(message=KillContainer(container_id=A, grace_period_s=9.0)),
    ),
    Life.KILLING: (
        process_started(),
        Request(message=KillContainer(container_id=A, grace_period_s=0.0)),
    ),
    Life.BURYING: (process_started(), FirstProcessEnded(container_id=A, exit_status=0)),
    Life.EXITED: (
        process_started(),
        FirstProcessEnded(container_id=A, exit_status=0),
        TreeDead(container_id=A),
    ),
}
CAUSES: dict[Life, SupervisorEvent] = {
    Life.RUNNING: process_started(),
    Life.BURYING: FirstProcessEnded(container_id=A, exit_status=0),
    Life.EXITED: TreeDead(container_id=A),
}


@pytest.mark.parametrize(("current", "wanted"), list(itertools.product(Life, CAUSES)))
def test_lifecycle_allows_what_its_table_says(current: Life, wanted: Life) -> None:
    core = new_core()
    ask(core, start_message())
    for event in HISTORIES[current]:
        core.handle(event, 0.0)
    if wanted in TRANSITIONS[current]:
        core.handle(CAUSES[wanted], 0.0)
        core.check()
    else:
        with pytest.raises(InvalidTransition):
            core.handle(CAUSES[wanted], 0.0)


class SupervisorHistory(RuleBasedStateMachine):
    """Any order of requests and deaths: each start leads to one process and one end, told until it is forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.core = new_core()
        self.now = 0.0
        self.alive: dict[ContainerId, bool] = {}  # Value: the first process lives.
        self.ended: set[ContainerId] = set()
        self.end_reports: dict[ContainerId, Exited] = {}
        self.asked_kill: set[ContainerId] = set()

    ids = st.sampled_from([ContainerId(name) for name in "abc"])

    def perform(self, effects: list[SupervisorEffect]) -> None:
        for effect in effects:
            match effect:
                case StartProcess():
                    container_id = effect.message.container_id
                    assert container_id not in self.alive
                    assert container_id not in self.ended
                    self.alive[container_id] = True
                    self.perform(self.core.handle(process_started(container_id), self.now))
                case KillTree():
                    assert effect.container_id in self.alive
                    if not self.alive[effect.container_id]:
                        del self.alive[effect.container_id]
                        self.ended.add(effect.container_id)
                        self.perform(self.core.handle(TreeDead(container_id=effect.container_id), self.now))
                case Report(message=Exited() as end):
                    assert end.container_id in self.ended
                    assert self.end_reports.setdefault(end.container_id, end) == end
                    assert end.was_killed <= (end.container_id in self.asked_kill)
                case _:
                    pass

    @rule(container_id=ids)
    def start(self, container_id: ContainerId) -> None:
        self.perform(ask(self.core, start_message(container_id), self.now))

    @rule(container_id=ids, grace_s=st.sampled_from([0.0, 1.0, 5.0]))
    def kill(self, container_id: ContainerId, grace_s: float) -> None:
        self.asked_kill.add(container_id)
        self.perform(ask(self.core, KillContainer(container_id=container_id, grace_period_s=grace_s), self.now))

    @rule(container_id=ids)
    def first_process_ends(self, container_id: ContainerId) -> None:
        if self.alive.get(container_id):
            self.alive[container_id] = False
            self.perform(self.core.handle(FirstProcessEnded(container_id=container_id, exit_status=0), self.now))

    @rule(container_id=ids)
    def forget(self, container_id: ContainerId) -> None:
        self.perform(ask(self.core, Forget(container_id=container_id), self.now))
        if container_id in self.ended:
            self.ended.discard(container_id)
            del self.end_reports[container_id]
            self.asked_kill.discard(container_id)

    @rule(pause_s=st.floats(min_value=0.0, max_value=3.0))
    def wait(self, pause_s: float) -> None:
        self.now += pause_s
        self.perform(self.core.tick(self.now))
        deadline = self.core.next_deadline()
        assert deadline is None or deadline > self.now

    @invariant()
    def every_end_was_told(self) -> None:
        assert set(self.end_reports) == self.ended

    @invariant()
    def the_core_is_consistent(self) -> None:
        self.core.check()


SupervisorHistory.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSupervisorHistory = SupervisorHistory.TestCase


def test_resize_raises_memory_only_and_nothing_of_what_has_ended() -> None:
    core = new_core()
    ask(core, start_message(mem_bytes=64))
    core.handle(process_started(), 0.0)
    lower = ResizeContainer(container_id=A, limits=Limits(cpu_milli=500, mem_bytes=32))
    assert ask(core, lower) == [ResizeTree(container_id=A, limits=Limits(cpu_milli=500, mem_bytes=64))]
    higher = ResizeContainer(container_id=A, limits=Limits(mem_bytes=128))
    assert ask(core, higher) == [ResizeTree(container_id=A, limits=Limits(mem_bytes=128))]
    core.handle(FirstProcessEnded(container_id=A, exit_status=0), 1.0)
    (report,) = reports(core.handle(TreeDead(container_id=A), 1.0))
    assert isinstance(report, Exited)
    assert report.mem_limit_bytes == 128
    assert ask(core, higher) == []


def test_resize_limits_no_memory_that_was_not_limited() -> None:
    core = running_core()
    message = ResizeContainer(container_id=A, limits=Limits(cpu_milli=500, mem_bytes=32))
    assert ask(core, message) == [ResizeTree(container_id=A, limits=Limits(cpu_milli=500))]
