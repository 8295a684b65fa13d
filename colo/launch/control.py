"""The socket by which a running pair is spoken to: one line of JSON each way, and then the end.

{"do": "status"}                 ->  {"ok": true, "status": {...}}
{"do": "checkpoint"}             ->  {"ok": true}
{"do": "failover"}               ->  {"ok": false, "error": "There is no secondary that could carry on."}
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from pystack import PystackError, UsageError
from pystack.link import sockets

Action = Callable[[], Awaitable[Any]]
"""Does one thing; what it returns is told as ``status``."""

_LINE_BYTES: Final = 4096
_ANSWER_BYTES: Final = 1 << 20
_SECONDS: Final = 10.0
_ANSWER_SECONDS: Final = 120.0


@contextlib.asynccontextmanager
async def served(path: Path, actions: Mapping[str, Action]) -> Any:
    """Answer at ``path`` for as long as the block lasts.

    Raises:
        UsageError: the socket cannot be had.
    """
    listener = sockets.listen(path)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), _SECONDS)
            writer.write(json.dumps(await _answer_untrusted(line, actions)).encode() + b"\n")
            await writer.drain()
        except (OSError, TimeoutError, ValueError):
            pass  # whoever asked is gone, or says nothing, or too much
        finally:
            writer.close()

    server = await asyncio.start_unix_server(answer, sock=listener, limit=_LINE_BYTES)
    try:
        yield
    finally:
        server.close()
        sockets.remove(path)


async def _answer_untrusted(line: bytes, actions: Mapping[str, Action]) -> dict[str, Any]:
    try:
        asked = json.loads(line)
    except ValueError:
        return {"ok": False, "error": "That is not a line of JSON."}
    wanted = asked.get("do") if isinstance(asked, dict) else None
    action = actions.get(wanted) if isinstance(wanted, str) else None
    if action is None:
        return {"ok": False, "error": f"There is nothing of that name to do; there are {', '.join(actions)}."}
    try:
        return {"ok": True, "status": await action()}
    except PystackError as error:
        return {"ok": False, "error": str(error)}


def ask(path: Path, what: str) -> Any:
    """Ask the pair at ``path`` to do ``what``; returns its status.

    Raises:
        UsageError: nobody is there, or it refuses; its sentence.
    """
    if not os.access(path, os.F_OK):
        raise UsageError(f"No pair runs under that name ({path} is not there): start one with colo launch.")
    peer = sockets.connect(path)
    try:
        peer.settimeout(_ANSWER_SECONDS)
        peer.sendall(json.dumps({"do": what}).encode() + b"\n")
        with peer.makefile("rb") as answers:
            line = answers.readline(_ANSWER_BYTES)
    except (TimeoutError, OSError):
        raise UsageError("The pair does not answer.") from None
    finally:
        with contextlib.suppress(OSError):
            peer.shutdown(socket.SHUT_RDWR)
        peer.close()
    if not line:
        raise UsageError("The pair ended before it answered.")
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise UsageError(f"What answers at {path} is no pair: give the --name of one.")
    if not answer.get("ok"):
        raise UsageError(str(answer.get("error", "The pair refuses.")))
    return answer.get("status")
