"""The batch core against a plain model of slaves that finish, fail, vanish, come back and lose outputs."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from frameworks.batch.core import BatchInit
from frameworks.batch.events import (
    Disconnected,
    Effect,
    EndExecutor,
    HeartbeatReceived,
    KillAttempt,
    KillJob,
    Launch,
    SlaveWasLost,
)
from frameworks.batch.lifecycle import FETCH_FAILURE_LIMIT, LOSS_LIMIT
from frameworks.batch.model import CommitOrder, Heartbeat, JobState, ReduceOrder, Report, TaskKind, Verdict
from meseta.ids import ExecutorId, SlaveId, TaskId
from meseta.model import Reason, TaskState
from tests.unit.batch_cluster import MIB, Cluster, slave

SLAVES = (1, 2, 3)


class Jobs(RuleBasedStateMachine):
    """Two jobs on three slaves; the model knows which attempts run and which outputs exist."""

    @initialize(seed=st.integers(0, 1000))
    def start(self, seed: int) -> None:
        self.cluster = Cluster(BatchInit(seed=seed, unix_offset_s=1000.0))
        self.cluster.register()
        self.jobs = [self.cluster.submit(split_bytes=4 * MIB, reducers=2), self.cluster.submit(output="/data/out2")]
        self.launched: set[TaskId] = set()
        self.finished: dict[TaskId, SlaveId] = {}
        self.lost_outputs: set[TaskId] = set()
        self.killed: set[TaskId] = set()
        self.executors: set[tuple[str, str]] = set()
        self.wanted_end: dict[str, JobState] = {}
        self.faults = 0
        self.watch([])

    # --- What the core must never do --------------------------------------------------------------

    def watch(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, KillAttempt):
                self.killed.add(effect.task_id)
            if isinstance(effect, EndExecutor):
                self.executors.discard((effect.slave_id, effect.executor_id))
            if not isinstance(effect, Launch):
                continue
            for item in effect.items:
                self.executors.add((effect.slave_id, item.job_id))
                assert item.task_id not in self.launched, "an attempt's id is used once"
                self.launched.add(item.task_id)
                if isinstance(item.order, ReduceOrder):
                    for source in item.order.sources:
                        assert source.attempt_id in self.finished, "a reduce reads finished maps only"
                        assert source.attempt_id not in self.lost_outputs, "and none whose output is lost"
                    count = len({source.map_index for source in item.order.sources})
                    assert count == self.cluster.view(item.job_id).maps_total, "and all of them"
                if isinstance(item.order, CommitOrder):
                    for index, attempt_id in enumerate(item.order.attempt_ids):
                        assert attempt_id in self.finished
                        assert f".reduce-{index:05d}." in attempt_id
                    assert len(item.order.attempt_ids) == self.cluster.view(item.job_id).reduces_total

    @invariant()
    def jobs_stay_where_they_ended(self) -> None:
        if not hasattr(self, "cluster"):
            return
        for job_id in self.jobs:
            state = self.cluster.view(job_id).state
            if job_id in self.wanted_end and self.wanted_end[job_id].is_terminal:
                assert state is self.wanted_end[job_id]
            if state.is_terminal:
                self.wanted_end[job_id] = state

    # --- What the world does ------------------------------------------------------------------------

    @rule(number=st.sampled_from(SLAVES), cpus=st.sampled_from([0.5, 1.0, 2.0]))
    def offer(self, number: int, cpus: float) -> None:
        executors = sorted(job_id for slave_id, job_id in self.executors if slave_id == slave(number))
        self.watch(self.cluster.offer(number, cpus=cpus, executors=tuple(executors)))

    @precondition(lambda self: self.executors and self.faults < 5)
    @rule(data=st.data())
    def lose_executor(self, data: Any) -> None:
        """An executor ends, and the attempts in it."""
        self.faults += 1
        gone = data.draw(st.sampled_from(sorted(self.executors)))
        self.executors.discard(gone)
        for task_id, (slave_id, item) in list(self.cluster.running.items()):
            if (slave_id, item.job_id) == gone:
                self.watch(self.cluster.status(task_id, TaskState.FAILED, reason=Reason.EXECUTOR_TERMINATED))

    def pick(self, data: Any) -> TaskId:
        return TaskId(data.draw(st.sampled_from(sorted(self.cluster.running))))

    @precondition(lambda self: self.cluster.running)
    @rule(data=st.data())
    def finish(self, data: Any) -> None:
        self.finish_one(self.pick(data))

    def finish_one(self, task_id: TaskId) -> None:
        self.finished[task_id] = self.cluster.running[task_id][0]
        self.watch(self.cluster.finish(task_id))

    @rule(rounds=st.integers(1, 4))
    def advance(self, rounds: int) -> None:
        """A while without faults: jobs come as far as they can."""
        for _ in range(rounds):
            for number in SLAVES:
                self.offer(number, 1.0)
            for task_id in sorted(set(self.cluster.running) - self.killed):
                if task_id not in self.killed:
                    self.finish_one(task_id)
            self.watch(self.cluster.wait(1.0))

    @precondition(lambda self: self.cluster.running)
    @rule(data=st.data())
    def run(self, data: Any) -> None:
        self.watch(self.cluster.status(self.pick(data), TaskState.RUNNING))

    @precondition(lambda self: self.cluster.running and self.faults < 5)
    @rule(data=st.data(), state=st.sampled_from([TaskState.FAILED, TaskState.LOST, TaskState.UNREACHABLE]))
    def fail(self, data: Any, state: TaskState) -> None:
        self.faults += 1
        task_id = self.pick(data)
        report = Report(error="broken") if state is TaskState.FAILED else None
        self.watch(self.cluster.status(task_id, state, report))
        self.cluster.running.pop(task_id, None)

    @precondition(lambda self: self.killed & set(self.cluster.running))
    @rule(data=st.data())
    def end_killed(self, data: Any) -> None:
        task_id = TaskId(data.draw(st.sampled_from(sorted(self.killed & set(self.cluster.running)))))
        self.watch(self.cluster.status(task_id, TaskState.KILLED))

    @precondition(lambda self: self.cluster.of_kind(TaskKind.REDUCE) and self.faults < 5)
    @rule(data=st.data())
    def fail_to_fetch(self, data: Any) -> None:
        self.faults += 1
        task_id = TaskId(data.draw(st.sampled_from(sorted(self.cluster.of_kind(TaskKind.REDUCE)))))
        order = self.cluster.running[task_id][1].order
        assert isinstance(order, ReduceOrder)
        lost = tuple((source.map_index, source.attempt_id) for source in order.sources[:1])
        self.lost_outputs.update(attempt_id for _, attempt_id in lost)
        report = Report(error="no answer", verdict=Verdict.FETCH_FAILED, lost_outputs=lost)
        self.watch(self.cluster.status(task_id, TaskState.FAILED, report))

    @precondition(lambda self: self.faults < 5)
    @rule(number=st.sampled_from(SLAVES))
    def lose_slave(self, number: int) -> None:
        self.faults += 1
        self.cluster.running = {
            task_id: one for task_id, one in self.cluster.running.items() if one[0] != slave(number)
        }
        self.executors = {one for one in self.executors if one[0] != slave(number)}
        self.lost_outputs.update(task_id for task_id, slave_id in self.finished.items() if slave_id == slave(number))
        self.watch(self.cluster.step(SlaveWasLost(slave_id=slave(number))))

    @rule(number=st.sampled_from(SLAVES), index=st.integers(0, 1))
    def beat(self, number: int, index: int) -> None:
        job_id = self.jobs[index]
        progress: dict[str, float] = {
            task_id: 0.5 for task_id, one in self.cluster.running.items() if one[0] == slave(number)
        }
        heartbeat = Heartbeat(job_id=job_id, progress=progress)
        event = HeartbeatReceived(slave_id=slave(number), executor_id=ExecutorId(job_id), heartbeat=heartbeat)
        self.watch(self.cluster.step(event))

    @rule(seconds=st.sampled_from([0.1, 1.0, 12.0]))
    def wait(self, seconds: float) -> None:
        self.watch(self.cluster.wait(seconds))

    @rule()
    def lose_master(self) -> None:
        self.watch(self.cluster.step(Disconnected()))
        self.watch(self.cluster.register())

    @rule(index=st.integers(0, 1))
    @precondition(lambda self: self.faults == 4)
    def kill(self, index: int) -> None:
        self.faults += 1
        self.watch(self.cluster.step(KillJob(request_id=1, job_id=self.jobs[index])))

    @rule()
    def restart(self) -> None:
        """The daemon is killed and started again; slaves tell what still runs."""
        old = self.cluster
        init = BatchInit(
            seed=len(self.launched) + 5000,
            unix_offset_s=1000.0,
            jobs=tuple(old.jobs.values()),
            tasks=tuple(old.tasks.values()),
        )
        new = Cluster(init)
        new.now, new.running, new.jobs, new.tasks = old.now + 1, old.running, old.jobs, old.tasks
        new.listing = old.listing
        self.cluster = new
        self.watch(new.register())
        for task_id in sorted(new.running):
            self.watch(new.status(task_id, TaskState.RUNNING))

    # --- When the faults have stopped, the jobs end -------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "cluster"):
            return
        for _ in range(200):
            if all(self.cluster.view(job_id).state.is_terminal for job_id in self.jobs):
                break
            for number in SLAVES:
                self.offer(number, 2.0)
            for task_id in sorted(self.cluster.running):
                if task_id in self.killed:
                    self.watch(self.cluster.status(task_id, TaskState.KILLED))
                elif task_id in self.cluster.running:
                    self.finish_one(task_id)
            self.watch(self.cluster.wait(1.0))
        states = {job_id: self.cluster.view(job_id) for job_id in self.jobs}
        assert all(view.state.is_terminal for view in states.values()), states
        for view in states.values():
            assert view.state is not JobState.FAILED or view.failed_attempts >= 4 or self.faults >= 4, view
        assert FETCH_FAILURE_LIMIT > 5 < LOSS_LIMIT  # Five faults alone must not fail a job.
        self.cluster.core.check()


TestJobs = Jobs.TestCase
TestJobs.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
