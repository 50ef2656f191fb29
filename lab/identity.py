"""What makes one guest the node it is, handed over without cloud-init: one SMBIOS credential with files."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import tarfile

from . import layout

# Commands of "ip -batch". The first addresses are those of QEMU's user network: static, as a lease costs every boot time.
# No IPv6 on the ring: the multicast network hands each card its own frames back, which looks like a duplicate address.
NETWORK = """\
link set lo up
address replace 10.0.2.15/24 dev eth0
link set eth0 up
link set eth1 addrgenmode none
address replace {ring}/24 dev eth1
link set eth1 up
route replace default via 10.0.2.2
"""
EPOCH = 1735689600  # 2025-01-01, the time stamp of the files
HOSTS_KNOWN = 9  # so that a node that is added later is known by name to the others


def encode_files(files: dict[str, tuple[int, str]]) -> bytes:
    """A compressed tar of the files, to be unpacked at /; the same files give the same bytes."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, (mode, text) in sorted(files.items()):
            data = text.encode()
            member = tarfile.TarInfo(path.lstrip("/"))
            member.mode, member.size, member.mtime = mode, len(data), EPOCH
            tar.addfile(member, io.BytesIO(data))
    return gzip.compress(archive.getvalue(), 9, mtime=0)


def smbios_argument(name: str, content: bytes) -> str:
    """Value of QEMU's ``-smbios`` for a systemd credential; base64 has no comma, so nothing needs escaping."""
    data = base64.b64encode(content).decode()
    return f"type=11,value=io.systemd.credential.binary:{name}={data}"


def mac(number: int, network: int) -> str:
    """Hardware address of a node's card in network 0 (management) or 1 (ring)."""
    return f"52:54:00:77:{network:02x}:{number:02x}"


def machine_id(number: int) -> str:
    """The same in every lab, so that a guest taken over from another lab's snapshot keeps its journal."""
    return hashlib.sha256(f"pveguard lab node {number}".encode()).hexdigest()[:32]


def files(number: int, client_key: str, host_key: str, host_key_public: str) -> dict[str, tuple[int, str]]:
    """Path -> (mode, text) of the files of node ``number``."""
    name = layout.node_name(number)
    hosts = ["127.0.0.1 localhost"]
    hosts += [
        f"{layout.ring_address(n)} {layout.node_name(n)}" for n in range(1, max(HOSTS_KNOWN, number) + 1)
    ]
    return {
        "/etc/hostname": (0o644, f"{name}\n"),
        "/etc/hosts": (0o644, "\n".join(hosts) + "\n"),
        "/etc/lab-network": (0o644, NETWORK.format(ring=layout.ring_address(number))),
        "/etc/resolv.conf": (0o644, "nameserver 10.0.2.3\n"),
        "/etc/ssh/ssh_host_ed25519_key": (0o600, host_key),
        "/etc/ssh/ssh_host_ed25519_key.pub": (0o644, host_key_public),
        "/root/.ssh/authorized_keys": (0o600, client_key),
    }
