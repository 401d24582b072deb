"""Completion in bash of options of the form KEY=VALUE."""

from __future__ import annotations

from click import shell_completion as shells


@shells.add_completion_class
class _Bash(shells.BashComplete):
    """Bash splits KEY=VALUE at the =, and inserts a completion after it."""

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
