"""Who a peer is follows from the key it proved, whatever it says and whichever routing id it takes."""

import asyncio

import pytest
import zmq

from meseta.errors import TransportError
from meseta.ids import Principal
from meseta.messages import Error, Hello, Ping, Pong, Welcome, encode
from meseta.transport import Client, KeyPair, Server, generate_keypair
from tests.unit.transport_peers import ClientNotes, ServerNotes, Wire, hello, never, receive, run

PING = Ping(interval_s=1.0, missed_limit=2)


def test_unknown_key_is_refused_and_the_server_hears_nothing() -> None:
    async def main() -> None:
        async with Wire() as wire:
            client, notes = wire.client(keys=generate_keypair())
            await notes.until(lambda: notes.refusals)
            ((code, message),) = ((error.code, error.message) for error in notes.refusals)
            assert code == "unauthorized"
            assert wire.server.endpoint in message
            assert wire.notes.opened == []
            assert not client.send(PING)

    run(main())


def test_wrong_public_key_of_the_server_opens_no_session_and_is_hinted_at() -> None:
    async def main() -> None:
        async with Wire() as wire:
            notes = ClientNotes()
            client = Client(
                wire.server.endpoint,
                notes,
                hello=Hello(kind="slave"),
                keys=wire.keys(),
                server_public_key=generate_keypair().public,
            )
            wire.clients.append(client)
            await never(notes.until(lambda: notes.welcomes or notes.refusals), within_s=0.5)
            assert "server's public key" in client.last_failure or "nobody answers" in client.last_failure
            assert wire.notes.opened == []

    run(main())


def test_peer_without_a_key_opens_no_session() -> None:
    async def main() -> None:
        async with Wire() as wire:
            notes = ClientNotes()
            client = Client(wire.server.endpoint, notes, hello=Hello(kind="slave"), keys=None, server_public_key=None)
            wire.clients.append(client)
            await never(notes.until(lambda: notes.welcomes or notes.refusals), within_s=0.5)
            assert "CURVE" in client.last_failure
            assert wire.notes.opened == []

    run(main())


def test_key_that_is_added_later_is_known_at_the_next_dial() -> None:
    async def main() -> None:
        async with Wire() as wire:
            keys = generate_keypair()
            client, notes = wire.client(keys=keys)
            await notes.until(lambda: notes.refusals)
            wire.principal_by_key[keys.public] = Principal("late")
            client.reset("the key was added")
            await notes.welcomed(1)
            assert notes.welcomes[0][0].principal == "late"

    run(main())


def test_key_that_is_removed_is_refused_at_hello_even_on_an_old_connection() -> None:
    async def main() -> None:
        async with Wire() as wire:
            keys = wire.keys()
            assert keys is not None
            dealer = wire.dealer(keys)
            assert isinstance((await hello(dealer))[0], Welcome)
            del wire.principal_by_key[keys.public]
            (answer,) = await hello(dealer)
            assert isinstance(answer, Error)
            assert answer.code == "unauthorized"

    run(main())


def test_principal_in_hello_is_not_believed() -> None:
    async def main() -> None:
        async with Wire() as wire:
            dealer = wire.dealer(wire.keys("mallory"))
            assert await hello(dealer, Hello(kind="operator", name="operator", token="operator")) == [
                Welcome(principal="mallory")
            ]

    run(main())


def test_peer_with_the_routing_id_of_a_connected_one_is_not_heard() -> None:
    async def main() -> None:
        async with Wire() as wire:
            ada = wire.dealer(wire.keys("ada"), routing_id=b"ada's")
            await hello(ada)
            mallory = wire.dealer(wire.keys("mallory"), routing_id=b"ada's")
            mallory.send(encode([PING]))
            await never(receive(mallory))
            wire.server.send(wire.notes.opened[0][0], PING)
            assert await receive(ada) == [PING]
            assert wire.notes.messages == []
            assert [principal for _, principal, _ in wire.notes.opened] == ["ada"]

    run(main())


def test_peer_that_takes_the_routing_id_of_one_that_left_cannot_act_as_it() -> None:
    async def main() -> None:
        async with Wire() as wire:
            ada = wire.dealer(wire.keys("ada"), routing_id=b"ada's")
            await hello(ada)
            session = wire.notes.opened[0][0]
            ada.close()
            mallory_keys = wire.keys("mallory")
            async with asyncio.timeout(10):
                while not wire.notes.closed:  # Until the ROUTER has freed the routing id.
                    mallory = wire.dealer(mallory_keys, routing_id=b"ada's")
                    mallory.send(encode([PING]))
                    await asyncio.sleep(0.05)
            assert wire.notes.closed == [(session, "replaced: another peer connected under its routing id")]
            (answer,) = await receive(mallory)
            assert isinstance(answer, Error)
            assert answer.code == "unknown_session"
            assert wire.notes.messages == []
            assert not wire.server.send(session, Pong())
            assert await hello(mallory) == [Welcome(principal="mallory")]

    run(main())


def test_two_servers_in_one_process_keep_their_own_keys_apart() -> None:
    async def main() -> None:
        async with Wire() as one, Wire() as other:
            keys = one.keys("ada")
            _, notes = one.client(keys=keys)
            await notes.welcomed(1)
            _, notes = other.client(keys=keys)
            await notes.until(lambda: notes.refusals)
            assert other.notes.opened == []

    run(main())


def test_handshakes_that_are_wrong_in_zap_do_not_stop_the_judge() -> None:
    async def main() -> None:
        async with Wire() as wire:
            for _ in range(20):
                wire.dealer(generate_keypair())
            _, notes = await wire.connected()
            assert len(notes.welcomes) == 1

    run(main())


def test_keys_and_principals_go_together() -> None:
    async def main() -> None:
        with pytest.raises(TransportError, match="keys and principals go together"):
            Server("tcp://127.0.0.1:0", ServerNotes(), keys=generate_keypair(), principals=None)
        bad = KeyPair(public=generate_keypair().public, secret="short")
        with pytest.raises(TransportError, match="cannot be bound"):
            Server("tcp://127.0.0.1:0", ServerNotes(), keys=bad, principals=lambda key: None)
        assert zmq.has("curve")

    run(main())
