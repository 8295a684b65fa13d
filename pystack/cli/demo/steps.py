"""What the demonstration does, the same in a namespace and in memory, and how a client tells of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

SMALL_DOWNLOADS: Final = 100
AT_ONCE: Final = 20
NAMESPACE_BYTES: Final = 512_000_000
MEMORY_BYTES: Final = 64_000_000


@final
@dataclass(frozen=True, slots=True)
class Begin:
    """A step begins.

    Attributes:
        label: what is done. total: bytes to be carried, 0 for what is too quick to watch.
        to_guest: which way they flow.
    """

    label: str
    total: int = 0
    to_guest: bool = True


@final
@dataclass(frozen=True, slots=True)
class End:
    """The step has ended.

    Attributes:
        good: whether it brought what it should. note: what it brought, in a few words.
        rate: of a bulk transfer, in bit/s.
    """

    good: bool
    note: str
    rate: float = 0.0


HELLO: Final = Begin("a first request")
REFUSED: Final = Begin("a closed port")
MANY: Final = Begin(f"{SMALL_DOWNLOADS} downloads, {AT_ONCE} at once")


def download(size: int) -> Begin:
    """The step of a bulk transfer to the guest."""
    return Begin(f"download of {size // 1_000_000} MB", size)


def upload(size: int) -> Begin:
    """The step of a bulk transfer from the guest."""
    return Begin(f"upload of {size // 1_000_000} MB", size, to_guest=False)


def hello_end(client: str, seconds: float, *, good: bool) -> End:
    """How the first request went."""
    return End(good, f"{client}, {seconds * 1000:.1f} ms")


def refused_end(seconds: float, *, refused: bool) -> End:
    """How the connection to the closed port went."""
    return End(refused, f"{'refused' if refused else 'NOT refused'} after {seconds * 1000:.1f} ms")


def many_end(good: int, seconds: float) -> End:
    """How the small downloads went, of which ``good`` were good."""
    return End(good == SMALL_DOWNLOADS, f"{good} SHA-256 equal, {seconds:.2f} s")


def bulk_end(size: int, seconds: float, *, good: bool) -> End:
    """How a bulk transfer went."""
    rate = size * 8 / seconds
    return End(good, f"{rate / 1e9:.2f} Gbit/s, SHA-256 {'equal' if good else 'DIFFERS'}", rate)
