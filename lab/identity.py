"""What makes one guest the node it is, handed over without cloud-init: one SMBIOS credential with files."""

from __future__ import annotations

import base64
import hashlib

from . import layout

HOSTS_KNOWN = 9  # so that a node that is added later is known by name to the others


def encode_files(files: dict[str, tuple[int, str]]) -> str:
    """Lines ``PATH MODE BASE64`` as the guest's ``identity`` script reads them."""
    return "".join(
        f"{path} {mode:o} {base64.b64encode(text.encode()).decode()}\n" for path, (mode, text) in files.items()
    )


def smbios_argument(name: str, content: str) -> str:
    """Value of QEMU's ``-smbios`` for a systemd credential; base64 has no comma, so nothing needs escaping."""
    data = base64.b64encode(content.encode()).decode()
    return f"type=11,value=io.systemd.credential.binary:{name}={data}"


def mac(number: int, network: int) -> str:
    """Hardware address of a node's card in network 0 (management) or 1 (ring)."""
    return f"52:54:00:77:{network:02x}:{number:02x}"


def machine_id(lab: str, number: int) -> str:
    return hashlib.sha256(f"pveguard lab {lab} {number}".encode()).hexdigest()[:32]


def files(number: int, client_key: str, host_key: str, host_key_public: str) -> dict[str, tuple[int, str]]:
    """Path -> (mode, text) of the files of node ``number``."""
    name = layout.node_name(number)
    hosts = ["127.0.0.1 localhost"]
    hosts += [f"{layout.ring_address(n)} {layout.node_name(n)}" for n in range(1, max(HOSTS_KNOWN, number) + 1)]
    return {
        "/etc/hostname": (0o644, f"{name}\n"),
        "/etc/hosts": (0o644, "\n".join(hosts) + "\n"),
        "/etc/systemd/network/10-mgmt.network": (
            0o644,
            # The addresses of QEMU's user network; static, because a lease costs a second of every boot.
            f"[Match]\nMACAddress={mac(number, 0)}\n\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n"
            "LinkLocalAddressing=no\nIPv6AcceptRA=no\n",
        ),
        "/etc/systemd/network/20-ring.network": (
            0o644,
            # A cut ring must keep its address, as a pulled cable does on Proxmox.
            f"[Match]\nMACAddress={mac(number, 1)}\n\n[Network]\nAddress={layout.ring_address(number)}/24\n"
            "LinkLocalAddressing=no\nIPv6AcceptRA=no\nConfigureWithoutCarrier=yes\nIgnoreCarrierLoss=yes\n",
        ),
        "/etc/resolv.conf": (0o644, "nameserver 10.0.2.3\n"),
        "/etc/ssh/ssh_host_ed25519_key": (0o600, host_key),
        "/etc/ssh/ssh_host_ed25519_key.pub": (0o644, host_key_public),
        "/root/.ssh/authorized_keys": (0o600, client_key),
    }
