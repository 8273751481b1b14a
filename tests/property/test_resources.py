"""The algebra of Resources, against plain dictionaries and Python sets."""

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meseta.errors import InvalidInput
from meseta.resources import Resources, parse_resources, range_size, sum_resources, take_from_ranges

NAMES = ("cpus", "mem", "disk", "gpus")
_scalars = st.dictionaries(st.sampled_from(NAMES), st.integers(0, 10_000_000))
_range = st.tuples(st.integers(0, 60), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))
_ranges = st.dictionaries(st.sampled_from(("ports", "vlans")), st.lists(_range, max_size=5).map(tuple))
_sets = st.dictionaries(st.sampled_from(("disks", "cards")), st.lists(st.sampled_from("abcdef"), max_size=4).map(tuple))
any_resources = st.builds(Resources, _scalars, _ranges, _sets)

Plain = tuple[dict[str, int], dict[str, frozenset[int]], dict[str, frozenset[str]]]


def plain(value: Resources) -> Plain:
    """Return the same resources as plain numbers and sets, the model of these tests."""
    numbers = {
        name: frozenset(number for begin, end in pieces for number in range(begin, end + 1))
        for name, pieces in value.ranges.items()
    }
    return dict(value.scalars), numbers, {name: frozenset(items) for name, items in value.sets.items()}


def fits(small: Plain, large: Plain) -> bool:
    """Say if the model `small` is contained in the model `large`."""
    return (
        all(amount <= large[0].get(name, 0) for name, amount in small[0].items())
        and all(numbers <= large[1].get(name, frozenset()) for name, numbers in small[1].items())
        and all(items <= large[2].get(name, frozenset()) for name, items in small[2].items())
    )


def overlap(one: Resources, other: Resources) -> bool:
    """Say if a port or a set's item is in both."""
    left, right = plain(one), plain(other)
    return any(left[1].get(name, frozenset()) & right[1][name] for name in right[1]) or any(
        left[2].get(name, frozenset()) & right[2][name] for name in right[2]
    )


@given(any_resources)
def test_canonical_form_has_no_empty_parts_and_sorted_disjoint_ranges(value: Resources) -> None:
    assert all(value.scalars.values())
    for pieces in value.ranges.values():
        assert pieces
        assert all(left[1] + 1 < right[0] for left, right in itertools.pairwise(pieces))
    for items in value.sets.values():
        assert items
        assert list(items) == sorted(set(items))


@given(any_resources, any_resources)
def test_sum_holds_both_and_difference_undoes_it(one: Resources, other: Resources) -> None:
    if overlap(one, other):
        with pytest.raises(ValueError, match="held twice"):
            one + other
        return
    total = one + other
    assert total == other + one
    assert one <= total
    assert other <= total
    assert total - other == one
    assert total - one == other


@given(any_resources, any_resources)
def test_containment_agrees_with_the_model(one: Resources, other: Resources) -> None:
    assert (one <= other) == fits(plain(one), plain(other))


@given(any_resources, any_resources)
def test_difference_is_refused_unless_contained(one: Resources, other: Resources) -> None:
    if other <= one:
        rest = one - other
        assert rest + other == one
    else:
        with pytest.raises(ValueError, match=r"cannot take|not within"):
            one - other


@given(any_resources, any_resources)
def test_shortfall_is_exactly_what_is_missing(held: Resources, wanted: Resources) -> None:
    missing = held.shortfall(wanted)
    assert missing <= wanted
    assert bool(missing) != (wanted <= held)
    assert wanted - missing <= held


@given(any_resources)
def test_text_form_reads_back_to_an_equal_value(value: Resources) -> None:
    assert parse_resources(str(value)) == value


@given(any_resources)
def test_wire_form_reads_back_to_an_equal_value_and_hash(value: Resources) -> None:
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=Resources)
    assert again == value
    assert hash(again) == hash(value)


@given(st.lists(st.builds(Resources, _scalars), max_size=6))
def test_sum_of_many_equals_the_sums_by_name(many: list[Resources]) -> None:
    total = sum_resources(many)
    for name in NAMES:
        assert total.get(name) == sum(one.get(name) for one in many)


@given(st.lists(_range, max_size=6).map(tuple), st.integers(0, 40))
def test_taking_from_ranges_gives_the_lowest_numbers(pieces: tuple[tuple[int, int], ...], count: int) -> None:
    ranges = Resources(ranges={"ports": pieces}).ranges.get("ports", ())
    taken = take_from_ranges(ranges, count)
    if range_size(ranges) < count:
        assert taken is None
        return
    assert taken is not None
    numbers = [number for begin, end in ranges for number in range(begin, end + 1)]
    assert [number for begin, end in taken for number in range(begin, end + 1)] == numbers[:count]


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    try:
        value = parse_resources(text, field="--resources")
    except InvalidInput as error:
        assert str(error).startswith("--resources: ")  # noqa: PT017 - either outcome is right
    else:
        assert parse_resources(str(value)) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cpus", "is not NAME:VALUE"),
        ("cpus:two", "write a number such as cpus:0.5"),
        ("cpus:1;cpus:2", "given twice"),
        ("cpu:2", "cpu is not how a resource is called; write cpus"),
        ("cpus:2;Memory:4GiB", "Memory is not how a resource is called; write mem"),
        ("cpus:2GiB", "cpus takes no unit"),
        ("mem:4GB", "mem takes KiB, MiB, GiB or TiB"),
        ("cpus:0.0001", "finer than a thousandth"),
        ("ports:[3-1]", "must rise"),
        ("ports:[1-2", "lacks its closing ]"),
        ("cards:{a", "lacks its closing }"),
        ("mem:99999999999999TiB", "over the limit"),
    ],
)
def test_bad_text_names_the_part_and_the_remedy(text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match="resources: ") as caught:
        parse_resources(text)
    assert said in str(caught.value)


def test_text_form_of_the_documentation() -> None:
    value = parse_resources("cpus:2;mem:4GiB;ports:[31000-32000]")
    assert value == Resources({"cpus": 2000, "mem": 4_096_000}, {"ports": ((31000, 32000),)})
    assert str(value) == "cpus:2;mem:4GiB;ports:[31000-32000]"
    assert parse_resources("mem:512") == parse_resources("mem:0.5GiB") == Resources({"mem": 512_000})
