"""What operators are answered."""

import pytest

from meseta.ids import FrameworkId, Principal, StatusUuid, TaskId
from meseta.messages import (
    AcknowledgeStatus,
    Done,
    Error,
    Frameworks,
    GetFrameworks,
    GetMaster,
    GetNodes,
    GetTasks,
    Hello,
    KillTask,
    MasterStatus,
    Message,
    Nodes,
    OperatorKillTask,
    SuppressOffers,
    Tasks,
    TeardownFramework,
)
from meseta.model import TaskState
from meseta.resources import parse_resources
from tests.unit.master_builders import LARGE, Harness, status, task_info, update


def test_master_status_counts_and_sums() -> None:
    harness = Harness()
    _, slave_id = harness.slave()
    harness.slave()
    framework, _ = harness.framework()
    offers = harness.offers(framework)
    offer = next(offer for offer in offers if offer.slave_id == slave_id)
    harness.launch(framework, offer, task_info("t", slave_id))
    operator = harness.open("operator")
    harness.say(operator, GetMaster(request_id=5))
    (answer,) = harness.take(operator, MasterStatus)
    assert answer == MasterStatus(
        request_id=5,
        epoch=1,
        version="",
        uptime_s=answer.uptime_s,
        slaves_active=2,
        slaves_unreachable=0,
        frameworks_active=1,
        frameworks_disconnected=0,
        tasks_active=1,
        offers_outstanding=1,
        resources_total=parse_resources("cpus:8;mem:8GiB"),
        resources_used=parse_resources("cpus:1;mem:512MiB"),
        resources_offered=parse_resources("cpus:4;mem:4GiB"),
    )


def test_nodes_come_in_pages_in_the_order_of_their_ids() -> None:
    harness = Harness()
    ids = sorted(harness.slave()[1] for _ in range(5))
    operator = harness.open("operator")
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        harness.say(operator, GetNodes(request_id=1, after=after, limit=2))
        (page,) = harness.take(operator, Nodes)
        seen += [node.slave_id for node in page.nodes]
        after = page.next
    assert seen == ids


def test_node_tells_what_is_used_and_offered() -> None:
    harness = Harness()
    slave, slave_id = harness.slave()
    framework, _ = harness.framework()
    (offer,) = harness.offers(framework)
    operator = harness.open("operator")
    harness.say(operator, GetNodes(request_id=1))
    ((node,),) = [page.nodes for page in harness.take(operator, Nodes)]
    assert (node.state, node.total, node.offered, node.tasks_active) == ("active", LARGE, LARGE, 0)
    harness.launch(framework, offer, task_info("t", slave_id))
    harness.close(slave)
    harness.say(operator, GetNodes(request_id=1))
    ((node,),) = [page.nodes for page in harness.take(operator, Nodes)]
    assert (node.state, str(node.used), str(node.offered)) == ("disconnected", "cpus:1;mem:512MiB", "")


def test_frameworks_tell_why_they_wait() -> None:
    harness = Harness()
    framework, framework_id = harness.framework()
    harness.say(framework, SuppressOffers())
    operator = harness.open("operator")
    harness.say(operator, GetFrameworks(request_id=1))
    ((view,),) = [page.frameworks for page in harness.take(operator, Frameworks)]
    assert (view.framework_info.id, view.state, view.principal) == (framework_id, "active", "alice")
    assert view.waiting is not None
    assert view.waiting.suppressed_roles == ("*",)


def test_completed_frameworks_are_told_on_request_only() -> None:
    harness = Harness()
    framework, _ = harness.framework(name="done")
    harness.framework(name="alive")
    harness.say(framework, TeardownFramework())
    operator = harness.open("operator")
    names = []
    for message in (
        GetFrameworks(request_id=1),
        GetFrameworks(request_id=1, include_completed=True),
        GetFrameworks(request_id=1, include_completed=True, name="done"),
    ):
        harness.say(operator, message)
        (page,) = harness.take(operator, Frameworks)
        names.append(sorted((view.framework_info.name, view.state) for view in page.frameworks))
    alive, done = ("alive", "active"), ("done", "completed")
    assert names == [[alive], [alive, done], [done]]


def test_tasks_come_in_pages_with_completed_ones_on_request() -> None:
    harness = Harness()
    slave, slave_id = harness.slave()
    framework, framework_id = harness.framework()
    (offer,) = harness.offers(framework)
    harness.launch(framework, offer, *[task_info(name, slave_id) for name in "cab"])
    harness.say(slave, update(framework_id, status("a", TaskState.FINISHED, "u", slave_id)))
    harness.say(framework, AcknowledgeStatus(task_id=TaskId("a"), uuid=StatusUuid("u")))
    operator = harness.open("operator")
    harness.say(operator, GetTasks(request_id=1, limit=1))
    (page,) = harness.take(operator, Tasks)
    assert [task.task_id for task in page.tasks] == ["b"]
    assert page.next == f"{framework_id}/b"
    harness.say(operator, GetTasks(request_id=1, after=page.next, include_completed=True, framework_id=framework_id))
    (page,) = harness.take(operator, Tasks)
    assert [task.task_id for task in page.tasks] == ["c"]
    harness.say(operator, GetTasks(request_id=1, include_completed=True, slave_id=slave_id))
    (page,) = harness.take(operator, Tasks)
    assert [(task.task_id, task.state) for task in page.tasks] == [
        ("a", TaskState.FINISHED),
        ("b", TaskState.STAGING),
        ("c", TaskState.STAGING),
    ]


def test_operator_kills_anyones_task() -> None:
    harness = Harness()
    slave, slave_id = harness.slave()
    framework, framework_id = harness.framework()
    (offer,) = harness.offers(framework)
    harness.launch(framework, offer, task_info("t", slave_id))
    operator = harness.open("operator")
    harness.say(operator, OperatorKillTask(request_id=1, framework_id=framework_id, task_id=TaskId("t")))
    assert harness.take(operator, Done) == [Done(request_id=1)]
    assert [kill.task_id for kill in harness.take(slave, KillTask)] == ["t"]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (OperatorKillTask(request_id=9, framework_id=FrameworkId("f"), task_id=TaskId("t")), "not_found"),
        (TeardownFramework(request_id=9, framework_id=FrameworkId("f")), "not_found"),
        (TeardownFramework(request_id=9), "invalid"),
    ],
)
def test_request_for_what_is_not_there_is_answered(message: Message, code: str) -> None:
    harness = Harness()
    operator = harness.open("operator")
    harness.say(operator, message)
    assert [(error.code, error.request_id) for error in harness.take(operator, Error)] == [(code, 9)]


@pytest.mark.parametrize(
    "message",
    [
        GetMaster(request_id=9),
        GetNodes(request_id=9),
        GetFrameworks(request_id=9),
        GetTasks(request_id=9),
        OperatorKillTask(request_id=9, framework_id=FrameworkId("f"), task_id=TaskId("t")),
        TeardownFramework(request_id=9, framework_id=FrameworkId("f")),
    ],
)
def test_every_request_asks_the_authorizer(message: Message) -> None:
    harness = Harness(acls='default = "deny"\n')
    operator = harness.open("operator", "eve")
    harness.say(operator, message)
    assert [(error.code, error.request_id) for error in harness.take(operator, Error)] == [("unauthorized", 9)]


@pytest.mark.parametrize(
    ("principal", "kind"), [("framework:f-1", "operator"), ("slave", "executor"), ("slave", "task"), ("slave", "")]
)
def test_keys_of_tasks_and_strange_kinds_get_no_session(principal: str, kind: str) -> None:
    assert Harness().core.refusal(Principal(principal), Hello(kind=kind)) is not None
