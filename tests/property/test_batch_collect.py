"""Whatever spills and merges happen on the way, the groups are those of a plain dict."""

from collections.abc import Iterator
from operator import add
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from frameworks.batch import collect
from frameworks.batch.collect import Collector, Segments, partition_of
from frameworks.batch.jobcode import JobCode

_KEYS = st.one_of(
    st.lists(st.tuples(st.text(max_size=3), st.integers(0, 9)), max_size=60),
    st.lists(st.tuples(st.integers(-3, 3) | st.sampled_from([1.0, 0.5]), st.integers(0, 9)), max_size=60),
    st.lists(st.tuples(st.binary(max_size=2), st.integers(0, 9)), max_size=60),
    st.lists(st.tuples(st.tuples(st.text(max_size=1), st.integers(0, 2)), st.integers(0, 9)), max_size=60),
)


def unused(key: Any, values: Iterator[Any]) -> Iterator[Any]:
    raise AssertionError


def doubling(key: Any, values: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
    yield key, sum(values)


FORMS = {
    "plain": JobCode(reduce=unused),
    "folded": JobCode(reduce=unused, combine_fold=add),
    "grouped": JobCode(reduce=unused, combine_group=doubling),
}


def expected(pairs: list[tuple[Any, int]]) -> dict[Any, list[int]]:
    groups: dict[Any, list[int]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


@settings(max_examples=200, deadline=None)
@given(
    maps=st.lists(_KEYS, min_size=1, max_size=4),
    form=st.sampled_from(sorted(FORMS)),
    limit_bytes=st.sampled_from([0, 500, 1 << 20]),
    partitions=st.integers(1, 3),
    is_merged=st.booleans(),
)
def test_map_and_reduce_sides_give_each_key_all_its_values_in_order(
    maps: list[list[tuple[Any, int]]], form: str, limit_bytes: int, partitions: int, is_merged: bool
) -> None:
    kind = {type(key) for pairs in maps for key, _ in pairs}
    if not (len(kind) <= 1 or kind <= {int, float}):
        return
    code = FORMS[form]
    factor, collect.MERGE_FACTOR = collect.MERGE_FACTOR, 2
    batch, collect.BATCH_PAIRS = collect.BATCH_PAIRS, 7
    look, collect.LOOK_PAIRS = collect.LOOK_PAIRS, 5
    try:
        with TemporaryDirectory() as name:
            folder = Path(name)
            outputs: list[Segments] = []
            for index, pairs in enumerate(maps):
                (folder / str(index)).mkdir()
                collector = Collector(code, folder / str(index), partitions=partitions, limit_bytes=limit_bytes)
                collector.add(pairs)
                outputs.append(collector.write(folder / f"output-{index}"))
                assert collector.pairs_in == len(pairs)
            groups: dict[Any, list[int]] = {}
            for partition in range(partitions):
                reducer = Collector(code, folder, limit_bytes=limit_bytes)
                sources = [Segments(one.path, one.offsets[partition : partition + 2]) for one in outputs]
                if is_merged:
                    found = reducer.merged_groups(sources)
                else:
                    for source in sources:
                        reducer.add_chunks(source.chunks(0))
                    found = reducer.groups()
                keys = []
                for key, values in found:
                    assert partition_of(key, partitions) == partition
                    groups[key] = list(values)
                    keys.append(key)
                assert keys == sorted(keys)
    finally:
        collect.MERGE_FACTOR, collect.BATCH_PAIRS, collect.LOOK_PAIRS = factor, batch, look
    wanted = expected([pair for pairs in maps for pair in pairs])
    if form == "plain":
        assert groups == wanted
    else:
        assert {key: sum(values) for key, values in groups.items()} == {key: sum(v) for key, v in wanted.items()}


@given(key=st.integers(-(2**50), 2**50), partitions=st.integers(1, 50))
def test_equal_keys_of_different_types_meet_in_one_partition(key: int, partitions: int) -> None:
    assert partition_of(key, partitions) == partition_of(float(key), partitions)
    assert partition_of((key, "a"), partitions) == partition_of((float(key), "a"), partitions)
