"""What waits to be sent to one peer: messages packed into payloads, within bounds. No I/O.

A payload is a MessagePack array, so it is built by appending encoded messages to a header whose
count is written last; sizes are known exactly at every moment.
"""

from collections import deque

from meseta.messages import Epoch, Message, append

PAYLOAD_MESSAGES = 256  # What one turn of the receiver's loop takes in.
PAYLOAD_BYTES = 1 << 20  # Beyond it a payload only delays what comes after.
MESSAGE_LIMIT_BYTES = 16 << 20  # ZMQ_MAXMSGSIZE of all our sockets is this and one payload on top.
OUTBOX_MESSAGES = 200_000  # A framework with 100,000 tasks may ask for all of them, and still be slow.
OUTBOX_BYTES = 64 << 20  # A stuck peer costs the master this and what ZeroMQ holds, and then its session.

_HEADER_BYTES = 3  # array16: always this form, so that the count can be written last.
_ARRAY16 = b"\xdc\x00\x00"


class Outbox:
    """Messages for one peer, in order. With an `epoch` every payload starts with it."""

    __slots__ = ("_head", "_head_count", "_open", "_open_count", "_sealed", "_sealed_bytes", "_sealed_count")

    def __init__(self, epoch: int | None = None) -> None:
        head = bytearray(_ARRAY16)
        if epoch is not None:
            append(Epoch(epoch=epoch), head)
        self._head = bytes(head)
        self._head_count = 0 if epoch is None else 1
        self._open = bytearray(head)
        self._open_count = 0
        self._sealed: deque[tuple[bytearray, int]] = deque()
        self._sealed_bytes = 0
        self._sealed_count = 0

    def __bool__(self) -> bool:
        return bool(self._open_count or self._sealed)

    def add(self, message: Message) -> bool:
        """Append a message; True if a payload became full, so that it may be sent at once.

        Raises:
            ValueError: the message is over `MESSAGE_LIMIT_BYTES`; it is not in the outbox.
        """
        payload = self._open
        before = len(payload)
        append(message, payload)
        size_bytes = len(payload) - before
        if size_bytes > MESSAGE_LIMIT_BYTES:
            del payload[before:]
            raise ValueError(
                f"{type(message).__name__} of {size_bytes} bytes is over the limit of {MESSAGE_LIMIT_BYTES}:"
                " send it in several messages"
            )
        self._open_count += 1
        if self._open_count < PAYLOAD_MESSAGES and before + size_bytes < PAYLOAD_BYTES:
            return False
        self._seal()
        return True

    def size_bytes(self) -> int:
        """Return the size of all that waits."""
        return self._sealed_bytes + len(self._open)

    def is_over(self) -> bool:
        """Return True if the peer is so far behind that its session must end."""
        return self.size_bytes() > OUTBOX_BYTES or self._sealed_count + self._open_count > OUTBOX_MESSAGES

    def first(self) -> bytearray | None:
        """Return the oldest payload, None if there is nothing to send. It stays until `pop`."""
        if not self._sealed:
            if not self._open_count:
                return None
            self._seal()
        return self._sealed[0][0]

    def pop(self) -> None:
        """Forget the oldest payload: it was sent."""
        payload, count = self._sealed.popleft()
        self._sealed_bytes -= len(payload)
        self._sealed_count -= count

    def _seal(self) -> None:
        payload = self._open
        payload[1:_HEADER_BYTES] = (self._open_count + self._head_count).to_bytes(2, "big")
        self._sealed.append((payload, self._open_count))
        self._sealed_bytes += len(payload)
        self._sealed_count += self._open_count
        self._open = bytearray(self._head)
        self._open_count = 0


def pack(message: Message, epoch: int | None = None) -> bytearray:
    """Return a payload of one message, past any outbox."""
    outbox = Outbox(epoch)
    outbox.add(message)
    payload = outbox.first()
    assert payload is not None
    return payload
