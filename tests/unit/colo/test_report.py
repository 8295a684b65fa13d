"""What a person reads of a difference: where it is, both sides' bytes, the likely cause."""

from __future__ import annotations

import json

import pytest

from colo import causes
from colo.difference import Difference, first_difference
from colo.finding import Finding
from colo.report import Teller, finding_lines, flow_text, line, side_by_side

KEY = bytes((10, 0, 0, 2, 10, 0, 0, 1)) + (80).to_bytes(2, "big") + (5000).to_bytes(2, "big")


def likely(primary: bytes, secondary: bytes) -> str:
    return causes.likely(primary, secondary, first_difference(primary, secondary))


def http(*headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", "Server: test", *headers, "", ""]).encode() + body


def server_hello(random: bytes, session: bytes = b"s" * 32) -> bytes:
    hello = b"\x03\x03" + random + bytes((len(session),)) + session + b"\x13\x01\x00\x00\x00"
    handshake = b"\x02" + len(hello).to_bytes(3, "big") + hello
    return b"\x16\x03\x03" + len(handshake).to_bytes(2, "big") + handshake


def record(kind: int, body: bytes) -> bytes:
    return bytes((kind, 3, 3)) + len(body).to_bytes(2, "big") + body


OPTIONS = "SYN-ACK mss=1460 wscale=7 sack=1 timestamps=1"
UUIDS = (b"7b2c0d8e-55f1-4c3a-9d7e-2f6b1a90c4d5", b"e1a4f6b3-0c92-4d7b-8a5c-6f3d2e1b0a98")
DIGESTS = (b"9f86d081884c7d659a2feaa0c55ad015", b"60303ae22b998861bce3b28f33eec1be")
NOISE = (
    bytes.fromhex("8f03c1a977e20b5dd4961f38aa50ec72039b64de15f7882ac3610d94be5927f0"),
    bytes.fromhex("127be8503dc6f4a109fd8277cb13966e5ad02849f30ce7b16f8c45a1d237be9d"),
)


@pytest.mark.parametrize(
    ("primary", "secondary", "words"),
    [
        (http("Date: Tue, 01 Jan 2030 00:00:01 GMT"), http("Date: Tue, 01 Jan 2030 00:00:02 GMT"), "HTTP header Date"),
        (http("Date: Mon, 31 Dec 2029 23:59:59 GMT"), http("Date: Tue, 01 Jan 2030 00:00:00 GMT"), "HTTP header Date"),
        (http("Set-Cookie: id=abcd"), http("Set-Cookie: id=efgh"), "HTTP header Set-Cookie: a token"),
        (http("Content-Length: 12"), http("Content-Length: 13"), "HTTP header Content-Length"),
        (server_hello(b"a" * 32), server_hello(b"b" * 32), "random of a TLS ServerHello"),
        (server_hello(b"a" * 31 + b"x"), server_hello(b"a" * 31 + b"y"), "random of a TLS ServerHello"),
        (server_hello(b"a" * 32, b"s" * 32), server_hello(b"a" * 32, b"t" * 32), "session or its key share"),
        (record(23, NOISE[0]), record(23, NOISE[1]), "TLS application data"),
        (
            server_hello(b"a" * 32) + record(20, b"\1") + record(23, b"x" * 40),
            server_hello(b"a" * 32) + record(20, b"\1") + record(23, b"y" * 40),
            "TLS application data",
        ),
        (b'{"id": "' + UUIDS[0] + b'"}', b'{"id": "' + UUIDS[1] + b'"}', "UUID"),
        (b"key " + DIGESTS[0], b"key " + DIGESTS[1], "32 hexadecimal digits that look random"),
        (b"a,b,c\n", b"b,a,c\n", "another order"),
        (b"one\ntwo\nthree\nend\n", b"three\none\ntwo\nend\n", "another order"),
        (b"a=1&b=2&c=3", b"c=3&a=1&b=2", "another order"),
        (
            json.dumps({"alpha": 1, "beta": 2, "gamma": 3}).encode(),
            json.dumps({"gamma": 3, "alpha": 1, "beta": 2}).encode(),
            "another order",
        ),
        (b"at 2030-01-01T00:00:01Z ok", b"at 2030-01-01T00:00:02Z ok", "time of day"),
        (b"at 10:00:01 ok", b"at 10:00:02 ok", "time of day"),
        (b"t=1893456000 ok", b"t=1893456001 ok", "seconds since 1970"),
        (b"request 17 ok", b"request 18 ok", "a number"),
        (b"\x00" * 4 + NOISE[0], b"\x00" * 4 + NOISE[1], "bytes that look random"),
        (b"the same, and more", b"the same", "the secondary sent less"),
        (b"the same", b"the same, and more", "the primary sent less"),
    ],
)  # fmt: skip
def test_likely_cause(primary: bytes, secondary: bytes, words: str) -> None:
    assert words in likely(primary, secondary)


@pytest.mark.parametrize(("primary", "secondary"), [(b"yes", b"noo"), (b"", b""), (b"hello world", b"hellO world")])
def test_no_cause_is_invented(primary: bytes, secondary: bytes) -> None:
    assert likely(primary, secondary) == ""


def test_no_input_breaks_it() -> None:
    """Every cut of a stream, at every place."""
    for data in (server_hello(b"a" * 32) + record(23, NOISE[0]), http("Date: x", "Set-Cookie: y") + UUIDS[0]):
        for end in range(len(data)):
            other = data[:end] + bytes((data[end] ^ 1,)) + data[end + 1 :]
            for said in (
                causes.likely(data[: end + 1], other[: end + 1], end),
                causes.likely(data[end:], other[end:], 0),
            ):
                assert said == "" or said.isprintable()


@pytest.mark.parametrize(
    ("primary", "secondary", "words"),
    [
        (OPTIONS, OPTIONS.replace("timestamps=1", "timestamps=0"), "timestamp option"),
        (OPTIONS, OPTIONS.replace("mss=1460", "mss=1400"), "MSS"),
        (OPTIONS, OPTIONS.replace("wscale=7", "wscale=6"), "window scale"),
        (OPTIONS, OPTIONS.replace("sack=1", "sack=0"), "SACK"),
        ("open", "RST at 0", ""),
    ],
)  # fmt: skip
def test_cause_of_options(primary: str, secondary: str, words: str) -> None:
    cause = causes.of_options(primary, secondary)
    assert words in cause
    assert bool(words) == bool(cause)


def test_bytes_side_by_side_with_marks() -> None:
    assert side_by_side(b"same, then AAA", b"same, then ABA and more", start=100) == [
        "              primary                             secondary",
        "         100  73 61 6d 65 2c 20 74 68  same, th   73 61 6d 65 2c 20 74 68  same, th",
        "         108  65 6e 20 41 41 41        en AAA     65 6e 20 41 42 41 20 61  en ABA a",
        "                          ^^    ^^ ^^                         ^^    ^^ ^^",
        "         116                                      6e 64 20 6d 6f 72 65     nd more",
        "              ^^ ^^ ^^ ^^ ^^ ^^ ^^                ^^ ^^ ^^ ^^ ^^ ^^ ^^",
    ]


def test_what_a_peer_sent_does_not_reach_the_terminal() -> None:
    nasty = bytes(range(256))
    printed = "\n".join(
        [*side_by_side(nasty, nasty[::-1]), line(Difference("payload", KEY, 0, nasty, nasty[::-1], 20))]
    )
    assert printed.replace("\n", "").isprintable()


def test_a_finding_in_full() -> None:
    finding = Finding("payload", KEY, 1, 13, b"Date: 1", b"Date: 2", 6, 3, 4, "the HTTP header Date")
    assert finding_lines(finding, ("frame 4 of p.pcap", "frame 5 of s.pcap")) == [
        "TCP 10.0.0.2:80 > 10.0.0.1:5000: the streams differ, at offset 13",
        "  primary   frame 4 of p.pcap",
        "  secondary frame 5 of s.pcap",
        "  likely    the HTTP header Date",
        "              primary                             secondary",
        "           7  44 61 74 65 3a 20 31     Date: 1    44 61 74 65 3a 20 32     Date: 2",
        "                                ^^                                  ^^",
    ]


def test_a_finding_in_words() -> None:
    finding = Finding("missing", KEY, 2, 13, b"20 in all", b"13 in all", secondary_record=1)
    assert finding_lines(finding, ("", "frame 2 of s.pcap")) == [
        f"{flow_text(KEY)}: only one of the two has all of it, at offset 13 of connection 2 on these ports",
        "  secondary frame 2 of s.pcap",
        "  primary   20 in all",
        "  secondary 13 in all",
    ]


def test_flows_of_every_kind_have_a_name() -> None:
    v6 = bytes.fromhex("20010db8000000000000000000000001") + bytes.fromhex("20010db8000000000000000000000002")
    assert flow_text(KEY) == "TCP 10.0.0.2:80 > 10.0.0.1:5000"
    assert flow_text(bytes((17, 4, 0)) + KEY) == "UDP 10.0.0.2:80 > 10.0.0.1:5000"
    assert flow_text(bytes((6, 6, 0)) + v6 + KEY[8:]) == "TCP [2001:db8::1]:80 > [2001:db8::2]:5000"
    assert flow_text(bytes((1, 4, 0)) + KEY[:8] + b"id\0\1") == "ICMP 10.0.0.2 > 10.0.0.1"
    assert flow_text(bytes((17, 4, 4)) + bytes.fromhex("8100 0007") + KEY) == (
        "UDP in VLAN 7 10.0.0.2:80 > 10.0.0.1:5000"
    )
    assert flow_text(bytes((47, 4, 0)) + KEY[:8]) == "protocol 47 10.0.0.2 > 10.0.0.1"
    assert flow_text(b"") == "no flow in particular"


def test_a_line_says_where_in_the_stream() -> None:
    assert line(Difference("timeout", KEY, 2920, b"bytes of the secondary")) == (
        "the primary waits in vain: TCP 10.0.0.2:80 > 10.0.0.1:5000, offset 2920: bytes of the secondary"
    )
    assert line(Difference("flags", KEY, 7, b"FIN at 7", b"open")).endswith(", offset 7: FIN at 7 / open")
    assert line(Difference("table_full")) == "there are more flows than can be tracked: no flow in particular"


def test_differences_of_one_second_are_told_up_to_a_bound() -> None:
    now = 5.0
    said: list[str] = []
    teller = Teller(said.append, lambda: now)
    for _ in range(25):
        teller.tell(Difference("datagram", KEY))
    assert len(said) == 10
    now = 6.5
    teller.tell(Difference("timeout", KEY, 0, b"waits for the FIN"))
    assert said[10] == "and 15 more differences in that second"
    assert said[11] == "the primary waits in vain: TCP 10.0.0.2:80 > 10.0.0.1:5000: waits for the FIN"
