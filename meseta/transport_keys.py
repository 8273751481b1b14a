"""A CURVE key pair. Apart, so that reading key files loads no ZeroMQ."""

import msgspec


class KeyPair(msgspec.Struct, frozen=True):
    """Z85 text, 40 characters each."""

    public: str
    secret: str

    def __repr__(self) -> str:  # The secret must not reach a log.
        return f"KeyPair(public={self.public!r})"
