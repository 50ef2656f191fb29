"""One virtual machine: its command line, its process, its monitor."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from . import accel, identity, layout, net
from .console import Console
from .errors import LabError
from .image import Image
from .progress import say
from .qmp import Qmp
from .system import PATH

#: Stands in the console's log where the lab has reset a guest.
RESET = "lab: reset, because the guest waited for an idle disk"
#: How long no disk of a guest has done anything when the guest is taken to wait in vain, in nanoseconds.
IDLE_NS = 60 * 10**9


def process_start(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot, None when it is gone: tells a pid from its later reuse."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    threads = int(fields[17])  # a process whose first thread has ended still holds its ports while others end
    return None if fields[0] == "X" or (fields[0] == "Z" and threads <= 1) else fields[19]


@dataclass
class Machine:
    """Node ``number`` of a lab in ``directory``; ``disks`` is the folder of its two overlay disks."""

    number: int
    lab: str
    directory: Path
    disks: Path
    nvme: bool = False
    port: int | None = None
    pid: int | None = None
    start: str | None = None

    @property
    def name(self) -> str:
        return layout.node_name(self.number)

    @property
    def running(self) -> bool:
        return self.pid is not None and self.start is not None and process_start(self.pid) == self.start

    @property
    def root_disk(self) -> Path:
        return self.disks / f"{self.name}-root.qcow2"

    @property
    def var_disk(self) -> Path:
        return self.disks / f"{self.name}-var.qcow2"

    @property
    def console_log(self) -> Path:
        return self.directory / f"{self.name}.console.log"

    @property
    def qemu_log(self) -> Path:
        return self.directory / f"{self.name}.qemu.log"

    @property
    def console(self) -> Console:
        return Console(self.directory / f"{self.name}.agent", self.name)

    def qmp(self, timeout: float = 60.0) -> Qmp:
        return Qmp(self.directory / f"{self.name}.qmp", self.name, timeout)

    def arguments(
        self,
        image: Image,
        accelerator: str,
        memory: int,
        ring_port: int,
        credential: bytes,
        load: str | None = None,
    ) -> list[str]:
        """QEMU's argument vector; its working directory is the lab's, for short socket paths.

        Disks are ``cache=unsafe``: what a guest flushes reaches the host's page cache, which a killed QEMU does not
        take along, and an fsync does not depend on the host's disk.
        """
        disk = "format=qcow2,cache=unsafe,discard=unmap"
        root = os.path.relpath(self.root_disk, self.directory)
        var = os.path.relpath(self.var_disk, self.directory)
        disks = (
            "lab.var=/dev/nvme0n1 lab.repo=/dev/vdb" if self.nvme else "lab.var=/dev/vdb lab.repo=/dev/vdc"
        )
        append = (
            f"root=/dev/vda rw {disks} console=ttyS0 quiet loglevel=4 net.ifnames=0 systemd.hostname={self.name} "
            f"systemd.machine_id={identity.machine_id(self.number)} systemd.show_status=0 "
            "systemd.ssh_auto=0 mitigations=off audit=0 random.trust_cpu=on"
        )
        argv = [
            "qemu-system-x86_64", *accel.arguments(accelerator),
            "-name", f"pveguard-lab-{self.lab}-{self.name}",
            "-machine", "pc", "-m", str(memory), "-smp", "1",
            "-nodefaults", "-no-user-config", "-display", "none", "-vga", "none", "-rtc", "base=utc",
            "-kernel", os.path.relpath(image.kernel, self.directory),
            "-initrd", os.path.relpath(image.initrd, self.directory), "-append", append,
            "-smbios", identity.smbios_argument("lab.identity", credential),
            "-drive", f"if=none,id=root,file={root},{disk}", "-device", "virtio-blk-pci,drive=root,serial=lab-root",
            "-drive", f"if=none,id=var,file={var},{disk}",
            "-device", "nvme,drive=var,serial=lab-nvme" if self.nvme else "virtio-blk-pci,drive=var,serial=lab-var",
            "-drive", f"if=none,id=repo,file={os.path.relpath(image.repository, self.directory)},format=raw,readonly=on",
            "-device", "virtio-blk-pci,drive=repo,serial=lab-repo",
            "-netdev", f"user,id=n0,ipv6=off,hostfwd=tcp:127.0.0.1:{self.port}-:22",
            "-device", f"virtio-net-pci,netdev=n0,mac={identity.mac(self.number, 0)},romfile=",
            "-netdev", f"socket,id=n1,mcast={net.RING_GROUP}:{ring_port},localaddr=127.0.0.1",
            "-device", f"virtio-net-pci,id=ring,netdev=n1,mac={identity.mac(self.number, 1)},romfile=",
            "-device", "virtio-rng-pci",
            "-device", "i6300esb", "-action", "watchdog=reset",
            "-chardev", f"file,id=console,path={self.console_log.name},append=on", "-serial", "chardev:console",
            "-chardev", f"socket,id=agent,path={self.name}.agent,server=on,wait=off", "-serial", "chardev:agent",
            "-qmp", f"unix:{self.name}.qmp,server=on,wait=off",
        ]  # fmt: skip
        if load is not None:
            argv += ["-S", "-loadvm", load]
        return argv

    def launch(self, argv: list[str]) -> None:
        """Start QEMU in a session of its own and wait until its monitor answers."""
        for suffix in ("qmp", "agent"):
            (self.directory / f"{self.name}.{suffix}").unlink(missing_ok=True)
        environment = dict(os.environ, PATH=os.environ.get("PATH", "") + ":" + PATH)
        with self.qemu_log.open("wb") as log:
            process = subprocess.Popen(
                argv,
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
            )
        self.pid = process.pid
        self.start = process_start(process.pid)
        deadline = time.monotonic() + 60
        while True:
            if process.poll() is not None:
                self.pid = self.start = None
                text = " | ".join(self.qemu_log.read_text(errors="replace").strip().splitlines()[-3:])
                raise LabError(f"{self.name}: QEMU ended at once: {text}")
            try:
                self.qmp(10).close()
                return
            except LabError:
                if time.monotonic() > deadline:
                    self.kill()
                    raise
                time.sleep(0.05)

    def reset_if_stuck(self) -> None:
        """Reset a guest that waits for a disk which owes it nothing.

        Seen once in some hundred boots under emulation: a request is done, its interrupt is lost, and mount waits for
        good. The kernel says so after two to four minutes ("blocked for more than"), and no disk has had anything to do
        for a minute. What it said before the reset is not looked at again.
        """
        said = self.console_log.read_text(errors="replace").rpartition(RESET)[2]
        if "blocked for more than" not in said:
            return
        with self.qmp() as qmp:
            idle = [int(disk["stats"].get("idle_time_ns", 0)) for disk in qmp.execute("query-blockstats")]
            if min(idle, default=0) < IDLE_NS:
                return
            with self.console_log.open("a") as log:
                log.write(f"\n{RESET}\n")
            qmp.execute("system_reset")
        say(f"{self.name}: waited for an idle disk, reset")

    def kill(self) -> None:
        """End QEMU as a power cut does (SIGKILL) and wait until it is gone."""
        if self.running and self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            deadline = time.monotonic() + 10
            while process_start(self.pid) == self.start:
                if time.monotonic() > deadline:
                    raise LabError(f"{self.name}: QEMU (pid {self.pid}) does not end")
                time.sleep(0.02)
            try:
                os.waitpid(self.pid, os.WNOHANG)  # when it is a child of this very process
            except ChildProcessError:
                pass
        self.pid = self.start = None
