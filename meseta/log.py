"""Log lines as values: one fixed phrase and named values. Cores return `Log`, shells write it.

Imports no `logging`, so that cores may import it; `meseta/log_output.py` says where lines go.
"""

import json
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from logging import Logger

# The numbers of `logging`.
DEBUG = 10
INFO = 20
WARNING = 30
ERROR = 40

LogValue = str | int | float | bool | None


class Log(msgspec.Struct, frozen=True, gc=False, tag=True, tag_field="type"):
    """An effect: write one line."""

    level: int
    phrase: str
    values: dict[str, LogValue] = {}


def log_event(log: "Logger", level: int, phrase: str, **values: object) -> None:
    """Write `phrase` and `values` as one line, `phrase name=value ...`.

    Values with spaces, quotes or control characters are quoted, so that no peer's text can forge a line.
    """
    if log.isEnabledFor(level):
        log.log(level, "%s", " ".join([phrase, *(f"{name}={_shown(value)}" for name, value in values.items())]))


def perform_log(log: "Logger", effect: Log) -> None:
    """Write a core's `Log`."""
    if log.isEnabledFor(effect.level):
        log_event(log, effect.level, effect.phrase, **effect.values)


def _shown(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    if text and text.isprintable() and not any(character in text for character in ' "='):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())
