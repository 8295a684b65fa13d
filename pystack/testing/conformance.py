"""What every link must do, as a test that anyone who writes a link can run over it.

    @contextmanager
    def make_pair():
        left, right = memory.pair()
        yield left, right

    check_link(make_pair)

Each check gets a pair of its own: two links, of which each is the other's far end. What is checked is what
`pystack.link.base.Link` promises. A failure is an `AssertionError` that says which promise was broken.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Final, TypeAlias

from pystack.clock import Micros
from pystack.errors import LinkClosed, LinkError
from pystack.link.base import Link, TxFrame

Pair: TypeAlias = tuple[Link, Link]
MakePair: TypeAlias = Callable[[], AbstractContextManager[Pair]]
Check: TypeAlias = Callable[[Pair], None]

ETHERTYPE: Final = b"\x88\xb5"
"""IEEE 802's first "local experimental" EtherType: nobody on the way answers it, or thinks it knows better."""

_LEFT_MAC: Final = bytes.fromhex("02000000000a")
_RIGHT_MAC: Final = bytes.fromhex("02000000000b")
_WAIT_MS: Final = 100
_PATIENCE: Final = 50  # rounds of `_WAIT_MS` without progress before frames count as lost


def check_link(make_pair: MakePair, *, reports_close: bool = True) -> None:
    """Run every check, each over a pair of its own.

    Args:
        make_pair: gives a pair, and cleans up when it is left.
        reports_close: whether the right link learns that the left one was closed. A device on a network does not, and a
            server that waits for its next client neither.

    Raises:
        AssertionError: the link breaks a promise.
    """
    checks: list[Check] = [
        check_states_what_it_can_do,
        check_is_silent_when_nothing_arrives,
        check_delivers_both_ways,
        check_delivers_every_size,
        check_gathers_buffers,
        check_respects_the_limit,
        check_never_reuses_a_frame,
        check_keeps_order_under_load,
        check_takes_an_empty_send,
        check_closes_for_good,
    ]
    if reports_close:
        checks.append(check_reports_the_end)
    for check in checks:
        with make_pair() as pair:
            check(pair)


# ------------------------------------------------------------------------------------------------------------- frames


def frame(link: Link, payload: bytes, *, to_right: bool = True) -> TxFrame:
    """A frame of our EtherType for ``link`` to send: its empty virtio_net_hdr if it has one, Ethernet, ``payload``."""
    src, dst = (_LEFT_MAC, _RIGHT_MAC) if to_right else (_RIGHT_MAC, _LEFT_MAC)
    return (bytes(link.info.vnet_hdr_len) + dst + src + ETHERTYPE + payload,)


def payload_of(link: Link, data: bytes) -> bytes | None:
    """The payload of a frame that ``link`` received; None if it is not one of `frame`."""
    start = link.info.vnet_hdr_len + 12
    return data[start + 2 :] if data[start : start + 2] == ETHERTYPE else None


def transfer(
    src: Link, dst: Link, frames: Sequence[TxFrame], *, limit: int = 64, expect: int | None = None
) -> list[bytes]:
    """Send ``frames`` as a driver does, and return what ``dst`` received of our EtherType, virtio_net_hdr included.

    Time is virtual: it jumps to the next instant that a link asks for, and where there is a descriptor, the system is
    waited for.

    Args:
        expect: how many frames to wait for; by default as many as are sent.
    """
    expect = len(frames) if expect is None else expect
    waiting = list(frames)
    arrived: list[bytes] = []
    now: Micros = 0
    patience = _PATIENCE
    while len(arrived) < expect and patience:
        accepted = src.send(waiting, now)
        assert 0 <= accepted <= len(waiting), f"send() accepted {accepted} of {len(waiting)} frames"
        del waiting[:accepted]
        got = dst.recv(now, limit)
        assert len(got) <= limit, f"recv() gave {len(got)} frames when asked for {limit}"
        arrived += [data for data in got if payload_of(dst, data) is not None]
        if got or accepted:
            patience = _PATIENCE
        elif (later := _next(now, (src, dst))) is not None:
            now = later
        else:
            patience -= 1
            _wait((dst,), (src,) if waiting or src.wants_write() else ())
    return arrived


def _next(now: Micros, links: Iterable[Link]) -> Micros | None:
    """The next instant at which a link has something to do, None if that is not after ``now``."""
    due = [at for link in links if (at := link.next_timeout()) is not None and at > now]
    return min(due, default=None)


def _wait(readers: Iterable[Link], writers: Iterable[Link]) -> None:
    poll = select.poll()
    wanted: dict[int, int] = {}
    for link in readers:
        wanted[link.fileno()] = wanted.get(link.fileno(), 0) | select.POLLIN
    for link in writers:
        wanted[link.fileno()] = wanted.get(link.fileno(), 0) | select.POLLIN | select.POLLOUT
    wanted.pop(-1, None)
    for fd, events in wanted.items():
        poll.register(fd, events)
    if wanted:
        poll.poll(_WAIT_MS)


def _payloads(link: Link, frames: Iterable[bytes]) -> list[bytes | None]:
    return [payload_of(link, data) for data in frames]


# ------------------------------------------------------------------------------------------------------------- checks


def check_states_what_it_can_do(pair: Pair) -> None:
    """`Link.info` is consistent in itself and does not change."""
    for link in pair:
        assert isinstance(link, Link), f"{type(link).__name__} lacks a method of Link"
        info = link.info
        assert info == link.info, "info changes"
        assert info.mtu >= 68, f"an MTU of {info.mtu} is below IPv4's least (RFC 791)"
        assert info.vnet_hdr_len in {0, 10, 12}, f"there is no virtio_net_hdr of {info.vnet_hdr_len} bytes"
        offloads = (info.rx_checksum, info.tx_checksum, info.tso4, info.tso6, info.uso)
        assert info.vnet_hdr_len or not any(offloads), "offloads without a virtio_net_hdr to state them in"
        assert info.tx_checksum or not any(offloads[2:]), "segmentation without checksum offload"


def check_is_silent_when_nothing_arrives(pair: Pair) -> None:
    """`Link.recv` gives an empty list, at once, and the descriptor stays the same."""
    for link in pair:
        fd = link.fileno()
        while any(payload_of(link, data) is not None for data in link.recv(0)):
            pass
        assert [data for data in link.recv(0) if payload_of(link, data) is not None] == []
        assert link.fileno() == fd, "the descriptor changes"
        assert not link.wants_write(), "a link that was given nothing wants to write"


def check_delivers_both_ways(pair: Pair) -> None:
    """What one sends the other receives, unchanged and in order, as `bytes`."""
    left, right = pair
    for src, dst, to_right in ((left, right, True), (right, left, False)):
        payloads = [bytes([n]) * 60 for n in range(20)]
        got = transfer(src, dst, [frame(src, payload, to_right=to_right) for payload in payloads])
        assert _payloads(dst, got) == payloads, "frames changed, vanished or changed places"
        assert all(type(data) is bytes for data in got), "a received frame is not a bytes object"


def check_delivers_every_size(pair: Pair) -> None:
    """From a minimal Ethernet frame to one of the MTU."""
    left, right = pair
    mtu = left.info.mtu
    payloads = [bytes([n & 0xFF for n in range(size)]) for size in (46, 47, mtu // 2, mtu - 1, mtu)]
    got = transfer(left, right, [frame(left, payload) for payload in payloads])
    assert _payloads(right, got) == payloads, "a size between the least and the MTU did not arrive unchanged"


def check_gathers_buffers(pair: Pair) -> None:
    """A frame may be sent in pieces, of any kind of buffer."""
    left, right = pair
    (head,) = frame(left, b"")
    body = bytes(range(200))
    pieces: TxFrame = (bytearray(head), memoryview(body)[:70], bytearray(body[70:71]), b"", memoryview(body)[71:])
    many: TxFrame = (head, *(body[n : n + 1] for n in range(len(body))))
    got = transfer(left, right, [pieces, many])
    assert _payloads(right, got) == [body, body], "a frame in pieces did not arrive whole"


def check_respects_the_limit(pair: Pair) -> None:
    """`Link.recv` gives no more than it is asked for, and loses nothing by that."""
    left, right = pair
    payloads = [bytes([n]) * 50 for n in range(40)]
    got = transfer(left, right, [frame(left, payload) for payload in payloads], limit=3)
    assert _payloads(right, got) == payloads, "frames beyond the limit were lost"


def check_never_reuses_a_frame(pair: Pair) -> None:
    """A received frame stays as it is while others arrive."""
    left, right = pair
    first = transfer(left, right, [frame(left, b"\xaa" * 100)])
    kept = memoryview(first[0])
    transfer(left, right, [frame(left, bytes([n]) * 100) for n in range(64)])
    assert payload_of(right, bytes(kept)) == b"\xaa" * 100, "a received frame was overwritten"


def check_keeps_order_under_load(pair: Pair) -> None:
    """A thousand frames, more than any queue on the way: none that was accepted is lost."""
    left, right = pair
    payloads = [n.to_bytes(4, "big") * 100 for n in range(1000)]
    got: list[bytes] = []
    for start in range(0, len(payloads), 100):
        got += transfer(left, right, [frame(left, payload) for payload in payloads[start : start + 100]])
    assert _payloads(right, got) == payloads, "frames were lost or changed places under load"


def check_takes_an_empty_send(pair: Pair) -> None:
    """Sending nothing accepts nothing, and is how a link that holds frames is given the time."""
    for link in pair:
        assert link.send((), 0) == 0


def check_closes_for_good(pair: Pair) -> None:
    """`Link.close` may be repeated; after it there is no descriptor, and receiving and sending raise `LinkClosed`."""
    left, _ = pair
    data = frame(left, bytes(46))
    left.close()
    left.close()
    assert left.fileno() == -1, "a closed link has a descriptor"
    assert _ends(lambda: left.recv(0)), "recv() on a closed link does not raise LinkClosed"
    assert _ends(lambda: left.send([data], 0)), "send() on a closed link does not raise LinkClosed"


def check_reports_the_end(pair: Pair) -> None:
    """What was sent before the far end closed still arrives; then `Link.recv` raises `LinkClosed`."""
    left, right = pair
    payloads = [bytes([n]) * 46 for n in range(5)]
    assert left.send([frame(left, payload) for payload in payloads], 0) == len(payloads)
    left.close()
    got: list[bytes] = []
    now: Micros = 0
    for _ in range(_PATIENCE):
        try:
            got += right.recv(now)
        except LinkClosed:
            break
        now = _next(now, (right,)) or now
        _wait((right,), ())
    else:
        raise AssertionError("recv() does not raise LinkClosed when the far end is closed")
    assert _payloads(right, got) == payloads, "frames sent before the close were lost"


def _ends(call: Callable[[], object]) -> bool:
    try:
        call()
    except LinkError as error:
        return isinstance(error, LinkClosed)
    return False
