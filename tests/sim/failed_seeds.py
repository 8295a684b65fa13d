"""Seeds whose scenarios showed a mutant when they were last looked for, which `tests.sim.test_pair` tries first.

Where a scenario has come to be drawn in another way, the test searches as if there were none here.
"""

from __future__ import annotations

from typing import Final

FAILED: Final[dict[str, tuple[int, ...]]] = {
    "payload need not be covered": (4,),
    "payload need not be equal": (1,),
    "a part of a frame need not be covered": (4,),
    "an acknowledgement need not be the secondary's": (19,),
    "a SYN need not be the secondary's": (18,),
    "a SYN may negotiate something else": (9,),
    "a FIN need not be the secondary's": (6,),
    "a RST need not be the secondary's": (203,),
    "a retransmission need not be the same": (87,),
    "what is beyond a gap is compared": (1572,),
    "a datagram need not be the secondary's": (2,),
    "a datagram need not be equal": (23,),
    "who speaks first is right": (2,),
    "held frames leave before the copy is made": (1,),
    "held frames leave though the copy failed": (1,),
    "the links are not drained before the boundary": (247,),
    "what comes after the boundary is not kept aside": (18,),
    "a boundary is lifted when its time is over": (18,),
    "held frames outlive the primary": (6,),
    "frames of a dead primary are heard": (416,),
    "lane: an acknowledgement need not be the secondary's, without payload": (172,),
    "lane: an acknowledgement need not be the secondary's, secondary first": (4476,),
    "lane: an acknowledgement need not be the secondary's, primary first": (2131,),
    "lane: payload need not be equal, secondary first": (152,),
    "lane: payload need not be equal, primary first": (1,),
    "lane: what is beyond a gap is compared": (23,),
}
