"""`pystack run`: a command behind the gateway, in namespaces of its own."""

from __future__ import annotations

import os
from ipaddress import IPv4Address
from typing import Any

import click

from pystack.cli import signals
from pystack.cli.options import Settings, serving_options
from pystack.counters import Counters
from pystack.drivers.namespace import CommandGuest, GuestNetwork


def guest_network(settings: Settings, *, ifname: str, tun_device: str) -> GuestNetwork:
    """The network inside a namespace that we configure."""
    plan = settings.plan
    return GuestNetwork(
        name=ifname,
        tun_device=tun_device,
        offload=settings.offload,
        mtu=settings.mtu,
        address=plan.interface(plan.configured),
        gateway=IPv4Address(plan.gateway),
    )


@click.command(name="run", context_settings={"allow_interspersed_args": False})
@serving_options(tap=True)
@click.option("--no-userns", is_flag=True, help="Stay in this user namespace, which takes root.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def command(*, command: tuple[str, ...], ifname: str, tun_device: str, no_userns: bool, **options: Any) -> int:
    """Run COMMAND (a shell by default) with the gateway as its only way out.

    It gets a user, a mount and a network namespace of its own. The exit status is COMMAND's, 128 + N when signal N
    ended it, 127 when it was not found and 126 when it could not be executed.
    """
    settings = Settings.of(options)
    guest = CommandGuest.start(
        command or (os.environ.get("SHELL") or "/bin/sh",),
        guest_network(settings, ifname=ifname, tun_device=tun_device),
        nameservers=settings.nameservers,
        user_namespace=not no_userns,
    )
    try:
        # Only now, while the guest sets itself up.
        from pystack.cli.serving import Session  # noqa: PLC0415
        from pystack.cli.waiting import command_status  # noqa: PLC0415
        from pystack.link.tap import TapLink  # noqa: PLC0415

        counters = Counters()
        link = TapLink.from_fd(guest.tap(), mtu=settings.mtu, counters=counters)
        with Session(settings, link, counters, guest=settings.plan.configured) as session, signals.held():
            guest.execute()
            return session.serve(lambda: command_status(guest))
    finally:
        guest.close()
