"""Questions that the guest sends to our DNS address, carried to the host's resolvers and back.

Read before editing: RFC 1035 section 4.1 (message), RFC 5452 (how answers are forged, and section 9: match the
question, use an unpredictable identifier and source port). The messages themselves are not interpreted: whatever a
resolver and a stub agree on (EDNS, DNSSEC) passes.

Every question to a resolver travels from a socket of its own, with an identifier of its own. When a resolver does not
answer within `RETRY_AFTER`, or says that it cannot (SERVFAIL, REFUSED), the next one is asked as well; the first usable
answer wins. The guest gets SERVFAIL when none comes within `LIFETIME`, or when there is nobody to ask.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final, final

from pystack.clock import SECOND, Micros
from pystack.counters import Counters
from pystack.slirp.requests import DNS_CLOSE, DNS_QUERY, HostRequest
from pystack.timers import NEVER
from pystack.wire import dns

PORT: Final = 53
RETRY_AFTER: Final[Micros] = 2 * SECOND
LIFETIME: Final[Micros] = 10 * SECOND
MAX_PENDING: Final = 512
"""Questions in flight. At the bound a new one gets SERVFAIL at once: a stub tries again, and nothing is forgotten."""
MAX_RESOLVERS: Final = 3
"""As many as the C library looks at (resolv.conf(5), MAXNS)."""

_SPENT: Final = -1
"""In place of an identifier: this resolver has said that it cannot, nothing more is expected from it."""
_ASK_ANOTHER: Final = frozenset((dns.SERVFAIL, dns.NOTIMP, dns.REFUSED))

Guest = tuple[bytes, int]
Key = tuple[Guest, int, dns.Question]
Resolver = tuple[bytes, int]
"""Address of 4 or 16 bytes, and port."""


def asked_untrusted(message: bytes, counters: Counters) -> tuple[dns.Header, dns.Question] | None:
    """The header and the one question of ``message``.

    None, and a counter, when it is malformed or holds another number of questions.
    """
    parsed = dns.parse_question_untrusted(message, counters)
    if parsed is None:
        return None
    header, question = parsed
    if question is None or header.qdcount != 1:
        counters.bump("dns.bad_question_count")
        return None
    return header, question


def folded(question: dns.Question) -> dns.Question:
    """``question`` for comparison: case does not count (RFC 4343)."""
    return question._replace(name=question.name.lower())


@final
class Transaction:
    """One question to one resolver. ``host`` is free for the host side (its socket)."""

    __slots__ = ("host", "ident", "question", "resolver")

    def __init__(self, question: Pending, resolver: Resolver, ident: int) -> None:
        self.question = question
        self.resolver = resolver
        self.ident = ident
        self.host: object = None


@final
class Pending:
    """What a guest asked, until it is answered.

    Attributes:
        guest: whom to answer. query: the message as it came. header, asked: its header and its question.
        transactions: one for each resolver that was asked. turn: how many times a resolver was asked.
        retry_at, expires_at: instants. refusal: an unusable answer, to be passed on when nobody has a better one.
    """

    __slots__ = ("asked", "expires_at", "guest", "header", "query", "refusal", "retry_at", "transactions", "turn")

    def __init__(self, guest: Guest, query: bytes, header: dns.Header, asked: dns.Question, now: Micros) -> None:
        self.guest = guest
        self.query = query
        self.header = header
        self.asked = asked
        self.transactions: dict[Resolver, Transaction] = {}
        self.turn = 0
        self.retry_at = now + RETRY_AFTER
        self.expires_at = now + LIFETIME
        self.refusal = b""

    @property
    def key(self) -> Key:
        """What a repetition of the same question has in common with it."""
        return self.guest, self.header.ident, folded(self.asked)

    def failure(self) -> bytes:
        """What to answer when nobody does: the best refusal that came, or SERVFAIL."""
        return self.refusal or dns.build_response(self.header, self.asked, rcode=dns.SERVFAIL)


@final
class DnsForwarder:
    """The forwarder's state.

    Args:
        requests: where requests to the host are put.

    Attributes:
        resolvers: whom to ask, in order; may be changed at any time.
        answers: (guest, message) to be sent and taken out by the owner.
    """

    def __init__(
        self, resolvers: tuple[Resolver, ...], counters: Counters, requests: list[HostRequest], *, seed: int
    ) -> None:
        self.resolvers = resolvers[:MAX_RESOLVERS]
        self._counters = counters
        self._secret = (seed & (1 << 128) - 1).to_bytes(16, "big")
        self._serial = 0
        self._pending: dict[Key, Pending] = {}
        self._due: Micros = NEVER  # no later than the first instant at which a question needs attention
        self._requests = requests
        self.answers: list[tuple[Guest, bytes]] = []

    def __len__(self) -> int:
        return len(self._pending)

    def query_untrusted(self, guest: Guest, message: bytes, now: Micros) -> None:
        """A datagram that ``guest`` sent to our DNS address."""
        parsed = asked_untrusted(message, self._counters)
        if parsed is None:
            return
        question = Pending(guest, message, *parsed, now)
        if question.header.qr:
            self._counters.bump("dns.not_a_query")
        elif question.header.opcode:
            self._counters.bump("dns.unknown_opcode")
            self.answers.append((guest, dns.build_response(question.header, question.asked, rcode=dns.NOTIMP)))
        elif question.key in self._pending:
            self._counters.bump("dns.duplicate_query")
        elif not self.resolvers or len(self._pending) >= MAX_PENDING:
            self._counters.bump("dns.table_full" if self.resolvers else "dns.no_resolver")
            self.answers.append((guest, question.failure()))
        else:
            self._start(question)

    def _start(self, question: Pending) -> None:
        self._counters.bump("dns.queries")
        self._pending[question.key] = question
        self._due = min(self._due, question.retry_at)
        self._ask(question)

    def reply_untrusted(self, transaction: Transaction, message: bytes, now: Micros) -> None:
        """A datagram that arrived on the socket of ``transaction``. One that does not belong to it is only counted."""
        question = transaction.question
        if self._pending.get(question.key) is not question:
            self._counters.bump("dns.late_answer")
            return
        if not self._matches(transaction, message):
            self._counters.bump("dns.mismatched_answer")
            return
        answer = question.query[:2] + message[2:]
        if message[3] & 15 in _ASK_ANOTHER:
            question.refusal = answer
            self._give_up_on(transaction, now)
            return
        self._counters.bump("dns.answers")
        self._answer(question, answer)

    def failed(self, transaction: Transaction, now: Micros) -> None:
        """The host cannot reach the resolver of ``transaction`` (an ICMP error, no route, no descriptor)."""
        if self._pending.get(transaction.question.key) is transaction.question:
            self._counters.bump("dns.resolver_unreachable")
            self._give_up_on(transaction, now)

    def tick(self, now: Micros) -> None:
        """Ask again, or give up, where the time has come."""
        if now < self._due:
            return
        for question in list(self._pending.values()):
            if question.expires_at <= now:
                self._counters.bump("dns.timeouts")
                self._answer(question, question.failure())
            elif question.retry_at <= now:
                question.retry_at = now + RETRY_AFTER
                self._ask(question)
        self._due = min((min(q.retry_at, q.expires_at) for q in self._pending.values()), default=NEVER)

    def next_timeout(self) -> Micros | None:
        """The next instant at which `tick` may have something to do, None if never."""
        return self._due if self._pending else None

    def _ask(self, question: Pending) -> None:
        """Ask the resolver whose turn it is."""
        if not self.resolvers:
            return
        resolver = self.resolvers[question.turn % len(self.resolvers)]
        question.turn += 1
        transaction = question.transactions.get(resolver)
        if transaction is None:
            transaction = Transaction(question, resolver, self._next_ident())
            question.transactions[resolver] = transaction
        elif transaction.ident == _SPENT:
            transaction.ident = self._next_ident()
        message = transaction.ident.to_bytes(2, "big") + question.query[2:]
        self._requests.append((DNS_QUERY, transaction, message))

    def _give_up_on(self, transaction: Transaction, now: Micros) -> None:
        """Ask the next resolver at once; when all have failed, tell the guest."""
        question = transaction.question
        transaction.ident = _SPENT
        for turn, resolver in enumerate(self.resolvers):
            if resolver not in question.transactions:
                question.turn = turn
                question.retry_at = now + RETRY_AFTER
                self._ask(question)
                return
        if all(other.ident == _SPENT for other in question.transactions.values()):
            self._answer(question, question.failure())

    def _answer(self, question: Pending, message: bytes) -> None:
        del self._pending[question.key]
        self._requests.extend((DNS_CLOSE, transaction, None) for transaction in question.transactions.values())
        self.answers.append((question.guest, message))

    def _next_ident(self) -> int:
        self._serial += 1
        return int.from_bytes(blake2b(self._serial.to_bytes(8, "big"), key=self._secret, digest_size=2).digest(), "big")

    def _matches(self, transaction: Transaction, message: bytes) -> bool:
        """Whether ``message`` answers ``transaction`` (RFC 5452 section 9.1)."""
        parsed = dns.parse_question_untrusted(message, self._counters)
        if parsed is None:
            return False
        header, question = parsed
        if not header.qr or header.ident != transaction.ident:
            return False
        if question is None:
            return bool(header.rcode)  # a server that could not read the question cannot repeat it
        return header.qdcount == 1 and folded(question) == folded(transaction.question.asked)
