"""Who is offered what: shares, filters, accounts, one behaviour each."""

import random
from collections.abc import Mapping
from fractions import Fraction

import pytest

from master.allocator import Allocation, Allocator, AllocatorConfig
from meseta.errors import InvariantError
from meseta.ids import FrameworkId, SlaveId
from meseta.model import REFUSE_LIMIT_S
from meseta.resources import MILLI, Resources, parse_resources, resources

A, B, C = FrameworkId("a"), FrameworkId("b"), FrameworkId("c")
S1, S2, S3 = SlaveId("s1"), SlaveId("s2"), SlaveId("s3")
BIG = parse_resources("cpus:8;mem:8GiB;ports:[1000-2000]")
HALF = parse_resources("cpus:4;mem:4GiB;ports:[1000-1500]")


def allocator_with(
    *,
    slaves: Mapping[SlaveId, Resources] | None = None,
    frameworks: Mapping[FrameworkId, tuple[str, ...]] | None = None,
    seed: int = 1,
) -> Allocator:
    """Return an allocator that has slaves and frameworks, at time 0, before its first round."""
    allocator = Allocator(AllocatorConfig(), random.Random(seed))
    for framework_id, roles in (frameworks or {}).items():
        allocator.add_framework(framework_id, roles, (), 0.0)
    for slave_id, total in (slaves or {}).items():
        allocator.add_slave(slave_id, total, {}, 0.0)
    return allocator


def who(allocations: list[Allocation]) -> list[FrameworkId]:
    """Return the frameworks in the order of their offers."""
    return [allocation.framework_id for allocation in allocations]


def give_back(allocator: Allocator, offer: Allocation, now: float, *, refuse_s: float | None = None) -> None:
    """Return a whole offer."""
    allocator.recover(offer.framework_id, offer.role, offer.slave_id, offer.resources, now, refuse_s=refuse_s)
    allocator.check()


# Shares


def run_one_task_at_a_time(
    allocator: Allocator, demands: dict[FrameworkId, Resources]
) -> tuple[list[FrameworkId], list[dict[FrameworkId, int]]]:
    """Let each offered framework start one task and return the rest, until nothing fits any more.

    Returns who started each task, and how many tasks each framework had after it.
    """
    order: list[FrameworkId] = []
    held: list[dict[FrameworkId, int]] = []
    tasks = dict.fromkeys(demands, 0)
    while True:
        offers = allocator.allocate(0.0)
        if not offers:
            return order, held
        (offer,) = offers
        demand = demands[offer.framework_id]
        if demand <= offer.resources:
            rest = offer.resources - demand
            order.append(offer.framework_id)
            tasks[offer.framework_id] += 1
            held.append(dict(tasks))
            allocator.recover(offer.framework_id, offer.role, offer.slave_id, rest, 0.0)
        else:
            allocator.suppress(offer.framework_id, (), 0.0)
            give_back(allocator, offer, 0.0)
        allocator.check()


@pytest.mark.parametrize("roles", [("*", "*"), ("b", "a")])
def test_drf_paper_basic_example_is_reproduced_step_by_step(roles: tuple[str, str]) -> None:
    # Ghodsi et al., section 4.1: 9 cpus, 18 GB; A's tasks need 1 cpu and 4 GB, B's 3 cpus and 1 GB.
    # The first tie goes to B, who came first, as in the paper's table; the same within a role as between two.
    total = Resources({"cpus": 9 * MILLI, "mem": 18 * MILLI * 1000})
    demands = {
        A: Resources({"cpus": 1 * MILLI, "mem": 4 * MILLI * 1000}),
        B: Resources({"cpus": 3 * MILLI, "mem": 1 * MILLI * 1000}),
    }
    allocator = allocator_with(slaves={S1: total}, frameworks={B: (roles[0],), A: (roles[1],)})
    order, held = run_one_task_at_a_time(allocator, demands)
    assert order == [B, A, A, B, A]
    shares = [(Fraction(4 * tasks[A], 18), Fraction(3 * tasks[B], 9)) for tasks in held]
    third, ninth = Fraction(1, 3), Fraction(1, 9)
    assert shares == [
        (0, third),
        (2 * ninth, third),
        (4 * ninth, third),
        (4 * ninth, 2 * third),
        (2 * third, 2 * third),
    ]
    used = allocator.allocated(S1)
    assert (used.get("cpus"), used.get("mem")) == (9 * MILLI, 14 * MILLI * 1000)


def test_one_contended_resource_is_shared_evenly() -> None:
    total = resources(cpus=12, mem_mib=1000)
    allocator = allocator_with(slaves={S1: total}, frameworks={A: ("*",), B: ("*",), C: ("*",)})
    demand = resources(cpus=1)
    _, held = run_one_task_at_a_time(allocator, {A: demand, B: demand, C: demand})
    assert held[-1] == {A: 4, B: 4, C: 4}


def test_weights_set_the_ratio_of_shares() -> None:
    allocator = allocator_with(slaves={S1: resources(cpus=12, mem_mib=1000)}, frameworks={A: ("x",), B: ("y",)})
    allocator.set_weight("x", 3.0, 0.0)
    demand = resources(cpus=1)
    _, held = run_one_task_at_a_time(allocator, {A: demand, B: demand})
    assert held[-1] == {A: 9, B: 3}


def test_a_weight_changed_at_run_time_counts_from_the_next_round() -> None:
    allocator = allocator_with(frameworks={A: ("x",), B: ("y",)})
    halves = {A: {"x": resources(cpus=2)}, B: {"y": resources(cpus=1)}}
    allocator.add_slave(S1, resources(cpus=4, mem_mib=64), halves, 0.0)
    (offer,) = allocator.allocate(0.0)
    assert offer.framework_id == B
    give_back(allocator, offer, 0.0)
    allocator.set_weight("x", 4.0, 0.0)
    allocator.check()
    assert who(allocator.allocate(0.0)) == [A]


@pytest.mark.parametrize(("role_of_a", "role_of_b"), [("*", "*"), ("x", "y")])
def test_who_could_take_nothing_in_one_round_is_first_in_the_next(role_of_a: str, role_of_b: str) -> None:
    allocator = allocator_with(frameworks={A: (role_of_a,), B: (role_of_b,)})
    allocator.add_slave(S1, BIG, {}, 0.0)
    allocator.add_slave(S2, BIG, {B: {role_of_b: BIG}}, 0.0)
    (refused,) = allocator.allocate(0.0)
    assert refused.framework_id == A
    give_back(allocator, refused, 0.0, refuse_s=100.0)
    assert who(allocator.allocate(0.0)) == [B]
    allocator.check()
    allocator.recover(B, role_of_b, S2, HALF, 0.0)
    assert who(allocator.allocate(0.0)) == [A]


@pytest.mark.parametrize("user", [A, C])
def test_who_gave_back_most_is_next(user: FrameworkId) -> None:
    # A is in role x, and so is C, which is not registered: what it gives back lowers the role's share alone.
    allocator = allocator_with(frameworks={A: ("x",), B: ("y",)})
    for slave_id in (S1, S3):
        allocator.add_slave(slave_id, BIG, {user: {"x": BIG}}, 0.0)
    allocator.add_slave(S2, BIG, {B: {"y": HALF}}, 0.0)
    assert who(allocator.allocate(0.0)) == [B]
    for slave_id in (S1, S3):
        allocator.recover(user, "x", slave_id, BIG, 0.0)
    assert who(allocator.allocate(0.0)) == [A, B]
    allocator.check()


def test_roles_share_before_frameworks_do() -> None:
    # One role of two frameworks and one of a single one: each role gets half.
    allocator = allocator_with(
        slaves={S1: resources(cpus=12, mem_mib=1000)}, frameworks={A: ("x",), B: ("x",), C: ("y",)}
    )
    demand = resources(cpus=1)
    _, held = run_one_task_at_a_time(allocator, {A: demand, B: demand, C: demand})
    assert held[-1] == {A: 3, B: 3, C: 6}


def test_shares_are_compared_exactly() -> None:
    # B's share is smaller by one part in 10^15.
    total = Resources({"cpus": 10**15, "mem": 10**15 - 1})
    allocator = allocator_with(frameworks={A: ("*",), B: ("*",)})
    used = {A: {"*": Resources({"mem": 10**14})}, B: {"*": Resources({"cpus": 10**14})}}
    allocator.add_slave(S1, total, used, 0.0)
    (offer,) = allocator.allocate(0.0)
    assert offer.framework_id == B


def test_weighted_shares_are_compared_exactly() -> None:
    total = Resources({"cpus": 10**15 - 1, "mem": 10**15})
    allocator = allocator_with(frameworks={A: ("x",), B: ("y",)})
    allocator.set_weight("x", 3.0, 0.0)
    allocator.set_weight("y", 3.0, 0.0)
    used = {A: {"x": Resources({"cpus": 10**14})}, B: {"y": Resources({"mem": 10**14})}}
    allocator.add_slave(S1, total, used, 0.0)
    (offer,) = allocator.allocate(0.0)
    assert offer.framework_id == B


def test_equal_shares_go_to_the_longest_waiting() -> None:
    allocator = allocator_with(slaves={S1: BIG}, frameworks={A: ("*",), B: ("*",), C: ("*",)})
    seen = []
    for _ in range(6):
        (offer,) = allocator.allocate(0.0)
        seen.append(offer.framework_id)
        give_back(allocator, offer, 0.0)
    assert seen == [A, B, C, A, B, C]


def test_dominant_share_is_over_inactive_slaves_too() -> None:
    allocator = allocator_with(slaves={S1: resources(cpus=1, mem_mib=64)}, frameworks={A: ("*",)})
    allocator.allocate(0.0)
    allocator.add_slave(S2, resources(cpus=3, mem_mib=64), {}, 0.0)
    allocator.set_slave_active(S2, is_active=False, now=0.0)
    allocator.allocate(0.0)
    assert allocator.waiting(A, 0.0).role_share == 0.5  # Half of mem, a quarter of cpus.


def test_multi_role_framework_is_offered_through_the_role_with_the_lower_share() -> None:
    allocator = allocator_with(frameworks={A: ("x", "y"), B: ("x",)})
    allocator.add_slave(S1, BIG, {B: {"x": HALF}}, 0.0)
    (offer,) = allocator.allocate(0.0)
    assert (offer.framework_id, offer.role) == (A, "y")


def test_an_unknown_frameworks_use_counts_in_its_role() -> None:
    allocator = allocator_with(frameworks={A: ("x",), B: ("y",)})
    allocator.add_slave(S1, BIG, {C: {"x": HALF}}, 0.0)
    (offer,) = allocator.allocate(0.0)
    assert offer.framework_id == B


def test_one_taker_among_many_clients_is_found() -> None:
    many = {FrameworkId(f"f{index}"): ("*",) for index in range(40)}
    allocator = allocator_with(slaves={S1: BIG}, frameworks=many)
    for _ in range(39):
        (offer,) = allocator.allocate(0.0)
        give_back(allocator, offer, 0.0, refuse_s=100.0)
    (last,) = allocator.allocate(0.0)
    assert last.framework_id == FrameworkId("f39")
    give_back(allocator, last, 0.0, refuse_s=100.0)
    assert allocator.allocate(0.0) == []
    allocator.revive(FrameworkId("f17"), (), 0.0)
    assert who(allocator.allocate(0.0)) == [FrameworkId("f17")]
    allocator.check()


def test_slaves_are_spread_and_the_seed_repeats_the_choice() -> None:
    slaves = {SlaveId(f"s{index}"): BIG for index in range(200)}
    frameworks = {A: ("*",), B: ("*",)}
    first = allocator_with(slaves=slaves, frameworks=frameworks, seed=7).allocate(0.0)
    again = allocator_with(slaves=slaves, frameworks=frameworks, seed=7).allocate(0.0)
    other = allocator_with(slaves=slaves, frameworks=frameworks, seed=8).allocate(0.0)
    assert first == again
    assert first != other
    assert len({offer.slave_id for offer in first}) == 200
    assert [offer.slave_id for offer in first] != sorted(slaves)


# Who is offered at all


def test_inactive_slaves_are_not_offered_until_active() -> None:
    allocator = allocator_with(slaves={S1: BIG}, frameworks={A: ("*",)})
    allocator.set_slave_active(S1, is_active=False, now=0.0)
    assert allocator.allocate(0.0) == []
    allocator.set_slave_active(S1, is_active=True, now=0.0)
    assert who(allocator.allocate(0.0)) == [A]


def test_inactive_frameworks_are_not_offered_until_active() -> None:
    allocator = allocator_with(slaves={S1: BIG}, frameworks={A: ("*",)})
    allocator.set_framework_active(A, is_active=False, now=0.0)
    assert allocator.allocate(0.0) == []
    allocator.set_framework_active(A, is_active=True, now=0.0)
    assert who(allocator.allocate(0.0)) == [A]


def test_suppressed_roles_are_not_offered_until_revived() -> None:
    allocator = allocator_with(slaves={S1: BIG}, frameworks={A: ("x", "y")})
    allocator.suppress(A, ("x",), 0.0)
    (offer,) = allocator.allocate(0.0)
    assert offer.role == "y"
    allocator.suppress(A, (), 0.0)
    give_back(allocator, offer, 0.0)
    assert allocator.allocate(0.0) == []
    allocator.revive(A, ("x",), 0.0)
    assert [offer.role for offer in allocator.allocate(0.0)] == ["x"]


def test_roles_can_be_suppressed_from_the_start() -> None:
    allocator = Allocator(AllocatorConfig(), random.Random(1))
    allocator.add_slave(S1, BIG, {}, 0.0)
    allocator.add_framework(A, ("x", "y"), ("x",), 0.0)
    assert [offer.role for offer in allocator.allocate(0.0)] == ["y"]


@pytest.mark.parametrize(
    ("free", "is_offered"),
    [("cpus:0.01", True), ("mem:32MiB", True), ("cpus:0.009;mem:31.999", False), ("disk:1TiB", False)],
)
def test_an_offer_needs_either_minimum(free: str, is_offered: bool) -> None:
    allocator = allocator_with(slaves={S1: parse_resources(free)}, frameworks={A: ("*",)})
    assert bool(allocator.allocate(0.0)) == is_offered


def test_a_framework_that_changes_roles_is_offered_the_new_ones_only() -> None:
    allocator = allocator_with(slaves={S1: BIG}, frameworks={A: ("x",)})
    (offer,) = allocator.allocate(0.0)
    allocator.add_framework(A, ("y",), (), 0.0)
    give_back(allocator, offer, 0.0)
    assert [offer.role for offer in allocator.allocate(0.0)] == ["y"]
    allocator.check()


# Filters


def test_a_declined_slave_is_not_offered_until_the_filter_ends() -> None:
    allocator = allocator_with(slaves={S1: BIG}, frameworks={A: ("*",)})
    give_back(allocator, allocator.allocate(0.0)[0], 0.0, refuse_s=5.0)
    assert allocator.allocate(4.99) == []
    assert allocator.next_deadline() == 5.0
    assert who(allocator.allocate(5.0)) == [A]
    assert allocator.next_deadline() is None


def test_a_declined_slave_goes_to_another_framework() -> None:
    allocator = allocator_with(slaves={S1: BIG}, frameworks={A: ("*",), B: ("*",)})
    (offer,) = allocator.allocate(0.0)
    give_back(allocator, offer, 0.0, refuse_s=5.0)
    assert who(allocator.allocate(0.0)) == [B]


def test_a_filter_of_zero_seconds_lasts_the_minimum() -> None:
    allocator = allocator_with(slaves={S1: BIG}, frameworks={A: ("*",)})
    give_back(allocator, allocator.allocate(0.0)[0], 0.0, refuse_s=0.0)
    assert allocator.allocate(0.99) == []
    assert who(allocator.allocate(1.0)) == [A]


def test_a_filter_is_capped_at_365_days() -> None:
    allocator = allocator_with(slaves={S1: BIG}, frameworks={A: ("*",)})
    give_back(allocator, allocator.allocate(0.0)[0], 0.0, refuse_s=1e10)
    deadline = allocator.next_deadline()
    assert deadline is not None
    assert REFUSE_LIMIT_S <= deadline <= REFUSE_LIMIT_S * 65 / 64


def test_more_resources_break_a_filter() -> None:
    allocator = allocator_with(frameworks={A: ("*",)})
    allocator.add_slave(S1, BIG, {B: {"*": HALF}}, 0.0)
    give_back(allocator, allocator.allocate(0.0)[0], 0.0, refuse_s=100.0)
    assert allocator.allocate(1.0) == []
    allocator.recover(B, "*", S1, HALF, 2.0)
    (offer,) = allocator.allocate(2.0)
    assert (offer.framework_id, offer.resources) == (A, BIG)


def test_more_ports_alone_break_a_filter() -> None:
    port = parse_resources("ports:[1000-1000]")
    allocator = allocator_with(frameworks={A: ("*",)})
    allocator.add_slave(S1, BIG, {B: {"*": port}}, 0.0)
    give_back(allocator, allocator.allocate(0.0)[0], 0.0, refuse_s=100.0)
    allocator.recover(B, "*", S1, port, 1.0)
    assert who(allocator.allocate(1.0)) == [A]


def test_fewer_resources_do_not_break_a_filter() -> None:
    allocator = allocator_with(slaves={S1: BIG}, frameworks={A: ("*",)})
    give_back(allocator, allocator.allocate(0.0)[0], 0.0, refuse_s=100.0)
    allocator.charge(B, "*", S1, HALF, 1.0)
    assert allocator.allocate(1.0) == []


def test_a_broken_filter_holds_again_when_the_slave_has_less_again() -> None:
    allocator = allocator_with(frameworks={A: ("*",)})
    allocator.add_slave(S1, BIG, {B: {"*": HALF}}, 0.0)
    give_back(allocator, allocator.allocate(0.0)[0], 0.0, refuse_s=100.0)
    allocator.recover(B, "*", S1, HALF, 1.0)
    give_back(allocator, allocator.allocate(1.0)[0], 1.0, refuse_s=5.0)
    allocator.charge(B, "*", S1, HALF, 7.0)
    assert allocator.allocate(7.0) == []
    assert who(allocator.allocate(100.0)) == [A]


def test_the_longer_of_two_filters_counts() -> None:
    allocator = allocator_with(slaves={S1: BIG}, frameworks={A: ("*",)})
    give_back(allocator, allocator.allocate(0.0)[0], 0.0, refuse_s=40.0)
    allocator.charge(A, "*", S1, HALF, 1.0)
    allocator.recover(A, "*", S1, HALF, 1.0, refuse_s=2.0)
    assert allocator.allocate(3.0) == []
    assert who(allocator.allocate(40.0)) == [A]


def test_a_filter_concerns_one_role() -> None:
    allocator = allocator_with(slaves={S1: BIG}, frameworks={A: ("x", "y")})
    (offer,) = allocator.allocate(0.0)
    give_back(allocator, offer, 0.0, refuse_s=100.0)
    (other,) = allocator.allocate(0.0)
    assert {offer.role, other.role} == {"x", "y"}


def test_revive_drops_the_filters_of_its_roles_only() -> None:
    allocator = allocator_with(slaves={S1: BIG}, frameworks={A: ("x", "y")})
    for _ in range(2):
        give_back(allocator, allocator.allocate(0.0)[0], 0.0, refuse_s=100.0)
    assert allocator.allocate(1.0) == []
    allocator.revive(A, ("y",), 1.0)
    assert [offer.role for offer in allocator.allocate(1.0)] == ["y"]


def test_suppress_keeps_filters() -> None:
    allocator = allocator_with(slaves={S1: BIG, S2: BIG}, frameworks={A: ("*",)})
    first, second = allocator.allocate(0.0)
    give_back(allocator, first, 0.0, refuse_s=100.0)
    allocator.suppress(A, (), 0.0)
    give_back(allocator, second, 0.0)
    assert allocator.allocate(1.0) == []
    assert allocator.waiting(A, 1.0).suppressed_roles == ("*",)


def test_a_framework_that_failed_over_is_offered_what_it_refused_before() -> None:
    allocator = allocator_with(slaves={S1: BIG}, frameworks={A: ("*",)})
    give_back(allocator, allocator.allocate(0.0)[0], 0.0, refuse_s=100.0)
    allocator.set_framework_active(A, is_active=False, now=1.0)
    allocator.set_framework_active(A, is_active=True, now=2.0)
    assert who(allocator.allocate(2.0)) == [A]


def test_a_slave_that_comes_back_has_no_filters() -> None:
    allocator = allocator_with(slaves={S1: BIG}, frameworks={A: ("*",)})
    give_back(allocator, allocator.allocate(0.0)[0], 0.0, refuse_s=100.0)
    allocator.remove_slave(S1, 1.0)
    allocator.add_slave(S1, BIG, {}, 1.0)
    assert who(allocator.allocate(1.0)) == [A]


def test_revive_after_a_filter_ended_on_an_inactive_slave_leaves_it_offerable() -> None:
    allocator = allocator_with(slaves={S1: BIG}, frameworks={A: ("*",)})
    give_back(allocator, allocator.allocate(0.0)[0], 0.0, refuse_s=5.0)
    assert allocator.allocate(1.0) == []
    allocator.set_slave_active(S1, is_active=False, now=2.0)
    assert allocator.allocate(5.0) == []
    allocator.revive(A, (), 6.0)
    allocator.check()
    allocator.set_slave_active(S1, is_active=True, now=7.0)
    assert who(allocator.allocate(7.0)) == [A]


def test_a_removed_slave_is_not_offered_to_who_revives() -> None:
    allocator = allocator_with(slaves={S1: BIG}, frameworks={A: ("*",)})
    give_back(allocator, allocator.allocate(0.0)[0], 0.0, refuse_s=100.0)
    assert allocator.allocate(1.0) == []
    allocator.remove_slave(S1, 2.0)
    allocator.revive(A, (), 2.0)
    assert allocator.allocate(2.0) == []


def test_resources_that_end_by_themselves_set_no_filter() -> None:
    allocator = allocator_with(slaves={S1: BIG}, frameworks={A: ("*",)})
    give_back(allocator, allocator.allocate(0.0)[0], 0.0)
    assert who(allocator.allocate(0.0)) == [A]


# Accounts


def test_removing_a_framework_frees_all_it_held() -> None:
    allocator = allocator_with(slaves={S1: BIG}, frameworks={A: ("*",)})
    allocator.charge(A, "*", S1, HALF, 0.0)
    allocator.allocate(0.0)
    allocator.remove_framework(A, 0.0)
    assert allocator.available(S1) == BIG
    allocator.check()


def test_who_is_known_by_its_use_alone_is_forgotten_with_the_slave() -> None:
    allocator = allocator_with(frameworks={A: ("x",)})
    allocator.add_slave(S1, BIG, {B: {"y": HALF}}, 0.0)
    allocator.remove_slave(S1, 0.0)
    allocator.check()


def test_what_comes_back_late_is_ignored() -> None:
    allocator = allocator_with(slaves={S1: BIG, S2: BIG}, frameworks={A: ("*",)})
    first, second = allocator.allocate(0.0)
    allocator.remove_slave(first.slave_id, 0.0)
    give_back(allocator, first, 0.0)
    allocator.remove_framework(A, 0.0)
    give_back(allocator, second, 0.0)
    assert allocator.available(second.slave_id) == BIG


def test_giving_back_more_than_is_held_is_our_bug() -> None:
    allocator = allocator_with(slaves={S1: BIG}, frameworks={A: ("*",)})
    allocator.charge(A, "*", S1, HALF, 0.0)
    with pytest.raises(InvariantError, match="holds less than"):
        allocator.recover(A, "*", S1, BIG, 0.0)
    allocator.check()


def test_ports_held_twice_are_refused_and_change_nothing() -> None:
    allocator = allocator_with(slaves={S1: BIG}, frameworks={A: ("*",)})
    allocator.charge(A, "*", S1, HALF, 0.0)
    with pytest.raises(ValueError, match="held twice"):
        allocator.charge(B, "*", S1, HALF, 0.0)
    with pytest.raises(ValueError, match="held twice"):
        allocator.add_slave(S2, BIG, {A: {"*": HALF}, B: {"*": HALF}}, 0.0)
    allocator.check()
    assert allocator.allocated(S1) == HALF


def test_a_slave_that_shrinks_below_its_use_has_nothing_free_until_tasks_end() -> None:
    allocator = allocator_with(slaves={S1: resources(cpus=8, mem_mib=64)}, frameworks={A: ("*",)})
    for _ in range(2):
        allocator.charge(B, "*", S1, resources(cpus=3), 0.0)
    allocator.update_total(S1, resources(cpus=4, mem_mib=64), 0.0)
    assert allocator.available(S1) == resources(mem_mib=64)
    allocator.recover(B, "*", S1, resources(cpus=3), 0.0)
    assert allocator.available(S1) == resources(cpus=1, mem_mib=64)
    allocator.check()


def test_a_slave_that_grows_is_offered_what_was_added() -> None:
    allocator = allocator_with(slaves={S1: HALF}, frameworks={A: ("*",)})
    allocator.allocate(0.0)
    allocator.update_total(S1, BIG, 0.0)
    (offer,) = allocator.allocate(0.0)
    assert offer.resources == BIG - HALF
    allocator.check()


def test_a_new_resource_name_is_taken_up() -> None:
    allocator = allocator_with(slaves={S1: BIG}, frameworks={A: ("*",), B: ("*",)})
    allocator.allocate(0.0)
    allocator.add_slave(S2, Resources({"cpus": 1000, "gpus": 4000}), {B: {"*": Resources({"gpus": 3000})}}, 0.0)
    allocator.allocate(0.0)
    allocator.check()
    assert allocator.waiting(B, 0.0).role_share == 1.0


# Why a framework waits


def test_a_waiting_framework_learns_that_there_are_no_slaves() -> None:
    assert allocator_with(frameworks={A: ("*",)}).waiting(A, 3.0).no_slaves


def test_a_waiting_framework_learns_how_much_too_small_slaves_are() -> None:
    allocator = allocator_with(frameworks={A: ("*",)})
    allocator.add_slave(S1, BIG, {B: {"*": BIG - resources(mem_mib=30)}}, 0.0)
    allocator.allocate(0.0)
    reasons = allocator.waiting(A, 7.0)
    assert (reasons.too_small_slaves, reasons.too_small_by) == (1, resources(mem_mib=2))
    assert reasons.since_s == 7.0


def test_a_waiting_framework_learns_how_many_slaves_it_filters() -> None:
    allocator = allocator_with(slaves={S1: BIG, S2: BIG}, frameworks={A: ("*",)})
    for offer in allocator.allocate(2.0):
        give_back(allocator, offer, 2.0, refuse_s=100.0)
    allocator.allocate(3.0)
    reasons = allocator.waiting(A, 5.0)
    assert (reasons.filtered_slaves, reasons.since_s) == (2, 3.0)


def test_a_waiting_framework_learns_how_often_others_were_lower() -> None:
    allocator = allocator_with(frameworks={A: ("*",), B: ("*",)})
    allocator.add_slave(S1, resources(cpus=8, mem_mib=8192), {A: {"*": resources(cpus=6)}}, 0.0)
    task = resources(cpus=0.5)
    for _ in range(3):
        (offer,) = allocator.allocate(0.0)
        assert offer.framework_id == B
        allocator.recover(B, "*", S1, offer.resources - task, 0.0)
    assert allocator.waiting(A, 0.0).lost_to_lower_share == 3
    assert allocator.waiting(B, 0.0).lost_to_lower_share == 0
    allocator.suppress(B, (), 0.0)
    assert who(allocator.allocate(0.0)) == [A]
    assert allocator.waiting(A, 0.0).lost_to_lower_share == 0


@pytest.mark.parametrize("weight", [0.0, -1.0, 0.0004, 1e7, float("nan"), float("inf")])
def test_weights_out_of_range_are_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="weight"):
        allocator_with().set_weight("*", weight, 0.0)
