"""What a comparison of two captures has found, in a form that a report is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MISSING: Final = "missing"
"""Only one of the two has sent the rest of the stream, or the datagram, or has the flow at all."""
ACKNOWLEDGEMENT: Final = "acknowledgement"
"""The primary acknowledges what the secondary never did, so that its frame would be held."""


@dataclass(slots=True)
class Finding:
    """One difference.

    Attributes:
        reason: one of `colo.difference.REASONS`, `MISSING` or `ACKNOWLEDGEMENT`.
        key: of the flow (`pystack.flow.key.directed_key` of the guest's frames). incarnation: which connection on these
            ports, from 1; 0 for one that was open when the captures began, and for datagrams.
        offset: where in the stream: bytes after the SYN, or after the first byte captured; or datagrams before it.
        primary, secondary: the bytes around it, or what each did in words. before: how many of these bytes stand before
            the difference.
        primary_record, secondary_record: which frame of each capture is concerned, from 0; -1: none.
        cause: the likely one, "" when it cannot be told.
    """

    reason: str
    key: bytes
    incarnation: int
    offset: int
    primary: bytes = b""
    secondary: bytes = b""
    before: int = 0
    primary_record: int = -1
    secondary_record: int = -1
    cause: str = ""
