"""The outermost group of a command line: it loads a subcommand when it is called, and says in one sentence what failed.

`pystack` and `colo` are two of these. Each subcommand lives in a module of its own name that calls it ``command``.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, final

import click

from pystack.errors import PystackError, UsageError


@final
class MainGroup(click.Group):
    """A program of subcommands, each loaded when it is needed.

    Args:
        package: where the modules of the subcommands are, such as ``pystack.cli``.
        program: what stands in front of every sentence, such as ``pystack``.
        modules: the subcommands' names, in the order in which ``--help`` lists them.
    """

    def __init__(self, *args: Any, package: str, program: str, modules: Sequence[str], **extra: Any) -> None:
        super().__init__(*args, **extra)
        self._package = package
        self._program = program
        self._modules = tuple(modules)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the signature is click's
        """The subcommands, as click asks for them."""
        return list(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - likewise
        """The subcommand ``cmd_name``, its module loaded now; None when there is none of that name."""
        if cmd_name not in self._modules:
            return None
        command: click.Command = importlib.import_module(f"{self._package}.{cmd_name}").command
        return command

    def main(self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **extra: Any) -> Any:  # type: ignore[override] # the positional parameters but the first are nobody's
        """Run a subcommand and exit with what it returned: 2 after a person's mistake, 1 after the system's."""
        if not standalone_mode:
            return super().main(args, standalone_mode=False, **extra)
        try:
            status = super().main(args, standalone_mode=False, **extra)
        except click.ClickException as error:
            if isinstance(error, click.exceptions.NoArgsIsHelpError):
                error.show()
                sys.exit(error.exit_code)
            self._fail(error.format_message(), error.exit_code)
        except UsageError as error:
            self._fail(str(error), 2)
        except PystackError as error:
            self._fail(str(error), getattr(error, "status", 1))
        except (click.Abort, KeyboardInterrupt):
            sys.exit(130)
        except BrokenPipeError:  # who reads our output has seen enough, as in `pystack trace FILE | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        sys.exit(status if isinstance(status, int) else 0)

    def _fail(self, sentence: str, status: int) -> NoReturn:
        click.echo(f"{self._program}: {sentence}", err=True)
        sys.exit(status)
