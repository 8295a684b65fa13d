"""The DNS forwarder through the gateway: retries, refusals, and answers that are none."""

from __future__ import annotations

import errno
from itertools import pairwise

import pytest

from pystack.counters import Counters
from pystack.slirp import dns_forwarder
from pystack.slirp import requests as op
from pystack.tcp.events import TcpError
from pystack.wire import dns
from tests.unit.slirp.fake_host import Rig
from tests.unit.slirp.test_plan_and_policy import ip

DNS = ip("10.0.2.3")
FIRST, SECOND = (ip("192.0.2.53"), 53), (ip("127.0.0.53"), 53)
NAME = dns.name_from_text("www.Example.com")
QUERY = dns.build_query(0x1234, NAME)


def rig_with(*resolvers: tuple[bytes, int]) -> Rig:
    return Rig(resolvers=resolvers)


class Stub:
    """The guest's resolver library."""

    def __init__(self, rig: Rig, port: int = 5000) -> None:
        self.rig = rig
        self.endpoint = rig.stack.udp_bind(port)

    def ask(self, query: bytes = QUERY) -> None:
        self.endpoint.send(query, self.rig.now, to=(DNS, 53))
        self.rig.settle()

    def answers(self) -> list[dns.Header]:
        headers = []
        for source, message in self.rig.datagrams(self.endpoint):
            assert source == (DNS, 53)
            parsed = dns.parse_untrusted(message, Counters())
            assert parsed is not None
            headers.append(parsed.header)
        return headers


def answer(query: bytes, *, rcode: int = 0, ident: int | None = None, name: bytes = NAME) -> bytes:
    parsed = dns.parse_question_untrusted(query, Counters())
    assert parsed is not None
    header, question = parsed
    assert question is not None
    if ident is not None:
        header = header._replace(ident=ident)
    return dns.build_response(header, question._replace(name=name), rcode=rcode)


def test_a_question_is_asked_under_another_identifier_and_answered_under_its_own() -> None:
    rig = rig_with(FIRST, SECOND)
    stub = Stub(rig)
    stub.ask()
    ((transaction, query),) = rig.host.queries
    assert transaction.resolver == FIRST
    assert query[2:] == QUERY[2:]
    assert query[:2] != QUERY[:2]
    rig.gateway.dns_reply(transaction, answer(query), rig.now)
    rig.settle()
    (header,) = stub.answers()
    assert (header.ident, header.qr, header.rcode) == (0x1234, 1, 0)
    assert rig.host.done == [(op.DNS_CLOSE, transaction)]
    assert rig.gateway.sizes()["dns_questions"] == 0


def test_identifiers_cannot_be_told_from_those_before() -> None:
    rig = rig_with(FIRST)
    for port in range(5000, 5050):
        Stub(rig, port).ask()
    idents = [transaction.ident for transaction, _ in rig.host.queries]
    assert len(set(idents)) > 45
    assert len({(b - a) % 65_536 for a, b in pairwise(idents)}) > 40


def test_the_case_of_the_name_does_not_matter() -> None:
    rig = rig_with(FIRST)
    stub = Stub(rig)
    stub.ask()
    ((transaction, query),) = rig.host.queries
    rig.gateway.dns_reply(transaction, answer(query, name=NAME.lower()), rig.now)
    rig.settle()
    assert len(stub.answers()) == 1


@pytest.mark.parametrize("kind", ["ident", "name", "query", "short", "empty"])
def test_an_answer_that_does_not_belong_to_the_question_changes_nothing(kind: str) -> None:
    rig = rig_with(FIRST)
    stub = Stub(rig)
    stub.ask()
    ((transaction, query),) = rig.host.queries
    forged = {
        "ident": answer(query, ident=transaction.ident ^ 1),
        "name": answer(query, name=dns.name_from_text("evil.example")),
        "query": query,
        "short": answer(query)[:-1],
        "empty": b"",
    }[kind]
    rig.gateway.dns_reply(transaction, forged, rig.now)
    rig.settle()
    assert stub.answers() == []
    assert rig.counters["dns.mismatched_answer"] == 1
    rig.gateway.dns_reply(transaction, answer(query), rig.now)
    rig.settle()
    assert len(stub.answers()) == 1


def test_an_answer_that_comes_too_late_is_counted_only() -> None:
    rig = rig_with(FIRST)
    stub = Stub(rig)
    stub.ask()
    ((transaction, query),) = rig.host.queries
    for _ in range(2):
        rig.gateway.dns_reply(transaction, answer(query), rig.now)
    rig.settle()
    assert len(stub.answers()) == 1
    assert rig.counters["dns.late_answer"] == 1


def test_the_next_resolver_is_asked_after_a_while_and_either_may_answer() -> None:
    rig = rig_with(FIRST, SECOND)
    stub = Stub(rig)
    stub.ask()
    rig.run(2.1)
    assert [transaction.resolver for transaction, _ in rig.host.queries] == [FIRST, SECOND]
    slow, query = rig.host.queries[0]
    rig.gateway.dns_reply(slow, answer(query), rig.now)
    rig.settle()
    assert [header.rcode for header in stub.answers()] == [0]
    assert len(rig.host.done) == 2  # both sockets are closed


@pytest.mark.parametrize("rcode", [dns.SERVFAIL, dns.REFUSED, dns.NOTIMP])
def test_a_resolver_that_cannot_answer_lets_the_next_one_try(rcode: int) -> None:
    rig = rig_with(FIRST, SECOND)
    stub = Stub(rig)
    stub.ask()
    first, query = rig.host.queries[0]
    rig.gateway.dns_reply(first, answer(query, rcode=rcode), rig.now)
    rig.settle()
    assert stub.answers() == []
    second, query = rig.host.queries[1]
    rig.gateway.dns_reply(second, answer(query, rcode=rcode), rig.now)
    rig.settle()
    assert [header.rcode for header in stub.answers()] == [rcode]


def test_nxdomain_is_an_answer() -> None:
    rig = rig_with(FIRST, SECOND)
    stub = Stub(rig)
    stub.ask()
    transaction, query = rig.host.queries[0]
    rig.gateway.dns_reply(transaction, answer(query, rcode=dns.NXDOMAIN), rig.now)
    rig.settle()
    assert [header.rcode for header in stub.answers()] == [dns.NXDOMAIN]


def test_resolvers_that_are_not_there_give_servfail_at_once() -> None:
    rig = rig_with(FIRST, SECOND)
    stub = Stub(rig)
    stub.ask()
    rig.gateway.dns_failed(rig.host.queries[0][0], rig.now)
    rig.settle()
    rig.gateway.dns_failed(rig.host.queries[1][0], rig.now)
    rig.settle()
    assert [(header.ident, header.rcode) for header in stub.answers()] == [(0x1234, dns.SERVFAIL)]


def test_silence_gives_servfail_at_the_end_and_no_question_is_kept() -> None:
    rig = rig_with(FIRST, SECOND)
    stub = Stub(rig)
    stub.ask()
    rig.run(9.9)
    assert [transaction.resolver for transaction, _ in rig.host.queries] == [FIRST, SECOND, FIRST, SECOND, FIRST]
    assert rig.host.queries[0] == rig.host.queries[2]  # the same socket, the same identifier
    assert stub.answers() == []
    rig.run(0.2)
    assert [header.rcode for header in stub.answers()] == [dns.SERVFAIL]
    assert rig.gateway.sizes()["dns_questions"] == 0


def test_without_a_resolver_the_answer_is_servfail() -> None:
    rig = rig_with()
    stub = Stub(rig)
    stub.ask()
    assert [header.rcode for header in stub.answers()] == [dns.SERVFAIL]
    assert rig.counters["dns.no_resolver"] == 1
    rig.gateway.set_resolvers((FIRST,))
    stub.ask()
    assert len(rig.host.queries) == 1


def test_a_question_that_is_repeated_is_not_asked_twice() -> None:
    rig = rig_with(FIRST)
    stub = Stub(rig)
    stub.ask()
    stub.ask()
    assert len(rig.host.queries) == 1
    assert rig.counters["dns.duplicate_query"] == 1


def test_the_number_of_questions_is_bounded() -> None:
    rig = rig_with(FIRST)
    stub = Stub(rig)
    for ident in range(dns_forwarder.MAX_PENDING + 1):
        stub.endpoint.send(dns.build_query(ident, NAME), rig.now, to=(DNS, 53))
        rig.settle()
    assert [header.rcode for header in stub.answers()] == [dns.SERVFAIL]
    assert rig.counters["dns.table_full"] == 1


def test_an_operation_other_than_a_query_is_not_implemented() -> None:
    rig = rig_with(FIRST)
    stub = Stub(rig)
    stub.ask(QUERY[:2] + bytes((QUERY[2] | 5 << 3,)) + QUERY[3:])
    assert [(header.rcode, header.opcode) for header in stub.answers()] == [(dns.NOTIMP, 5)]


def test_without_dns_the_port_is_closed() -> None:
    rig = Rig(dns=False, resolvers=(FIRST,))
    stub = Stub(rig)
    stub.ask()
    assert rig.host.queries == []
    assert [(error.kind, error.code) for error in rig.errors(stub.endpoint)] == [(3, 3)]
    guest = rig.connect(DNS, 53)
    rig.settle()
    assert guest.conn.error is TcpError.REFUSED


def test_dns_over_tcp_is_a_connection_to_the_first_resolver_that_takes_it() -> None:
    rig = rig_with(FIRST, SECOND)
    rig.host.outcome = lambda address, _port: errno.ECONNREFUSED if address == FIRST[0] else 0
    guest = rig.connect(DNS, 53)
    rig.settle()
    assert rig.host.dialled == [FIRST, SECOND]
    assert guest.opened
    guest.conn.write(b"\0\x02hi")
    rig.settle()
    assert rig.sockets[-1].got == b"\0\x02hi"


def test_other_ports_of_the_dns_address_are_closed() -> None:
    rig = rig_with(FIRST)
    guest = rig.connect(DNS, 80)
    rig.settle()
    assert guest.conn.error is TcpError.REFUSED
    assert rig.host.dialled == []
