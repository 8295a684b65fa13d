"""DHCP, DNS and TFTP messages, case by case."""

from __future__ import annotations

import pytest

from pystack.counters import Counters
from pystack.wire import dhcp, dns, tftp
from tests.unit.wire.frames import GATEWAY, GUEST_MAC

# ----------------------------------------------------------------------------------------------------------------- DHCP


def read_dhcp(options: bytes, *, file: bytes = bytes(128), sname: bytes = bytes(64)) -> dhcp.Message:
    message = dhcp.request(GUEST_MAC, 7, {})
    raw = dhcp.HEADER.struct.pack(*message.header._replace(file=file, sname=sname)) + dhcp.COOKIE + options
    parsed = dhcp.parse_untrusted(raw, Counters())
    assert parsed is not None
    return parsed


def test_pads_are_skipped_and_nothing_is_read_behind_the_end() -> None:
    message = read_dhcp(b"\0\0\x35\x01\x01\0\xff\x0c\xff")
    assert message.options == {dhcp.OPT_MESSAGE_TYPE: b"\x01"}


def test_options_may_end_with_the_message() -> None:
    assert read_dhcp(b"\x35\x01\x03").message_type == dhcp.REQUEST


def test_a_repeated_option_is_joined() -> None:
    assert read_dhcp(b"\x0c\x02ab\x35\x01\x01\x0c\x02cd\xff").options[dhcp.OPT_HOST_NAME] == b"abcd"


def test_an_overload_continues_the_options_in_file_and_then_sname() -> None:
    file, sname = b"\x0c\x02ab\xff".ljust(128, b"\0"), b"\x0c\x02cd\xff".ljust(64, b"\0")
    for value, name in ((1, b"ab"), (2, b"cd"), (3, b"abcd")):
        message = read_dhcp(bytes((dhcp.OPT_OVERLOAD, 1, value, 255)), file=file, sname=sname)
        assert message.options[dhcp.OPT_HOST_NAME] == name


def test_an_option_of_the_wrong_length_has_no_value() -> None:
    message = read_dhcp(
        b"\x35\x02\x01\x01\x32\x03\x0a\x00\x02\x33\x00\x36\x00\x39\x01\x05\x06\x05\x01\x02\x03\x04\x05\xff"
    )
    assert (message.message_type, message.requested_address, message.lease_seconds) == (None, None, None)
    assert (message.server_id, message.max_message_bytes) == (None, None)
    assert message.addresses(dhcp.OPT_DNS_SERVERS) == (b"\x01\x02\x03\x04",)


def test_a_client_is_named_by_its_identifier_or_its_hardware_address() -> None:
    assert read_dhcp(b"\x3d\x03\x00id\xff").client_id == b"\x00id"
    assert read_dhcp(b"\xff").client_id == b"\x01" + GUEST_MAC


def test_a_reply_turns_a_request_round() -> None:
    asked = dhcp.request(GUEST_MAC, 0xABCD, {dhcp.OPT_MESSAGE_TYPE: b"\x01"}, flags=dhcp.FLAG_BROADCAST)
    given = {
        dhcp.OPT_MESSAGE_TYPE: dhcp.encode_number(dhcp.OFFER, 1),
        dhcp.OPT_SERVER_ID: GATEWAY,
        dhcp.OPT_LEASE_SECONDS: dhcp.encode_number(86_400, 4),
        dhcp.OPT_DOMAIN_SEARCH: dhcp.encode_domain_search(["example.com", "example.org"]),
    }
    answer = dhcp.parse_untrusted(dhcp.build(dhcp.reply(asked.header, given, yiaddr=b"\x0a\0\2\x0f")), Counters())
    assert answer is not None
    assert (answer.header.op, answer.header.xid, answer.mac) == (dhcp.BOOTREPLY, 0xABCD, GUEST_MAC)
    assert answer.header.flags == dhcp.FLAG_BROADCAST
    assert (answer.message_type, answer.lease_seconds, answer.server_id) == (dhcp.OFFER, 86_400, GATEWAY)
    found = dhcp.decode_domain_search_untrusted(answer.options[dhcp.OPT_DOMAIN_SEARCH])
    assert found == (dns.name_from_text("example.com"), dns.name_from_text("example.org"))


def test_a_message_is_at_least_as_long_as_bootp_was() -> None:
    assert len(dhcp.build(dhcp.request(GUEST_MAC, 7, {}))) == 300


def test_routes_carry_only_the_octets_that_count() -> None:
    routes = [dhcp.Route(bytes(4), 0, GATEWAY), dhcp.Route(bytes((10, 17, 0, 0)), 16, GATEWAY)]
    assert dhcp.encode_routes(routes) == b"\0" + GATEWAY + b"\x10\x0a\x11" + GATEWAY
    assert dhcp.decode_routes_untrusted(b"\x21\1\2\3\4\5" + GATEWAY) is None
    assert dhcp.decode_routes_untrusted(b"\x10\x0a\x11" + GATEWAY[:3]) is None


# ------------------------------------------------------------------------------------------------------------------ DNS


def test_a_chain_of_pointers_is_followed_back_to_its_start() -> None:
    data = b"\x03com\0" + b"\x07example\xc0\x00" + b"\x03www\xc0\x05"
    assert dns.read_name_untrusted(data, 15) == (b"\x03www\x07example\x03com\0", 21)


def test_pointers_that_wind_through_the_whole_message_end() -> None:
    data = b"\0" + b"".join([(0xC000 | max(0, at - 2)).to_bytes(2, "big") for at in range(1, 16_000, 2)])
    assert dns.read_name_untrusted(data, len(data) - 2) == (b"\0", len(data))


def test_names_in_records_are_uncompressed() -> None:
    query = dns.build_query(7, dns.name_from_text("example.com"), dns.MX)
    record = b"\xc0\x0c\x00\x0f\x00\x01\x00\x00\x00\x3c\x00\x09\x00\x0a\x04mail\xc0\x0c"
    raw = query[:2] + b"\x81\x80" + query[4:6] + b"\x00\x01" + query[8:] + record
    message = dns.parse_untrusted(raw, Counters())
    assert message is not None
    (answer,) = message.answers
    assert answer.rdata == b"\x00\x0a" + dns.name_from_text("mail.example.com")
    assert dns.parse_untrusted(dns.build(message), Counters()) == message


@pytest.mark.parametrize("length", [b"\0\0", b"\0\2", b"\0\x08"])
def test_a_name_that_passes_its_records_data_is_refused(length: bytes) -> None:
    query = dns.build_query(7, dns.name_from_text("example.com"))
    record = b"\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x3c" + length + b"\x07example\x00"
    counters = Counters()
    assert dns.parse_untrusted(query[:6] + b"\x00\x01" + query[8:] + record, counters) is None
    assert counters.snapshot() == {"dns.bad_rdata": 1}


def test_a_response_repeats_the_question() -> None:
    query = dns.parse_untrusted(dns.build_query(7, dns.name_from_text("example.com"), dns.AAAA), Counters())
    assert query is not None
    raw = dns.build_response(query.header, query.questions[0], rcode=dns.SERVFAIL)
    answer = dns.parse_untrusted(raw, Counters())
    assert answer is not None
    assert (answer.header.ident, answer.header.qr, answer.header.rd, answer.header.ra) == (7, 1, 1, 1)
    assert (answer.header.rcode, answer.questions) == (dns.SERVFAIL, query.questions)
    assert dns.parse_question_untrusted(dns.build_response(query.header, None), Counters()) == (
        answer.header._replace(rcode=0, qdcount=0), None,
    )  # fmt: skip


@pytest.mark.parametrize("text", ["", "a..b", ".a", "example.com..", "a" * 64, ".".join(["a" * 63] * 4)])
def test_text_that_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a domain name"):
        dns.name_from_text(text)


def test_names_as_text() -> None:
    assert dns.name_text(dns.ROOT) == "."
    assert dns.name_from_text(".") == dns.ROOT
    assert dns.name_text(b"\x05a.b\\\x1b\0") == "a\\.b\\\\\\027."
    assert dns.name_from_text("bücher.example") == b"\x0dxn--bcher-kva\x07example\0"


# ----------------------------------------------------------------------------------------------------------------- TFTP


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (b"kernel", ("kernel",)),
        (b"boot/./pxe//kernel", ("boot", "pxe", "kernel")),
        (b"..kernel", ("..kernel",)),
        ("übung".encode(), ("übung",)),
    ],
)
def test_a_relative_name_is_safe(name: bytes, parts: tuple[str, ...]) -> None:
    assert tftp.safe_name(name) == parts


@pytest.mark.parametrize(
    "name",
    [
        b"", b".", b"/", b"..", b"/etc/passwd", b"../x", b"a/../b", b"a/..", b"..\\x", b"a\\b", b"c:x", b"a\0b",
        b"a\nb", b"\xff\xfe", b"a/\x1b[0m", b"//x",
    ],
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_refused(name: bytes) -> None:
    assert tftp.safe_name(name) is None


def test_modes_and_option_names_are_in_lower_case() -> None:
    request = tftp.parse_untrusted(b"\0\1Name\0OCTET\0BlkSize\0001400\0", Counters())
    assert request == tftp.Request(tftp.RRQ, b"Name", b"octet", ((b"blksize", b"1400"),))


def test_a_string_with_a_zero_cannot_be_built() -> None:
    with pytest.raises(ValueError, match="zero byte"):
        tftp.build(tftp.Error(1, b"a\0b"))
