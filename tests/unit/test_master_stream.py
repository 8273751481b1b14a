"""What the master publishes, and that it makes nothing while nobody follows."""

from master.core import MasterCore
from master.events import FollowersChanged, MasterEffect, Publish
from master.options import default_events_bind
from master.stream import POSITION_INTERVAL_S
from meseta.ids import Principal
from meseta.messages import (
    FrameworkChanged,
    GetMaster,
    GetTasks,
    MasterStatus,
    NodeChanged,
    StreamPosition,
    TaskChanged,
    Tasks,
)
from meseta.model import TaskState
from tests.unit.master_builders import Harness, status, task_info, update

RULES = """
default = "deny"
[[rules]]
principals = ["gateway"]
actions = ["follow_events"]
allow = true
"""


def published(effects: list[MasterEffect]) -> list[object]:
    return [event for effect in effects if isinstance(effect, Publish) for event in effect.events]


def live(harness: Harness) -> None:
    """Let one task run to its end."""
    slave, slave_id = harness.slave()
    session, framework_id = harness.framework()
    (offer,) = harness.offers(session)
    harness.launch(session, offer, task_info("t-1", slave_id))
    harness.say(slave, update(framework_id, status("t-1", TaskState.RUNNING, "u-1", slave_id)))
    harness.say(slave, update(framework_id, status("t-1", TaskState.FINISHED, "u-2", slave_id)))
    harness.advance(1.0)


def test_nothing_is_published_or_noted_while_nobody_follows() -> None:
    harness = Harness()
    live(harness)
    assert harness.published == []
    harness.feed(FollowersChanged(is_followed=True))
    harness.feed(FollowersChanged(is_followed=False))
    harness.published.clear()
    harness.slave()
    harness.advance(10.0)
    assert harness.published == []


def test_new_follower_is_told_the_position_at_once_and_again_in_intervals() -> None:
    harness = Harness()
    (first,) = published(harness.feed(FollowersChanged(is_followed=True)))
    assert first == StreamPosition(sequence=1, interval_s=POSITION_INTERVAL_S)
    assert published(harness.feed(FollowersChanged(is_followed=True))) == [first]
    assert published(harness.advance(POSITION_INTERVAL_S)) == [first]


def test_return_of_a_lone_follower_is_a_gap() -> None:
    """What changed in between was not numbered."""
    harness = Harness()
    harness.feed(FollowersChanged(is_followed=True))
    harness.feed(FollowersChanged(is_followed=False))
    (position,) = published(harness.feed(FollowersChanged(is_followed=True)))
    assert position == StreamPosition(sequence=2, interval_s=POSITION_INTERVAL_S)


def test_changes_are_numbered_without_gaps_and_coalesced() -> None:
    harness = Harness()
    harness.feed(FollowersChanged(is_followed=True))
    live(harness)
    numbers = [event.sequence for event in harness.published if not isinstance(event, StreamPosition)]
    assert numbers == list(range(2, 2 + len(numbers)))
    states = [event.task.state for event in harness.published if isinstance(event, TaskChanged)]
    assert states == [TaskState.STAGING, TaskState.RUNNING, TaskState.FINISHED]
    nodes = [event.node for event in harness.published if isinstance(event, NodeChanged)]
    assert (nodes[-1].state, nodes[-1].tasks_active) == ("active", 0)
    frameworks = [event.framework for event in harness.published if isinstance(event, FrameworkChanged)]
    assert frameworks[-1].state == "active"
    assert len(nodes) + len(frameworks) <= 8  # Sums are gathered, not made for every step.


def test_pages_carry_the_sequence_at_which_they_were_taken() -> None:
    harness = Harness()
    harness.feed(FollowersChanged(is_followed=True))
    live(harness)
    operator = harness.open("operator")
    harness.say(operator, GetTasks(request_id=1))
    (page,) = harness.take(operator, Tasks)
    assert page.sequence == max(event.sequence for event in harness.published)


def test_place_of_the_stream_is_told_to_operators() -> None:
    harness = Harness()
    init = type(harness.init)(
        config=harness.config, seed=1, epoch=2, started_s=harness.now, events_endpoint="tcp://10.0.0.1:5056"
    )
    harness.core = MasterCore(init)
    operator = harness.open("operator")
    harness.say(operator, GetMaster(request_id=1))
    (answer,) = harness.take(operator, MasterStatus)
    assert answer.events_endpoint == "tcp://10.0.0.1:5056"


def test_only_allowed_principals_may_follow() -> None:
    core = Harness(acls=RULES).core
    assert core.follow_refusal(Principal("gateway")) is None
    assert core.follow_refusal(Principal("slave")) is not None
    assert Harness().core.follow_refusal(Principal("slave")) is None
    assert Harness().core.follow_refusal(Principal("framework:f-1")) is not None


def test_well_known_port_has_a_well_known_neighbour() -> None:
    assert default_events_bind("tcp://127.0.0.1:5055") == "tcp://127.0.0.1:5056"
    assert default_events_bind("tcp://[::1]:5055") == "tcp://[::1]:5056"
    assert default_events_bind("tcp://127.0.0.1:7000") == "tcp://127.0.0.1:0"
