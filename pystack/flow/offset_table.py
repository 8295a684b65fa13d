"""All connections that a rewriter knows, within a bound, and the frames that wait for an offset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from pystack.clock import SECOND, Micros
from pystack.counters import Counters
from pystack.flow.key import flow_key
from pystack.flow.offsets import Offsets
from pystack.flow.table import AtBound, FlowTable
from pystack.wire.packet import Packet


@dataclass(frozen=True, slots=True, kw_only=True)
class RewriterConfig:
    """What a rewriter is made with.

    Attributes:
        vnet_hdr_len: bytes of virtio_net_hdr in front of each frame. A packet parsed with another length comes from a
            link that is configured differently: it passes unchanged (``rewriter.bad_vnet_hdr_len``), and nothing is
            learnt from it.
        max_flows: how many connections are known; beyond it the one that has been opening or closing for the longest
            makes room, or else the new one is not translated.
        max_waiting_frames: the client's frames kept for one connection until its offset is known;
            max_waiting_bytes: for all of them. What comes beyond that is dropped.
        half_open_timeout: how long a connection may take to open. closing_timeout: how long its end is still looked
            after (2 MSL). idle_timeout: how long an open one may be silent; as long as Linux tracks one.
    """

    vnet_hdr_len: int = 0
    max_flows: int = 65_536
    max_waiting_frames: int = 16
    max_waiting_bytes: int = 16 << 20
    half_open_timeout: Micros = 75 * SECOND
    closing_timeout: Micros = 120 * SECOND
    idle_timeout: Micros = 432_000 * SECOND


