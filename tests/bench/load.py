"""The loads: iperf3 for bulk transfers, wrk against nginx for requests. Every run is bounded in time."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from itertools import count

from tests.bench.peers import Running
from tests.interop.lab import SERVER, Lab, LabError, wait_for

CONNECTIONS = 100  # of the HTTP loads
_MARGIN = 15.0  # seconds a run may take beyond its load's own time
_ports = count(5201)
_WEB_PORT = 8080

# One worker, no log, a body that fits one segment: the server must cost little beside what is measured.
_NGINX = """
daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log stderr crit;
{user}
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 100000000; keepalive_timeout 60s;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
  server {{ listen {address}:{port} backlog=4096; location / {{ default_type text/plain; return 200 "{body}"; }} }}
}}
"""


@dataclass(frozen=True)
class Case:
    """One row of the table. `kind` is "tcp" (bit/s), "keep-alive" or "new connection" (requests/s)."""

    kind: str
    mtu: int
    outward: bool = True  # guest to host
    streams: int = CONNECTIONS

    @property
    def label(self) -> str:
        if self.kind == "tcp":
            return f"{self.mtu} {'guest→host' if self.outward else 'host→guest'} {self.streams:>2}"
        return f"{self.mtu} HTTP {self.kind}"


@dataclass(frozen=True)
class Measured:
    """What one run gave."""

    value: float  # bit/s or requests/s
    cpu: float | None = None  # user and system time of the gateway: seconds per 10^9 bytes, or seconds per request
    errors: int = 0


def missing_tools() -> list[str]:
    """What must be installed before anything can be measured."""
    packages = {"iperf3": "iperf3", "wrk": "wrk", "nginx": "nginx-light", "ip": "iproute2", "nsenter": "util-linux"}
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return [
        f"{tool} (apt install {package})" for tool, package in packages.items() if not shutil.which(tool, path=path)
    ]


def start_web_server(lab: Lab) -> None:
    """Serve 128 bytes to every request on SERVER:8080 until the lab is closed."""
    directory = lab.directory / "nginx"
    directory.mkdir()
    text = _NGINX.format(
        directory=directory,
        address=SERVER,
        port=_WEB_PORT,
        body="x" * 128,
        user="" if lab.rootless else "user root;",
    )
    config = directory / "nginx.conf"
    config.write_text(text)
    server = lab.popen(["nginx", "-p", directory, "-c", config], stderr=subprocess.DEVNULL)
    ready = ["sh", "-c", f"ss -Hltn 'sport = :{_WEB_PORT}' | grep -q LISTEN"]
    wait_for(lambda: server.poll() is not None or lab.run(ready).returncode == 0, "nginx: listening")
    if server.poll() is not None:
        raise LabError(f"nginx ended with status {server.returncode}")


def run(case: Case, running: Running, seconds: int) -> Measured:
    """Measure one case once; LabError says why when it cannot be."""
    try:
        return _bulk(case, running, seconds) if case.kind == "tcp" else _requests(case, running, seconds)
    except subprocess.TimeoutExpired:
        raise LabError(f"no end after {seconds + _MARGIN:g} s") from None


def _bulk(case: Case, running: Running, seconds: int) -> Measured:
    port = str(next(_ports))
    server = running.lab.popen(["iperf3", "-s", "-1", "-B", SERVER, "-p", port, "--forceflush"])
    assert server.stdout is not None
    for line in server.stdout:
        if b"listening" in line:
            break
    command = ["iperf3", "-c", SERVER, "-p", port, "-t", str(seconds), "-P", str(case.streams), "--json"]
    if not case.outward:
        command.append("--reverse")
    try:
        before = running.cpu_seconds()
        done = running.guest.run(command, timeout=seconds + _MARGIN)
        after = running.cpu_seconds()
    finally:
        running.lab.end(server)
    try:
        told = json.loads(done.stdout)
        received = told["end"]["sum_received"]
        amount, rate = float(received["bytes"]), float(received["bits_per_second"])
    except (ValueError, KeyError):
        raise LabError(f"iperf3: {_why(done)}") from None
    if not amount:
        raise LabError("iperf3: nothing arrived")
    spent = None if before is None or after is None else (after - before) / (amount / 1e9)
    return Measured(rate, spent)


def _why(done: subprocess.CompletedProcess[bytes]) -> str:
    try:
        return str(json.loads(done.stdout)["error"])
    except (ValueError, KeyError):
        return done.stderr.decode(errors="replace").strip()[-200:] or f"status {done.returncode}"


def _requests(case: Case, running: Running, seconds: int) -> Measured:
    command = ["wrk", "-t1", f"-c{case.streams}", f"-d{seconds}s", "--timeout", "5s"]
    if case.kind == "new connection":
        command += ["-H", "Connection: close"]
    before = running.cpu_seconds()
    done = running.guest.run([*command, f"http://{SERVER}:{_WEB_PORT}/"], timeout=seconds + _MARGIN)
    after = running.cpu_seconds()
    said = done.stdout.decode(errors="replace")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    if rate is None:
        raise LabError(f"wrk: {(said + done.stderr.decode(errors='replace')).strip()[-200:]}")
    errors = re.search(r"connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    failed = sum(map(int, errors.groups())) if errors else 0
    total = re.search(r"(\d+) requests in", said)
    spent = (after - before) / int(total[1]) if total and after is not None and before is not None else None
    return Measured(float(rate[1]), spent, errors=failed + (int(refused[1]) if refused else 0))
