"""Every message reads back to itself, is documented, and says what is wrong with a bad one."""

import math
from typing import Any

import msgspec
import pytest
from msgspec import inspect

from meseta import messages
from meseta.errors import DecodeError
from tests.tools import protocol_doc

TYPES = protocol_doc.message_types()


def wire(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


@pytest.mark.parametrize("message_type", TYPES, ids=lambda kind: kind.__name__)
def test_the_documented_example_decodes_and_encodes_to_itself(message_type: type) -> None:
    plain = protocol_doc.example(inspect.type_info(message_type))
    (message,) = messages.decode(wire([plain]))
    assert type(message) is message_type
    assert messages.decode(messages.encode([message])) == [message]


@pytest.mark.parametrize("message_type", TYPES, ids=lambda kind: kind.__name__)
def test_a_message_without_its_required_fields_is_refused_by_name(message_type: type) -> None:
    required = [field for field in inspect.type_info(message_type).fields if field.required]  # type: ignore[attr-defined]
    if not required:
        assert messages.decode(wire([{"type": message_type.__name__}])) == [message_type()]
        return
    with pytest.raises(DecodeError, match=required[0].encode_name) as caught:
        messages.decode(wire([{"type": "Pong"}, {"type": message_type.__name__}]))
    assert caught.value.index == 1


def test_the_protocol_document_is_up_to_date() -> None:
    document = protocol_doc.DOCUMENT.read_text()
    assert protocol_doc.render(document) == document, "run: python tests/tools/protocol_doc.py"


def test_order_of_a_payload_is_kept() -> None:
    sent: list[messages.Message] = [messages.Epoch(epoch=3), messages.Pong(), messages.Goodbye(message="bye")]
    assert messages.decode(messages.encode(sent)) == sent


def test_unknown_fields_from_a_newer_peer_are_ignored() -> None:
    assert messages.decode(wire([{"type": "Pong", "mood": "fine"}])) == [messages.Pong()]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, -1.0])
def test_numbers_that_are_no_durations_are_refused(number: float) -> None:
    with pytest.raises(DecodeError) as caught:
        messages.decode(wire([{"type": "Ping", "interval_s": number, "missed_limit": 5}]))
    assert (caught.value.index, caught.value.field) == (0, "interval_s")


def test_an_error_names_the_path_to_the_bad_field() -> None:
    bad = {"type": "AcceptOffers", "offer_ids": ["o-1"], "operations": [{"type": "LAUNCH", "task_infos": [{}]}]}
    with pytest.raises(DecodeError, match="task_id") as caught:
        messages.decode(wire([bad]))
    assert caught.value.index == 0
    assert caught.value.field == "operations[0].task_infos[0]"


def test_resources_that_contradict_themselves_are_refused() -> None:
    backwards = {"ranges": {"ports": [[5, 1]]}}
    slave = {"hostname": "h", "address": {"endpoint": "tcp://127.0.0.1:1"}, "resources": backwards}
    with pytest.raises(DecodeError, match="ends before it starts") as caught:
        messages.decode(wire([{"type": "RegisterSlave", "slave_info": slave}]))
    assert caught.value.field == "slave_info.resources"


def test_data_over_its_limit_is_refused() -> None:
    big = {"type": "FrameworkToExecutor", "slave_id": "s", "executor_id": "e", "data": b"x" * (1 << 20 | 1)}
    with pytest.raises(DecodeError) as caught:
        messages.decode(wire([big]))
    assert caught.value.field == "data"
