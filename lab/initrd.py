"""A small initial RAM disk: busybox, the kernel modules the root disk needs, and a script; written without cpio."""

from __future__ import annotations

import gzip
import lzma
import stat
import subprocess
from pathlib import Path

from .errors import LabError

MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "nvme", "ext4")
PROBE_OK = "LAB-PROBE-OK"

INIT = f"""#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in /modules/*.ko; do insmod $module || echo "lab: $module not loaded"; done
if grep -q lab.probe=1 /proc/cmdline; then
    # Real work in user space: a half-working KVM dies here, if not before.
    i=0
    while [ $i -lt 20 ]; do sha256sum /bin/busybox >/dev/null || exit 1; i=$((i + 1)); done
    echo {PROBE_OK} >/dev/ttyS0
    poweroff -f
fi
# All file systems and cards are there before systemd starts, so that it waits for no device; fstab names them too.
var=/dev/vdb repo=/dev/vdc
for word in $(cat /proc/cmdline); do
    case $word in
    lab.var=*) var=${{word#lab.var=}} ;;
    lab.repo=*) repo=${{word#lab.repo=}} ;;
    esac
done
i=0
while {{ [ ! -b /dev/vda ] || [ ! -b $var ] || [ ! -b $repo ]; }} && [ $i -lt 200 ]; do sleep 0.1; i=$((i + 1)); done
mount -t ext4 -o rw,noatime /dev/vda /root || echo "lab: no root disk"
mount -t ext4 -o rw,noatime $var /root/var/lib || echo "lab: no /var/lib disk"
mount -t ext4 -o ro,noload $repo /root/srv/pve-repo || echo "lab: no repository disk"
umount /proc /sys
mount --move /dev /root/dev
exec switch_root /root /sbin/init
"""
APPLETS = (
    "sh",
    "mount",
    "umount",
    "insmod",
    "cat",
    "grep",
    "sha256sum",
    "poweroff",
    "sleep",
    "echo",
    "switch_root",
    "[",
)


def _entry(name: str, mode: int, data: bytes, inode: int) -> bytes:
    """One member of a "newc" cpio archive."""
    encoded = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 2 if stat.S_ISDIR(mode) else 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return header + b"\0" * (-len(header) % 4) + data + b"\0" * (-len(data) % 4)


def cpio(members: list[tuple[str, int, bytes]]) -> bytes:
    """A "newc" archive of (name, mode with file type, data) members."""
    parts = [_entry(name, mode, data, inode) for inode, (name, mode, data) in enumerate(members, 1)]
    parts.append(_entry("TRAILER!!!", 0, b"", 0))
    return b"".join(parts)


def module_files(tree: Path, wanted: tuple[str, ...] = MODULES) -> list[Path]:
    """Files of the wanted modules and what they depend on, in load order; built-in ones are left out.

    ``tree`` is ``lib/modules/VERSION``; ``modules.dep`` names each file with its dependencies, nearest first.
    """
    dependencies: dict[str, list[str]] = {}
    for line in (tree / "modules.dep").read_text().splitlines():
        name, _, rest = line.partition(":")
        dependencies[name] = rest.split()
    by_name = {Path(name).name.split(".ko")[0].replace("-", "_"): name for name in dependencies}
    ordered: list[str] = []
    for module in wanted:
        found = by_name.get(module)
        if found is None:
            continue
        for item in [*reversed(dependencies[found]), found]:
            if item not in ordered:
                ordered.append(item)
    return [tree / item for item in ordered]


def _decompressed(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=True).stdout
    return data


def build(root: Path) -> bytes:
    """The RAM disk for the (only) kernel installed in the tree ``root``."""
    trees = sorted((root / "usr/lib/modules").iterdir())
    if len(trees) != 1:
        raise LabError(f"{root}: {len(trees)} kernels installed, one wanted")
    members: list[tuple[str, int, bytes]] = [
        (name, stat.S_IFDIR | 0o755, b"") for name in ("bin", "dev", "proc", "sys", "root", "modules")
    ]
    members.append(("bin/busybox", stat.S_IFREG | 0o755, (root / "usr/bin/busybox").read_bytes()))
    members += [(f"bin/{applet}", stat.S_IFLNK | 0o777, b"busybox") for applet in APPLETS]
    for number, path in enumerate(module_files(trees[0])):
        name = f"modules/{number:02}-{path.name.split('.ko')[0]}.ko"
        members.append((name, stat.S_IFREG | 0o644, _decompressed(path)))
    members.append(("init", stat.S_IFREG | 0o755, INIT.encode()))
    return gzip.compress(cpio(members), 6)
