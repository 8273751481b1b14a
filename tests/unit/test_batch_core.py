"""The batch core through `handle` and `tick`, with whole lists of effects."""

import pytest

from frameworks.batch.core import ADOPT_FOR_S, REVIEW_INTERVAL_S, SILENT_AFTER_S, BatchInit
from frameworks.batch.events import (
    Answer,
    Decline,
    Disconnected,
    Effect,
    EndExecutor,
    HeartbeatReceived,
    JobSaved,
    KillAttempt,
    KillJob,
    Launch,
    Reconcile,
    Revive,
    SlaveWasLost,
    StatusReceived,
    SubmitJob,
    Suppress,
)
from frameworks.batch.lifecycle import FETCH_RETRY_LIMIT_S, PATIENCE_S, SETTLE_S
from frameworks.batch.model import (
    ATTEMPT_CHANGES,
    JOB_CHANGES,
    AttemptState,
    Heartbeat,
    JobSpec,
    JobState,
    Listing,
    MapOrder,
    ReduceOrder,
    Report,
    TaskKind,
    Verdict,
    check_attempt_change,
    check_job_change,
)
from meseta.errors import InvalidTransition
from meseta.ids import ExecutorId, OfferId, TaskId
from meseta.model import Reason, TaskState, TaskStatus
from meseta.resources import Resources
from tests.unit.batch_cluster import INPUT, MIB, OUTPUT, Cluster, slave


@pytest.fixture
def cluster() -> Cluster:
    one = Cluster()
    one.register()
    return one


def kinds(effects: list[Effect]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


@pytest.mark.parametrize("current", list(JobState))
@pytest.mark.parametrize("wanted", list(JobState))
def test_job_changes_are_those_of_the_table(current: JobState, wanted: JobState) -> None:
    if wanted in JOB_CHANGES[current]:
        check_job_change("job-1", current, wanted)
    else:
        with pytest.raises(InvalidTransition):
            check_job_change("job-1", current, wanted)


@pytest.mark.parametrize("current", list(AttemptState))
@pytest.mark.parametrize("wanted", list(AttemptState))
def test_attempt_changes_are_those_of_the_table(current: AttemptState, wanted: AttemptState) -> None:
    if wanted in ATTEMPT_CHANGES[current]:
        check_attempt_change("a", current, wanted)
    else:
        with pytest.raises(InvalidTransition):
            check_attempt_change("a", current, wanted)


def test_no_offers_are_wanted_without_jobs() -> None:
    cluster = Cluster()
    assert kinds(cluster.register()) == ["Reconcile", "Suppress"]
    assert cluster.core.next_deadline() is None
    assert kinds(cluster.offer(1)) == ["Decline"]


def test_submission_is_answered_when_its_record_is_durable(cluster: Cluster) -> None:
    spec = JobSpec(name="n", user="u", inputs=(INPUT,), output=OUTPUT, file_name="j.py")
    effects = cluster.step(SubmitJob(request_id=9, spec=spec, unix_s=5.0))
    assert kinds(effects) == ["SaveJob"]
    assert cluster.core.views() == []
    record = next(iter(cluster.jobs.values()))
    effects = cluster.step(JobSaved(job_id=record.job_id))
    assert effects == [Answer(request_id=9, job_id=record.job_id), Revive()]
    assert cluster.view(record.job_id).state is JobState.PROBING


def test_a_job_runs_to_its_success(cluster: Cluster) -> None:
    job_id = cluster.submit(reducers=2)
    cluster.to_maps_done(job_id, 1, 2)
    view = cluster.view(job_id)
    assert (view.maps_done, view.maps_total, view.map_progress) == (2, 2, 1.0)
    cluster.offer(1, executors=(job_id,))
    reduces = cluster.of_kind(TaskKind.REDUCE)
    assert len(reduces) == 2
    order = cluster.running[reduces[1]][1].order
    assert isinstance(order, ReduceOrder)
    assert [(one.start, one.end) for one in order.sources] == [(10, 20), (10, 20)]
    assert order.partition == 1
    cluster.finish(reduces[1])
    cluster.finish(reduces[0])
    assert cluster.view(job_id).state is JobState.COMMITTING
    cluster.offer(1, executors=(job_id,))
    (commit,) = cluster.of_kind(TaskKind.COMMIT)
    order = cluster.running[commit][1].order
    assert order.attempt_ids == (reduces[0], reduces[1])  # type: ignore[union-attr]
    effects = cluster.finish(commit)
    view = cluster.view(job_id)
    assert view.state is JobState.SUCCEEDED
    assert view.counters["mine"] == {"seen": 4}  # Two maps and two reduces.
    assert view.counters["batch"]["attempts"] == 8
    assert {effect.slave_id for effect in effects if isinstance(effect, EndExecutor)} == {slave(1), slave(2)}
    assert cluster.tasks == {}
    assert isinstance([one for one in cluster.effects if isinstance(one, Revive | Suppress)][-1], Suppress)


def test_executor_memory_is_taken_once_for_each_slave(cluster: Cluster) -> None:
    cluster.submit()
    effects = cluster.offer(1, cpus=0.1, mem_mib=127)
    assert kinds(effects) == ["Decline"]
    effects = cluster.offer(1, cpus=0.1, mem_mib=128)
    assert kinds(effects)[-1] == "Launch"


def test_small_slaves_get_smaller_tasks_by_default(cluster: Cluster) -> None:
    job_id = cluster.submit()
    cluster.offer(1, cpus=0.6, mem_mib=500)
    (probe,) = cluster.of_kind(TaskKind.PROBE)
    cluster.finish(probe)
    cluster.wait(SETTLE_S)
    assert cluster.core.job(job_id).task_resources == Resources({"cpus": 600, "mem": 436_000})


def test_tasks_too_large_for_every_slave_say_so(cluster: Cluster) -> None:
    job_id = cluster.submit(cpus_milli=4000)
    cluster.to_running(job_id, 1)
    assert kinds(cluster.offer(1, executors=(job_id,))) == ["Decline"]
    assert cluster.view(job_id).waiting == "a map task needs cpus:4;mem:512MiB, and host1 offers cpus:2;mem:4GiB"


def test_an_input_that_no_slave_sees_is_refused_in_words(cluster: Cluster) -> None:
    cluster.listing = Listing(inputs=(None,), has_output=False, has_output_parent=True)
    job_id = cluster.submit()
    cluster.offer(1)
    cluster.finish(cluster.of_kind(TaskKind.PROBE)[0])
    cluster.wait(PATIENCE_S)
    view = cluster.view(job_id)
    assert view.state is JobState.FAILED
    assert view.reason == "input /data/in: no slave sees it (asked: host1); name a path that a slave can read"


def test_an_output_folder_that_exists_is_refused_in_words(cluster: Cluster) -> None:
    cluster.listings[slave(2)] = Listing(inputs=((),), has_output=True, has_output_parent=True)
    job_id = cluster.submit()
    cluster.offer(1)
    cluster.offer(2)
    for task_id in cluster.of_kind(TaskKind.PROBE):
        cluster.finish(task_id)
    cluster.wait(SETTLE_S)
    assert cluster.view(job_id).state is JobState.FAILED
    assert "output folder /data/out exists on host2" in cluster.view(job_id).reason


def test_maps_run_only_where_their_split_is_seen(cluster: Cluster) -> None:
    seen = ((("/data/in/a", MIB),), None)
    other = (None, (("/data/b", MIB),))
    cluster.listings[slave(1)] = Listing(inputs=seen, has_output=False, has_output_parent=True)
    cluster.listings[slave(2)] = Listing(inputs=other, has_output=False, has_output_parent=False)
    job_id = cluster.submit(inputs=("/data/in", "/data/b"))
    cluster.to_running(job_id, 1, 2)
    cluster.offer(2, executors=(job_id,))
    (map_id,) = cluster.of_kind(TaskKind.MAP)
    order = cluster.running[map_id][1].order
    assert isinstance(order, MapOrder)
    assert [piece.path for piece in order.pieces] == ["/data/b"]
    assert kinds(cluster.offer(2, executors=(job_id,))) == ["Decline"]
    cluster.offer(1, executors=(job_id,))
    assert len(cluster.of_kind(TaskKind.MAP)) == 2


def test_a_slave_that_comes_late_is_probed_before_it_maps(cluster: Cluster) -> None:
    job_id = cluster.submit()
    cluster.to_running(job_id, 1)
    cluster.offer(2)
    assert [item.kind for _, item in cluster.running.values()] == [TaskKind.PROBE]
    cluster.finish(cluster.of_kind(TaskKind.PROBE)[0])
    cluster.offer(2, executors=(job_id,))
    assert len(cluster.of_kind(TaskKind.MAP)) == 2


def test_four_failures_of_a_task_fail_the_job_with_the_reason(cluster: Cluster) -> None:
    job_id = cluster.submit(split_bytes=64 * MIB)
    cluster.to_running(job_id, 1)
    for number in range(4):
        cluster.wait(1.0)
        cluster.offer(1, executors=(job_id,))
        (map_id,) = cluster.of_kind(TaskKind.MAP)
        report = Report(error="ValueError: bad", stderr_tail=f"line {number}")
        effects = cluster.status(map_id, TaskState.FAILED, report)
    view = cluster.view(job_id)
    assert view.state is JobState.CLEANING
    assert view.reason == "map 0 failed 4 times, last on host1: ValueError: bad\nline 3"
    assert Revive() in effects
    cluster.offer(1, executors=(job_id,))
    cluster.finish(cluster.of_kind(TaskKind.CLEANUP)[0])
    assert cluster.view(job_id).state is JobState.FAILED
    assert cluster.view(job_id).failed_attempts == 4


def test_killed_and_lost_attempts_are_not_failures(cluster: Cluster) -> None:
    job_id = cluster.submit(split_bytes=64 * MIB)
    cluster.to_running(job_id, 1)
    for _ in range(6):
        for state, reason in (
            (TaskState.KILLED, None),
            (TaskState.LOST, Reason.SLAVE_REMOVED),
            (TaskState.FAILED, Reason.EXECUTOR_TERMINATED),
        ):
            cluster.wait(1.0)
            cluster.offer(1, executors=(job_id,))
            (map_id,) = cluster.of_kind(TaskKind.MAP)
            cluster.status(map_id, state, reason=reason)
    assert cluster.view(job_id).state is JobState.RUNNING
    assert cluster.view(job_id).failed_attempts == 0


def test_a_slave_is_blacklisted_after_three_failures_if_there_is_another(cluster: Cluster) -> None:
    job_id = cluster.submit(split_bytes=2 * MIB)
    cluster.to_running(job_id, 1, 2)
    cluster.offer(1, cpus=3, executors=(job_id,))
    for task_id in cluster.of_kind(TaskKind.MAP):
        cluster.status(task_id, TaskState.FAILED, Report(error="x"))
    cluster.wait(2.0)
    assert kinds(cluster.offer(1, executors=(job_id,))) == ["Decline"]
    cluster.offer(2, executors=(job_id,))
    assert len(cluster.of_kind(TaskKind.MAP)) == 2


def test_the_only_slave_is_not_blacklisted(cluster: Cluster) -> None:
    job_id = cluster.submit(split_bytes=2 * MIB)
    cluster.to_running(job_id, 1)
    cluster.offer(1, cpus=4, executors=(job_id,))
    for task_id in cluster.of_kind(TaskKind.MAP):
        cluster.status(task_id, TaskState.FAILED, Report(error="x"))
    cluster.wait(2.0)
    cluster.offer(1, executors=(job_id,))
    assert len(cluster.of_kind(TaskKind.MAP)) == 2


def test_a_failed_fetch_lets_its_maps_run_again_and_counts_for_nobody(cluster: Cluster) -> None:
    job_id = cluster.submit()
    cluster.to_maps_done(job_id, 1, 2)
    cluster.offer(2, executors=(job_id,))
    (reduce_id,) = cluster.of_kind(TaskKind.REDUCE)
    order = cluster.running[reduce_id][1].order
    assert isinstance(order, ReduceOrder)
    lost = tuple((one.map_index, one.attempt_id) for one in order.sources[:1])
    report = Report(error="no answer", verdict=Verdict.FETCH_FAILED, lost_outputs=lost)
    effects = cluster.status(reduce_id, TaskState.FAILED, report)
    assert Revive() in effects
    view = cluster.view(job_id)
    assert (view.maps_done, view.failed_attempts, view.state) == (1, 0, JobState.RUNNING)
    cluster.wait(1.0)
    cluster.offer(2, executors=(job_id,))
    (map_id,) = cluster.of_kind(TaskKind.MAP)
    assert cluster.of_kind(TaskKind.REDUCE) == []
    cluster.finish(map_id)
    cluster.offer(2, executors=(job_id,))
    (second,) = cluster.of_kind(TaskKind.REDUCE)
    # An old reduce that complains about the output that was replaced changes nothing.
    cluster.status(second, TaskState.FAILED, report)
    assert cluster.view(job_id).maps_done == 2


def test_a_reduce_is_kept_ever_longer_from_slaves_that_do_not_reach_the_maps(cluster: Cluster) -> None:
    job_id = cluster.submit()
    cluster.to_maps_done(job_id, 1, 2)
    for number, kept_s in ((1, 1.0), (2, 4.0), (1, 16.0), (2, FETCH_RETRY_LIMIT_S)):
        cluster.offer(number, executors=(job_id,))
        (reduce_id,) = cluster.of_kind(TaskKind.REDUCE)
        cluster.status(reduce_id, TaskState.FAILED, Report(error="no answer", verdict=Verdict.FETCH_FAILED))
        cluster.wait(kept_s - 0.1)
        for unfit in (1, 2) if kept_s > 1.0 else (1,):
            cluster.offer(unfit, executors=(job_id,))
            assert cluster.of_kind(TaskKind.REDUCE) == []
        cluster.wait(0.2)
    cluster.offer(3, executors=(job_id,))
    (reduce_id,) = cluster.of_kind(TaskKind.REDUCE)
    cluster.finish(reduce_id)
    assert cluster.view(job_id).state is JobState.COMMITTING


def test_a_lost_slave_loses_its_attempts_and_outputs_at_once(cluster: Cluster) -> None:
    job_id = cluster.submit(split_bytes=2 * MIB)
    cluster.to_running(job_id, 1, 2)
    cluster.offer(1, executors=(job_id,))
    cluster.offer(2, executors=(job_id,))
    on_first = [one for one in cluster.of_kind(TaskKind.MAP) if cluster.running[one][0] == slave(1)]
    cluster.finish(on_first[0])
    effects = cluster.step(SlaveWasLost(slave_id=slave(1)))
    assert Revive() in effects
    assert cluster.view(job_id).maps_done == 0
    cluster.running = {one: item for one, item in cluster.running.items() if item[0] != slave(1)}
    for task_id in cluster.of_kind(TaskKind.MAP):
        cluster.finish(task_id)
    cluster.offer(2, executors=(job_id,))
    assert len(cluster.of_kind(TaskKind.MAP)) == 2
    assert all(cluster.running[one][0] == slave(2) for one in cluster.of_kind(TaskKind.MAP))


def test_a_silent_executor_gets_a_second_attempt_elsewhere_and_the_first_to_finish_wins(cluster: Cluster) -> None:
    job_id = cluster.submit(split_bytes=64 * MIB)
    cluster.to_running(job_id, 1, 2)
    cluster.offer(1, executors=(job_id,))
    (first,) = cluster.of_kind(TaskKind.MAP)
    cluster.status(first, TaskState.RUNNING)
    effects = cluster.wait(SILENT_AFTER_S + REVIEW_INTERVAL_S)
    assert Revive() in effects
    assert kinds(cluster.offer(1, executors=(job_id,))) == ["Decline"]
    cluster.offer(2, executors=(job_id,))
    second = next(one for one in cluster.of_kind(TaskKind.MAP) if one != first)
    effects = cluster.finish(second)
    assert KillAttempt(task_id=first) in effects
    cluster.status(first, TaskState.KILLED)
    assert cluster.view(job_id).maps_done == 1


def test_an_executor_that_speaks_again_is_believed(cluster: Cluster) -> None:
    job_id = cluster.submit(split_bytes=64 * MIB)
    cluster.to_running(job_id, 1)
    cluster.offer(1, executors=(job_id,))
    (first,) = cluster.of_kind(TaskKind.MAP)
    cluster.status(first, TaskState.RUNNING)
    cluster.wait(SILENT_AFTER_S + REVIEW_INTERVAL_S)
    assert [one.state for one in cluster.view(job_id).running] == [AttemptState.SILENT]
    heartbeat = Heartbeat(job_id=job_id, progress={first: 0.5})
    cluster.step(HeartbeatReceived(slave_id=slave(1), executor_id=ExecutorId(job_id), heartbeat=heartbeat))
    assert cluster.view(job_id).map_progress == 0.5
    assert kinds(cluster.offer(1, executors=(job_id,)))[-1] == "Decline"


def test_silence_counts_only_while_there_is_a_master(cluster: Cluster) -> None:
    job_id = cluster.submit(split_bytes=64 * MIB)
    cluster.to_running(job_id, 1)
    cluster.offer(1, executors=(job_id,))
    cluster.step(Disconnected())
    cluster.wait(60.0)
    assert [one.state for one in cluster.view(job_id).running] == [AttemptState.STAGING]
    cluster.register()
    cluster.wait(SILENT_AFTER_S / 2)
    assert [one.state for one in cluster.view(job_id).running] == [AttemptState.STAGING]


def test_a_slave_that_does_not_see_the_output_is_not_tried_again(cluster: Cluster) -> None:
    job_id = cluster.submit()
    cluster.to_maps_done(job_id, 1, 2)
    cluster.offer(2, executors=(job_id,))
    (reduce_id,) = cluster.of_kind(TaskKind.REDUCE)
    report = Report(error="not seen", verdict=Verdict.OUTPUT_INVISIBLE)
    cluster.status(reduce_id, TaskState.FAILED, report)
    cluster.wait(5.0)
    assert kinds(cluster.offer(2, executors=(job_id,))) == ["Decline"]
    assert "Launch" in kinds(cluster.offer(1, executors=(job_id,)))
    assert cluster.view(job_id).failed_attempts == 0


def test_a_job_fails_if_its_output_was_on_a_slave_that_is_lost(cluster: Cluster) -> None:
    job_id = cluster.submit()
    cluster.to_maps_done(job_id, 1, 2)
    cluster.step(SlaveWasLost(slave_id=slave(1)))
    for _ in range(3):
        cluster.wait(1.0)
        cluster.offer(2, executors=(job_id,))
        for task_id in cluster.of_kind(TaskKind.MAP):
            cluster.finish(task_id)
    (reduce_id,) = cluster.of_kind(TaskKind.REDUCE)
    cluster.status(reduce_id, TaskState.FAILED, Report(error="x", verdict=Verdict.OUTPUT_INVISIBLE))
    assert cluster.view(job_id).reason == "output folder /data/out was on host1, which is lost"


def test_kill_ends_attempts_cleans_up_and_is_answered(cluster: Cluster) -> None:
    job_id = cluster.submit()
    cluster.to_running(job_id, 1)
    cluster.offer(1, executors=(job_id,))
    maps = cluster.of_kind(TaskKind.MAP)
    effects = cluster.step(KillJob(request_id=3, job_id=job_id))
    assert [effect.task_id for effect in effects if isinstance(effect, KillAttempt)] == maps
    assert Answer(request_id=3, job_id=job_id) in effects
    assert kinds(cluster.offer(1, executors=(job_id,))) == ["Decline"]
    for task_id in maps:
        cluster.status(task_id, TaskState.KILLED)
    cluster.offer(1, executors=(job_id,))
    (cleanup,) = cluster.of_kind(TaskKind.CLEANUP)
    cluster.finish(cleanup)
    assert cluster.view(job_id).state is JobState.KILLED
    effects = cluster.step(KillJob(request_id=4, job_id=job_id))
    assert effects[0] == Answer(request_id=4, job_id=job_id, error=f"{job_id} has ended already: killed")


def test_cleaning_up_is_given_up_after_a_while_in_words(cluster: Cluster) -> None:
    job_id = cluster.submit()
    cluster.to_running(job_id, 1)
    cluster.step(KillJob(request_id=3, job_id=job_id))
    cluster.wait(31.0)
    assert cluster.view(job_id).state is JobState.KILLED
    assert "could not be removed" in cluster.view(job_id).reason


def test_two_jobs_cannot_have_one_output_folder(cluster: Cluster) -> None:
    job_id = cluster.submit()
    spec = JobSpec(name="n", user="u", inputs=(INPUT,), output=OUTPUT, file_name="j.py")
    effects = cluster.step(SubmitJob(request_id=2, spec=spec, unix_s=6.0))
    assert effects[0] == Answer(
        request_id=2, error=f"output folder /data/out is that of {job_id}; name a new one with -o"
    )


def test_what_one_job_leaves_of_an_offer_is_the_next_ones(cluster: Cluster) -> None:
    first = cluster.submit()
    second = cluster.submit(output="/data/other")
    effects = cluster.offer(1)
    (launch,) = [effect for effect in effects if isinstance(effect, Launch)]
    assert [item.job_id for item in launch.items] == [first, second]


def test_after_a_restart_finished_maps_are_kept_and_running_attempts_adopted(cluster: Cluster) -> None:
    job_id = cluster.submit(split_bytes=2 * MIB)
    cluster.to_running(job_id, 1)
    cluster.offer(1, executors=(job_id,))
    done, still = cluster.of_kind(TaskKind.MAP)
    cluster.finish(done)
    init = BatchInit(
        seed=2, unix_offset_s=1000.0, jobs=tuple(cluster.jobs.values()), tasks=tuple(cluster.tasks.values())
    )
    second = Cluster(init)
    second.running = {still: cluster.running[still]}
    assert Reconcile() in second.register()
    assert second.view(job_id).maps_done == 1
    second.status(still, TaskState.RUNNING)
    assert kinds(second.offer(1, executors=(job_id,))) == ["Decline"]
    second.wait(ADOPT_FOR_S)
    second.offer(1, executors=(job_id,))
    second.finish(second.of_kind(TaskKind.PROBE)[0])
    second.finish(still)
    assert second.view(job_id).maps_done == 2
    second.offer(1, executors=(job_id,))
    indices = {item.task_id.split(".")[1] for _, item in second.running.values()}
    assert indices == {"map-00002", "map-00003"}


def test_an_attempt_of_a_job_that_is_over_is_ended(cluster: Cluster) -> None:
    task_id = TaskId("job-1.map-00000.0")
    status = TaskStatus(task_id=task_id, state=TaskState.RUNNING, slave_id=slave(1))
    assert KillAttempt(task_id=task_id) in cluster.step(StatusReceived(status=status))
    heartbeat = HeartbeatReceived(
        slave_id=slave(1), executor_id=ExecutorId("job-1"), heartbeat=Heartbeat(job_id="job-1")
    )
    assert EndExecutor(executor_id=ExecutorId("job-1"), slave_id=slave(1)) in cluster.step(heartbeat)


def test_an_empty_input_makes_empty_parts(cluster: Cluster) -> None:
    cluster.listing = Listing(inputs=((("/data/in/a", 0),),), has_output=False, has_output_parent=True)
    job_id = cluster.submit()
    cluster.to_running(job_id, 1)
    cluster.offer(1, executors=(job_id,))
    (reduce_id,) = cluster.of_kind(TaskKind.REDUCE)
    order = cluster.running[reduce_id][1].order
    assert isinstance(order, ReduceOrder)
    assert order.sources == ()


def test_declined_offers_are_the_only_answer_to_suspects_and_strangers(cluster: Cluster) -> None:
    effects = cluster.offer(1)
    assert effects == [Decline(offer_id=OfferId("o-1"))]
