"""The demonstration's client, inside the namespace: `python -m pystack.cli.demo.client HOST PORT SIZE FD`.

A real client, curl, does the transfers; Python's urllib where there is no curl. Each step is told as a line of JSON on
the descriptor FD.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import IO, Final, final
from urllib.request import urlopen

from pystack.cli.demo import server, steps
from pystack.cli.demo.steps import Begin, End

_PIECE: Final = 1 << 20
_PATIENCE: Final = 30.0


@final
class Client:
    """Talks to the web server at ``host`` and ``port``; ``tell`` gets a line for every step."""

    def __init__(self, host: str, port: int, tell: IO[str]) -> None:
        self._host = host
        self._port = port
        self._tell = tell
        self._curl = shutil.which("curl")

    def run(self, size: int) -> bool:
        """All steps, with bulk transfers of ``size`` bytes; whether all were good."""
        return all([self._hello(), self._refused(), self._many(), self._download(size), self._upload(size)])

    def _hello(self) -> bool:
        self._say(steps.HELLO)
        begin = time.perf_counter()
        good = b"".join(self._get("hello")) == server.HELLO
        name = "curl" if self._curl else "urllib"
        return self._end(steps.hello_end(name, time.perf_counter() - begin, good=good))

    def _refused(self) -> bool:
        self._say(steps.REFUSED)
        begin = time.perf_counter()
        refused = False
        try:
            socket.create_connection((self._host, 9), _PATIENCE).close()
        except ConnectionRefusedError:
            refused = True
        except OSError:
            pass
        return self._end(steps.refused_end(time.perf_counter() - begin, refused=refused))

    def _many(self) -> bool:
        self._say(steps.MANY)
        begin = time.perf_counter()
        with ThreadPoolExecutor(steps.AT_ONCE) as pool:
            good = sum(pool.map(self._small, range(steps.SMALL_DOWNLOADS)))
        return self._end(steps.many_end(good, time.perf_counter() - begin))

    def _small(self, number: int) -> bool:
        with urlopen(self._url(f"small/{number}"), timeout=_PATIENCE) as answer:  # noqa: S310 - our own http: URL
            body: bytes = answer.read()
        return hashlib.sha256(body).digest() == hashlib.sha256(server.small(number)).digest()

    def _download(self, size: int) -> bool:
        self._say(steps.download(size))
        begin = time.perf_counter()
        digest = hashlib.sha256()
        for piece in self._get(f"bulk/{size}"):
            digest.update(piece)
        seconds = time.perf_counter() - begin
        return self._end(steps.bulk_end(size, seconds, good=digest.hexdigest() == server.bulk_digest(size)))

    def _upload(self, size: int) -> bool:
        expected = server.bulk_digest(size)
        self._say(steps.upload(size))
        begin = time.perf_counter()
        got = self._put_by_curl(size) if self._curl else self._put(size)
        return self._end(steps.bulk_end(size, time.perf_counter() - begin, good=got == expected))

    def _get(self, what: str) -> Iterator[bytes]:
        if not self._curl:
            with urlopen(self._url(what), timeout=_PATIENCE) as answer:  # noqa: S310 - our own http: URL
                while piece := answer.read(_PIECE):
                    yield piece
            return
        process = subprocess.Popen([self._curl, "-sSf", self._url(what)], stdout=subprocess.PIPE, pipesize=_PIECE)
        with process:
            assert process.stdout is not None
            while piece := os.read(process.stdout.fileno(), _PIECE):
                yield piece

    def _put_by_curl(self, size: int) -> str:
        assert self._curl is not None
        command = [self._curl, "-sSf", "-H", "Expect:", "-T", "-", self._url("")]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pipesize=_PIECE)
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            for block in server.blocks(size):
                process.stdin.write(block)
            process.stdin.close()
            return process.stdout.read().decode()

    def _put(self, size: int) -> str:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=_PATIENCE)
        connection.request("PUT", "/", body=server.blocks(size), headers={"Content-Length": str(size)})
        answer = connection.getresponse().read().decode()
        connection.close()
        return answer

    def _url(self, what: str) -> str:
        return f"http://{self._host}:{self._port}/{what}"

    def _say(self, what: Begin | End) -> None:
        print(json.dumps(asdict(what)), file=self._tell, flush=True)

    def _end(self, end: End) -> bool:
        self._say(end)
        return end.good


def _main(host: str, port: str, size: str, fd: str) -> int:
    with open(int(fd), "w", encoding="utf-8") as tell:  # noqa: PTH123 - a descriptor has no path
        return 0 if Client(host, int(port), tell).run(int(size)) else 1


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
