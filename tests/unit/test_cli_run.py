"""What the framework behind `dcos run` decides."""

from cli.run_scheduler import STARTS_LIMIT, Plan, RunScheduler
from meseta.ids import ContainerId, FrameworkId, OfferId, SlaveId, TaskId
from meseta.messages import AcceptOffers, DeclineOffers, KillTask, ReviveOffers, SuppressOffers
from meseta.model import Address, CommandInfo, Offer, Reason, TaskInfo, TaskState, TaskStatus
from meseta.resources import resources
from tests.unit.run_driver import RememberingDriver

SLAVE = SlaveId("s-1")
FRAMEWORK = FrameworkId("f-1")


class RememberingWatcher:
    def __init__(self) -> None:
        self.started_indexes: list[int] = []
        self.ended_indexes: list[int] = []
        self.texts: list[str] = []
        self.end_count = 0

    def started(self, index: int, slave_id: SlaveId, framework_id: FrameworkId, container_id: ContainerId) -> None:
        self.started_indexes.append(index)

    def ended(self, index: int) -> None:
        self.ended_indexes.append(index)

    def all_ended(self) -> None:
        self.end_count += 1

    def tell(self, text: str) -> None:
        self.texts.append(text)


class Run:
    """One scheduler with its driver and watcher."""

    def __init__(self, instance_count: int = 1) -> None:
        plan = Plan(
            task_prefix="job-1",
            name="job",
            instance_count=instance_count,
            command=CommandInfo(arguments=("true",)),
            resources=resources(cpus=1, mem_mib=100),
            kill_grace_s=3.0,
        )
        self.watcher = RememberingWatcher()
        self.driver = RememberingDriver()
        self.scheduler = RunScheduler(plan, self.watcher)
        self.scheduler.registered(self.driver, FRAMEWORK)

    def offer(self, cpus: float, name: str = "o-1") -> list[TaskInfo]:
        """Offer so many cpus, return the tasks launched there."""
        offer = Offer(
            offer_id=OfferId(name),
            framework_id=FRAMEWORK,
            slave_id=SLAVE,
            hostname="h",
            resources=resources(cpus=cpus, mem_mib=1000),
            address=Address(endpoint="tcp://127.0.0.1:1"),
        )
        self.driver.take()
        self.scheduler.resource_offers(self.driver, [offer])
        accepted = [call for call in self.driver.calls if isinstance(call, AcceptOffers)]
        return [task for call in accepted for operation in call.operations for task in operation.task_infos]

    def update(self, task_id: str, state: TaskState, exit_status: int | None = None, **more: object) -> None:
        status = TaskStatus(
            task_id=TaskId(task_id),
            state=state,
            slave_id=SLAVE,
            exit_status=exit_status,
            container_id=ContainerId("c-1"),
            **more,  # type: ignore[arg-type]
        )
        self.scheduler.status_update(self.driver, status)


def test_offer_is_filled_with_as_many_instances_as_it_holds() -> None:
    run = Run(instance_count=5)
    assert [task.task_id for task in run.offer(2.5)] == ["job-1.0", "job-1.1"]
    assert run.scheduler.waiting_count == 3
    assert not [call for call in run.driver.calls if isinstance(call, SuppressOffers)]
    assert [task.task_id for task in run.offer(9)] == ["job-1.2", "job-1.3", "job-1.4"]
    assert [call for call in run.driver.calls if isinstance(call, SuppressOffers)]


def test_offer_that_is_too_small_is_declined() -> None:
    run = Run()
    assert run.offer(0.5) == []
    (call,) = run.driver.take()
    assert isinstance(call, DeclineOffers)


def test_exit_code_is_the_greatest_of_all_instances() -> None:
    run = Run(instance_count=3)
    run.offer(3)
    run.update("job-1.0", TaskState.RUNNING)
    run.update("job-1.0", TaskState.FINISHED, 0)
    run.update("job-1.1", TaskState.FAILED, 3)
    assert run.watcher.end_count == 0
    run.update("job-1.2", TaskState.FAILED, 2)
    assert (run.watcher.end_count, run.scheduler.exit_code) == (1, 3)
    assert sorted(run.watcher.started_indexes) == [0, 1, 2]


def test_repeated_updates_of_an_ended_task_change_nothing() -> None:
    run = Run()
    run.offer(1)
    run.update("job-1", TaskState.FAILED, 3)
    run.update("job-1", TaskState.FAILED, 4)
    assert (run.scheduler.exit_code, run.watcher.ended_indexes, run.watcher.end_count) == (3, [0], 1)


def test_task_that_never_ran_is_started_again_under_another_id() -> None:
    run = Run()
    run.offer(1)
    run.driver.take()
    run.update("job-1", TaskState.DROPPED, reason=Reason.INVALID_OFFERS)
    assert [type(call) for call in run.driver.take()] == [ReviveOffers]
    assert [task.task_id for task in run.offer(1)] == ["job-1-again1"]


def test_task_that_never_runs_is_given_up_in_the_end() -> None:
    run = Run()
    for count in range(STARTS_LIMIT):
        (task,) = run.offer(1)
        assert run.watcher.end_count == 0, count
        run.update(task.task_id, TaskState.DROPPED, message="no")
    assert (run.watcher.end_count, run.scheduler.exit_code) == (1, 1)
    assert run.watcher.texts == [f"job-1-again{STARTS_LIMIT - 1}: TASK_DROPPED: no"]


def test_lost_task_that_may_have_run_is_not_started_again() -> None:
    run = Run()
    run.offer(1)
    run.update("job-1", TaskState.RUNNING)
    run.update("job-1", TaskState.GONE, message="its slave is gone")
    assert (run.watcher.end_count, run.scheduler.exit_code) == (1, 1)
    assert run.watcher.texts == ["job-1: TASK_GONE: its slave is gone"]


def test_kill_ends_what_runs_and_does_not_start_what_waits() -> None:
    run = Run(instance_count=2)
    run.offer(1)
    run.driver.take()
    run.scheduler.kill_all(run.driver)
    (call,) = run.driver.take()
    assert isinstance(call, KillTask)
    assert call.task_id == "job-1.0"
    assert run.watcher.ended_indexes == [1]
    assert run.offer(9) == []
    run.update("job-1.0", TaskState.KILLED, 143)
    assert (run.watcher.end_count, run.watcher.texts) == (1, [])


def test_output_of_a_task_that_could_not_start_is_not_looked_for() -> None:
    run = Run()
    run.offer(1)
    run.update("job-1", TaskState.FAILED, reason=Reason.CONTAINER_LAUNCH_FAILED, message="could not start: no user")
    assert run.watcher.started_indexes == []
    assert (run.watcher.end_count, run.scheduler.exit_code) == (1, 1)
    assert run.watcher.texts == ["job-1: TASK_FAILED: could not start: no user"]


def test_unreachable_task_is_waited_for() -> None:
    run = Run()
    run.offer(1)
    run.update("job-1", TaskState.UNREACHABLE)
    assert run.watcher.end_count == 0
    assert "unreachable" in run.watcher.texts[0]
    run.update("job-1", TaskState.FINISHED, 0)
    assert run.scheduler.exit_code == 0
