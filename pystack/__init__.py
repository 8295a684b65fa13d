"""A userspace TCP/IP stack in pure Python, and a SLIRP-style gateway on it.

What is published here is the public API. Each name is imported when it is first used, so `import pystack` costs next to
nothing; `pystack.wire` and its modules, a toolbox of formats without state, are public as they stand.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pystack.clock import ManualClock, Micros
    from pystack.counters import Counters
    from pystack.drivers.aio import Driver
    from pystack.drivers.hostio import HostIO
    from pystack.drivers.streams import AioStack
    from pystack.errors import LinkClosed, LinkError, PystackError, UsageError, WireError
    from pystack.frame import Buffer, LinkInfo, TxFrame
    from pystack.link.base import Link
    from pystack.link.impair import ImpairLink
    from pystack.link.memory import pair as memory_pair
    from pystack.link.qemu import QemuLink
    from pystack.link.tap import TapLink
    from pystack.slirp.forwards import Publish
    from pystack.slirp.gateway import Gateway, GatewayConfig
    from pystack.stack import Stack, StackConfig
    from pystack.tcp.config import TcpConfig
    from pystack.tcp.events import TcpError
    from pystack.tcp.listener import Listener
    from pystack.tcp.tcb import Connection

__version__ = "0.1.0"

__all__ = [
    "AioStack",
    "Buffer",
    "Connection",
    "Counters",
    "Driver",
    "Gateway",
    "GatewayConfig",
    "HostIO",
    "ImpairLink",
    "Link",
    "LinkClosed",
    "LinkError",
    "LinkInfo",
    "Listener",
    "ManualClock",
    "Micros",
    "Publish",
    "PystackError",
    "QemuLink",
    "Stack",
    "StackConfig",
    "TapLink",
    "TcpConfig",
    "TcpError",
    "TxFrame",
    "UsageError",
    "WireError",
    "__version__",
    "memory_pair",
]

# Where each name is: a module, and after a colon what it is called there.
_HOME = {
    "AioStack": "drivers.streams",
    "Buffer": "frame",
    "Connection": "tcp.tcb",
    "Counters": "counters",
    "Driver": "drivers.aio",
    "Gateway": "slirp.gateway",
    "GatewayConfig": "slirp.gateway",
    "HostIO": "drivers.hostio",
    "ImpairLink": "link.impair",
    "Link": "link.base",
    "LinkClosed": "errors",
    "LinkError": "errors",
    "LinkInfo": "frame",
    "Listener": "tcp.listener",
    "ManualClock": "clock",
    "Micros": "clock",
    "Publish": "slirp.forwards",
    "PystackError": "errors",
    "QemuLink": "link.qemu",
    "Stack": "stack",
    "StackConfig": "stack",
    "TapLink": "link.tap",
    "TcpConfig": "tcp.config",
    "TcpError": "tcp.events",
    "TxFrame": "frame",
    "UsageError": "errors",
    "WireError": "errors",
    "memory_pair": "link.memory:pair",
}


def __getattr__(name: str) -> Any:
    """Import a published name when it is first asked for (PEP 562)."""
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, other_name = home.partition(":")
    value = getattr(import_module(f"{__name__}.{module}"), other_name or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
