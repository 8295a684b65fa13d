"""`pystack attach`: the gateway of a network namespace that exists."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import Any

import click

from pystack.cli import signals
from pystack.cli.options import Settings, serving_options
from pystack.cli.run import guest_network
from pystack.counters import Counters
from pystack.drivers.namespace import enter_namespace, open_namespace


@click.command(name="attach")
@serving_options(tap=True)
@click.option("--no-configure", is_flag=True, help="Make the interface, but leave it down and without an address.")
@click.argument("target", metavar="PID|PATH")
def command(*, target: str, ifname: str, tun_device: str, no_configure: bool, **options: Any) -> int:
    """Give the network namespace of the process PID, or at PATH, an interface that leads out through the gateway.

    Runs until SIGINT or SIGTERM, or until the process PID has ended; then the interface vanishes.
    """
    settings = Settings.of(options)
    network = guest_network(settings, ifname=ifname, tun_device=tun_device)
    if no_configure:
        network = replace(network, address=None, gateway=None)
    with contextlib.ExitStack() as undo:
        namespace, process = open_namespace(target)
        undo.callback(os.close, namespace)
        if process >= 0:
            undo.callback(os.close, process)
        undo.enter_context(signals.held())
        tap = enter_namespace(namespace, network)
        from pystack.cli.serving import Session  # noqa: PLC0415 - after the child has started, see `run`
        from pystack.cli.waiting import stopped  # noqa: PLC0415
        from pystack.link.tap import TapLink  # noqa: PLC0415

        counters = Counters()
        link = TapLink.from_fd(tap, mtu=settings.mtu, counters=counters)
        with Session(settings, link, counters, guest=None if no_configure else settings.plan.configured) as session:
            at = "unconfigured" if no_configure else str(network.address)
            click.echo(f"pystack: {network.name} ({at}) is in the namespace of {target}; Ctrl-C ends it.", err=True)
            return session.serve(lambda: stopped(process))
