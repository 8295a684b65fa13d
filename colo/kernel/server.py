"""The web server of a replica, run in its namespace: `python -m colo.kernel.server PORT FOLDER FD`.

aiohttp, serving the files of FOLDER. It writes a byte to FD when it listens. Both replicas must answer alike, so the
Date header is left out: what a pair of real machines takes a checkpoint for cannot be had here, as nobody can copy a
kernel's TCP.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

from aiohttp import hdrs, web

_BACKLOG: Final = 1024  # the client opens all its connections at once


async def _without_date(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.popall(hdrs.DATE, None)


async def _serve(port: int, folder: Path, ready: int) -> None:
    app = web.Application()
    app.router.add_static("/", folder)
    app.on_response_prepare.append(_without_date)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "0.0.0.0", port, backlog=_BACKLOG).start()
    os.write(ready, b"\0")
    os.close(ready)
    await asyncio.Event().wait()


def main() -> None:
    """Serve until killed."""
    asyncio.run(_serve(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))


if __name__ == "__main__":
    main()
