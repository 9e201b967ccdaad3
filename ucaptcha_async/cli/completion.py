"""`ucaptcha completion`: what a shell needs to complete the command's words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from cyclopts import App, Parameter

from .exits import Exit
from .output import note, say


def completion_of(app: App) -> Callable[..., int]:
    """The command that knows the words of `app`."""

    def completion(
        shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="Which shell.")],
        /,
        *,
        install: Annotated[
            bool,
            Parameter(
                help="Write it where the shell looks for it, and let the shell's startup file load it.",
                negative=(),
                show_default=False,
            ),
        ] = False,
    ) -> int:
        """Print the shell's completion script, or install it: `ucaptcha completion bash --install`."""
        if install:
            note(f"written to {app.install_completion(shell=shell)}; start a new shell")
        else:
            say(app.generate_completion(shell=shell))
        return Exit.DONE

    return completion
