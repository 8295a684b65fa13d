"""`colo selftest`: whether a pair protects on this system."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from statistics import median

import click

from pystack import PystackError
from pystack.drivers import hot

ENGINES = ("auto", "x-colo", "stop-copy")


@click.command(name="selftest")
@click.option("--accel", type=click.Choice(["auto", "kvm", "tcg"]), default="auto", show_default=True)
@click.option("--nic", default="virtio-net-pci", show_default=True, help="Its card: virtio-net-pci, e1000, rtl8139.")
@click.option("--qemu", default="qemu-system-x86_64", show_default=True, help="The program.")
@click.option(
    "--engine", type=click.Choice(ENGINES), default="auto", show_default=True, help="How to take checkpoints."
)
@click.option("--fetch-kernel", is_flag=True, help="Download Debian's kernel for the guest if there is none.")
def command(*, accel: str, nic: str, qemu: str, engine: str, fetch_kernel: bool) -> int:
    """Boot a pair of small guests, send traffic, take 20 checkpoints, kill the primary, and check every byte.

    Takes less than two minutes and needs no privileges. The exit code is 0 when every connection survived and every
    checksum was right, and otherwise 1, with the first thing that failed.
    """
    from colo.launch import janitor  # noqa: PLC0415 - for a command line that makes sense
    from colo.launch.plan import Plan, run_directory  # noqa: PLC0415
    from colo.launch.selftest import Selftest, publishing  # noqa: PLC0415
    from colo.launch.setup import guest_of, with_default_guest  # noqa: PLC0415
    from colo.qemu.image import CARDS  # noqa: PLC0415
    from colo.qemu.image import fetch_kernel as fetch  # noqa: PLC0415
    from colo.qemu.machine import qemu_version  # noqa: PLC0415

    guest = guest_of(
        kernel=None, initrd=None, append="", disk=None, memory=128, nic=nic, mac="52:54:00:12:34:56", accel=accel,
        qemu=qemu,
    )  # fmt: skip
    plan = Plan(guest=guest, name="selftest", engine=engine)
    published, ports = publishing()
    plan = replace(plan, publish=published)
    directory_of = run_directory()
    version = ".".join(map(str, asyncio.run(qemu_version(guest.qemu))))
    click.echo(f"QEMU {version}, {guest.accel}, {nic}, clients through ports of this host (no privileges)")
    if fetch_kernel:
        fetch(needs=CARDS[nic])
    with janitor.scratch(directory_of, plan.name) as directory:
        plan = with_default_guest(plan, directory)

        async def work() -> Selftest:
            test = Selftest(plan, directory, ports, lambda text: click.echo(f"  ok  {text}"))
            await test.run()
            return test

        try:
            figures = hot.run(work()).figures
        except PystackError as error:
            click.echo(f"  NO  {error}")
            return 1
    echoes = sorted(figures.echoes)
    click.echo(
        f"  ok  every connection has survived, every checksum is right: {figures.downloads} downloads of 8 MiB, "
        f"{len(echoes):,} echoes on 10 connections\n"
        f"      echo: median {median(echoes) * 1000:.1f} ms, p99 {echoes[len(echoes) * 99 // 100] * 1000:.0f} ms\n"
        f"      longest time without a byte for any client: {figures.silence_after * 1000:.0f} ms after the kill, "
        f"{figures.silence_before * 1000:.0f} ms at checkpoints"
    )
    return 0
