"""One QEMU machine: its command line, its process, its monitor, and the socket of its network card."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

from colo.qemu.process import Process
from colo.qemu.qmp import Monitor, MonitorError
from pystack import Counters, LinkInfo, QemuLink, UsageError

_LAST_WORDS_BYTES: Final = 2000
_RAM: Final = "ram"
_OF_MEMORY: Final = ("m", "mem-path", "mem-prealloc", "numa")
_OPEN_FILE: Final = "/proc/self/fd/{}"

NICS: Final = ("virtio-net-pci", "e1000", "rtl8139")


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """What both machines are; all that a guest can tell must be the same for both.

    Attributes:
        qemu: the program. accel: ``kvm`` or ``tcg``. memory_mib, cpus: of the guest.
        kernel, initrd, append: what it boots. disk: an image, read-only. overlay: a qcow2 file over it, for what this
            machine writes.
        nic: one of `NICS`. mac: of its card. extra: more arguments for QEMU.
        environment: of the process, beside ours.
    """

    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    disk: Path | None = None
    overlay: Path | None = None
    qemu: str = "qemu-system-x86_64"
    accel: str = "tcg"
    memory_mib: int = 128
    cpus: int = 1
    nic: str = "virtio-net-pci"
    mac: str = "52:54:00:12:34:56"
    extra: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def says_of_memory(self) -> bool:
        """Whether a person's own arguments say how much memory there is, or where."""
        return any(
            word.lstrip("-") in _OF_MEMORY or "memory-backend" in word or "memdev" in word for word in self.extra
        )

    def argv(
        self, name: str, directory: Path, *, incoming: bool, paused: bool = False, memory: Path | None = None
    ) -> list[str]:
        """The command line of the machine ``name``, whose sockets and logs are in ``directory``.

        Args:
            incoming: it waits for the state of another one. paused: and does not run when it has come.
            memory: a file that is the guest's memory.
        """
        threads = ",thread=single" if self.accel == "tcg" else ""
        board = "pc" if memory is None else f"pc,memory-backend={_RAM}"
        words = [self.qemu, "-name", name, "-machine", board, "-accel", f"{self.accel}{threads}"]
        if memory is not None:
            size = f"size={self.memory_mib}M"
            words += ["-object", f"memory-backend-file,id={_RAM},{size},mem-path={memory},share=on"]
        if self.accel == "kvm":
            words += ["-cpu", "host"]
        words += ["-m", str(self.memory_mib), "-smp", str(self.cpus)]
        words += ["-nodefaults", "-no-user-config", "-display", "none"]
        words += ["-serial", f"file:{directory / name}.console"]
        words += ["-qmp", f"unix:{directory / name}.qmp,server=on,wait=off"]
        if self.kernel is not None:
            words += ["-kernel", str(self.kernel)]
        if self.initrd is not None:
            words += ["-initrd", str(self.initrd)]
        if self.append:
            words += ["-append", self.append]
        if self.disk is not None:
            kind = "readonly=on" if self.overlay is None else "format=qcow2"
            path = str(self.overlay or self.disk).replace(",", ",,")  # QEMU's way to say a comma
            words += ["-drive", f"file={path},if=virtio,{kind},file.locking=off"]
        words += ["-netdev", f"stream,id=net0,server=off,addr.type=unix,addr.path={directory / name}.net"]
        words += ["-device", f"{self.nic},netdev=net0,mac={self.mac},romfile="]
        if paused:
            words += ["-S"]
        if incoming:
            words += ["-incoming", "defer"]
        return [*words, *self.extra]


def find_qemu(name: str) -> str:
    """The path of the program ``name``.

    Raises:
        UsageError: there is none.
    """
    found = shutil.which(name)
    if found is None:
        raise UsageError(f"{name} was not found: install qemu-system-x86, or name the program with --qemu.")
    return found


def never_enters_colo(version: tuple[int, ...]) -> bool:
    """Whether this QEMU is one of those in which COLO is never entered: 10.0.0 to 10.0.6, and 10.1.0 to 10.1.2."""
    return (10, 0, 0) <= version < (10, 0, 7) or (10, 1, 0) <= version < (10, 1, 3)


async def qemu_version(program: str) -> tuple[int, ...]:
    """What it says of itself: (7, 2, 22).

    Raises:
        UsageError: it does not run, or is no QEMU.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            program, "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
    except OSError as error:
        raise UsageError(f"{program} does not run: {(error.strerror or str(error)).lower()}.") from None
    try:
        said, complaint = await asyncio.wait_for(process.communicate(), 10)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise UsageError(f"{program} does not say its version within 10 s: name another program with --qemu.") from None
    words = said.split()
    if len(words) < 4 or words[:3] != [b"QEMU", b"emulator", b"version"]:
        if lines := complaint.decode(errors="replace").strip().splitlines():
            raise UsageError(f"{program} does not run: {lines[-1][:200].rstrip('.')}.")
        raise UsageError(f"{program} is no QEMU: it does not say its version.")
    return tuple(int(part) for part in words[3].decode().split("-")[0].split(".") if part.isdigit())


@final
class Machine:
    """A QEMU process under way.

    Args:
        memory_file: have the guest's memory in a file, which is gone with all who have it open.

    Attributes:
        link: the network card's other end. monitor: its QMP. name, directory: as given.
        memory: the file descriptor of that file; -1 if there is none.
        ended: done when the process has ended.
        resets: how often the guest was reset: a replica that shows one is none.
    """

    def __init__(
        self, guest: Guest, name: str, directory: Path, counters: Counters, *, memory_file: bool = False
    ) -> None:
        self.guest = guest
        self.name = name
        self.directory = directory
        self.monitor = Monitor(name, self._event)
        self.link = QemuLink.listen(directory / f"{name}.net", info=LinkInfo(mtu=1500), counters=counters)
        self.process: Process | None = None
        self.memory = _memory_file(name, guest.memory_mib) if memory_file else -1
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting: asyncio.Task[None] | None = None
        self._seen: dict[str, list[asyncio.Future[dict[str, Any]]]] = {}
        self.resets = 0
        self.migrated = ""  # the last state of a migration that was told

    def argv(self, *, incoming: bool = False, paused: bool = False) -> list[str]:
        """Its command line. The arguments are those of `Guest.argv`."""
        memory = Path(_OPEN_FILE.format(self.memory)) if self.memory >= 0 else None
        return self.guest.argv(self.name, self.directory, incoming=incoming, paused=paused, memory=memory)

    async def start(self, *, incoming: bool = False, paused: bool = False) -> None:
        """Start it, and reach its monitor. The arguments are those of `Guest.argv`.

        Raises:
            UsageError: QEMU does not start; what it said.
        """
        self.process = await Process.start(
            self.argv(incoming=incoming, paused=paused),
            self.directory / f"{self.name}.log",
            {**os.environ, **self.guest.environment},
            (self.memory,) if self.memory >= 0 else (),
        )
        self._waiting = asyncio.create_task(self._wait(self.process))
        try:
            await self.monitor.connect(self.directory / f"{self.name}.qmp", lambda: not self.ended.done())
            await self.monitor.execute(
                "migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}]
            )
        except MonitorError as error:
            await self.kill()
            raise UsageError(f"QEMU does not start: {self.last_words() or error}") from None

    async def _wait(self, process: Process) -> None:
        status = await process.wait()
        if not self.ended.done():
            self.ended.set_result(status)
        for waiting in self._seen.values():
            for future in waiting:
                if not future.done():
                    future.set_exception(MonitorError(f"{self.name}: QEMU has ended."))

    @property
    def pid(self) -> int:
        """Of the process, which was started."""
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and not self.ended.done()

    def last_words(self) -> str:
        """The last line that QEMU printed; "" if it did not."""
        with contextlib.suppress(OSError):
            text = (self.directory / f"{self.name}.log").read_bytes()[-_LAST_WORDS_BYTES:]
            lines = text.decode(errors="replace").strip().splitlines()
            return lines[-1] if lines else ""
        return ""

    def console(self) -> bytes:
        """All that the guest has printed on its serial line."""
        with contextlib.suppress(OSError):
            return (self.directory / f"{self.name}.console").read_bytes()
        return b""

    @property
    def panicked(self) -> bool:
        """Whether the guest was reset or has panicked: then nothing that it says means anything."""
        return self.resets > 0 or b"Kernel panic" in self.console()

    # ------------------------------------------------------------------------------------------------------- events

    def _event(self, name: str, data: dict[str, Any]) -> None:
        if name == "RESET":
            self.resets += 1
        elif name == "MIGRATION":
            self.migrated = str(data.get("status", ""))
        key = f"{name} {self.migrated}" if name == "MIGRATION" else name
        for waiting in self._seen.pop(key, []):
            if not waiting.done():
                waiting.set_result(data)

    def next_event(self, key: str) -> asyncio.Future[dict[str, Any]]:
        """Done when the event happens: ``STOP``, ``RESUME``, or ``MIGRATION`` and its state.

        Fails with `MonitorError` when the machine ends before that.
        """
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        if self.ended.done():
            future.set_exception(MonitorError(f"{self.name}: QEMU has ended."))
        else:
            still = [waiting for waiting in self._seen.get(key, []) if not waiting.done()]
            self._seen[key] = [*still, future]
        return future

    # ------------------------------------------------------------------------------------------------------- the end

    async def kill(self) -> None:
        """End it, at once; may be repeated."""
        if self.process is not None and not self.ended.done():
            self.process.kill()
            await self.ended
        if self.memory >= 0:
            memory, self.memory = self.memory, -1
            await asyncio.to_thread(os.close, memory)  # of the last who has it open: all of its pages are given back
        await self.monitor.close()
        if self._waiting is not None:
            await self._waiting
        if self.process is not None:
            self.process.close()
        self.link.close()
        for suffix in ("qmp", "net", "state"):
            (self.directory / f"{self.name}.{suffix}").unlink(missing_ok=True)


def _memory_file(name: str, mib: int) -> int:
    """A file in memory that has no name in any folder (memfd_create(2)), of zeroes."""
    file = os.memfd_create(f"colo-{name}")
    os.ftruncate(file, mib << 20)
    return file
