"""Groups of commands that are imported when they are used, and sentences for what was mistyped."""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import click

_CLOSE_COUNT: Final = 3


class Entry(NamedTuple):
    """A command of a lazy group: where it is, what its help says, and the heading it stands under."""

    target: str  # "module:attribute"
    help: str
    section: str = "Commands"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?`, or `; there are X, Y, Z`."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=_CLOSE_COUNT)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there are {', '.join(names)}"


class DcosGroup(click.Group):
    """A group that names what was probably meant, and checks its part of the config file."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that `args` begins with."""
        name = args[0]
        command = self.get_command(ctx, name)
        if command is None:
            if name.startswith("-") or ctx.resilient_parsing:
                return super().resolve_command(ctx, args)
            remedy = did_you_mean(name, self.list_commands(ctx))
            raise click.UsageError(f"there is no command {ctx.command_path} {name}{remedy}", ctx)
        _check_config(ctx, name, command)
        return name, command, args[1:]


class LazyGroup(DcosGroup):
    """A group whose commands' modules are imported when they run: `--help` must not load them."""

    def __init__(self, name: str | None = None, *, entries: Mapping[str, Entry], **attributes: Any) -> None:
        super().__init__(name, **attributes)
        self.entries = dict(entries)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order in which help shows them."""
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command, None if there is none of that name."""
        entry = self.entries.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.target.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands under their headings, without an import."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, entry in self.entries.items():
            sections.setdefault(entry.section, []).append((name, entry.help))
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Return names and options that begin with `incomplete`, without an import."""
        from click.shell_completion import CompletionItem  # noqa: PLC0415 - only completion needs it.

        items = [
            CompletionItem(name, help=entry.help) for name, entry in self.entries.items() if name.startswith(incomplete)
        ]
        return items + click.Command.shell_complete(self, ctx, incomplete)


def _check_config(ctx: click.Context, name: str, command: click.Command) -> None:
    """Refuse keys of the config file that `command` does not know."""
    values = (ctx.default_map or {}).get(name)
    if values is None:
        return
    if not isinstance(values, Mapping):
        raise click.UsageError(f"config file: {name} is a table; write [{_table(ctx, name)}] and keys below it", ctx)
    flags = {
        flag.lstrip("-").replace("-", "_"): one.name or ""
        for one in command.params
        if isinstance(one, click.Option)
        for flag in one.opts
    }
    known = [*flags, *(command.list_commands(ctx) if isinstance(command, click.Group) else ())]
    for key in values:
        if key not in known:
            raise click.UsageError(
                f"config file: [{_table(ctx, name)}] has no key {key}{did_you_mean(key, known)}", ctx
            )
    # The keys are the flags' names; click looks for those of the command's own parameters.
    assert ctx.default_map is not None
    ctx.default_map = {**ctx.default_map, name: {flags.get(key, key): value for key, value in values.items()}}


def _table(ctx: click.Context, name: str) -> str:
    path = [*ctx.command_path.split()[1:], name]
    return ".".join(path)
