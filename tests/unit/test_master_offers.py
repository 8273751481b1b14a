"""How the master makes offers, judges what is launched on them, and takes them back."""

import pytest

from master.events import Send
from meseta.ids import ExecutorId, OfferId, SlaveId
from meseta.messages import (
    AcceptOffers,
    DeclineOffers,
    Error,
    RegisterFramework,
    RescindOffer,
    ResourceOffers,
    ReviveOffers,
    RunTask,
    SuppressOffers,
)
from meseta.model import CommandInfo, ExecutorInfo, Filters, Launch, Offer, Reason, TaskInfo, TaskState
from meseta.resources import Resources, parse_resources
from tests.unit.master_builders import (
    ADDRESS,
    LARGE,
    SMALL,
    Harness,
    accept,
    executor_info,
    framework_info,
    task_info,
)


def test_everything_free_is_offered_within_milliseconds() -> None:
    harness = Harness()
    _, slave_id = harness.slave()
    session, framework_id = harness.framework()
    deadline = harness.core.next_deadline()
    assert deadline == pytest.approx(harness.now + 0.002)
    harness.now = deadline or 0.0
    offer = Offer(
        offer_id=OfferId("o-1-1"),
        framework_id=framework_id,
        slave_id=slave_id,
        hostname="host",
        resources=LARGE,
        address=ADDRESS,
    )
    assert harness.core.tick(harness.now) == [Send(session=session, message=ResourceOffers(offers=(offer,)))]


def test_offers_of_one_round_come_in_one_message() -> None:
    harness = Harness()
    for _ in range(5):
        harness.slave()
    session, _ = harness.framework()
    harness.advance(0.01)
    (message,) = harness.take(session, ResourceOffers)
    assert len(message.offers) == 5


def test_accepted_tasks_are_sent_and_the_rest_is_declined() -> None:
    harness = Harness()
    slave, slave_id = harness.slave()
    session, framework_id = harness.framework()
    (offer,) = harness.offers(session)
    tasks = [task_info(name, slave_id) for name in "ab"]
    effects = harness.launch(session, offer, *tasks, refuse_s=100.0)
    info = framework_info(framework_id)
    assert effects == [Send(session=slave, message=RunTask(framework_info=info, task=task)) for task in tasks]
    assert harness.offers(session) == []
    harness.say(session, ReviveOffers())
    (rest,) = harness.offers(session)
    assert rest.resources == LARGE - SMALL - SMALL


def test_several_offers_of_one_slave_are_used_as_one() -> None:
    harness = Harness()
    slave, slave_id = harness.slave()
    session, _ = harness.framework()
    (first,) = harness.offers(session)
    harness.launch(session, first, task_info("a", slave_id, parse_resources("cpus:2;mem:1GiB")), refuse_s=0.0)
    harness.advance(1.1)
    (second,) = harness.offers(session)
    big = parse_resources("cpus:2;mem:3GiB;ports:[31000-31099]")
    call = AcceptOffers(
        offer_ids=(second.offer_id, second.offer_id), operations=(Launch(task_infos=(task_info("b", slave_id, big),)),)
    )
    harness.say(session, call)
    assert [run.task.task_id for run in harness.take(slave, RunTask)] == ["a", "b"]


def test_tasks_are_judged_one_by_one_in_order() -> None:
    harness = Harness()
    slave, slave_id = harness.slave(parse_resources("cpus:2;mem:1GiB"))
    session, _ = harness.framework()
    (offer,) = harness.offers(session)
    tasks = [
        task_info("a", slave_id, parse_resources("cpus:1;mem:512MiB")),
        task_info("too-big", slave_id, parse_resources("cpus:1.5;mem:1MiB")),
        task_info("b", slave_id, parse_resources("cpus:1;mem:512MiB")),
    ]
    harness.launch(session, offer, *tasks)
    assert [run.task.task_id for run in harness.take(slave, RunTask)] == ["a", "b"]
    ((task_id, state, reason),) = harness.updates(session)
    assert (task_id, state, reason) == ("too-big", TaskState.ERROR, Reason.TASK_INVALID)


def _command(**fields: object) -> dict[str, object]:
    return {"command": CommandInfo(**fields)}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"task_id": "../x"}, "task_id"),
        ({"task_id": ""}, "task_id"),
        ({"task_id": "x" * 256}, "255 at most"),
        ({"task_id": "x\n"}, "task_id"),
        ({"slave_id": SlaveId("s-other")}, "slave_id: s-other is not the slave of the offers"),
        ({"resources": Resources()}, "resources: a task must ask for some"),
        ({"resources": parse_resources("cpus:99")}, "the offers lack cpus:95"),
        ({"resources": parse_resources("ports:[40000]")}, "the offers lack ports:[40000]"),
        ({"command": None}, "command, executor: exactly one"),
        ({"executor": executor_info()}, "command, executor: exactly one"),
        (_command(), "command: exactly one of value and arguments"),
        (_command(value="x", arguments=("x",)), "command: exactly one of value and arguments"),
        (
            {"command": None, "executor": ExecutorInfo(executor_id=ExecutorId("/"), command=CommandInfo(value="x"))},
            "executor.executor_id",
        ),
        (
            {"command": None, "executor": ExecutorInfo(executor_id=ExecutorId("e"), command=CommandInfo())},
            "executor.command",
        ),
        (
            {
                "command": None,
                "resources": parse_resources("ports:[31000-31001]"),
                "executor": executor_info("e", parse_resources("ports:[31001-31002]")),
            },
            "executor.resources: ports: parts of [31001-31002]",
        ),
    ],
)
def test_unsound_task_is_an_error_that_names_field_and_remedy(fields: dict[str, object], words: str) -> None:
    harness = Harness()
    slave, slave_id = harness.slave()
    session, _ = harness.framework()
    (offer,) = harness.offers(session)
    values: dict[str, object] = {
        "task_id": "t",
        "slave_id": slave_id,
        "resources": SMALL,
        "command": CommandInfo(value="true"),
        **fields,
    }
    effects = harness.launch(session, offer, TaskInfo(**values))  # type: ignore[arg-type]
    (update,) = [effect.message for effect in effects if isinstance(effect, Send)]
    status = getattr(update, "status")  # noqa: B009
    assert (status.state, status.reason) == (TaskState.ERROR, Reason.TASK_INVALID)
    assert words in status.message
    assert harness.take(slave, RunTask) == []


def test_task_id_in_use_is_refused_without_ending_the_task_that_has_it() -> None:
    harness = Harness()
    _, slave_id = harness.slave()
    session, _ = harness.framework()
    (offer,) = harness.offers(session)
    harness.launch(session, offer, task_info("t", slave_id), task_info("t", slave_id))
    (error,) = harness.take(session, Error)
    assert "t is in use by a task that has not ended" in error.message


def test_user_that_the_principal_may_not_run_tasks_as_is_refused() -> None:
    rules = 'default = "allow"\n[[rules]]\nallow = false\nprincipals=["*"]\nactions=["run_task"]\nobjects=["root"]\n'
    harness = Harness(acls=rules)
    slave, slave_id = harness.slave()
    session, _ = harness.framework()
    (offer,) = harness.offers(session)
    as_root = task_info("t", slave_id, command=CommandInfo(value="id", user="root"))
    harness.launch(session, offer, as_root, task_info("u", slave_id))
    assert harness.updates(session) == [("t", TaskState.ERROR, Reason.TASK_UNAUTHORIZED)]
    assert [run.task.task_id for run in harness.take(slave, RunTask)] == ["u"]


def test_executor_is_charged_once_on_each_slave() -> None:
    harness = Harness()
    slave, slave_id = harness.slave()
    session, _ = harness.framework()
    (offer,) = harness.offers(session)
    tasks = [task_info(name, slave_id, command=None, executor=executor_info()) for name in "ab"]
    harness.launch(session, offer, *tasks, refuse_s=0.0)
    harness.advance(1.1)
    (rest,) = harness.offers(session)
    assert rest.resources == LARGE - SMALL - SMALL - SMALL
    assert rest.executor_ids == ("e",)
    # A slave on which the executor has ended meanwhile must not start another for the second task.
    assert [run.launch_executor for run in harness.take(slave, RunTask)] == [True, False]


def test_executor_id_with_another_description_is_refused() -> None:
    harness = Harness()
    _, slave_id = harness.slave()
    session, _ = harness.framework()
    (offer,) = harness.offers(session)
    other = executor_info(resources=parse_resources("cpus:0.5;mem:64MiB"))
    harness.launch(
        session,
        offer,
        task_info("a", slave_id, command=None, executor=executor_info()),
        task_info("b", slave_id, command=None, executor=other),
    )
    assert harness.updates(session) == [("b", TaskState.ERROR, Reason.TASK_INVALID)]


@pytest.mark.parametrize(("is_aware", "state"), [(True, TaskState.DROPPED), (False, TaskState.LOST)])
def test_stale_offer_fails_the_whole_call_and_returns_the_others(is_aware: bool, state: TaskState) -> None:
    harness = Harness()
    slave, slave_id = harness.slave()
    session, _ = harness.framework(is_partition_aware=is_aware)
    (offer,) = harness.offers(session)
    call = AcceptOffers(
        offer_ids=(offer.offer_id, OfferId("o-gone")),
        operations=(Launch(task_infos=(task_info("a", slave_id), task_info("b", slave_id))),),
    )
    harness.say(session, call)
    assert harness.updates(session) == [(name, state, Reason.INVALID_OFFERS) for name in "ab"]
    assert harness.take(slave, RunTask) == []
    assert [again.resources for again in harness.offers(session)] == [LARGE]


def test_offers_of_two_slaves_cannot_be_used_together() -> None:
    harness = Harness()
    _, slave_id = harness.slave()
    harness.slave()
    session, _ = harness.framework()
    offers = harness.offers(session)
    call = AcceptOffers(
        offer_ids=tuple(offer.offer_id for offer in offers),
        operations=(Launch(task_infos=(task_info("a", slave_id),)),),
    )
    harness.say(session, call)
    assert harness.updates(session) == [("a", TaskState.DROPPED, Reason.INVALID_OFFERS)]
    assert len(harness.offers(session)) == 2


def test_offer_of_another_framework_cannot_be_used() -> None:
    harness = Harness()
    _, slave_id = harness.slave()
    owner, _ = harness.framework()
    (offer,) = harness.offers(owner)
    thief, _ = harness.framework()
    harness.say(thief, accept(offer.offer_id, task_info("t", slave_id)))
    assert harness.updates(thief) == [("t", TaskState.DROPPED, Reason.INVALID_OFFERS)]
    harness.say(thief, DeclineOffers(offer_ids=(offer.offer_id,)))
    assert harness.take(owner, RescindOffer) == []


def test_unanswered_offer_is_rescinded_after_its_time_and_made_again() -> None:
    harness = Harness(offer_timeout_s=30.0)
    slave, slave_id = harness.slave()
    harness.alive.add(slave)
    session, _ = harness.framework()
    (offer,) = harness.offers(session)
    harness.advance(29.0)
    assert harness.take(session, RescindOffer) == []
    harness.advance(1.1)
    messages = harness.take_all(session)
    assert RescindOffer(offer_id=offer.offer_id) in messages
    assert any(isinstance(message, ResourceOffers) for message in messages)
    harness.say(session, accept(offer.offer_id, task_info("t", slave_id)))
    assert harness.updates(session) == [("t", TaskState.DROPPED, Reason.INVALID_OFFERS)]


def test_declined_offer_comes_again_when_its_filter_ends() -> None:
    harness = Harness()
    slave, _ = harness.slave()
    harness.alive.add(slave)
    session, _ = harness.framework()
    (offer,) = harness.offers(session)
    harness.say(session, DeclineOffers(offer_ids=(offer.offer_id,), filters=Filters(refuse_s=20.0)))
    harness.advance(19.0)
    assert harness.take(session, ResourceOffers) == []
    harness.advance(1.5)
    assert len(harness.take(session, ResourceOffers)) == 1


def test_suppressed_framework_gets_no_offers_until_it_revives() -> None:
    harness = Harness()
    session, _ = harness.framework()
    harness.say(session, SuppressOffers())
    harness.slave()
    assert harness.offers(session) == []
    harness.say(session, ReviveOffers())
    assert len(harness.offers(session)) == 1


@pytest.mark.parametrize("call", [SuppressOffers(roles=("nobody",)), ReviveOffers(roles=("nobody",))])
def test_unknown_role_is_refused_in_words(call: SuppressOffers | ReviveOffers) -> None:
    harness = Harness()
    session, _ = harness.framework()
    harness.say(session, call)
    (error,) = harness.take(session, Error)
    assert error.message == "roles: nobody is none of this framework's, which are *"


def test_offers_return_when_the_scheduler_disconnects() -> None:
    harness = Harness()
    harness.slave()
    first, _ = harness.framework()
    harness.offers(first)
    second, _ = harness.framework()
    assert harness.offers(second) == []
    harness.close(first)
    assert [offer.resources for offer in harness.offers(second)] == [LARGE]


def test_weights_rule_shares() -> None:
    harness = Harness(weights={"heavy": 3.0})
    for _ in range(8):
        harness.slave()
    heavy = harness.open("framework", "alice")
    light = harness.open("framework", "alice")
    harness.say(heavy, RegisterFramework(framework_info=framework_info(roles=("heavy",))))
    harness.say(light, RegisterFramework(framework_info=framework_info(roles=("light",))))
    harness.advance(0.01)
    counts = [len(harness.take(session, ResourceOffers)[0].offers) for session in (heavy, light)]
    assert counts == [6, 2]
