"""What can go wrong, sorted by whose fault it is.

Nothing that a peer sends raises out of the core: `WireError` is raised and caught inside it, at one boundary per layer.
"""

from __future__ import annotations


class PystackError(Exception):
    """The base of every error that this project raises on purpose."""


class UsageError(PystackError):
    """The caller's, or the person's at the command line: a bad argument, a call in the wrong state.

    Its text is one sentence that says what to do; the command line prints it alone and exits with 2.
    """


class WireError(PystackError):
    """The peer's: bytes that are not what the format demands.

    ``reason`` is the counter's name (``layer.what``), so that the boundary that catches it can count it.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class LinkError(PystackError):
    """The system's: a device, a socket or a file that refused."""


class LinkClosed(LinkError):
    """The other end of a link is gone; no further frame can arrive."""
