"""The allocator's parts: sets as bits, the ends of filters, a slave's refusals."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from master.allocator.bits import BitCounters, bits_of, members
from master.allocator.filters import REFUSAL_LIMIT, Refusals, filter_end
from meseta.resources import resources

indices = st.sets(st.integers(0, 300), max_size=60)


@given(indices)
def test_bits_hold_exactly_their_members_in_order(chosen: set[int]) -> None:
    bits = bits_of(chosen)
    assert bits == sum(1 << index for index in chosen)
    assert list(members(bits)) == sorted(chosen)


@given(st.lists(st.tuples(indices, indices), max_size=30))
def test_bit_counters_count_like_plain_ones(steps: list[tuple[set[int], set[int]]]) -> None:
    counters = BitCounters()
    plain = [0] * 301
    for counted, cleared in steps:
        counters.count(bits_of(counted))
        counters.clear(bits_of(cleared))
        plain = [0 if index in cleared else count + (index in counted) for index, count in enumerate(plain)]
    assert [counters.value(index) for index in range(301)] == plain


@given(st.floats(0, 1e9), st.floats(1e-3, 365 * 24 * 3600.0))
def test_filters_end_never_early_and_at_most_a_64th_late(now: float, length_s: float) -> None:
    end = filter_end(now, length_s)
    assert end >= now + length_s
    assert end <= now + length_s + length_s / 64 + now * 1e-15


def test_a_burst_of_filters_ends_together() -> None:
    rng = random.Random(1)
    ends = {filter_end(100.0 + rng.random(), 5.0) for _ in range(1000)}
    assert len(ends) <= 17


def test_refusals_end_one_by_one() -> None:
    refusals = Refusals()
    amount = resources(cpus=2)
    assert refusals.add(amount, 5.0, 1)
    assert not refusals.add(amount, 5.0, 2)
    assert refusals.add(amount, 6.0, 1)
    assert refusals.blocked(amount) == 3
    assert refusals.expire(5.0)
    assert refusals.blocked(amount) == 1
    assert not refusals.expire(5.5)
    assert refusals.expire(6.0)
    assert not refusals


def test_over_the_limit_the_refusal_that_ends_first_is_dropped() -> None:
    refusals = Refusals()
    for index in range(REFUSAL_LIMIT + 1):
        refusals.add(resources(cpus=index + 1), 100.0 - index, 1 << index)
    dropped = 1 << (REFUSAL_LIMIT - 1)
    assert refusals.clients() == ((1 << (REFUSAL_LIMIT + 1)) - 1) & ~dropped


@pytest.mark.parametrize("client", [1, 2])
def test_a_clients_refusals_are_forgotten_and_others_kept(client: int) -> None:
    refusals = Refusals()
    refusals.add(resources(cpus=2), 5.0, 1)
    refusals.add(resources(cpus=2), 6.0, 2)
    assert refusals.forget(client)
    assert refusals.clients() == 3 - client
    assert not refusals.forget(client)
