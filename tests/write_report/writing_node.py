# SPDX-License-Identifier: Apache-2.0
"""A node as a tree of /proc, /sys and /var that writes as a test wants: control groups, processes, drives, logs."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.writes import writers

from tests.fsync_gate.sysfs import Machine, nvme, sata

SECTOR = 512


class WritingNode(Machine):
    """As Proxmox installs it on ext4: root and swap on LVM on one disk, sda; its io controller is on."""

    def __init__(self, root: Path, disk: bool = True) -> None:
        super().__init__(root)
        self.boot("first-boot", 1000.0)
        self.drives: dict[str, int] = {}
        self.status = ""
        if disk:
            sata(self)
            self.write("sys/class/block/sda/diskseq", "1")
            self.partition("sda3", "8:3", "sda")
            for number, name in ((0, "swap"), (1, "root")):
                uuid, slaves = {"dm__uuid": f"LVM-{name}", "dm__name": f"pve-{name}"}, ("sda3",)
                self.block(f"dm-{number}", f"253:{number}", f"virtual/block/dm-{number}", slaves=slaves, **uuid)
            self.mount("/dev/mapper/pve-root", "/", number="253:1")
            self.drive("sda", 0)
        self.cgroups()

    # -- the machine

    def boot(self, boot_id: str, uptime: float) -> None:
        self.write("proc/sys/kernel/random/boot_id", boot_id)
        self.at(uptime)

    def at(self, uptime: float) -> None:
        self.write("proc/uptime", f"{uptime} 1.0")

    def drive(self, name: str, written: int) -> None:
        """The counter of a block device, in bytes."""
        assert written % SECTOR == 0
        place = os.path.relpath(os.path.realpath(self.root / "sys/class/block" / name), os.path.realpath(self.root))
        self.write(f"{place}/stat", f"1 0 8 1 9 0 {written // SECTOR} 1 0 1 1 0 0 0 0 0 0")

    def swap(self, name: str, kind: str = "partition") -> None:
        self.write("proc/swaps", f"Filename Type Size Used Priority\n{name} {kind} 8388604 0 -2")

    def file(self, path: str, size: int, moment: int | None = None) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        # In place, as a log is written.
        with target.open("ab") as stream:
            stream.truncate(size)
        if moment is not None:
            os.utime(target, (moment, moment))

    # -- who writes

    def cgroups(self, controller: bool = True) -> None:
        with self.mounts.open("a") as stream:
            stream.write("50 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")
        self.write("sys/fs/cgroup/cgroup.controllers", "cpu io memory" if controller else "")
        if controller:
            self.write("sys/fs/cgroup/system.slice/cgroup.subtree_control", "cpu io memory")

    def no_io_of_units(self) -> None:
        (self.root / "sys/fs/cgroup/system.slice/cgroup.subtree_control").write_text("cpu memory\n")

    def no_cgroup_v2(self) -> None:
        self.mounts.write_text("".join(line + "\n" for line in self.mounts.read_text().splitlines() if "cgroup2" not in line))

    def group(self, path: str, written: int, number: str = "8:0", again: bool = False, **more: int) -> None:
        """Counters of a control group; ``more``: bytes to other devices, ``d253_0=5``. ``again``: it was made again."""
        folder = self.root / "sys/fs/cgroup" / path
        if again:
            # Beside the old one, whose inode would otherwise be given to the new one.
            folder.rename(self.root / f"gone-{len(list(self.root.iterdir()))}")
        devices = {number: written, **{key[1:].replace("_", ":"): value for key, value in more.items()}}
        lines = [f"{device} rbytes=1 wbytes={count} rios=1 wios=1 dbytes=9 dios=1" for device, count in devices.items()]
        self.write(f"sys/fs/cgroup/{path}/io.stat", "\n".join(["9:9 rbytes=1 wbytes=77777 rios=1 wios=1", *lines]))

    def units(self, total: int, **units: int) -> None:
        """Units of system.slice and what the slice has in all."""
        for name, written in units.items():
            self.group(f"system.slice/{name.replace('_', '-')}.service", written)
        self.group("system.slice", total)

    def process(self, pid: int, written: int, cgroup: str, started: int = 500) -> None:
        fields = " ".join(str(n) for n in range(4, 22))
        self.write(f"proc/{pid}/stat", f"{pid} (a) S {fields} {started} 1 2 3")
        self.write(f"proc/{pid}/io", f"rchar: 1\nwrite_bytes: {written}\ncancelled_write_bytes: 5")
        self.write(f"proc/{pid}/cgroup", cgroup if ":" in cgroup else f"0::{cgroup}")

    def end(self, pid: int) -> None:
        shutil.rmtree(self.root / f"proc/{pid}")

    # -- looking

    def run(self, argv: Any, **_: Any) -> Result:
        assert argv[0] == "zpool", argv
        return Result(0, self.status)

    def reading(self, uptime: float, **drives: int) -> dict[str, Any]:
        """At ``uptime``; ``drives``: their counters, in bytes."""
        self.at(uptime)
        for name, written in drives.items():
            self.drive(name.replace("_", "-"), written)
        return writers.reading(self.root, run=self.run)


def second_disk(node: WritingNode) -> None:
    """/var/log on a drive of its own."""
    nvme(node)
    node.write("sys/class/block/nvme0n1/diskseq", "2")
    (node.root / "var/log").mkdir(parents=True, exist_ok=True)
    node.mount("nvme0n1", "/var/log")
    node.drive("nvme0n1", 0)


@contextmanager
def rrdcached(path: Path, journal_bytes: list[int]) -> Iterator[None]:
    """A socket that answers STATS as rrdcached(1) says, with the first of ``journal_bytes`` each time; then it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    if connection.recv(100).startswith(b"STATS"):
                        told = journal_bytes.pop(0) if journal_bytes else 0
                        connection.sendall(b"9 Statistics follow\nQueueLength: 0\nUpdatesReceived: 30\nFlushesReceived: 2\n")
                        connection.sendall(b"UpdatesWritten: 13\nDataSetsWritten: 390\nTreeNodesNumber: 13\nTreeDepth: 4\n")
                        connection.sendall(f"JournalBytes: {told}\nJournalRotate: 0\n".encode())

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        # shutdown, not close: only that ends an accept that waits.
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    path.unlink()
