# SPDX-License-Identifier: Apache-2.0
"""Nodes as files under a root, with the answers of the few programs that are asked.

``clean``: as Proxmox VE 8 and 9 install a node. ``dev_sec`` and ``cis``: the documented settings of public roles on top of it, in
the files that they write; written for these tests, not taken from them, and by no means all that they set:

* dev-sec ansible-collection-hardening, roles os_hardening and ssh_hardening, defaults of ``sysctl_config``, ``os_auditd_*``,
  ``os_unused_filesystems``, ``proc_mnt_options`` (with the ``hidepid=2`` of earlier releases).
* ansible-lockdown DEBIAN12-CIS 1.1.0, defaults ``deb12cis_*``: ``faillock_deny`` 3, ``pamroot_lock_option`` even_deny_root,
  ``bash_umask`` 027, ``firewall_package`` ufw, ``is_router`` false, ``tmp_svc``, rules 1.1.1.x, 3.3.x, 6.2.2.x, 6.2.3.20. The
  files 50-scope.rules and 99-finalize.rules have names of the benchmark, not of
  the role; its module is ``overlayfs``, which there is not.
* dev-sec ssh_hardening, defaults of ``ssh_permit_root_login`` no, ``ssh_max_auth_retries`` 2, ``sshd_authenticationmethods``,
  ``ssh_allow_tcp_forwarding`` no, its own lists of algorithms; ``ssh_allow_users`` as its documentation shows it.
* CIS 5.1.x as the role above sets them, line by line in the main file: 5.1.4 with a user, 5.1.6, 5.1.8, 5.1.12, 5.1.15, 5.1.16,
  5.1.20.

What sshd makes of these files says the real ``sshd -T``; without openssh-server the node has no sshd.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.pveguard.base.findings import Finding, worst_first
from ansible.module_utils.pveguard.base.run import CommandMissing, Result
from ansible.module_utils.pveguard.base.run import run as real_run
from ansible.module_utils.pveguard.hardening import (
    accounts_findings,
    auditd_findings,
    firewall_findings,
    hardening_info,
    others_findings,
    pveproxy_findings,
    sshd_findings,
    sysctl_findings,
    updates_findings,
)

from tests.hardening import real_sshd

JUDGES = (
    sshd_findings,
    firewall_findings,
    sysctl_findings,
    accounts_findings,
    pveproxy_findings,
    auditd_findings,
    updates_findings,
    others_findings,
)
PACKAGES = {"pve-manager": "8.4.1", "pve-cluster": "8.1.0"}
MOUNTS = [
    "22 1 8:3 / / rw,relatime shared:1 - ext4 /dev/mapper/pve-root rw,errors=remount-ro",
    "23 22 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw",
    "24 22 0:50 / /etc/pve rw,nosuid,nodev,relatime shared:90 - fuse /dev/fuse rw,user_id=0,group_id=0",
]
RUNTIME = {
    "kernel/modules_disabled": "0",
    "kernel/unprivileged_userns_clone": "1",
    "kernel/nmi_watchdog": "1",
    "net/bridge/bridge-nf-call-iptables": "1",
    "net/bridge/bridge-nf-call-ip6tables": "1",
    # A node with bridged guests alone forwards nothing, and does not need to.
    "net/ipv4/ip_forward": "0",
    "net/ipv6/conf/all/forwarding": "0",
    "user/max_user_namespaces": "127000",
    "vm/max_map_count": "262144",
    "vm/overcommit_memory": "0",
    "vm/swappiness": "60",
}
INTERFACES = ("all", "default", "lo", "eno1", "vmbr0", "fwbr100i0", "eno1.30")
APT_DUMP = 'APT::Architecture "amd64";\nAPT::NeverAutoRemove:: "^firmware-linux.*";\n'
#: As ``ip -json address`` tells it, in short.
ADDRESSES = [
    {"ifname": "lo", "addr_info": [{"family": "inet", "local": "127.0.0.1", "prefixlen": 8, "scope": "host"}]},
    {"ifname": "vmbr0", "addr_info": [{"family": "inet", "local": "10.0.0.11", "prefixlen": 24, "scope": "global"}]},
    {"ifname": "eno2", "addr_info": [{"family": "inet", "local": "10.1.0.11", "prefixlen": 24, "scope": "global"}]},
    {"ifname": "eno1", "addr_info": [{"family": "inet6", "local": "fe80::1", "prefixlen": 64, "scope": "link"}]},
]
CHRONY = "A29FC87B,162.159.200.123,4,1764525000.1,0.000012,-0.00001,0.00005,-3.1,0.001,0.02,0.02,0.001,64.2,Normal\n"
#: As Debian ships the main file, with the line that the installer of Proxmox VE and pvecm write.
SSHD_CONFIG = """\
# This is the sshd server system-wide configuration file.
Include /etc/ssh/sshd_config.d/*.conf

#Port 22
PermitRootLogin yes
#MaxAuthTries 6
#PasswordAuthentication yes
KbdInteractiveAuthentication no
UsePAM yes
X11Forwarding yes
PrintMotd no
AcceptEnv LANG LC_*
Subsystem\tsftp\t/usr/lib/openssh/sftp-server
"""
KINDS_OF_HOST_KEY = ("rsa", "ecdsa", "ed25519")


@functools.cache
def effective(files: tuple[tuple[str, str], ...], spec: str) -> Result:
    """What the real ``sshd -T -C spec`` makes of files of /etc/ssh. In a folder of its own, as sshd knows no root; its name is
    taken out of the answer again."""
    folder = tempfile.mkdtemp(prefix="sshd-", dir="/tmp")
    try:
        for path, text in files:
            place = Path(f"{folder}{path}")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text if "_key" in path else text.replace("/etc/ssh/", f"{folder}/etc/ssh/"))
            place.chmod(0o600)
        config = f"{folder}/etc/ssh/sshd_config"
        # Its own defaults lie in this machine's /etc/ssh.
        keys = [f"{folder}/etc/ssh/ssh_host_{kind}_key" for kind in KINDS_OF_HOST_KEY]
        named = any(line.lower().startswith("hostkey ") for _, text in files for line in text.splitlines())
        options = [] if named else [word for key in keys if os.path.exists(key) for word in ("-h", key)]
        # It asks for its folder in /run, which is there only where sshd runs.
        call = 'mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && exec "$0" "$@"'
        argv = ["unshare", "-m" if os.geteuid() == 0 else "-rm", "sh", "-c", call]
        argv += [str(real_sshd.SSHD), "-T", "-f", config, *options, "-C", spec]
        done = real_run(argv)
        return Result(done.rc, done.stdout.replace(folder, ""), done.stderr.replace(folder, ""))
    finally:
        shutil.rmtree(folder)


class Node:
    """``answers``: what a program prints, by its name; one that is not there is not installed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[list[str]] = []
        self.active = ["chrony.service", "pve-firewall.service"]
        self.mounts = list(MOUNTS)
        self.answers: dict[str, Callable[[Sequence[str]], Result]] = {
            "systemctl": self.systemctl,
            "apt-config": lambda argv: Result(0, APT_DUMP),
            "chronyc": lambda argv: Result(0, CHRONY),
            "ip": lambda argv: Result(0, json.dumps(ADDRESSES)),
            "cat": self.cat,
        }
        if real_sshd.SSHD:
            self.answers["sshd"] = self.sshd

    def write(self, path: str, text: str) -> Path:
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_symlink():
            place.unlink()
        place.write_text(text)
        return place

    def append(self, path: str, text: str) -> None:
        place = self.root / path.lstrip("/")
        self.write(path, (place.read_text() if place.exists() else "") + text)

    def remove(self, path: str) -> None:
        (self.root / path.lstrip("/")).unlink()

    def kernel(self, values: Mapping[str, str]) -> None:
        for path, value in values.items():
            self.write(f"/proc/sys/{path}", f"{value}\n")

    def systemctl(self, argv: Sequence[str]) -> Result:
        blocks = []
        for unit in argv[4:]:
            on = unit in self.active
            state, load, enabled = ("active", "loaded", "enabled") if on else ("inactive", "not-found", "")
            blocks.append(f"Id={unit}\nLoadState={load}\nActiveState={state}\nUnitFileState={enabled}")
        return Result(0, "\n\n".join(blocks) + "\n")

    def cat(self, argv: Sequence[str]) -> Result:
        # Nobody writes into a FIFO: the deadline comes.
        return Result(124, "", "cat: no answer") if Path(argv[1]).is_fifo() else real_run(list(argv))

    def sshd(self, argv: Sequence[str]) -> Result:
        folder = self.root / "etc/ssh"
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        texts = tuple((f"/{path.relative_to(self.root)}", path.read_text()) for path in files)
        return effective(texts, argv[argv.index("-C") + 1])

    def run(
        self,
        argv: Sequence[str],
        *,
        input: str | None = None,
        timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        self.calls.append(list(argv))
        if argv[0] not in self.answers:
            raise CommandMissing(f"the program {argv[0]!r} is not installed on this host")
        return self.answers[argv[0]](argv)

    def look(self, *areas: str) -> dict[str, Any]:
        self.write("/proc/self/mountinfo", "".join(f"{line}\n" for line in self.mounts))
        # Here, so that the calls are noted; children and deadlines have tests of their own.
        return hardening_info.collect(areas, self.root, self.run, ask=lambda work, seconds: work())

    def facts(self, *areas: str) -> dict[str, Any]:
        """As node_info and hardening_info bring them, through JSON."""
        return json.loads(json.dumps({"packages": PACKAGES, "hardening": self.look(*areas)}))  # type: ignore[no-any-return]

    def found(self) -> list[Finding]:
        facts = self.facts()
        return worst_first(each for judge in JUDGES for each in judge.of_node(facts, {}))

    def ids(self) -> set[str]:
        return {each.id for each in self.found()}

    def picture(self) -> dict[str, bytes]:
        """Every file; what a look must leave alone."""
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and not path.is_symlink() and path.name != "mountinfo"
        }


def clean(root: Path, release: int = 8) -> Node:
    """A node as the installer of Proxmox VE 8 (Debian 12) or 9 (Debian 13) leaves it, with chrony, in a cluster of three, its
    repositories set to pve-no-subscription."""
    node = Node(root)
    name = {8: "bookworm", 9: "trixie"}[release]
    node.kernel(RUNTIME)
    for each in INTERFACES:
        strict = "0" if each == "all" else "2"
        node.kernel({f"net/ipv4/conf/{each}/rp_filter": strict, f"net/ipv4/conf/{each}/log_martians": "0"})
        node.kernel({f"net/ipv4/conf/{each}/forwarding": "0", f"net/ipv6/conf/{each}/forwarding": "0"})
    running = {8: "6.8.12-9-pve", 9: "6.14.8-2-pve"}[release]
    node.kernel({"kernel/osrelease": running})
    node.write(f"/boot/vmlinuz-{running}", "")
    node.write("/proc/cmdline", "BOOT_IMAGE=/boot/vmlinuz root=/dev/mapper/pve-root ro quiet\n")
    # Of packages: pve-cluster and systemd.
    node.write(
        "/usr/lib/sysctl.d/10-pve.conf", "net.bridge.bridge-nf-call-iptables = 0\nfs.aio-max-nr = 1048576\n"
    )
    node.write(
        "/usr/lib/sysctl.d/50-default.conf",
        "net.ipv4.conf.default.rp_filter = 2\nnet.ipv4.conf.*.rp_filter = 2\n",
    )
    (root / "etc/sysctl.d").mkdir(parents=True)
    if release == 8:
        node.write("/etc/sysctl.conf", "#net.ipv4.ip_forward=1\n#net.ipv4.conf.all.rp_filter=1\n")
        os.symlink("../sysctl.conf", root / "etc/sysctl.d/99-sysctl.conf")
    node.write("/etc/modprobe.d/pve-blacklist.conf", "blacklist nvidiafb\n")
    node.write("/etc/modprobe.d/zfs.conf", "options zfs zfs_arc_max=3365928960\n")
    node.write("/etc/default/grub", 'GRUB_DEFAULT=0\nGRUB_CMDLINE_LINUX_DEFAULT="quiet"\n')
    node.write(
        "/etc/network/interfaces",
        "auto lo\niface lo inet loopback\n\niface eno1 inet manual\n\nauto vmbr0\niface vmbr0 inet static\n"
        "\taddress 10.0.0.11/24\n\tgateway 10.0.0.1\n\tbridge-ports eno1\n\tbridge-stp off\n\tbridge-fd 0\n",
    )
    _pve(node)
    node.write(
        "/etc/default/pve-ha-manager",
        "# select watchdog module (default is softdog)\n#WATCHDOG_MODULE=ipmi_watchdog\n",
    )
    node.write("/sys/module/softdog/parameters/nowayout", "0\n")
    node.write("/etc/login.defs", "UMASK\t\t022\nHOME_MODE\t0700\nUSERGROUPS_ENAB yes\n")
    node.write("/etc/profile", "PATH=/usr/bin\n# umask 027 is not set here\n")
    node.write("/root/.profile", "mesg n 2> /dev/null || true\n")
    node.write("/etc/pam.d/common-auth", "auth [success=1 default=ignore] pam_unix.so nullok\n")
    node.write("/etc/pam.d/common-session", "session required pam_unix.so\nsession optional pam_systemd.so\n")
    node.write("/etc/pam.d/proxmox-ve-auth", "@include common-auth\n")
    node.write("/etc/security/faillock.conf", "# deny = 3\n# even_deny_root\n")
    node.write("/etc/fstab", "/dev/pve/root / ext4 errors=remount-ro 0 1\nproc /proc proc defaults 0 0\n")
    node.write("/etc/systemd/system.conf", "[Manager]\n#RuntimeWatchdogSec=off\n")
    if release == 9:
        # Debian 13 has /tmp in memory.
        node.mounts.append("40 22 0:60 / /tmp rw,nosuid,nodev shared:70 - tmpfs tmpfs rw,size=8g")
    _sources(node, release, name)
    if real_sshd.SSHD:
        _sshd(node)
    return node


def corosync(links: int = 2, more: str = "") -> str:
    """The cluster "blue" of pve1, pve2 and pve3; the address of pve1 on link 0 is its name."""
    nodes = ""
    for number in (1, 2, 3):
        rings = [f"    ring{link}_addr: 10.{link}.0.1{number}\n" for link in range(links)]
        if number == 1:
            rings[0] = "    ring0_addr: pve1\n"
        nodes += f"  node {{\n    name: pve{number}\n    nodeid: {number}\n{''.join(rings)}  }}\n"
    totem = "totem {\n  cluster_name: blue\n  version: 2\n}\n"
    return f"nodelist {{\n{nodes}}}\nquorum {{\n  provider: corosync_votequorum\n{more}}}\n{totem}"


def _sshd(node: Node) -> None:
    """Logins as installed: root's keys are on /etc/pve, and nowhere else."""
    node.write("/etc/ssh/sshd_config", SSHD_CONFIG)
    (node.root / "etc/ssh/sshd_config.d").mkdir()
    keys = real_sshd.keys()
    for kind in ("rsa", "ed25519"):
        for end in ("", ".pub"):
            path = f"/etc/ssh/ssh_host_{kind}_key{end}"
            node.write(path, keys[path])
    rsa = keys["/etc/ssh/ssh_host_rsa_key.pub"].split()
    name = os.uname().nodename.partition(".")[0]
    node.write(f"/etc/pve/nodes/{name}/ssh_known_hosts", f"{name} {rsa[0]} {rsa[1]}\n")
    there = node.write("/etc/pve/priv/authorized_keys", keys["/root/.ssh/id_rsa.pub"])
    (node.root / "root/.ssh").mkdir(parents=True)
    (node.root / "root/.ssh/authorized_keys").symlink_to(there)


def _pve(node: Node) -> None:
    node.write("/usr/bin/pmxcfs", "")
    node.write("/etc/pve/.version", "{}")
    members = {f"pve{number}": {"id": number, "online": 1, "ip": f"10.0.0.1{number}"} for number in (1, 2, 3)}
    cluster = {"name": "lab", "version": 3, "nodes": 3, "quorate": 1}
    said = {"nodename": "pve1", "version": 5, "cluster": cluster, "nodelist": members}
    node.write("/etc/pve/.members", json.dumps(said))
    node.write("/etc/pve/corosync.conf", corosync(links=1))
    node.write("/etc/hosts", "127.0.0.1 localhost\n10.0.0.11 pve1.example.net pve1\n")
    node.write("/usr/sbin/pve-firewall", "")
    node.write("/etc/pve/user.cfg", "user:root@pam:1:0:::root@example.net:::\n")
    node.write(
        "/etc/pve/domains.cfg",
        "pam: pam\n\tcomment Linux PAM standard authentication\n\npve: pve\n\tcomment built in\n",
    )


def _sources(node: Node, release: int, name: str) -> None:
    node.write("/etc/os-release", f'PRETTY_NAME="Debian GNU/Linux"\nVERSION_CODENAME={name}\nID=debian\n')
    if release == 8:
        node.write(
            "/etc/apt/sources.list",
            f"deb http://ftp.debian.org/debian {name} main contrib\n\n"
            f"deb http://ftp.debian.org/debian {name}-updates main contrib\n"
            f"# security updates\ndeb http://security.debian.org {name}-security main contrib\n",
        )
        node.write(
            "/etc/apt/sources.list.d/pve-enterprise.list",
            f"# deb https://enterprise.proxmox.com/debian/pve {name} x\n",
        )
        node.write(
            "/etc/apt/sources.list.d/pve.list",
            f"deb http://download.proxmox.com/debian/pve {name} pve-no-subscription\n",
        )
        return
    for key in ("debian-archive-keyring.gpg", "proxmox-archive-keyring.gpg"):
        node.write(f"/usr/share/keyrings/{key}", "")
    node.write(
        "/etc/apt/sources.list.d/debian.sources",
        f"Types: deb\nURIs: http://debian.example.net/debian/\nSuites: {name} {name}-updates\nComponents: main contrib\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n"
        f"Types: deb\nURIs: http://security.debian.org/debian-security/\nSuites: {name}-security\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n",
    )
    proxmox = "Types: deb\nURIs: {uri}\nSuites: {name}\nComponents: {part}\nSigned-By: {key}\n{more}"
    key = "/usr/share/keyrings/proxmox-archive-keyring.gpg"
    for file, uri, part, more in (
        ("pve-enterprise", "https://enterprise.proxmox.com/debian/pve", "pve-enterprise", "Enabled: no\n"),
        ("pve-no-subscription", "http://download.proxmox.com/debian/pve", "pve-no-subscription", ""),
    ):
        node.write(
            f"/etc/apt/sources.list.d/{file}.sources",
            proxmox.format(uri=uri, name=name, part=part, key=key, more=more),
        )


def dev_sec(node: Node) -> Node:
    """Documented settings of dev-sec os_hardening."""
    node.append(
        "/etc/sysctl.conf",
        "net.ipv4.ip_forward=0\nnet.ipv6.conf.all.forwarding=0\nnet.ipv4.conf.all.rp_filter=1\nnet.ipv4.conf.default.rp_filter=1\n"
        "net.ipv4.conf.all.log_martians=1\nnet.ipv4.conf.default.log_martians=1\nkernel.kptr_restrict=2\n"
        "net.ipv6.conf.all.disable_ipv6=1\n",
    )
    for each in ("all", "default"):
        node.kernel({f"net/ipv4/conf/{each}/rp_filter": "1", f"net/ipv4/conf/{each}/log_martians": "1"})
        node.kernel({f"net/ipv4/conf/{each}/forwarding": "0"})
    for each in ("eno1", "vmbr0"):
        node.kernel({f"net/ipv4/conf/{each}/rp_filter": "0"})
    filesystems = ("cramfs", "freevxfs", "jffs2", "hfs", "hfsplus", "squashfs", "udf", "vfat", "tipc", "sctp", "dccp", "rds")
    node.write("/etc/modprobe.d/dev-sec.conf", "".join(f"install {each} /bin/true\n" for each in filesystems))
    node.write(
        "/etc/audit/auditd.conf",
        "# Configuration of dev-sec\nlog_file = /var/log/audit/audit.log\nmax_log_file_action = keep_logs\n"
        "admin_space_left_action = SUSPEND\ndisk_full_action = SUSPEND\ndisk_error_action = SUSPEND\n",
    )
    node.append("/etc/fstab", "proc /proc proc rw,nosuid,nodev,noexec,relatime,hidepid=2 0 0\n")
    node.mounts.append(
        "23 22 0:21 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw,hidepid=invisible"
    )
    node.write("/etc/login.defs", "# dev-sec\nUMASK 027\n")
    if real_sshd.SSHD:
        # The role writes the main file, without an Include.
        node.write("/etc/ssh/revoked_keys", "")
        node.write(
            "/etc/ssh/sshd_config",
            "# Ansible managed\n# Generated by Ansible role devsec.hardening.ssh_hardening\n\nPermitRootLogin no\nPort 22\n"
            "HostKey /etc/ssh/ssh_host_rsa_key\nHostKey /etc/ssh/ssh_host_ed25519_key\nLogLevel VERBOSE\n"
            "Ciphers chacha20-poly1305@openssh.com,aes256-gcm@openssh.com,aes128-gcm@openssh.com,aes256-ctr\n"
            "MACs hmac-sha2-512-etm@openssh.com,hmac-sha2-256-etm@openssh.com\n"
            "KexAlgorithms sntrup761x25519-sha512@openssh.com,curve25519-sha256,diffie-hellman-group-exchange-sha256\n"
            "MaxAuthTries 2\nMaxSessions 10\nMaxStartups 10:30:60\nPubkeyAuthentication yes\nIgnoreRhosts yes\nUsePAM yes\n"
            "HostbasedAuthentication no\nAuthenticationMethods publickey\nPasswordAuthentication no\nAllowUsers operator\n"
            "KbdInteractiveAuthentication no\nAllowTcpForwarding no\nAllowAgentForwarding no\nX11Forwarding no\n"
            "PermitTunnel no\nRevokedKeys /etc/ssh/revoked_keys\nMatch Group sftponly\n    ForceCommand internal-sftp\n"
            "    PermitRootLogin no\n",
        )
    return node


def cis(node: Node) -> Node:
    """Documented settings of a CIS role for Debian 12, level 1 and 2, in the files of ansible-lockdown's."""
    node.write(
        "/etc/sysctl.d/60-netipv4_sysctl.conf",
        "net.ipv4.ip_forward = 0\nnet.ipv4.conf.all.rp_filter = 1\nnet.ipv4.conf.default.rp_filter = 1\n"
        "net.ipv4.conf.all.log_martians = 1\nnet.ipv4.conf.default.log_martians = 1\n",
    )
    node.write("/etc/sysctl.d/60-netipv6_sysctl.conf", "net.ipv6.conf.all.forwarding = 0\n")
    for each in INTERFACES:
        node.kernel({f"net/ipv4/conf/{each}/rp_filter": "1", f"net/ipv4/conf/{each}/log_martians": "1"})
    modules = ("cramfs", "overlay", "squashfs", "udf", "usb-storage")
    node.write("/etc/modprobe.d/CIS.conf", "".join(f"install {each} /bin/true\n" for each in modules))
    node.write("/etc/modprobe.d/blacklist.conf", "".join(f"blacklist {each}\n" for each in modules))
    node.write("/etc/security/faillock.conf", "deny = 3\nunlock_time = 900\neven_deny_root\n")
    preauth, fail = "auth required pam_faillock.so preauth\n", "auth [default=die] pam_faillock.so authfail\n"
    node.append("/etc/pam.d/common-auth", preauth + fail)
    node.write("/etc/login.defs", "UMASK 027\nUSERGROUPS_ENAB yes\n")
    node.append("/root/.bash_profile", "umask 0027\n")
    node.write(
        "/etc/systemd/system/tmp.mount", "[Mount]\nOptions=mode=1777,strictatime,nosuid,nodev,noexec\n"
    )
    node.mounts.append("41 22 0:61 / /tmp rw,nosuid,nodev,noexec - tmpfs tmpfs rw")
    node.append("/etc/fstab", "/dev/pve/vartmp /var/tmp ext4 defaults,nodev,nosuid,noexec 0 0\n")
    node.active += ["ufw.service", "systemd-timesyncd.service"]
    full = "disk_full_action = halt\ndisk_error_action = single\nadmin_space_left_action = single\n"
    node.write("/etc/audit/auditd.conf", f"max_log_file_action = keep_logs\n{full}")
    node.write("/etc/audit/rules.d/50-scope.rules", "-w /etc/sudoers -p wa -k scope\n")
    node.write("/etc/audit/rules.d/99-finalize.rules", "-f 2\n-e 2\n")
    if real_sshd.SSHD:
        _lines_of_cis(node)
    return node


def _lines_of_cis(node: Node) -> None:
    """Each in the place of the last line that has the keyword, also of a comment; else at the end, before a Match block, as the
    role has sshd refuse what does not count there."""
    lines = (node.root / "etc/ssh/sshd_config").read_text().splitlines()
    for line in (
        "AllowUsers vagrant",
        "Ciphers aes256-gcm@openssh.com,aes128-gcm@openssh.com,aes256-ctr,aes192-ctr,aes128-ctr",
        "DisableForwarding yes",
        "GSSAPIAuthentication no",
        "KexAlgorithms curve25519-sha256,diffie-hellman-group-exchange-sha256",
        "MACs hmac-sha2-512-etm@openssh.com,hmac-sha2-256-etm@openssh.com",
        "MaxAuthTries 4",
        "PermitEmptyPasswords no",
        "PermitRootLogin no",
    ):
        keyword = line.split()[0]
        own = [number for number, each in enumerate(lines) if each.removeprefix("#").startswith(f"{keyword} ")]
        if own:
            lines[own[-1]] = line
        else:
            match = next((number for number, each in enumerate(lines) if each.startswith("Match ")), len(lines))
            lines.insert(match, line)
    node.write("/etc/ssh/sshd_config", "\n".join(lines) + "\n")
