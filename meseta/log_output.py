"""Where a daemon's log lines go: stderr, one fixed format, times in UTC."""

import logging
import sys
import time

LEVELS = ("debug", "info", "warning", "error")
_FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s"


def start_logging(level: str) -> None:
    """Send lines of `level` (one of `LEVELS`) and above to stderr, as `2026-01-31T12:00:00.000Z INFO master: ...`."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter(_FORMAT, datefmt="%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # asyncio's own DEBUG lines are about our sockets' polling: noise at any level of ours.
    logging.getLogger("asyncio").setLevel(logging.WARNING)
