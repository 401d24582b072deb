"""`ftengine completion`: what makes a shell complete commands, options and names."""

from __future__ import annotations

import click
from click import shell_completion as shells

from ftengine.cli.group import COMPLETING


@shells.add_completion_class
class _Bash(shells.BashComplete):
    """Bash takes the = of KEY=VALUE for a word of its own, and puts what is completed behind it."""

    _key = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        args, incomplete = super().get_completion_args()
        value = "" if incomplete == "=" else incomplete
        if incomplete == "=" and args:
            args = [*args, "="]
        if len(args) > 1 and args[-1] == "=":
            *args, key, _ = args
            self._key = f"{key}="
            return args, self._key + value
        return args, incomplete

    def format_completion(self, item: shells.CompletionItem) -> str:
        if item.type != "plain":
            return super().format_completion(item)
        return f"plain,{item.value.removeprefix(self._key)}"


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script by which a shell completes commands, options and names.

    \b
    Examples:
      ftengine completion bash > ~/.local/share/bash-completion/completions/ftengine
      ftengine completion zsh > "${fpath[1]}/_ftengine"
      ftengine completion fish > ~/.config/fish/completions/ftengine.fish
    """
    from ftengine.cli import main

    made = shells.get_completion_class(shell)
    assert made is not None, shell  # click brings all three
    # Not the class's own `source`, which starts a bash to ask for its version.
    click.echo(shells.ShellComplete.source(made(main, {}, "ftengine", COMPLETING)))
