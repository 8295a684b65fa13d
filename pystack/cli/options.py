"""The options that `run`, `attach` and `vm` share, and what they say together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import click

from pystack.errors import UsageError
from pystack.link.impairment import Impairment
from pystack.slirp.forwards import Publish
from pystack.slirp.plan import DEFAULT_CIDR, AddressPlan, dotted

DEFAULT_MTU: Final = 1500
MTU_MIN: Final = 68  # RFC 791 section 3.2
MTU_MAX: Final = 65_521  # what a TAP takes: 65,535 less the Ethernet header

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the gateway shall be and do.

    Attributes:
        mtu: of the guest's link, bytes.
        plan: the guest's network.
        resolvers: where DNS queries go, 4 or 16 bytes each; empty: to those of the host. dns: whether there is any DNS.
        allow_host_loopback: whether the guest reaches 127.0.0.1 of the host at the gateway's address.
        publish: ports of the host that lead into the guest.
        capture: a pcapng file for every frame. impair: faults to inject; seed: of their randomness.
        offload: whether frames may be larger than the MTU.
        stats: whether to print what happened at the end. stats_json: where to write it.
    """

    mtu: int = DEFAULT_MTU
    plan: AddressPlan = field(default_factory=AddressPlan.from_cidr)
    resolvers: tuple[bytes, ...] = ()
    dns: bool = True
    allow_host_loopback: bool = False
    publish: tuple[Publish, ...] = ()
    capture: Path | None = None
    impair: Impairment | None = None
    seed: int | None = None
    offload: bool = True
    stats: bool = False
    stats_json: Path | None = None

    @classmethod
    def of(cls, options: dict[str, Any]) -> Self:
        """Take the shared options out of ``options`` and check what the command line alone cannot.

        Raises:
            UsageError: one of them makes no sense.
        """
        dns = options.pop("dns")
        no_dns = options.pop("no_dns")
        impair = options.pop("impair")
        if dns and no_dns:
            raise UsageError("--dns and --no-dns contradict each other: give one of them.")
        check_writable(options["stats_json"])
        return cls(
            mtu=options.pop("mtu"),
            plan=AddressPlan.from_cidr(options.pop("cidr")),
            resolvers=tuple(map(_resolver, dns)),
            dns=not no_dns,
            allow_host_loopback=options.pop("allow_host_loopback"),
            publish=tuple(map(Publish.parse, options.pop("publish"))),
            capture=options.pop("capture"),
            impair=None if impair is None else Impairment.parse(impair),
            seed=options.pop("seed"),
            offload=not options.pop("no_offload"),
            stats=options.pop("stats"),
            stats_json=options.pop("stats_json"),
        )

    @property
    def nameservers(self) -> tuple[str, ...]:
        """What the guest's resolv.conf names."""
        return (dotted(self.plan.dns),) if self.dns else ()


def check_writable(path: Path | None) -> None:
    """Find out before the work, and not after it, whether its result can be written.

    Raises:
        UsageError: it cannot.
    """
    if path is not None:
        try:
            path.open("ab").close()
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}.") from None


def _resolver(text: str) -> bytes:
    try:
        return ip_address(text).packed
    except ValueError:
        raise UsageError(f"--dns {text!r} is not an IP address: write for example 9.9.9.9.") from None


_SHARED: Final = (
    click.option(
        "--mtu",
        type=click.IntRange(MTU_MIN, MTU_MAX),
        default=1500,
        show_default=True,
        help="The link's MTU, in bytes.",
    ),
    click.option("--cidr", metavar="NETWORK", default=DEFAULT_CIDR, show_default=True, help="The guest's network."),
    click.option(
        "--dns", metavar="ADDR", multiple=True, help="Forward DNS queries to ADDR and not to the host's resolvers."
    ),
    click.option("--no-dns", is_flag=True, help="Forward no DNS queries."),
    click.option(
        "--allow-host-loopback", is_flag=True, help="Let the guest reach the host's 127.0.0.1 at the gateway's address."
    ),
    click.option(
        "--publish",
        "-p",
        metavar="[ADDR:]HOST:GUEST[/udp]",
        multiple=True,
        help="Lead the host's port HOST (at ADDR, or at all addresses) to the guest's port GUEST.",
    ),
    click.option(
        "--capture",
        metavar="FILE.pcapng",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write every frame to FILE.",
    ),
    click.option(
        "--impair",
        metavar="KIND=VALUE,...",
        help="Inject faults, for example loss=1%,delay=20ms.",
    ),
    click.option("--seed", type=int, help="Make the injected faults repeatable."),
    click.option(
        "--no-offload",
        is_flag=True,
        help="Exchange only frames that fit the MTU, with complete checksums; QEMU's stream never does otherwise.",
    ),
    click.option("--stats", is_flag=True, help="Print at the end what flowed."),
    click.option(
        "--stats-json",
        metavar="FILE",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Write at the end what flowed and every counter, as JSON.",
    ),
)

_TAP: Final = (
    click.option(
        "--tun-device", metavar="PATH", default="/dev/net/tun", show_default=True, help="The TUN driver's device node."
    ),
    click.option("--ifname", metavar="NAME", default="tap0", show_default=True, help="The interface's name inside."),
)


def serving_options(*, tap: bool) -> Callable[[FunctionT], FunctionT]:
    """Decorate a command with the shared options, and with those of a TAP if it makes one."""

    def decorate(function: FunctionT) -> FunctionT:
        for option in reversed(_SHARED + (_TAP if tap else ())):
            function = option(function)
        return function

    return decorate
