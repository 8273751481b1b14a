"""Builders for tests of the batch core: a cluster that answers as executors would."""

from itertools import count

from frameworks.batch.core import BatchCore, BatchInit
from frameworks.batch.events import (
    Effect,
    Event,
    ForgetTasks,
    JobSaved,
    Launch,
    LaunchItem,
    OffersReceived,
    Registered,
    SaveJob,
    SaveTask,
    StatusReceived,
    SubmitJob,
)
from frameworks.batch.lifecycle import SETTLE_S
from frameworks.batch.model import (
    JobRecord,
    JobSpec,
    JobState,
    JobView,
    Listing,
    OutputLocation,
    Report,
    TaskKind,
    TaskRecord,
    encode_report,
)
from meseta.ids import ContainerId, ExecutorId, OfferId, SlaveId, TaskId
from meseta.model import Address, Offer, TaskState, TaskStatus
from meseta.resources import resources

MIB = 1 << 20
INPUT = "/data/in"
OUTPUT = "/data/out"


def slave(number: int) -> SlaveId:
    return SlaveId(f"s-{number}")


class Cluster:
    """Drives one core: keeps the time, collects effects, answers like executors."""

    def __init__(self, init: BatchInit | None = None) -> None:
        self.core = BatchCore(init or BatchInit(seed=1, unix_offset_s=1000.0))
        self.now = 100.0
        self.effects: list[Effect] = []
        self.running: dict[TaskId, tuple[SlaveId, LaunchItem]] = {}
        self.jobs: dict[str, JobRecord] = {}
        self.tasks: dict[tuple[str, TaskKind, int], TaskRecord] = {}
        self._offers = count(1)
        self.listing = Listing(inputs=((("/data/in/a", 8 * MIB),),), has_output=False, has_output_parent=True)
        self.listings: dict[SlaveId, Listing] = {}

    def step(self, event: Event) -> list[Effect]:
        return self._take(self.core.handle(event, self.now))

    def _take(self, effects: list[Effect]) -> list[Effect]:
        self.core.check()
        self.effects += effects
        for effect in effects:
            if isinstance(effect, Launch):
                self.running.update({item.task_id: (effect.slave_id, item) for item in effect.items})
            elif isinstance(effect, SaveJob):
                self.jobs[effect.record.job_id] = effect.record
            elif isinstance(effect, SaveTask):
                self.tasks[effect.record.job_id, effect.record.kind, effect.record.index] = effect.record
            elif isinstance(effect, ForgetTasks):
                self.tasks = {key: one for key, one in self.tasks.items() if key[0] != effect.job_id}
        return effects

    def wait(self, seconds: float) -> list[Effect]:
        """Let time pass, with ticks when they are due."""
        effects: list[Effect] = []
        until = self.now + seconds
        while (due := self.core.next_deadline()) is not None and due <= until:
            self.now = max(self.now, due)
            effects += self._take(self.core.tick(self.now))
        self.now = until
        return effects

    def register(self) -> list[Effect]:
        return self.step(Registered())

    def offer(
        self, number: int, *, cpus: float = 2, mem_mib: float = 4096, executors: tuple[str, ...] = ()
    ) -> list[Effect]:
        offer = Offer(
            offer_id=OfferId(f"o-{next(self._offers)}"),
            framework_id="f-1",  # type: ignore[arg-type]
            slave_id=slave(number),
            hostname=f"host{number}",
            resources=resources(cpus=cpus, mem_mib=mem_mib),
            address=Address(endpoint="tcp://127.0.0.1:1"),
            executor_ids=tuple(ExecutorId(one) for one in executors),
        )
        return self.step(OffersReceived(offers=(offer,)))

    def submit(self, **changes: object) -> str:
        fields: dict[str, object] = {
            "name": "n",
            "user": "u",
            "inputs": (INPUT,),
            "output": OUTPUT,
            "file_name": "j.py",
        }
        spec = JobSpec(**{**fields, **changes})  # type: ignore[arg-type]
        effects = self.step(SubmitJob(request_id=1, spec=spec, unix_s=5.0))
        record = next(effect.record for effect in effects if isinstance(effect, SaveJob))
        self.step(JobSaved(job_id=record.job_id))
        return record.job_id

    def status(self, task_id: TaskId, state: TaskState, report: Report | None = None, **fields: object) -> list[Effect]:
        slave_id, _ = self.running.pop(task_id) if state.is_terminal else self.running[task_id]
        data = b"" if report is None else encode_report(report)
        status = TaskStatus(task_id=task_id, state=state, slave_id=slave_id, data=data, **fields)  # type: ignore[arg-type]
        return self.step(StatusReceived(status=status))

    def finish(self, task_id: TaskId) -> list[Effect]:
        """Let an attempt succeed, as an executor would report it."""
        slave_id, item = self.running[task_id]
        listing = location = None
        if item.kind is TaskKind.PROBE:
            listing = self.listings.get(slave_id, self.listing)
        elif item.kind is TaskKind.MAP:
            location = OutputLocation(
                address=Address(endpoint=f"tcp://{slave_id}:1"),
                container_id=ContainerId(f"c-{slave_id}"),
                path="x",
                offsets=(0, 10, 20, 30, 40),
            )
        counters = (("batch", "records", 7), ("mine", "seen", 1))
        return self.status(task_id, TaskState.FINISHED, Report(counters=counters, location=location, listing=listing))

    def of_kind(self, kind: TaskKind) -> list[TaskId]:
        return [task_id for task_id, (_, item) in self.running.items() if item.kind is kind]

    def view(self, job_id: str) -> JobView:
        view = self.core.view(job_id)
        assert view is not None
        return view

    def to_running(self, job_id: str, *slaves: int) -> None:
        """Probe from some slaves and set up."""
        for number in slaves:
            self.offer(number)
        for task_id in self.of_kind(TaskKind.PROBE):
            self.finish(task_id)
        self.wait(SETTLE_S)
        self.offer(slaves[0], executors=(job_id,))
        (setup,) = self.of_kind(TaskKind.SETUP)
        self.finish(setup)
        assert self.view(job_id).state is JobState.RUNNING

    def to_maps_done(self, job_id: str, *slaves: int) -> None:
        self.to_running(job_id, *slaves)
        while self.view(job_id).maps_done < self.view(job_id).maps_total:
            for number in slaves:
                self.offer(number, executors=(job_id,))
            for task_id in self.of_kind(TaskKind.MAP):
                self.finish(task_id)
