"""`ftengine completion`: a script that makes a shell complete commands, options and names."""

from __future__ import annotations

import click
from click import shell_completion as shells

from ftengine.cli.group import COMPLETING


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that makes a shell complete commands, options and names.

    \b
    Examples:
      ftengine completion bash > ~/.local/share/bash-completion/completions/ftengine
      ftengine completion zsh > "${fpath[1]}/_ftengine"
      ftengine completion fish > ~/.config/fish/completions/ftengine.fish
    """
    main = click.get_current_context().find_root().command
    made = shells.get_completion_class(shell)
    assert made is not None, shell  # click brings all three
    # Not the class's own `source`, which starts a bash to ask for its version.
    click.echo(shells.ShellComplete.source(made(main, {}, "ftengine", COMPLETING)))
