# SPDX-License-Identifier: Apache-2.0
"""Trees of sysfs, /proc and /run as real machines have them, below a folder."""

from __future__ import annotations

import os
from pathlib import Path


class Machine:
    """``root`` is what :func:`block_device.describe` gets. Paths of devices are below /sys/devices."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("proc/self", "sys/dev/block", "sys/class/block", "run/udev/data", "var/lib"):
            (root / folder).mkdir(parents=True)
        self.mounts = root / "proc/self/mountinfo"
        self.numbers: dict[str, str] = {}

    def write(self, path: str, text: str | bytes) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text if isinstance(text, bytes) else text.encode() + b"\n")

    def block(
        self,
        name: str,
        number: str,
        device: str,
        rotational: int = 0,
        cache: str = "write back",
        slaves: tuple[str, ...] = (),
        **files: str,
    ) -> str:
        """A block device at ``device`` (below sys/devices); ``files`` with __ for / are attributes of it."""
        place = f"sys/devices/{device}"
        self.write(f"{place}/dev", number)
        self.write(f"{place}/size", "1953525168")
        self.write(f"{place}/removable", "0")
        self.write(f"{place}/queue/rotational", str(rotational))
        self.write(f"{place}/queue/write_cache", cache)
        for key, text in files.items():
            self.write(f"{place}/{key.replace('__', '/')}", text)
        (self.root / place / "slaves").mkdir()
        for slave in slaves:
            (self.root / place / "slaves" / slave).symlink_to(
                os.path.realpath(self.root / "sys/class/block" / slave)
            )
        self._link(name, number, place)
        return place

    def disk(self, name: str, number: str, device: str, rotational: int = 0, **more: str) -> str:
        """A disk whose attributes of the drive lie where its link ``device`` points: two folders up (SCSI, MMC, virtio)."""
        place = self.block(name, number, f"{device}/block/{name}", rotational, **more)
        (self.root / place / "device").symlink_to("../..")
        return f"sys/devices/{device}"

    def partition(self, name: str, number: str, of: str) -> None:
        parent = os.path.relpath(
            os.path.realpath(self.root / "sys/class/block" / of), os.path.realpath(self.root)
        )
        self.write(f"{parent}/{name}/partition", "3")
        self.write(f"{parent}/{name}/dev", number)
        self._link(name, number, f"{parent}/{name}")

    def _link(self, name: str, number: str, place: str) -> None:
        self.numbers[name] = number
        for link in (f"sys/dev/block/{number}", f"sys/class/block/{name}"):
            (self.root / link).symlink_to(os.path.relpath(self.root / place, (self.root / link).parent))

    def mount(
        self, name: str, point: str = "/", filesystem: str = "ext4", options: str = "rw", number: str = ""
    ) -> None:
        number = number or self.numbers.get(name.rpartition("/")[2], "0:40")
        source = name if "/" in name or filesystem in ("zfs", "tmpfs") else f"/dev/{name}"
        with self.mounts.open("a") as stream:
            stream.write(f"36 1 {number} / {point} rw,relatime shared:1 - {filesystem} {source} {options}\n")


ATA = "pci0000:00/0000:00:17.0/ata{0}/host{0}/target{0}:0:0/{0}:0:0:0"
USB = "pci0000:00/0000:00:14.0/usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:0"
SAS = "pci0000:00/0000:01:00.0/host0/port-0:0/end_device-0:0/target0:0:0/0:0:0:0"
RAID = "pci0000:00/0000:02:00.0/host8/target8:2:0/8:2:0:0"
NVME = "pci0000:00/0000:03:00.0/nvme/nvme0"
VIRTIO = "pci0000:00/0000:00:05.0/virtio2"
MMC = "platform/fe340000.mmc/mmc_host/mmc0/mmc0:aaaa"


def sata(machine: Machine, name: str = "sda", port: int = 1, rotational: int = 0, **more: str) -> str:
    letter = ord(name[2]) - ord("a")
    place = machine.disk(name, f"8:{letter * 16}", ATA.format(port), rotational, **more)
    machine.write(f"{place}/model", "WDC WD10EZEX-08W" if rotational else "Samsung SSD 860 ")
    machine.write(f"{place}/vendor", "ATA     ")
    machine.write(f"{place}/vpd_pg80", b"\x00\x80\x00\x08" + f"S3Z9NB0{name}".encode())
    machine.write(f"{place}/wwid", f"naa.5002538e40{name}")
    machine.write(f"{place}/scsi_disk/{port}:0:0:0/cache_type", more.get("cache", "write back"))
    return place


def nvme(machine: Machine, cache: str = "write back", model: str = "Samsung SSD 970 EVO Plus 1TB") -> str:
    place = machine.block("nvme0n1", "259:0", f"{NVME}/nvme0n1", 0, cache, wwid="eui.0025385b91d0c1f2")
    (machine.root / place / "device").symlink_to("..")
    machine.write(f"sys/devices/{NVME}/model", f"{model:40}")
    machine.write(f"sys/devices/{NVME}/serial", "S4EWNX0M123456      ")
    return place


def virtio(machine: Machine, rotational: int = 1, **more: str) -> str:
    place = machine.disk("vda", "254:0", VIRTIO, rotational, **more)
    machine.write(f"{place}/vendor", "0x1af4")
    return place
