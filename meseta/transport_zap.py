"""Who may connect: CURVE keys, judged through ZAP (RFC 27)."""

from collections.abc import Callable

import zmq
from zmq.utils import z85

from meseta.transport_keys import KeyPair
from meseta.transport_sockets import NOBLOCK, Context, Pump

_ENDPOINT = "inproc://zeromq.zap.01"


def demand_curve(socket: "zmq.Socket[bytes]", keys: KeyPair) -> None:
    """Make a socket that will be bound a CURVE server."""
    socket.set(zmq.CURVE_SERVER, 1)
    socket.set(zmq.CURVE_SECRETKEY, keys.secret.encode())


class KeyJudge:
    """Answers for all sockets of one context; one must be there before a socket is bound.

    ZAP is one inproc name in each context, so whoever judges has a context of his own. `on_refused`
    gets the key and the address of one who was not admitted.
    """

    def __init__(
        self, context: Context, is_admitted: Callable[[str], bool], on_refused: Callable[[str, str], None]
    ) -> None:
        self._is_admitted = is_admitted
        self._on_refused = on_refused
        self._socket = context.socket(zmq.REP)
        self._socket.set(zmq.LINGER, 0)
        self._socket.bind(_ENDPOINT)
        self._pump = Pump(self._socket, self._judge)

    def close(self) -> None:
        """End; who connects later waits for ever."""
        self._pump.stop()
        self._socket.close(0)

    def _judge(self) -> int:
        """Answer one request: is the peer's CURVE key one that we know?"""
        try:
            frames = self._socket.recv_multipart(NOBLOCK)
        except zmq.Again:
            return -1
        public_key = z85.encode(frames[6]).decode() if frames[5] == b"CURVE" else ""
        if public_key and self._is_admitted(public_key):
            verdict = [b"200", b"OK", public_key.encode()]
        else:
            self._on_refused(public_key, frames[3].decode(errors="replace"))
            verdict = [b"400", b"unknown key", b""]
        self._socket.send_multipart([frames[0], frames[1], *verdict, b""])
        return 1
