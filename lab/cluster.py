"""Profile ``cluster``: nodes made a cluster by hand, in the steps of pvecm, with a few guest configurations.

Everything runs on the serial console: root's ssh keys live on /etc/pve, which is away for moments.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence

from . import layout
from .errors import LabError
from .machine import Machine
from .progress import step

CLUSTER_NAME = "pvelab"
SECONDS = 240

#: What an installation in use has on /etc/pve: path -> text. {node} names are those of the lab.
CONFIGURATION = {
    "/etc/pve/storage.cfg": (
        "dir: local\n\tpath /var/lib/vz\n\tcontent iso,vztmpl,backup\n\n"
        "lvmthin: local-lvm\n\tthinpool data\n\tvgname pve\n\tcontent rootdir,images\n"
    ),
    "/etc/pve/user.cfg": "user:root@pam:1:0:::root@example.org::\n",
    "/etc/pve/datacenter.cfg": "keyboard: en-us\n",
}


def guest(number: int, name: str) -> str:
    """The configuration of a virtual machine as Proxmox writes it."""
    return (
        f"boot: order=scsi0\ncores: 2\nmemory: 2048\nname: {name}\n"
        f"net0: virtio=BC:24:11:00:00:{number % 256:02X},bridge=vmbr0\n"
        f"scsi0: local-lvm:vm-{number}-disk-0,size=32G\nscsihw: virtio-scsi-single\n"
    )


def corosync_conf(members: Sequence[int], version: int) -> str:
    """corosync.conf as ``pvecm create`` and ``pvecm add`` write it, for the node numbers ``members``."""
    nodes = "".join(
        f"  node {{\n    name: {layout.node_name(n)}\n    nodeid: {n}\n    quorum_votes: 1\n"
        f"    ring0_addr: {layout.ring_address(n)}\n  }}\n"
        for n in sorted(members)
    )
    return (
        "logging {\n  debug: off\n  to_syslog: yes\n}\n\n"
        f"nodelist {{\n{nodes}}}\n\n"
        "quorum {\n  provider: corosync_votequorum\n}\n\n"
        f"totem {{\n  cluster_name: {CLUSTER_NAME}\n  config_version: {version}\n"
        "  interface {\n    linknumber: 0\n  }\n  ip_version: ipv4-6\n  link_mode: passive\n  secauth: on\n"
        "  token_coefficient: 125\n  version: 2\n}\n"
    )


def _do(machine: Machine, command: str, timeout: float = 120) -> str:
    status, output = machine.console.run("set -e\n" + command, timeout)
    if status != 0:
        tail = " | ".join(output.strip().splitlines()[-3:])
        raise LabError(f"{machine.name}: {command.strip().splitlines()[0]!r} ended with {status}: {tail}")
    return output


def _wait(machine: Machine, what: str, condition: str) -> None:
    """Wait until the shell ``condition`` holds on the machine."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        status, _ = machine.console.run(condition, 60)
        if status == 0:
            return
        time.sleep(0.5)
    raise LabError(
        f"{machine.name}: waited {SECONDS} s for {what}; see lab logs {machine.name} --journal pve-cluster"
    )


def _write(path: str, text: str) -> str:
    return f"printf %s {shlex.quote(text)} > {path}\n"


def _quorate(members: int) -> str:
    # Both must agree: corosync on the votes, the cluster file system on being in sync and writable.
    return (
        f"corosync-quorumtool -s | grep -Eq '^Total votes: +{members}$' && corosync-quorumtool -s | grep -Eq '^Quorate: +Yes' "
        f"&& touch /etc/pve/.lab-probe-$$ 2>/dev/null && rm /etc/pve/.lab-probe-$$"
    )


def _create(first: Machine) -> None:
    """The steps of ``pvecm create``: key, configuration on /etc/pve, restart of both daemons."""
    conf = corosync_conf([first.number], 1)
    _do(first, "test -e /etc/corosync/authkey || corosync-keygen -l -k /etc/corosync/authkey\n"
        + _write("/etc/pve/corosync.conf", conf)
        + "systemctl restart pve-cluster\nsystemctl restart corosync")  # fmt: skip
    _wait(first, "quorum of the new cluster", _quorate(1))


def add(first: Machine, new: Machine, members: Sequence[int], version: int) -> None:
    """The steps of ``pvecm add``: the member is listed, then the new node takes key, configuration and database.

    The key is left readable by everybody and root's login by password allowed, as ``pvecm add`` leaves them.
    """
    conf = corosync_conf([*members, new.number], version)
    _do(
        first,
        _write("/etc/pve/corosync.conf.new", conf) + "mv /etc/pve/corosync.conf.new /etc/pve/corosync.conf\n",
    )
    _wait(
        first,
        "the copy of corosync.conf",
        f"grep -q 'config_version: {version}$' /etc/corosync/corosync.conf",
    )
    _wait(
        first,
        "corosync to take it",
        f"corosync-cmapctl -g totem.config_version | grep -q '= {version}$' || {{ corosync-cfgtool -R >/dev/null; false; }}",
    )
    authkey = _do(first, "base64 -w 0 /etc/corosync/authkey").strip()
    _do(new, f"echo {authkey} | base64 -d > /etc/corosync/authkey; chmod 644 /etc/corosync/authkey\n"
        "sed -i '/^#\\?PermitRootLogin/d' /etc/ssh/sshd_config; echo PermitRootLogin yes >> /etc/ssh/sshd_config\n"
        + _write("/etc/corosync/corosync.conf", conf)
        + "systemctl stop pve-cluster\n"
        "mkdir -p /var/lib/pve-cluster/backup\n"
        "sqlite3 /var/lib/pve-cluster/config.db .dump | gzip > /var/lib/pve-cluster/backup/config-$(date +%s).sql.gz\n"
        "rm -f /var/lib/pve-cluster/config.db /var/lib/pve-cluster/config.db-wal /var/lib/pve-cluster/config.db-shm\n"
        "systemctl start pve-cluster\nsystemctl start corosync\n", SECONDS)  # fmt: skip
    for machine in (new, first):
        _wait(machine, f"quorum with {new.name}", _quorate(len(members) + 1))
    _do(new, "pvecm updatecerts")


def build(machines: Sequence[Machine]) -> None:
    """Make the machines one cluster, the first being the founder, and give it guests, storage and users."""
    first, others = machines[0], machines[1:]
    with step("clustering by hand"):
        _create(first)
        members = [first.number]
        for version, machine in enumerate(others, 2):
            add(first, machine, members, version)
            members.append(machine.number)
    with step("guest configurations"):
        script = "".join(_write(path, text) for path, text in CONFIGURATION.items())
        for machine in machines:
            number = machine.number * 100
            for offset in range(3):
                path = f"/etc/pve/nodes/{machine.name}/qemu-server/{number + offset}.conf"
                script += f"mkdir -p /etc/pve/nodes/{machine.name}/qemu-server\n"
                script += _write(path, guest(number + offset, f"vm{number + offset}"))
        _do(first, script)
