"""`colo ctl`: speak to a pair that colo launch runs."""

from __future__ import annotations

import json

import click


@click.command(name="ctl")
@click.argument("what", type=click.Choice(["status", "counters", "checkpoint", "failover", "stop"]))
@click.option("--name", default="pair", show_default=True, help="Of the pair, as given to colo launch.")
@click.option("--json", "as_json", is_flag=True, help="With status and counters: as JSON.")
def command(*, what: str, name: str, as_json: bool) -> int:
    """Ask for the status or for what was counted, take a checkpoint, let the secondary carry on, or stop all of it.

    For the secondary to carry on, the primary is ended.
    """
    from colo.launch.control import ask  # noqa: PLC0415 - for a command line that makes sense
    from colo.launch.plan import control_path  # noqa: PLC0415

    told = ask(control_path(name), what)
    if what not in ("status", "counters"):
        return 0
    if as_json:
        click.echo(json.dumps(told, indent=1))
    else:
        for key, value in told.items():
            click.echo(f"{key if what == 'counters' else key.replace('_', ' '):26} {_text(value)}")
    return 0


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    return str(value)
