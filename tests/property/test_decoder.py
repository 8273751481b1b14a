"""The decoder meets any bytes with messages or `DecodeError`, and reads back what the encoder wrote."""

import math
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import inspect

from meseta.errors import DecodeError
from meseta.ids import TaskId
from meseta.messages import FileData, Goodbye, Message, Ping, Pong, StatusUpdate, decode, encode
from meseta.model import TaskState, TaskStatus
from tests.tools import protocol_doc

KINDS = get_args(Message)
EXAMPLES: list[dict[str, Any]] = [protocol_doc.example(inspect.type_info(kind)) for kind in KINDS]
BIG = 1 << 64

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), BIG - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8)
    | st.sampled_from(
        ["Hello", "TASK_RUNNING", "cpus", "ports", "\ud800".encode("utf-8", "surrogatepass"), "x" * 70_000]
    )
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def meets(payload: bytes) -> list[Message] | None:
    """Decode anything; None if it was refused in the one way that is allowed."""
    try:
        messages = decode(payload)
    except DecodeError as error:
        refusal = error
    else:
        assert all(isinstance(message, KINDS) for message in messages)
        return messages
    assert str(refusal)
    assert refusal.index is None or refusal.index >= 0
    return None


def floats_in(value: object) -> list[float]:
    if isinstance(value, float):
        return [value]
    if isinstance(value, dict):
        return [found for pair in value.items() for part in pair for found in floats_in(part)]
    return [found for part in value for found in floats_in(part)] if isinstance(value, list | tuple) else []


@given(st.binary(max_size=300))
@example(b"")
@example(b"\x90")
@example(b"\xc1")
@example(b"\xdd\xff\xff\xff\xff")  # Announces four thousand million elements.
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\xc6\xff\xff\xff\xff")
@example(b"\x91" * 1_000_000)
@example(b"\x81\xa1a" * 1_000_000)
@example(b"\x91\x81\xa4type\xa5Hello" + b"\x81" * 100_000)
@example(b"\x91\x82\xa4type\xa4Pong\xa1x" + b"\x91" * 100_000)  # An unknown field, nested without end.
@example(b"\x91\x81\xa4type\xa2\xff\xfe")
def test_any_bytes_are_messages_or_a_decode_error(payload: bytes) -> None:
    meets(payload)


@given(st.sampled_from(EXAMPLES), st.data())
def test_message_with_any_field_replaced_is_read_or_refused(whole: dict[str, Any], data: st.DataObject) -> None:
    broken = dict(whole)
    for name in data.draw(st.lists(st.sampled_from(sorted(broken)), max_size=3)):
        broken[name] = data.draw(values)
    broken.update(data.draw(st.dictionaries(st.text(max_size=8), values, max_size=2)))
    try:
        payload = msgspec.msgpack.encode([broken])
    except (UnicodeEncodeError, OverflowError):
        return
    messages = meets(payload)
    if messages is not None:
        plain = msgspec.msgpack.decode(encode(messages))
        for typed in plain:  # What a framework's own service carries is for that service to judge.
            typed.pop("params", None)
            typed.pop("result", None)
        assert all(math.isfinite(number) for number in floats_in(plain))
        assert decode(encode(messages)) == messages


@given(st.sampled_from(EXAMPLES), st.integers(0, 1 << 16), st.binary(min_size=1, max_size=4))
def test_message_with_any_bytes_overwritten_is_read_or_refused(whole: dict[str, Any], at: int, noise: bytes) -> None:
    payload = bytearray(msgspec.msgpack.encode([whole]))
    at %= len(payload)
    payload[at : at + len(noise)] = noise
    meets(bytes(payload))
    meets(bytes(payload[:at]))


@pytest.mark.parametrize("whole", EXAMPLES, ids=lambda whole: str(whole["type"]))
def test_each_message_survives_the_wire_and_ignores_unknown_fields(whole: dict[str, Any]) -> None:
    (message,) = decode(msgspec.msgpack.encode([whole]))
    assert type(message).__name__ == whole["type"]
    assert decode(encode([message])) == [message]
    assert decode(msgspec.msgpack.encode([{**whole, "of_a_later_version": [1, {"a": None}]}])) == [message]


def test_one_bad_element_refuses_the_array_and_is_named() -> None:
    good = msgspec.to_builtins(Ping(interval_s=1.0, missed_limit=2))
    with pytest.raises(DecodeError) as caught:
        decode(msgspec.msgpack.encode([good, good, {**good, "interval_s": "soon"}, good]))
    assert (caught.value.index, caught.value.field) == (2, "interval_s")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, -1.0, 1e300])
def test_durations_that_are_no_durations_are_refused(number: float) -> None:
    with pytest.raises(DecodeError):
        decode(msgspec.msgpack.encode([{"type": "Ping", "interval_s": number, "missed_limit": 1}]))
    status = msgspec.to_builtins(StatusUpdate(status=TaskStatus(task_id=TaskId("t"), state=TaskState.RUNNING)))
    status["status"]["timestamp_unix_s"] = number
    with pytest.raises(DecodeError) as caught:
        decode(msgspec.msgpack.encode([status]))
    assert caught.value.field == "status.timestamp_unix_s"


def test_integers_out_of_their_range_are_refused() -> None:
    request = next(whole for whole in EXAMPLES if whole["type"] == "ReadFile")
    for number in (BIG - 1, -1):
        for name in ("credit", "length" if number < 0 else "offset"):
            refused = meets(msgspec.msgpack.encode([{**request, name: number}])) is None
            assert refused or (name, number) == ("offset", BIG - 1)


def test_text_and_data_over_their_limits_are_refused() -> None:
    with pytest.raises(DecodeError) as caught:
        decode(encode([Goodbye(message="x" * 70_000)]))
    assert caught.value.field == "message"
    with pytest.raises(DecodeError):
        decode(encode([Pong(), FileData(request_id=1, offset=0, data=bytes((1 << 20) + 1), size_bytes=0)]))
