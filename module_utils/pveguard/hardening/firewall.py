# SPDX-License-Identifier: Apache-2.0
"""The firewall of a node: which one is in use, what its files say, who the members are and what needs a port. Changes nothing."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from typing import Any

from ..base import node_name, rollback_timer, ssh_login, supervised
from ..base.errors import PveguardError
from ..base.run import CommandMissing
from ..base.systemd import properties_of
from ..formats import corosync_conf, firewall_config, section_config
from ..pmxcfs import members, places
from . import firewall_others
from .looking import Facts, Looking, area
from .sshd import controller_address

AREA = "firewall"
LEGACY, NFTABLES, NONE = "legacy", "nftables", "none"
#: While it exists, proxmox-firewall sets no rules.
FORCE_DISABLE = "/run/proxmox-nftables-firewall-force-disable"
#: Of the rollback timer of a change.
TIMER = "hardening-firewall"
#: While it exists, an undo keeps both firewalls from starting.
HELD_OPEN = "/var/lib/pveguard/node_hardening/firewall/held-open"
UNITS = {
    "pve-firewall": "/usr/sbin/pve-firewall",
    "proxmox-firewall": "/usr/libexec/proxmox/proxmox-firewall",
}
QNETD = "/usr/bin/corosync-qnetd"
FOLDER = f"{places.MOUNT}/firewall"
SDN_ZONES, SDN_CONTROLLERS = f"{places.MOUNT}/sdn/zones.cfg", f"{places.MOUNT}/sdn/controllers.cfg"
#: Of an SDN zone that says no other.
VXLAN_PORT = 4789
#: Until the cluster file system has answered all that is asked of it.
ANSWER_S = 30.0
#: What is asked by other members and has rules of nobody: {file that tells of it: (what, ports)}.
INBOUND = {
    "/lib/systemd/system/linstor-satellite.service": ("LINSTOR satellite", (3366,)),
    "/lib/systemd/system/linstor-controller.service": ("LINSTOR controller", (3370,)),
    "/var/lib/ceph/mon": ("Ceph monitor", (3300, 6789)),
    "/var/lib/ceph/osd": ("Ceph OSD", (6800,)),
}


@area
def look(looking: Looking) -> Facts:
    """Facts::

    implementation  legacy (pve-firewall), nftables (proxmox-firewall, by host.fw) or none (plain Debian, a probe)
    node, cluster_name  this node's name; the cluster's, empty without one
    services        {name: {installed, active, enabled}} of pve-firewall and proxmox-firewall
    cluster, host   cluster.fw and host.fw: {path, present, enable (null: neither yes nor no), policy_in, policy_out, options,
                    aliases, sets: {name: ["[!]CIDR-OR-ALIAS"]}, groups: {name: [rule as text]}, rules: [rule as text],
                    strange: [{line, why}]}
    members         [{name, own, address (by which Proxmox reaches it), links: {"0": address, empty where it is unknown},
                    written: {"0": as in corosync.conf}}]
    links           [0, 1]
    addresses, address, local_network  own addresses with their lengths; that of this node; its network, or the alias
    controller      where the login in use comes from, empty without one; ssh_port: the port that it came to, 22 without one
    qdevice         {host, address} or null; qnetd: whether this host is one for others
    drbd            [{resource, path, port, addresses}]; drbd_strange: [{path, why}]
    inbound         [{what, port}] of LINSTOR and Ceph on this node
    sdn             [{zone, kind (vxlan or evpn; others have dhcp alone), port (of VXLAN), peers (addresses of the other ends, own
                    ones among them), fabric, dhcp}] of the zones of this node that need a port
    migration       {type: secure or insecure, network}
    guests          [{id, node, kind, name, cards, rules, policy_in}] of the cluster whose rules sleep until it is on
    guests_strange  [{path, line, why}] of their files
    force_disable   whether proxmox-firewall is kept from setting rules
    held_open       whether an undo holds this node open; timer: the state of the rollback timer, see base/rollback_timer
    others          rules of others in netfilter, see firewall_others; other_units: other firewalls that are on
    """
    texts, guests = _of_pve(looking)
    read = not looking.unread
    members_file = _members(looking, texts.get("/etc/pve/.members"))
    name = str(members_file.get("nodename") or node_name.own())
    services = _services(looking)
    found: Facts = {
        "read": read,
        "node": name,
        "services": {unit: services[unit] for unit in UNITS},
        "cluster": _file(places.CLUSTER_FW, texts.get(places.CLUSTER_FW), enabled=False),
        "host": _file(
            f"/etc/pve/nodes/{name}/host.fw", texts.get(f"/etc/pve/nodes/{name}/host.fw"), enabled=True
        ),
        **_members_of(looking, texts, members_file, name),
        **_addresses(looking),
        "controller": controller_address(),
        "ssh_port": _ssh_port(),
        "qnetd": looking.exists(QNETD),
        **_drbd(looking),
        "inbound": [
            {"what": what, "port": port}
            for path, (what, ports) in INBOUND.items()
            if looking.names(path) or (path.endswith(".service") and looking.exists(path))
            for port in ports
        ],
        "sdn": _sdn(looking, texts, name),
        "migration": _migration(texts.get("/etc/pve/datacenter.cfg")),
        **guests,
        "force_disable": looking.exists(FORCE_DISABLE),
        "held_open": looking.exists(HELD_OPEN),
        "timer": rollback_timer.status(TIMER, root=looking.root)["state"],
        "others": firewall_others.rules(looking),
        "other_units": [unit for unit in firewall_others.UNITS if services.get(unit, {}).get("on")],
    }
    found["implementation"] = _implementation(looking, found["host"])
    own: Facts = next((each for each in found["members"] if each["own"]), {})
    found["address"] = own.get("address") or ""
    found["local_network"] = found["cluster"]["aliases"].get("local_network") or _network(found)
    return found


def with_cluster_fw(facts: Mapping[str, Any], text: str | None) -> Facts:
    """As they would be with another cluster.fw."""
    found = {**facts, "cluster": _file(places.CLUSTER_FW, text, enabled=False)}
    local = found["cluster"]["aliases"].get("local_network") or facts.get("local_network")
    return {**found, "local_network": local}


# --- /etc/pve ---------------------------------------------------------------------------------------------------


def _of_pve(looking: Looking) -> tuple[dict[str, str], Facts]:
    """Texts by path, and the guests. Read in a process of its own, as the cluster file system may never answer."""
    nothing: Facts = {"guests": [], "guests_strange": []}

    def work() -> dict[str, Any]:
        inner = Looking(looking.root, looking.run)
        if not inner.pve():
            return {"texts": {}, "guests": nothing, "unread": inner.unread}
        paths = [places.CLUSTER_CONF, f"{places.MOUNT}/.members", places.CLUSTER_FW]
        paths += [f"{places.MOUNT}/datacenter.cfg", SDN_ZONES, SDN_CONTROLLERS]
        paths += [f"{each}/host.fw" for each in inner.names(f"{places.MOUNT}/nodes")]
        texts = {path: text for path in paths if (text := inner.text(path)) is not None}
        return {"texts": texts, "guests": _guests(inner), "unread": inner.unread}

    try:
        answer = supervised.ask(work, ANSWER_S)
    except supervised.Stalled:
        looking.cannot(places.MOUNT, f"no answer within {ANSWER_S:g} s")
        return {}, nothing
    if not answer:
        looking.cannot(places.MOUNT, "not understood")
        return {}, nothing
    looking.unread += answer["unread"]
    return answer["texts"], answer["guests"]


def _guests(looking: Looking) -> Facts:
    """Guests whose firewall is on, with a card that has it."""
    configs = {}
    for node in looking.names(f"{places.MOUNT}/nodes"):
        for kind in ("qemu-server", "lxc"):
            for path in looking.names(f"{node}/{kind}", ".conf"):
                configs[path.rpartition("/")[2].removesuffix(".conf")] = (node.rpartition("/")[2], kind, path)
    found, strange = [], []
    for path in looking.names(FOLDER, ".fw"):
        number = path.rpartition("/")[2].removesuffix(".fw")
        if not re.fullmatch("[1-9][0-9]{0,8}", number) or number not in configs:
            continue
        parsed = firewall_config.parse(looking.text(path) or "")
        strange += [{"path": path, "line": each.number, "why": each.why} for each in parsed.strange]
        if parsed.on("enable", False) is False:
            continue
        node, kind, config = configs[number]
        # What stands below a section is a snapshot.
        current = (looking.text(config) or "").partition("\n[")[0]
        cards = re.findall(r"^(net[0-9]+):[ \t]*(.*)$", current, re.MULTILINE)
        with_it = [card for card, values in cards if "firewall=1" in values.strip().split(",")]
        name = re.search(r"^(?:name|hostname):[ \t]*(\S+)", current, re.MULTILINE)
        if with_it:
            found.append(
                {
                    "id": int(number),
                    "node": node,
                    "kind": kind,
                    "name": name[1] if name else "",
                    "cards": with_it,
                    "rules": sum(each.enabled for each in parsed.rules),
                    "policy_in": parsed.options.get("policy_in", "DROP").upper(),
                }
            )
    return {"guests": sorted(found, key=lambda each: int(str(each["id"]))), "guests_strange": strange}


def _members(looking: Looking, text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        found = members.parse(text)
        return {
            "nodename": str(found["nodename"]),
            "nodelist": {str(k): dict(v) for k, v in (found.get("nodelist") or {}).items()},
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        looking.cannot("/etc/pve/.members", "no list of members with their addresses")
        return {}


def _file(path: str, text: str | None, *, enabled: bool) -> Facts:
    parsed = firewall_config.parse(text or "")
    policies = {
        key: parsed.options.get(key, default).upper()
        for key, default in (("policy_in", "DROP"), ("policy_out", "ACCEPT"))
    }
    return {
        "path": path,
        "present": text is not None,
        "enable": parsed.on("enable", enabled),
        **policies,
        **said(parsed),
    }


def said(parsed: firewall_config.Parsed) -> Facts:
    """A file as facts tell it."""
    return {
        "options": dict(parsed.options),
        "aliases": dict(parsed.aliases),
        "sets": {
            name: [f"{'!' * each.but}{each.value}" for each in entries]
            for name, entries in parsed.sets.items()
        },
        "groups": {name: [each.text() for each in rules] for name, rules in parsed.groups.items()},
        "rules": [each.text() for each in parsed.rules],
        "strange": [{"line": each.number, "why": each.why} for each in parsed.strange],
    }


def _implementation(looking: Looking, host: Facts) -> str:
    if not looking.exists(UNITS["pve-firewall"]) and not looking.exists(UNITS["proxmox-firewall"]):
        return NONE
    return (
        NFTABLES
        if str(host["options"].get("nftables", "0")).lower() in ("1", "yes", "on", "true")
        else LEGACY
    )


# --- members ----------------------------------------------------------------------------------------------------


def _members_of(looking: Looking, texts: Mapping[str, str], said: Mapping[str, Any], name: str) -> Facts:
    """``members``, ``links``, ``cluster_name``, ``qdevice``."""
    path = places.CLUSTER_CONF if places.CLUSTER_CONF in texts else places.HOST_CONF
    text = texts.get(path)
    if text is None and f"{places.MOUNT}/.members" not in texts:
        # A probe, or a node whose cluster file system does not answer.
        text = looking.text(places.HOST_CONF)
    by_name = {each: str(its.get("ip") or "") for each, its in (said.get("nodelist") or {}).items()}
    alone: Facts = {
        "members": [{"name": name, "own": True, "address": by_name.get(name, ""), "links": {}, "written": {}}]
        if said
        else [],
        "links": [],
        "cluster_name": "",
        "qdevice": None,
    }
    if text is None:
        return alone
    try:
        doc = corosync_conf.parse(text, path)
    except PveguardError as error:
        looking.unread.append(str(error))
        return alone
    if places.CLUSTER_CONF not in texts and not doc.config_version:
        return alone  # the example of Debian's package
    names = _hosts(looking)
    found: list[Facts] = []
    for node in doc.nodes():
        written = {str(link): address for link, address in sorted(node.addresses.items())}
        links = {link: _address(looking, address, names) for link, address in written.items()}
        label = node.name or node.label
        found.append(
            {
                "name": label,
                "own": label == name,
                "address": by_name.get(label) or links.get("0", ""),
                "links": links,
                "written": written,
            }
        )
    numbers = doc.link_numbers()
    for each in found:
        # A member without an address on a link of the others cannot be let in there.
        for number in numbers:
            each["links"].setdefault(str(number), "")
    if doc.nodes() and not any(each["own"] for each in found):
        looking.cannot(path, f"this node ({name}) is not among its nodes")
    return {
        "members": found,
        "links": numbers,
        "cluster_name": doc.cluster_name or "",
        "qdevice": _qdevice(looking, doc, names),
    }


def _qdevice(looking: Looking, doc: corosync_conf.Document, names: Mapping[str, str]) -> Facts | None:
    for quorum in doc.root.sections("quorum"):
        for device in quorum.sections("device"):
            for net in device.sections("net"):
                if host := net.get("host"):
                    return {"host": host, "address": _address(looking, host, names)}
    return None


def _hosts(looking: Looking) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in (looking.text("/etc/hosts") or "").split("\n"):
        words = line.partition("#")[0].split()
        for name in words[1:]:
            found.setdefault(name, words[0])
    return found


def _address(looking: Looking, text: str, names: Mapping[str, str]) -> str:
    """An address as it is, a name's; empty where that is not known."""
    candidates = [text, names.get(text, "")]
    for each in candidates:
        try:
            return str(ipaddress.ip_address(each))
        except ValueError:
            continue
    try:
        told = looking.run(["getent", "ahosts", text], timeout=10.0).stdout.split()
        return str(ipaddress.ip_address(told[0])) if told else ""
    except (CommandMissing, OSError, ValueError):
        return ""


def _addresses(looking: Looking) -> Facts:
    text = looking.output(["ip", "-json", "address"])
    if text is None:
        looking.cannot("ip", "the own addresses are not known")
    found: list[str] = []
    cards: dict[str, str] = {}
    try:
        for card in json.loads(text or "[]"):
            for each in card.get("addr_info") or []:
                if each.get("scope") != "link" and card.get("ifname") != "lo" and "local" in each:
                    own = ipaddress.ip_interface(f"{each['local']}/{each['prefixlen']}")
                    found.append(str(own))
                    cards[str(own.ip)] = str(card.get("ifname"))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        looking.cannot("ip", "its answer is not understood")
    return {"addresses": found, "cards": cards}


def _network(facts: Facts) -> str:
    for each in facts["addresses"]:
        if each.partition("/")[0] == facts["address"]:
            return str(ipaddress.ip_interface(each).network)
    return ""


def _ssh_port() -> int:
    words = ssh_login.connection().split()
    return int(words[3]) if len(words) == 4 and re.fullmatch("[0-9]{1,5}", words[3]) else 22


# --- what needs a port ------------------------------------------------------------------------------------------


def _services(looking: Looking) -> dict[str, Facts]:
    names = [*UNITS, *firewall_others.UNITS]
    try:
        told = properties_of(
            [f"{each}.service" for each in names], ["ActiveState", "UnitFileState"], looking.run
        )
    except OSError:
        told = {}
    if not any(values.get("ActiveState") for values in told.values()):
        looking.cannot("systemctl", "tells of no unit")
    found = {}
    for name in names:
        its = told.get(f"{name}.service", {})
        active, enabled = (
            its.get("ActiveState") == "active",
            its.get("UnitFileState") in ("enabled", "enabled-runtime"),
        )
        found[name] = {"active": active, "enabled": enabled, "on": active or enabled}
    for name, path in UNITS.items():
        found[name]["installed"] = looking.exists(path)
    return found


_ADDRESS = re.compile(
    r"\baddress\s+(?:(?:ipv4|ipv6|ssocks|sdp)\s+)?(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):([0-9]{1,5})\s*;"
)


def _drbd(looking: Looking) -> Facts:
    """``drbd`` and ``drbd_strange``: resources with their real ports, also those that LINSTOR writes."""
    found: list[Facts] = []
    strange: list[Facts] = []
    paths = [
        "/etc/drbd.conf",
        *looking.names("/etc/drbd.d", ".res"),
        *looking.names("/var/lib/linstor.d", ".res"),
    ]
    for path in paths:
        text = re.sub(r"#.*", "", looking.text(path) or "")
        parts = re.split(r"^[ \t]*resource[ \t]+\"?([^\s\"{]+)\"?[ \t\r\n]*\{", text, flags=re.MULTILINE)
        for resource, body in zip(parts[1::2], parts[2::2], strict=True):
            by_port: dict[int, list[str]] = {}
            for six, four, port in _ADDRESS.findall(body):
                try:
                    address = str(ipaddress.ip_address(six or four))
                except ValueError:
                    continue
                its = by_port.setdefault(int(port), [])
                if address not in its:
                    its.append(address)
            addresses = [each for its in by_port.values() for each in its]
            # Peers may have ports of their own: each is asked by all.
            found += [
                {"resource": resource, "path": path, "port": port, "addresses": sorted(set(addresses))}
                for port in sorted(by_port)
            ]
            if len(set(addresses)) < 2 or len(re.findall(r"\baddress\b", body)) > len(_ADDRESS.findall(body)):
                strange.append(
                    {"path": path, "why": f"the addresses of resource {resource} are not understood"}
                )
    return {"drbd": found, "drbd_strange": strange}


def _sdn(looking: Looking, texts: Mapping[str, str], name: str) -> list[Facts]:
    names = _hosts(looking)
    controllers = {
        each.name: each.values.get("peers", "")
        for each in section_config.parse(texts.get(SDN_CONTROLLERS, "")).sections
    }
    found: list[Facts] = []
    for zone in section_config.parse(texts.get(SDN_ZONES, "")).sections:
        only = _words(zone.values.get("nodes", ""))
        overlay, dhcp = zone.kind in ("vxlan", "evpn"), bool(zone.values.get("dhcp"))
        if (only and name not in only) or not (overlay or dhcp):
            continue
        written = controllers.get(zone.values.get("controller", "")) if zone.kind == "evpn" else None
        addresses = {each: _address(looking, each, names) for each in _words(written or zone.values.get("peers", ""))}
        if unknown := [each for each, address in addresses.items() if not address]:
            looking.cannot(SDN_ZONES, f"the address of {', '.join(unknown)} (zone {zone.name}) is not known")
        port = zone.values.get("vxlan-port", str(VXLAN_PORT))
        if not re.fullmatch("[0-9]{1,5}", port):
            looking.cannot(SDN_ZONES, f"vxlan-port {port} (zone {zone.name}) is no port")
            port = str(VXLAN_PORT)
        found.append(
            {
                "zone": zone.name,
                "kind": zone.kind,
                "port": int(port),
                "peers": sorted(filter(None, addresses.values())),
                "fabric": overlay and not addresses and _on_fabric(zone, texts),
                "dhcp": dhcp,
            }
        )
    return found


def _on_fabric(zone: section_config.Section, texts: Mapping[str, str]) -> bool:
    """Whether its ends are those of a fabric, whose addresses are not among the members'."""
    controllers = section_config.parse(texts.get(SDN_CONTROLLERS, "")).sections
    its = [each for each in controllers if each.name == zone.values.get("controller")]
    return any("fabric" in each.values for each in [zone, *its])


def _words(text: str) -> list[str]:
    return [each for each in re.split(r"[\s,;]+", text) if each]


def _migration(text: str | None) -> Facts:
    found = {"type": "secure", "network": ""}
    for line in (text or "").split("\n"):
        key, colon, value = line.partition(":")
        if key.strip() == "migration_unsecure" and value.strip() == "1":
            found["type"] = "insecure"
        if key.strip() != "migration" or not colon:
            continue
        for part in value.strip().split(","):
            name, equals, said = part.strip().partition("=")
            if name == "network":
                try:
                    found["network"] = str(ipaddress.ip_network(said, strict=False))
                except ValueError:
                    pass
            else:
                found["type"] = "insecure" if "insecure" in (name, said) else "secure"
    return found
