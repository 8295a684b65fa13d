"""The command `pystack`. Each subcommand lives in a module of its own name, which is loaded when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn, final

import click

from pystack import __version__
from pystack.errors import PystackError, UsageError

_COMMANDS: Final = ("run", "attach", "vm", "trace", "demo")


@final
class _Main(click.Group):
    """Loads a subcommand when it is needed, and says in one sentence what went wrong."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - the signature is click's
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - likewise
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"pystack.cli.{cmd_name}").command
        return command

    def main(self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **extra: Any) -> Any:  # type: ignore[override] # the positional parameters but the first are nobody's
        if not standalone_mode:
            return super().main(args, standalone_mode=False, **extra)
        try:
            status = super().main(args, standalone_mode=False, **extra)
        except click.ClickException as error:
            if isinstance(error, click.exceptions.NoArgsIsHelpError):
                error.show()
                sys.exit(error.exit_code)
            _fail(error.format_message(), error.exit_code)
        except UsageError as error:
            _fail(str(error), 2)
        except PystackError as error:
            _fail(str(error), getattr(error, "status", 1))
        except (click.Abort, KeyboardInterrupt):
            sys.exit(130)
        except BrokenPipeError:  # who reads our output has seen enough, as in `pystack trace FILE | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        sys.exit(status if isinstance(status, int) else 0)


def _fail(sentence: str, status: int) -> NoReturn:
    click.echo(f"pystack: {sentence}", err=True)
    sys.exit(status)


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="pystack")
def main() -> None:
    """A userspace TCP/IP stack: programs and virtual machines behind a gateway of plain host sockets."""
