"""The event stream on real sockets: who may hear it, and what becomes of one who does not read."""

import asyncio

import pytest
import zmq

from meseta.errors import TransportError
from meseta.ids import SlaveId
from meseta.messages import Message, NodeRemoved, StreamPosition, decode
from meseta.transport import KeyPair, Publisher, Subscriber, generate_keypair
from tests.unit.transport_peers import Notes, never, run

EPOCH = 7


class PublisherNotes(Notes):
    """A publisher's handler, and the keys that it admits."""

    def __init__(self) -> None:
        super().__init__()
        self.admitted: set[str] = set()
        self.asked: list[str] = []
        self.changes: list[bool] = []

    def may_subscribe(self, public_key: str) -> bool:
        self.asked.append(public_key)
        self.noted()
        return public_key in self.admitted

    def followers_changed(self, *, is_followed: bool) -> None:
        self.changes.append(is_followed)
        self.noted()


class SubscriberNotes(Notes):
    """A subscriber's handler."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[Message] = []
        self.epochs: set[int] = set()
        self.losses: list[str] = []

    async def heard(self, count: int) -> None:
        """Return when `count` messages came."""
        await self.until(lambda: len(self.messages) >= count)

    def published(self, messages: list[Message], epoch: int) -> None:
        self.messages += messages
        self.epochs.add(epoch)
        self.noted()

    def unsubscribed(self, reason: str) -> None:
        self.losses.append(reason)
        self.noted()


class Stream:
    """A publisher with CURVE, and subscribers; `async with` closes them all."""

    def __init__(self) -> None:
        self.keys = generate_keypair()
        self.notes = PublisherNotes()
        self.publisher = Publisher("tcp://127.0.0.1:0", self.notes, keys=self.keys, epoch=EPOCH)
        self.subscribers: list[Subscriber] = []

    def subscribe(
        self, keys: KeyPair | None = None, *, is_admitted: bool = True, server_key: str | None = None
    ) -> tuple[Subscriber, SubscriberNotes]:
        keys = keys or generate_keypair()
        if is_admitted:
            self.notes.admitted.add(keys.public)
        notes = SubscriberNotes()
        subscriber = Subscriber(
            self.publisher.endpoint, notes, keys=keys, server_public_key=server_key or self.keys.public
        )
        self.subscribers.append(subscriber)
        return subscriber, notes

    async def followed(self) -> tuple[Subscriber, SubscriberNotes]:
        count = len(self.notes.changes)
        subscriber, notes = self.subscribe()
        await self.notes.until(lambda: len(self.notes.changes) > count)
        return subscriber, notes

    async def __aenter__(self) -> "Stream":
        return self

    async def __aexit__(self, *_: object) -> None:
        for subscriber in self.subscribers:
            subscriber.close()
        self.publisher.close()


def event(number: int, text: str = "s") -> NodeRemoved:
    return NodeRemoved(sequence=number, slave_id=SlaveId(text))


def test_every_subscriber_hears_all_in_order_with_the_epoch() -> None:
    async def main() -> None:
        async with Stream() as stream:
            subscribers = [await stream.followed() for _ in range(3)]
            sent = [event(number) for number in range(1000)]
            for one in sent:
                stream.publisher.publish(one)
            for _, notes in subscribers:
                await notes.heard(len(sent))
                assert notes.messages == sent
                assert notes.epochs == {EPOCH}

    run(main())


def test_followers_are_told_of_each_that_comes_and_of_the_last_that_goes() -> None:
    async def main() -> None:
        async with Stream() as stream:
            first, _ = await stream.followed()
            second, notes = await stream.followed()
            assert stream.notes.changes == [True, True]
            first.close()
            stream.publisher.publish(event(1))
            await notes.until(lambda: notes.messages)
            second.close()
            await stream.notes.until(lambda: stream.notes.changes == [True, True, False])

    run(main())


def test_unknown_key_hears_nothing_and_is_told_why() -> None:
    async def main() -> None:
        async with Stream() as stream:
            stranger = generate_keypair()
            _, notes = stream.subscribe(stranger, is_admitted=False)
            await notes.until(lambda: notes.losses)
            assert stream.notes.asked == [stranger.public]
            assert stream.notes.changes == []
            stream.publisher.publish(event(1))
            await never(notes.until(lambda: notes.messages))
            assert "follow_events" in notes.losses[0]

    run(main())


def test_wrong_key_of_the_publisher_hears_nothing() -> None:
    async def main() -> None:
        async with Stream() as stream:
            _, notes = stream.subscribe(server_key=generate_keypair().public)
            await never(stream.notes.until(lambda: stream.notes.changes), within_s=0.5)
            assert notes.messages == []

    run(main())


def test_peer_without_curve_hears_nothing() -> None:
    async def main() -> None:
        async with Stream() as stream:
            context = zmq.Context()
            bare = context.socket(zmq.SUB)
            bare.set(zmq.SUBSCRIBE, b"")
            bare.connect(stream.publisher.endpoint)
            await never(stream.notes.until(lambda: stream.notes.changes), within_s=0.5)
            stream.publisher.publish(event(1))
            await asyncio.sleep(0.05)
            assert bare.poll(50) == 0
            context.destroy(linger=0)

    run(main())


def test_one_who_does_not_read_loses_payloads_and_holds_nobody_up() -> None:
    """The loop that publishes never waits, and another subscriber hears all."""

    async def main() -> None:
        async with Stream() as stream:
            stuck, stuck_notes = await stream.followed()
            _, notes = await stream.followed()
            stuck._pump.stop()  # It reads no more; only what ZeroMQ and TCP hold reaches it.
            text = "x" * 200_000
            count = 1200
            for number in range(count):
                stream.publisher.publish(event(number, text))
                if number % 20 == 19:  # So much that the other one keeps pace.
                    await notes.heard(number - 5)
            stream.publisher.publish(StreamPosition(sequence=count, interval_s=1.0))
            await notes.until(lambda: len(notes.messages) == count + 1)
            assert stuck_notes.messages == []
            received = 0
            while stuck._socket.poll(500):
                received += len(decode(stuck._socket.recv())) - 1
            assert 0 < received < count, f"{received} of {count} events: none was dropped"

    run(main())


def test_subscriber_is_told_when_the_publisher_goes() -> None:
    async def main() -> None:
        async with Stream() as stream:
            _, notes = await stream.followed()
            stream.publisher.close()
            await notes.until(lambda: notes.losses)

    run(main())


def test_other_subscriptions_and_messages_are_no_followers() -> None:
    async def main() -> None:
        async with Stream() as stream:
            keys = generate_keypair()
            stream.notes.admitted.add(keys.public)
            with zmq.Context() as context, context.socket(zmq.XSUB) as odd:
                odd.linger = 0
                odd.set(zmq.CURVE_PUBLICKEY, keys.public.encode())
                odd.set(zmq.CURVE_SECRETKEY, keys.secret.encode())
                odd.set(zmq.CURVE_SERVERKEY, stream.keys.public.encode())
                odd.connect(stream.publisher.endpoint)
                for frame in (b"\x01topic", b"\x01", b"hello", b"\x00topic"):
                    odd.send(frame)
                await stream.notes.until(lambda: stream.notes.changes)
                odd.send(b"\x00")
                await stream.notes.until(lambda: len(stream.notes.changes) == 2)
                assert stream.notes.changes == [True, False]

    run(main())


def test_address_in_use_is_refused_with_the_remedy() -> None:
    async def main() -> None:
        async with Stream() as stream:
            with pytest.raises(TransportError, match="is in use: stop the process that has it"):
                Publisher(stream.publisher.endpoint, stream.notes, keys=stream.keys, epoch=1)

    run(main())
