"""What must hold after every step of a simulation, and what once the faults have stopped.

The witness is the machines' kernel: which processes really ran, from when to when.
"""

from collections.abc import Iterable, Sequence

from meseta.errors import MesetaError
from meseta.ids import TaskId
from meseta.model import TaskState
from meseta.resources import Resources, sum_resources
from meseta.testing.machine import Machine, Process
from meseta.testing.workload import TaskRecord, WorkloadStore

RAN_STATES = frozenset({TaskState.FINISHED, TaskState.FAILED, TaskState.KILLED})


class PromiseBroken(MesetaError):
    """A promise of docs/architecture.md does not hold. Carries the seed that repeats it, and the trace."""

    def __init__(self, promise: str, *, seed: int, moment_s: float, trace: Sequence[str]) -> None:
        self.promise = promise
        self.seed = seed
        self.moment_s = moment_s
        self.trace = tuple(trace)
        super().__init__(f"seed {seed}, {moment_s:.3f} s: {promise}")


def broken_now(
    machines: Iterable[Machine],
    stores: Iterable[WorkloadStore],
    task_resources: Resources,
    machine_resources: Resources,
) -> str | None:
    """Return the promise that does not hold at this instant, None if all do."""
    ends = {record.task_id: record for store in stores for record in store.records.values() if record.end is not None}
    for machine in machines:
        running = machine.running()
        used = sum_resources([task_resources] * len(running))
        if not used <= machine_resources:
            return f"{machine.name} has {machine_resources}, but its processes were given {used}"
        for process in running:
            record = ends.get(process.task_id)
            if record is not None and record.end is not None:
                return f"{process.task_id} runs on {machine.name} after its framework was told {record.end.state}"
    return None


def broken_for_ever(machines: Iterable[Machine], stores: Iterable[WorkloadStore]) -> str | None:
    """Return a promise that was broken at any time and leaves its mark: doubled runs, doubled ends, false errors."""
    starts: dict[TaskId, int] = {}
    for machine in machines:
        for process in machine.processes:
            starts[process.task_id] = starts.get(process.task_id, 0) + 1
    doubled = [task_id for task_id, count in starts.items() if count > 1]
    if doubled:
        return f"{doubled[0]} was started {starts[doubled[0]]} times"
    for store in stores:
        if store.ended_twice:
            return f"two ends were reported: {store.ended_twice[0]}"
        if store.errors:
            return f"a framework was told: {store.errors[0]}"
    return None


def broken_at_rest(machines: Iterable[Machine], stores: Iterable[WorkloadStore]) -> str | None:
    """Return the promise that does not hold when all faults are over and all work should be done."""
    by_task: dict[TaskId, tuple[Machine, Process]] = {}
    for machine in machines:
        if machine.running():
            return f"{machine.running()[0].task_id} still runs on {machine.name}"
        by_task |= {process.task_id: (machine, process) for process in machine.processes}
    known: set[TaskId] = set()
    for store in stores:
        known |= set(store.records)
        for record in store.records.values():
            if record.end is None:
                told = record.statuses[-1].state if record.statuses else "nothing"
                return f"{record.task_id} has no end: its framework was told {told}"
            broken = _false_end(record, by_task.get(record.task_id))
            if broken is not None:
                return broken
    unknown = [task_id for task_id in by_task if task_id not in known]
    return f"{unknown[0]} ran, but no framework launched it" if unknown else None


def _false_end(record: TaskRecord, ran: tuple[Machine, Process] | None) -> str | None:
    """Compare the end that was reported with the one that the kernel saw."""
    assert record.end is not None
    state = record.end.state
    if ran is None:
        if state is TaskState.FINISHED:
            return f"{record.task_id} was reported finished, but it never ran"
        return None
    machine, process = ran
    ended_by_itself = process.supervisor is not None and not process.was_killed
    if ended_by_itself and process.exit_status == 0 and state is not TaskState.FINISHED:
        return f"{record.task_id} ended well on {machine.name}, but was reported {state}"
    if state is TaskState.FINISHED and process.exit_status != 0:
        return f"{record.task_id} was reported finished, but ended on {machine.name} with {process.exit_status}"
    if state is TaskState.KILLED and not record.kill_asked:
        return f"{record.task_id} was reported killed, but nobody asked for it"
    return None
