"""`dcos completion`: code for the shell that completes commands, options and ids."""

import click

_HINTS = {
    "bash": 'eval "$(dcos completion bash)"   # in ~/.bashrc',
    "zsh": 'eval "$(dcos completion zsh)"   # in ~/.zshrc',
    "fish": "dcos completion fish | source   # in ~/.config/fish/config.fish",
}


@click.command("completion", epilog="\b\n" + "\n".join(_HINTS.values()))
@click.argument("shell", type=click.Choice(list(_HINTS)))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print completion code for SHELL; let the shell read it at its start."""
    from click.shell_completion import get_completion_class  # noqa: PLC0415

    completion = get_completion_class(shell)
    assert completion is not None, f"click knows no {shell}"
    click.echo(completion(ctx.find_root().command, {}, "dcos", "_DCOS_COMPLETE").source())
