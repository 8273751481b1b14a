"""ZeroMQ, and nothing else of ours knows it: sessions, batches, back-pressure, CURVE.

A `Server` binds a ROUTER and knows its peers by the keys they proved; a `Client` dials one with a
DEALER, for ever. A `Publisher` tells the same to any number of `Subscriber`s. All live on the
running asyncio loop, and call their handler on it.

A session is one socket of the peer: it begins with `Hello` and `Welcome`, which the transport
speaks by itself together with `Goodbye` and the errors about sessions. Messages are gathered and
sent once in a turn of the loop, as one payload for each peer.
"""

import zmq

from meseta.transport_client import Client, ClientHandler
from meseta.transport_events import Publisher, PublisherHandler, Subscriber, SubscriberHandler
from meseta.transport_keys import KeyPair
from meseta.transport_outbox import MESSAGE_LIMIT_BYTES
from meseta.transport_server import Server, ServerHandler

__all__ = [
    "MESSAGE_LIMIT_BYTES",
    "Client",
    "ClientHandler",
    "KeyPair",
    "Publisher",
    "PublisherHandler",
    "Server",
    "ServerHandler",
    "Subscriber",
    "SubscriberHandler",
    "generate_keypair",
    "public_key_of",
]


def generate_keypair() -> KeyPair:
    """Return a new CURVE key pair."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public=public.decode(), secret=secret.decode())


def public_key_of(secret: str) -> str:
    """Return the public half that belongs to a secret key (both Z85, 40 characters)."""
    return zmq.curve_public(secret.encode()).decode()
