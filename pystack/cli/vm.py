"""`pystack vm`: the gateway of a QEMU guest, over its stream sockets."""

from __future__ import annotations

from typing import Any

import click

from pystack.cli import signals
from pystack.cli.options import Settings, serving_options
from pystack.counters import Counters
from pystack.errors import UsageError


def _host_and_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65_535:
        raise UsageError(f"--listen {text!r} is not of the form HOST:PORT: write for example 127.0.0.1:5555.")
    return host.removeprefix("[").removesuffix("]"), int(port)


@click.command(name="vm")
@click.option("--socket", "path", metavar="PATH", help="Serve QEMU at the UNIX socket PATH, which is made.")
@click.option("--listen", metavar="HOST:PORT", help="Serve QEMU at a TCP port.")
@serving_options(tap=False)
def command(*, path: str | None, listen: str | None, **options: Any) -> int:
    """Serve one QEMU guest at a time, which gets its address by DHCP; a guest that goes makes room for the next.

    QEMU connects with -netdev stream,id=n0,server=off,addr.type=unix,addr.path=PATH -device virtio-net-pci,netdev=n0

    Runs until SIGINT or SIGTERM.
    """
    settings = Settings.of(options)
    if (path is None) == (listen is None):
        raise UsageError("Say where QEMU connects: give either --socket PATH or --listen HOST:PORT.")
    from pystack.cli.serving import Session  # noqa: PLC0415 - asyncio is for a command line that makes sense
    from pystack.cli.waiting import stopped  # noqa: PLC0415
    from pystack.frame import LinkInfo  # noqa: PLC0415
    from pystack.link import sockets  # noqa: PLC0415
    from pystack.link.qemu import QemuLink  # noqa: PLC0415

    counters = Counters()
    address = path or _host_and_port(listen or "")
    with signals.held():
        link = QemuLink.listen(address, info=LinkInfo(mtu=settings.mtu), counters=counters)
        with Session(settings, link, counters) as session:
            click.echo(f"pystack: waiting for QEMU at {sockets.text(link.address)}; Ctrl-C ends it.", err=True)
            return session.serve(stopped)
