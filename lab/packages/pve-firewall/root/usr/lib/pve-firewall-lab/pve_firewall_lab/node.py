# SPDX-License-Identifier: Apache-2.0
"""What the firewall knows of its node: its address and network, the other members' ring addresses, its guests."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field

from . import config

ROOT = os.environ.get("PVE_LAB_ROOT", "")
PVE = f"{ROOT}/etc/pve"


class Unready(Exception):
    """/etc/pve is not there: no rules can be made, and those in place stay."""


@dataclass
class Guest:
    """``taps``: numbers of network cards with ``firewall=1``."""

    number: int
    taps: list[int]
    files: config.Config


@dataclass
class Node:
    name: str
    address: str = ""
    network: str = ""
    #: (member's name, link, its address, the own address of this link)
    peers: list[tuple[str, int, str, str]] = field(default_factory=list)
    cluster: config.Config = field(default_factory=lambda: config.Config("cluster.fw"))
    host: config.Config = field(default_factory=lambda: config.Config("host.fw"))
    guests: list[Guest] = field(default_factory=list)

    @property
    def enabled(self) -> bool:
        return self.cluster.number("enable", 0) > 0

    @property
    def nftables(self) -> bool:
        return self.host.on("nftables", False)

    @property
    def local_network(self) -> str:
        """The alias of this name comes before what was detected."""
        return self.cluster.aliases.get("local_network", self.network)

    def wrong(self) -> list[str]:
        found = [*self.cluster.wrong, *self.host.wrong]
        return found + [each for guest in self.guests for each in guest.files.wrong]


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def read(path: str) -> str | None:
    """None where there is no such file. Raises Unready."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Unready(f"{path}: {error.strerror}") from error


def host_name() -> str:
    return os.environ.get("PVE_LAB_NODE") or os.uname().nodename.split(".")[0]


def hosts() -> dict[str, str]:
    found: dict[str, str] = {}
    for line in (read(f"{ROOT}/etc/hosts") or "").splitlines():
        words = line.partition("#")[0].split()
        for name in words[1:]:
            found.setdefault(name, words[0])
    return found


def networks() -> list[str]:
    """Address and length of each of the machine's addresses."""
    try:
        done = subprocess.run(["ip", "-json", "address"], capture_output=True, text=True, check=False)
        listed = json.loads(done.stdout or "[]")
    except (OSError, ValueError):
        return []
    return [
        f"{each['local']}/{each['prefixlen']}"
        for card in listed
        for each in card.get("addr_info", [])
        if "local" in each and "prefixlen" in each
    ]


def network_of(address: str, listed: list[str]) -> str:
    for each in listed:
        interface = ipaddress.ip_interface(each)
        if str(interface.ip) == address:
            return str(interface.network)
    return ""


def ring(text: str, name: str, names: dict[str, str]) -> list[tuple[str, int, str, str]]:
    """The other members' addresses of every link, from corosync.conf."""
    members: dict[str, dict[int, str]] = {}
    for block in re.findall(r"\bnode\s*\{([^}]*)\}", text):
        values = dict(re.findall(r"^\s*(\w+)\s*:\s*(\S+)", block, re.MULTILINE))
        links = {int(key[4:-5]): value for key, value in values.items() if re.fullmatch(r"ring[0-9]_addr", key)}
        members[values.get("name", links.get(0, ""))] = links
    own = members.pop(name, {})
    found = []
    for member in sorted(members):
        for link, address in sorted(members[member].items()):
            theirs, ours = names.get(address, address), names.get(own.get(link, ""), own.get(link, ""))
            if is_address(theirs) and is_address(ours):
                found.append((member, link, theirs, ours))
    return found


def is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def guests() -> list[Guest]:
    found = []
    for kind, device in (("qemu-server", "net"), ("lxc", "net")):
        folder = f"{PVE}/local/{kind}"
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        for name in names:
            if not re.fullmatch(r"[0-9]+\.conf", name):
                continue
            number = int(name[:-5])
            current = (read(f"{folder}/{name}") or "").partition("\n[")[0]
            cards = re.findall(rf"^{device}([0-9]+): (.*)$", current, re.MULTILINE)
            taps = [int(card) for card, values in cards if "firewall=1" in values.split(",")]
            text = read(f"{PVE}/firewall/{number}.fw")
            found.append(Guest(number, taps, config.parse(f"{number}.fw", text or "")))
    return found


def must_be_there() -> None:
    """Raises Unready."""
    if not os.path.isdir(f"{PVE}/local") or (not ROOT and not os.path.ismount(PVE)):
        raise Unready("/etc/pve is not there: the rules stay as they are")


def load(listed: list[str] | None = None) -> Node:
    """Raises Unready."""
    must_be_there()
    node = Node(host_name())
    names = hosts()
    node.address = names.get(node.name, "")
    node.network = network_of(node.address, networks() if listed is None else listed)
    node.peers = ring(read(f"{PVE}/corosync.conf") or "", node.name, names)
    node.cluster = config.parse("cluster.fw", read(f"{PVE}/firewall/cluster.fw") or "")
    node.host = config.parse("host.fw", read(f"{PVE}/local/host.fw") or "")
    node.guests = guests()
    # A file that is missing counts as an empty one, and all are missing once the file system has gone.
    must_be_there()
    return node
