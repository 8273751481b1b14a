"""What commands print: tables for people, one JSON object for programs; all else goes to stderr."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import click

from meseta.resources import MILLI, Resources, format_milli, format_scalar

_WIDE: Final = 1000  # A table that is read by a program is never folded.
_MIB_PER_GIB: Final = 1024
_SECONDS: Final = (("d", 86400), ("h", 3600), ("m", 60))

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


def json_option(command: _Decorated) -> _Decorated:
    """Add `--json`; the command gets `as_json: bool`."""
    return click.option("--json", "as_json", envvar="MESETA_JSON", is_flag=True, help="Print one JSON object instead.")(
        command
    )


def print_json(value: dict[str, Any]) -> None:
    """Print the one object of `--json`."""
    click.echo(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> None:
    """Print a table to stdout; `empty` goes to stderr if there are no rows.

    Columns whose name ends in `>` are numbers and stand to the right. The last one is folded where
    the terminal ends, the others never.
    """
    if not rows:
        note(empty)
        return
    from rich import box  # noqa: PLC0415 - rich takes longer to load than most commands to run.
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    is_terminal = sys.stdout.isatty()
    table = Table(box=box.SIMPLE_HEAD if is_terminal else None, pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    for index, name in enumerate(columns):
        is_last = index == len(columns) - 1
        table.add_column(
            name.rstrip(">").upper(),
            justify="right" if name.endswith(">") else "left",
            no_wrap=not is_last,
            overflow="fold" if is_last else "ellipsis",
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = Console(file=sys.stdout, width=None if is_terminal else _WIDE, highlight=False)
    if is_terminal:
        console.print(table)
        return
    with console.capture() as capture:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))


def note(text: str) -> None:
    """Tell the person at the terminal something that is no result."""
    click.echo(text, err=True)


def resources_json(resources: Resources) -> dict[str, Any]:
    """Return resources as plain numbers: cpus, mem and disk in MiB, ranges as pairs."""
    scalars: dict[str, Any] = {
        name: amount // MILLI if amount % MILLI == 0 else amount / MILLI for name, amount in resources.scalars.items()
    }
    ranges = {name: [list(piece) for piece in pieces] for name, pieces in resources.ranges.items()}
    sets = {name: list(items) for name, items in resources.sets.items()}
    return dict(sorted({**scalars, **ranges, **sets}.items()))


def describe_resources(resources: Resources) -> str:
    """Return resources in words: `1.5 cpus, 2GiB mem`."""
    scalars = [f"{describe_scalar(name, resources.get(name))} {name}" for name in sorted(resources.scalars)]
    rest = Resources(ranges=resources.ranges, sets=resources.sets)
    return ", ".join([*scalars, *filter(None, [str(rest)])]) or "nothing"


def describe_scalar(name: str, amount_milli: int) -> str:
    """Return one quantity, as short as it can be: mem and disk with one decimal of GiB at most."""
    mib = amount_milli // MILLI
    if name in ("mem", "disk") and mib >= _MIB_PER_GIB and mib % _MIB_PER_GIB:
        return f"{mib / _MIB_PER_GIB:.1f}GiB"
    return format_scalar(name, amount_milli) if name in ("mem", "disk") else format_milli(amount_milli)


def describe_share(name: str, used: Resources, total: Resources) -> str:
    """Return `used/total` of one resource."""
    if used.get(name) == 0:
        return f"0/{describe_scalar(name, total.get(name))}"
    return f"{describe_scalar(name, used.get(name))}/{describe_scalar(name, total.get(name))}"


def describe_age(since_unix_s: float) -> str:
    """Return the time since then, in its largest unit; `-` if there is no such time."""
    return "-" if since_unix_s <= 0 else describe_duration(time.time() - since_unix_s)


def describe_duration(seconds: float) -> str:
    """Return `3s`, `5m`, `2h` or `4d`, rounded down."""
    for unit, length in _SECONDS:
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{max(0, int(seconds))}s"
