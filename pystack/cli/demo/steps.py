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
    """

    good: bool
    note: str


HELLO: Final = Begin("a first request")
REFUSED: Final = Begin("a closed port")
MANY: Final = Begin(f"{SMALL_DOWNLOADS} downloads, {AT_ONCE} at once")


def download(size: int) -> Begin:
    """The step of a bulk transfer to the guest."""
    return Begin(f"download of {size // 1_000_000} MB", size)


def upload(size: int) -> Begin:
    """The step of a bulk transfer from the guest."""
    return Begin(f"upload of {size // 1_000_000} MB", size, to_guest=False)


def hello_note(client: str, seconds: float) -> str:
    """What to say of the first request."""
    return f"{client}, {seconds * 1000:.1f} ms"


def many_note(good: int, seconds: float) -> str:
    """What to say of the small downloads."""
    return f"{good} SHA-256 equal, {seconds:.2f} s"


def bulk_note(size: int, seconds: float, *, good: bool) -> str:
    """What to say of a bulk transfer."""
    return f"{size * 8 / seconds / 1e9:.2f} Gbit/s, SHA-256 {'equal' if good else 'DIFFERS'}"


def refused_note(seconds: float, *, refused: bool) -> str:
    """What to say of the closed port."""
    return f"{'refused' if refused else 'NOT refused'} after {seconds * 1000:.1f} ms"
