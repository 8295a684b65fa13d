"""What clients of `colo.service.WebService` are owed: the model that a simulated pair is held against."""

from __future__ import annotations

from binascii import crc32
from functools import lru_cache

from colo.service import FLAT, FLAWED, body_bytes, tally_line


def head(size: int) -> bytes:
    """What comes before a body."""
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size


def asked(kind: str, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes that are asked for: nothing comes after an answer that ends the connection, or opens another one."""
    return sizes[:1] if kind in ("part", "dial") else sizes


def request(kind: str, sizes: tuple[int, ...]) -> bytes:
    """What the client sends."""
    if kind == "echo":
        return expected(kind, sizes)[0]
    if kind == "sink":
        return body_bytes(b"sink", 0, sum(sizes))
    return b"".join(b"GET /%s/%d HTTP/1.1\r\n\r\n" % (kind.encode(), size) for size in asked(kind, sizes))


def dialled(size: int) -> bytes:
    """What the machine sends on a connection that it opens when it is asked for ``/dial/size``."""
    return body_bytes(b"%d" % size, 0, size)


@lru_cache(maxsize=64)  # a scenario asks again and again, and never for those of another one
def expected(kind: str, sizes: tuple[int, ...]) -> tuple[bytes, ...]:
    """Everything that a client may receive on one connection: one of these, whole.

    For answers that differ only their form is given, with a body of zeros.
    """
    if kind == "echo":
        return (body_bytes(b"echo", 0, sum(sizes)),)
    if kind == "dial":
        return (head(0),)
    if kind == "sink":
        sent = request(kind, sizes)
        return (tally_line(len(sent), crc32(sent)),)
    bodies = (FLAT, FLAWED) if kind == "flat" else (b"",)
    choices = [b""]
    for size in asked(kind, sizes):
        own = [bytes(size)] if kind == "own" else [body_bytes(seed or b"%d" % size, 0, size, size) for seed in bodies]
        choices = [before + head(size) + body for before in choices for body in own]
    return tuple(choices)


def wrong_answer(kind: str, sizes: tuple[int, ...], received: bytes) -> str:
    """What is wrong with what a client received, "" if nothing is."""
    if kind != "own":
        return "" if received in expected(kind, sizes) else f"{len(received)} bytes that nobody would have sent"
    at = 0
    for size in sizes:
        before = head(size)
        if received[at : at + len(before)] != before:
            return f"no answer at {at}: {received[at : at + 60]!r}"
        at += len(before)
        body = received[at : at + size]
        at += size
        seeds = [b"%d of %d" % (n, who) for n in range(1, 40) for who in (1, 2)]
        alike = [seed for seed in seeds if body[:32] == body_bytes(seed, 0, min(size, 32))]
        if not any(body == body_bytes(seed, 0, size) for seed in alike):
            return f"the body of {size} bytes at {at - size} is of neither machine, or of both"
    return "" if at == len(received) else f"{len(received) - at} bytes too many"
