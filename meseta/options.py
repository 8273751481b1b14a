"""Options of daemons: as flags, as `MESETA_*` variables and as keys of a TOML file.

A flag beats a variable, a variable beats the file, the file beats the default. A misspelt flag or key
is refused with the name that was probably meant.
"""

import difflib
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from meseta.acls import parse_acls
from meseta.errors import InvalidInput, MesetaError
from meseta.log_output import LEVELS

ENVIRONMENT_PREFIX: Final = "MESETA"
_SECONDS_BY_UNIT: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
_BYTES_BY_UNIT: Final = {"B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_QUANTITY: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\Z")
_DURATION_LIMIT_S: Final = 1e9  # Some 31 years: beyond it is a slip of the pen.

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


def parse_duration(text: str, *, field: str) -> float:
    """Return seconds of `500ms`, `30s`, `2m`, `1h`, `7d` or `1w`; a bare number is refused.

    Raises:
        InvalidInput: names `field`, the text and what it should look like.
    """
    match = _QUANTITY.match(text.strip())
    if match is None or match.group(2) not in _SECONDS_BY_UNIT:
        raise InvalidInput(f"{field}: {text!r} is no duration; write a number and ms, s, m, h, d or w, as in 30s")
    seconds = float(match.group(1)) * _SECONDS_BY_UNIT[match.group(2)]
    if seconds > _DURATION_LIMIT_S:
        raise InvalidInput(f"{field}: {text!r} is over the limit of {_DURATION_LIMIT_S:.0f}s")
    return seconds


def parse_size(text: str, *, field: str) -> int:
    """Return bytes of `512B`, `64KiB`, `512MiB`, `4GiB` or `1TiB`; a bare number is refused.

    Raises:
        InvalidInput: names `field`, the text and what it should look like.
    """
    match = _QUANTITY.match(text.strip())
    if match is None or match.group(2).upper() not in _BYTES_BY_UNIT:
        raise InvalidInput(f"{field}: {text!r} is no size; write a number and B, KiB, MiB, GiB or TiB, as in 512MiB")
    size = float(match.group(1)) * _BYTES_BY_UNIT[match.group(2).upper()]
    if size != int(size):
        raise InvalidInput(f"{field}: {text!r} is no whole number of bytes")
    return int(size)


class _Quantity(click.ParamType[float]):
    """An option whose text has a unit; so has its default."""

    def __init__(self, name: str, parse: Callable[..., float]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            # A bare number of a config file has no unit: refused as its text is.
            return self._parse(str(value), field=param.name if param is not None and param.name else self.name)
        except InvalidInput as error:
            self.fail(str(error).partition(": ")[2], param, ctx)


DURATION: Final = _Quantity("duration", parse_duration)
SIZE: Final = _Quantity("size", parse_size)


class DaemonCommand(click.Command):
    """A command whose options may also come from `MESETA_*` variables and from `--config FILE`.

    `InvalidInput` ends it with exit code 2, any other of our errors with 1; both with the error's text.
    """

    def __init__(self, name: str | None, **attributes: Any) -> None:
        super().__init__(name, **attributes)
        self.context_settings.setdefault("auto_envvar_prefix", ENVIRONMENT_PREFIX)
        self.context_settings.setdefault("show_default", True)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InvalidInput as error:
            raise click.UsageError(str(error), ctx) from error
        except MesetaError as error:
            raise click.ClickException(str(error)) from error


def daemon_options(command: _Decorated) -> _Decorated:
    """Add `--config`, `--record` and `--log-level`; the command gets `record: Path | None` and `log_level: str`."""
    for decorate in (
        click.option(
            "--log-level",
            type=click.Choice(LEVELS, case_sensitive=False),
            default="info",
            help="Least level of the lines that are logged.",
        ),
        click.option(
            "--record",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Write all inputs of the core to this file, for replay.",
        ),
        click.option(
            "--config",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            is_eager=True,
            expose_value=False,
            callback=_load_config,
            help="TOML file with the same options as keys.",
        ),
    ):
        command = decorate(command)
    return command


def _load_config(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    if value is None:
        return
    known = {option.name for option in ctx.command.params if option.name and option.name != param.name}
    try:
        ctx.default_map = {**(ctx.default_map or {}), **read_config(value, known)}
    except InvalidInput as error:
        raise click.BadParameter(str(error), ctx=ctx, param=param) from error


def read_config(path: Path, known: "set[str] | frozenset[str]") -> dict[str, object]:
    """Return the keys of a TOML file under the names of `known`; a key may be written with - or _.

    Raises:
        InvalidInput: it cannot be read, is no TOML, or has a key that is not in `known`.
    """
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{path} is no TOML: {error}") from error
    result: dict[str, object] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in known:
            raise InvalidInput(f"{path}: {unknown_name('key', key, [one.replace('_', '-') for one in known])}")
        if isinstance(value, dict):
            raise InvalidInput(f"{path}: {key} is a table; write it as {key} = VALUE at the top of the file")
        result[name] = value
    return result


def unknown_name(kind: str, name: str, known: "list[str] | tuple[str, ...]") -> str:
    """Return `there is no KIND NAME; did you mean ...?`, or the list of those that there are."""
    close = difflib.get_close_matches(name, known, n=3)
    remedy = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(sorted(known)) or 'none'}"
    return f"there is no {kind} {name}; {remedy}"


def read_acls(path: Path) -> str:
    """Return the text of a file of access rules, which `parse_acls` reads.

    Raises:
        InvalidInput: names the file, the field and what it should be.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"--acl: {path} cannot be read: {error}") from error
    try:
        parse_acls(text)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from error
    return text
