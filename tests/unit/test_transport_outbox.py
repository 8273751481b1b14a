"""Outboxes pack messages into payloads of bounded size, in order, and know how much waits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import meseta.transport_outbox
from meseta.messages import Epoch, FileData, Goodbye, Message, Pong, decode
from meseta.transport_outbox import MESSAGE_LIMIT_BYTES, PAYLOAD_BYTES, PAYLOAD_MESSAGES, Outbox, pack


def drained(outbox: Outbox) -> list[list[Message]]:
    payloads = []
    while (payload := outbox.first()) is not None:
        payloads.append(decode(bytes(payload)))
        outbox.pop()
    return payloads


def piece(size_bytes: int) -> FileData:
    return FileData(request_id=1, offset=0, data=bytes(size_bytes), size_bytes=0)


@given(st.lists(st.text(max_size=20), max_size=600), st.sampled_from([None, 0, 7]))
def test_payloads_hold_what_was_added_in_order(texts: list[str], epoch: int | None) -> None:
    outbox = Outbox(epoch)
    for text in texts:
        outbox.add(Goodbye(message=text))
    assert bool(outbox) is bool(texts)
    payloads = drained(outbox)
    if epoch is not None:
        assert all(payload.pop(0) == Epoch(epoch=epoch) for payload in payloads)
    assert [message for payload in payloads for message in payload] == [Goodbye(message=text) for text in texts]
    assert [len(payload) for payload in payloads[:-1]] == [PAYLOAD_MESSAGES] * (len(payloads) - 1)
    assert not outbox


def test_payload_is_full_at_its_count_or_size() -> None:
    outbox = Outbox()
    assert [outbox.add(Pong()) for _ in range(PAYLOAD_MESSAGES)].index(True) == PAYLOAD_MESSAGES - 1
    assert not outbox.add(piece(PAYLOAD_BYTES // 2))
    assert outbox.add(piece(PAYLOAD_BYTES // 2))
    assert [len(payload) for payload in drained(outbox)] == [PAYLOAD_MESSAGES, 2]


def test_payload_that_was_not_sent_stays_first_and_later_messages_follow_it() -> None:
    outbox = Outbox()
    outbox.add(Goodbye(message="1"))
    first = outbox.first()
    outbox.add(Goodbye(message="2"))
    assert outbox.first() is first
    assert drained(outbox) == [[Goodbye(message="1")], [Goodbye(message="2")]]


def test_outbox_is_over_by_bytes_or_by_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meseta.transport_outbox, "OUTBOX_BYTES", 3 * PAYLOAD_BYTES)
    monkeypatch.setattr(meseta.transport_outbox, "OUTBOX_MESSAGES", 1000)
    outbox = Outbox()
    for _ in range(5):
        outbox.add(piece(PAYLOAD_BYTES // 2))
    assert not outbox.is_over()
    outbox.add(piece(PAYLOAD_BYTES // 2))
    assert outbox.is_over()
    drained(outbox)
    assert not outbox.is_over()
    for _ in range(1000):
        outbox.add(Pong())
    assert not outbox.is_over()
    outbox.add(Pong())
    assert outbox.is_over()


def test_too_large_message_is_refused_and_leaves_the_outbox_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meseta.transport_outbox, "MESSAGE_LIMIT_BYTES", 1000)
    outbox = Outbox()
    outbox.add(Pong())
    with pytest.raises(ValueError, match=r"FileData of 1[0-9]{3} bytes is over the limit of 1000"):
        outbox.add(piece(1000))
    assert drained(outbox) == [[Pong()]]
    assert MESSAGE_LIMIT_BYTES > PAYLOAD_BYTES


def test_single_message_is_packed_with_its_epoch() -> None:
    assert decode(bytes(pack(Pong(), 5))) == [Epoch(epoch=5), Pong()]
    assert decode(bytes(pack(Pong()))) == [Pong()]
