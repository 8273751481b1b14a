"""Runs in files: what is written is read, and what is no run is refused."""

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meseta.errors import DecodeError, InvalidInput
from meseta.spill import (
    CHUNK_PAIRS,
    RunWriter,
    is_sorted_run,
    merge_runs,
    pack,
    pairs_of,
    read_chunks,
    sorted_keys,
    unpack,
)

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def written(pairs: list[tuple[Any, Any]]) -> io.BytesIO:
    file = io.BytesIO()
    RunWriter(file).write_pairs(pairs)
    file.seek(0)
    return file


@given(pairs=st.lists(st.tuples(_VALUES, _VALUES), max_size=20))
def test_what_is_written_is_read(pairs: list[tuple[Any, Any]]) -> None:
    assert list(pairs_of(read_chunks(written(pairs)))) == pairs


def test_long_runs_are_cut_into_chunks_and_counted() -> None:
    file = io.BytesIO()
    writer = RunWriter(file)
    writer.write(list(range(2500)), list(range(2500)))
    assert writer.pairs_written == 2500
    assert writer.size_bytes == len(file.getvalue())
    file.seek(0)
    assert [len(keys) for keys, _ in read_chunks(file)] == [CHUNK_PAIRS, CHUNK_PAIRS, 500]


def test_a_part_of_a_file_is_a_run_of_its_own() -> None:
    file = io.BytesIO()
    writer = RunWriter(file)
    writer.write(["a"], [1])
    start = writer.size_bytes
    writer.mark_unsorted()
    writer.write(["z", "b"], [2, 3])
    end = writer.size_bytes
    writer.write(["c"], [4])
    file.seek(start)
    assert not is_sorted_run(file)
    file.seek(start)
    assert list(pairs_of(read_chunks(file, length_bytes=end - start))) == [("z", 2), ("b", 3)]
    file.seek(end)
    assert is_sorted_run(file)


@pytest.mark.parametrize("data", [b"\xc1", b"\x01", b"\x91\x90", b"\x92\x91\x01\x90", b"\x92\x01\x02", b"\x92\x90"])
def test_what_is_no_run_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        list(read_chunks(io.BytesIO(data)))


@given(data=st.binary(max_size=50))
def test_any_bytes_are_a_run_or_refused(data: bytes) -> None:
    try:
        list(read_chunks(io.BytesIO(data)))
    except DecodeError:
        return


def test_a_run_that_is_cut_off_is_refused() -> None:
    data = written([(str(number), number) for number in range(3000)]).getvalue()
    with pytest.raises(DecodeError, match="cut off"):
        list(read_chunks(io.BytesIO(data[:-1])))
    with pytest.raises(DecodeError, match="cut off"):
        list(read_chunks(io.BytesIO(data), length_bytes=len(data) + 1))


@pytest.mark.parametrize("value", [object(), {1, 2}, 2**70])
def test_values_that_messagepack_lacks_are_refused_in_words(value: object) -> None:
    with pytest.raises(InvalidInput, match="cannot be written"):
        RunWriter(io.BytesIO()).write(["k"], [value])
    with pytest.raises(InvalidInput, match="cannot be written"):
        pack(value)


def test_lone_surrogates_survive() -> None:
    assert unpack(pack("a\ud800")) == "a\ud800"
    assert list(pairs_of(read_chunks(written([("\udc80", 1)])))) == [("\udc80", 1)]


@given(runs=st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers()), max_size=9), min_size=1, max_size=4))
def test_merge_is_stable_and_sorted(runs: list[list[tuple[int, int]]]) -> None:
    rising = [sorted(run, key=lambda pair: pair[0]) for run in runs]
    merged = list(merge_runs([iter(run) for run in rising]))
    assert merged == sorted((pair for run in rising for pair in run), key=lambda pair: pair[0])


def test_keys_of_different_types_are_refused_in_words() -> None:
    with pytest.raises(InvalidInput, match="let all keys be of one type"):
        sorted_keys([1, "a"])
    with pytest.raises(InvalidInput, match="let all keys be of one type"):
        list(merge_runs([iter([(1, 1)]), iter([("a", 1)])]))


@given(data=st.binary(max_size=30))
def test_unpack_meets_any_bytes_with_a_value_or_decode_error(data: bytes) -> None:
    try:
        unpack(data)
    except DecodeError:
        return
