"""Ids that people type: whole, or as much of one as tells it from the others."""

from collections.abc import Sequence
from typing import Final

from cli.commands import did_you_mean
from meseta.errors import InvalidInput, RequestRefused

_SHOWN: Final = 5  # Of the matches of an ambiguous prefix: more do not help to choose.


def resolve(kind: str, text: str, ids: Sequence[str], *, listing: str) -> str:
    """Return the one of `ids` that `text` is, or is the beginning of.

    Raises:
        InvalidInput: it is the beginning of several; names them.
        RequestRefused: it is the beginning of none; `listing` is the command that shows what there is.
    """
    if text in ids:
        return text
    matches = sorted({one for one in ids if one.startswith(text)})
    if len(matches) == 1 and text:
        return matches[0]
    if matches:
        shown = ", ".join(matches[:_SHOWN]) + (f" and {len(matches) - _SHOWN} more" if len(matches) > _SHOWN else "")
        raise InvalidInput(f"{kind} {text!r} is the beginning of {shown}; type more of it")
    close = did_you_mean(text, ids)
    remedy = close if "did you mean" in close else f"; see `{listing}`"
    raise RequestRefused(f"there is no {kind} {text!r}{remedy}", code="not_found")
