# SPDX-License-Identifier: Apache-2.0
"""What the look at a node's firewall sees, and what it does not know."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.hardening import firewall, firewall_rules, firewall_verdict, looking

from tests.hardening.node import Node, clean, corosync

QDEVICE = "  device {\n    model: net\n    net {\n      host: qnet\n    }\n  }\n"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return clean(tmp_path)


def look(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(node.look("firewall")["firewall"]))
    return found


def tracked(node: Node) -> list[int]:
    """Links whose packets come in only because this node has sent some before."""
    dropped = {packet.port for packet, _ in firewall_rules.unmet(look(node)) if packet.kind == "IN" and packet.ring}
    return sorted(port - firewall_rules.COROSYNC_PORT for port in dropped)


def test_members_have_their_addresses_on_each_link(node: Node) -> None:
    node.write("/etc/pve/corosync.conf", corosync(links=2))
    found = look(node)
    assert found["known"], found["error"]
    assert found["links"] == [0, 1] and found["cluster_name"] == "blue" and found["node"] == "pve1"
    assert [(each["name"], each["own"], each["links"]) for each in found["members"]] == [
        ("pve1", True, {"0": "10.0.0.11", "1": "10.1.0.11"}),
        ("pve2", False, {"0": "10.0.0.12", "1": "10.1.0.12"}),
        ("pve3", False, {"0": "10.0.0.13", "1": "10.1.0.13"}),
    ]
    assert found["members"][0]["written"]["0"] == "pve1", "a name of /etc/hosts"
    assert (found["address"], found["local_network"], firewall_verdict.management_of(found)) == (
        "10.0.0.11",
        "10.0.0.0/24",
        ["10.0.0.0/24"],
    )


def test_a_name_that_nobody_resolves_is_no_address(node: Node) -> None:
    node.write("/etc/hosts", "127.0.0.1 localhost\n")
    assert look(node)["members"][0]["links"] == {"0": ""}
    node.answers["getent"] = lambda argv: Result(0, f"10.0.0.99 STREAM {argv[-1]}\n10.0.0.99 DGRAM\n")
    assert look(node)["members"][0]["links"] == {"0": "10.0.0.99"}
    node.answers["getent"] = lambda argv: Result(2, "")
    assert look(node)["members"][0]["links"] == {"0": ""}


def test_a_member_without_an_address_on_a_link_is_told(node: Node) -> None:
    node.write("/etc/pve/corosync.conf", corosync(links=2).replace("    ring1_addr: 10.1.0.12\n", ""))
    assert look(node)["members"][1]["links"] == {"0": "10.0.0.12", "1": ""}


def test_files_and_switches(node: Node) -> None:
    node.write(
        "/etc/pve/firewall/cluster.fw",
        "[OPTIONS]\nenable: 1\npolicy_out: drop\n[ALIASES]\nlocal_network 10.0.0.0/16\nAdmin 192.0.2.7\n[IPSET management]\n"
        "admin\n!10.0.0.66 # not this one\n[RULES]\n|IN SSH(ACCEPT)\nIN DROP -p udp # x\nnonsense\n[group g]\nIN DROP\n",
    )
    node.write("/etc/pve/nodes/pve1/host.fw", "[OPTIONS]\nenable: 0\n")
    node.write("/etc/pve/nodes/pve2/host.fw", "[OPTIONS]\nnftables: 1\n")
    found = look(node)
    cluster = found["cluster"]
    assert (cluster["present"], cluster["enable"], cluster["policy_in"], cluster["policy_out"]) == (
        True,
        True,
        "DROP",
        "DROP",
    )
    assert cluster["rules"] == ["|IN SSH(ACCEPT)", "IN DROP -p udp # x"] and cluster["groups"] == {
        "g": ["IN DROP"]
    }
    assert cluster["strange"] == [{"line": 13, "why": "a rule is TYPE ACTION [OPTIONS]"}]
    assert found["host"]["enable"] is False and found["host"]["path"] == "/etc/pve/nodes/pve1/host.fw"
    assert firewall_verdict.management_of(found) == ["10.0.0.0/16", "192.0.2.7", "!10.0.0.66"], (
        "the alias takes the detected network's place"
    )


@pytest.mark.parametrize(
    ("host", "programs", "expected"),
    [
        ("", ["/usr/sbin/pve-firewall"], "legacy"),
        ("nftables: 0", ["/usr/sbin/pve-firewall", "/usr/libexec/proxmox/proxmox-firewall"], "legacy"),
        ("nftables: 1", ["/usr/sbin/pve-firewall", "/usr/libexec/proxmox/proxmox-firewall"], "nftables"),
        ("nftables: 1", [], "none"),
    ],
)
def test_which_firewall_is_in_use(node: Node, host: str, programs: list[str], expected: str) -> None:
    node.remove("/usr/sbin/pve-firewall")
    for program in programs:
        node.write(program, "")
    node.write("/etc/pve/nodes/pve1/host.fw", f"[OPTIONS]\n{host}\n")
    assert look(node)["implementation"] == expected


def test_links_above_0_depend_on_tracked_connections_with_the_legacy_firewall_alone(node: Node) -> None:
    node.write("/etc/pve/corosync.conf", corosync(links=3))
    assert tracked(node) == [], "it is off"
    on = "[OPTIONS]\nenable: 1\n[RULES]\n"
    node.write("/etc/pve/firewall/cluster.fw", on)
    assert tracked(node) == [1, 2]
    node.write(
        "/etc/pve/firewall/cluster.fw",
        f"{on}IN ACCEPT -p udp -dport 5406 -source 10.1.0.0/24 -dest 10.1.0.0/24\n",
    )
    assert tracked(node) == [2]
    node.write("/usr/libexec/proxmox/proxmox-firewall", "")
    node.write("/etc/pve/nodes/pve1/host.fw", "[OPTIONS]\nnftables: 1\n")
    node.write("/etc/pve/firewall/cluster.fw", on)
    assert tracked(node) == []


def test_guests_whose_rules_sleep(node: Node) -> None:
    guests = {
        100: (
            "enable: 1",
            "net0: virtio=A,bridge=vmbr0,firewall=1\nname: web\n[snap]\nnet1: virtio=A,firewall=1\n",
        ),
        101: ("enable: 0", "net0: virtio=A,bridge=vmbr0,firewall=1\n"),
        102: ("enable: 1", "net0: virtio=A,bridge=vmbr0,firewall=0\n"),
        103: ("enable: 1", "net0: name=eth0,bridge=vmbr0,firewall=1,type=veth\r\nhostname: db\n"),
        104: ("enable: 1", None),
    }
    for number, (option, config) in guests.items():
        node.write(
            f"/etc/pve/firewall/{number}.fw",
            f"[OPTIONS]\n{option}\npolicy_in: ACCEPT\n[RULES]\nIN DROP\n|IN DROP\n",
        )
        kind, on = ("lxc", "pve3") if number == 103 else ("qemu-server", "pve1")
        if config is not None:
            node.write(f"/etc/pve/nodes/{on}/{kind}/{number}.conf", config)
    node.append("/etc/pve/firewall/103.fw", "IN WHAT\n")
    found = look(node)
    assert found["guests"] == [
        {
            "id": 100,
            "node": "pve1",
            "kind": "qemu-server",
            "name": "web",
            "cards": ["net0"],
            "rules": 1,
            "policy_in": "ACCEPT",
        },
        {
            "id": 103,
            "node": "pve3",
            "kind": "lxc",
            "name": "db",
            "cards": ["net0"],
            "rules": 1,
            "policy_in": "ACCEPT",
        },
    ]
    (strange,) = found["guests_strange"]
    assert (strange["path"], strange["line"]) == ("/etc/pve/firewall/103.fw", 7)


def test_what_needs_a_port(node: Node) -> None:
    node.write("/etc/pve/corosync.conf", corosync(more=QDEVICE))
    node.append("/etc/hosts", "10.0.0.5 qnet\n")
    node.write(
        "/etc/drbd.d/r0.res",
        "# resource old { address 10.9.9.9:1; }\nresource r0 {\n  on pve1 { device /dev/drbd0; address 10.1.0.11:7790; }\n"
        '  on pve2 {\n    address   ipv4 10.1.0.12:7790;\n  }\n}\nresource "r1" {\n  on pve1 { address ipv6 [fd00::1]:7000; }\n'
        "  on pve3 { address ipv6 [fd00:0::3]:7000; }\n}\n",
    )
    node.write(
        "/var/lib/linstor.d/x.res",
        "resource x\n{\n  connection {\n host a address 10.1.0.11:7001;\n host b address 10.1.0.13:7002; }\n}\n",
    )
    node.write("/lib/systemd/system/linstor-satellite.service", "")
    node.write("/var/lib/ceph/mon/ceph-pve1/done", "")
    node.write("/etc/pve/datacenter.cfg", "keyboard: de\nmigration: type=insecure,network=10.2.0.1/24\n")
    found = look(node)
    assert found["known"], found["error"]
    assert found["qdevice"] == {"host": "qnet", "address": "10.0.0.5"}
    assert [(each["resource"], each["port"], each["addresses"]) for each in found["drbd"]] == [
        ("r0", 7790, ["10.1.0.11", "10.1.0.12"]),
        ("r1", 7000, ["fd00::1", "fd00::3"]),
        ("x", 7001, ["10.1.0.11", "10.1.0.13"]),
        ("x", 7002, ["10.1.0.11", "10.1.0.13"]),
    ]
    assert found["drbd_strange"] == []
    assert found["inbound"] == [
        {"what": "LINSTOR satellite", "port": 3366},
        {"what": "Ceph monitor", "port": 3300},
        {"what": "Ceph monitor", "port": 6789},
    ]
    assert found["migration"] == {"type": "insecure", "network": "10.2.0.0/24"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("migration: secure", ("secure", "")),
        ("migration: insecure,network=fd00::/64", ("insecure", "fd00::/64")),
        ("migration_unsecure: 1", ("insecure", "")),
        ("migration: network=nonsense", ("secure", "")),
    ],
)
def test_the_way_of_migration(node: Node, line: str, expected: tuple[str, str]) -> None:
    node.write("/etc/pve/datacenter.cfg", f"{line}\n")
    assert tuple(look(node)["migration"].values()) == expected


@pytest.mark.parametrize(
    "text",
    ["resource r0 {\n  on pve1 { address 10.1.0.11:7790; }\n}\n", "resource r0 {\n address $HOST:1;\n}\n"],
)
def test_a_resource_of_drbd_that_is_not_understood(node: Node, text: str) -> None:
    node.write("/etc/drbd.d/r0.res", text)
    assert look(node)["drbd_strange"] == [
        {"path": "/etc/drbd.d/r0.res", "why": "the addresses of resource r0 are not understood"}
    ]


def test_the_login_in_use(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (look(node)["controller"], look(node)["ssh_port"]) == ("", 22)
    monkeypatch.setenv("SSH_CONNECTION", "192.0.2.9 50000 10.0.0.11 2222")
    assert (look(node)["controller"], look(node)["ssh_port"]) == ("192.0.2.9", 2222)


# --- others' rules ----------------------------------------------------------------------------------------------


def nft(*items: dict[str, Any]) -> str:
    return json.dumps({"nftables": [{"metainfo": {"json_schema_version": 1}}, *items]})


def chain(
    table: str, name: str, hook: str = "", policy: str = "accept", family: str = "inet"
) -> dict[str, Any]:
    more = {"type": "filter", "hook": hook, "prio": 0, "policy": policy} if hook else {}
    return {"chain": {"family": family, "table": table, "name": name, **more}}


def rule(table: str, name: str, *expr: dict[str, Any], family: str = "inet") -> dict[str, Any]:
    return {"rule": {"family": family, "table": table, "chain": name, "expr": list(expr)}}


def test_rules_of_others_in_nftables(node: Node) -> None:
    node.write("/proc/modules", "nf_tables 1 2 - Live 0x0\n")
    answer = nft(
        chain("mine", "in", "input", "drop"),
        rule("mine", "in", {"counter": {}}, {"accept": None}),
        rule("mine", "in", {"drop": None}),
        chain("filter", "INPUT", "input", family="ip"),
        rule("filter", "DOCKER", {"xt": {"type": "target", "name": "REJECT"}}, family="ip"),
        chain("nat", "POSTROUTING", family="ip"),
        chain("empty", "in", "input"),
        chain("pveguard", "input", "input", "drop"),
        chain("proxmox-firewall", "HOST-IN", "input", "drop"),
        chain("f2b-table", "f2b-chain", "input"),
        rule("f2b-table", "f2b-chain", {"reject": None}),
    )
    node.answers["nft"] = lambda argv: Result(0, answer)
    assert look(node)["others"] == [
        {"where": "nftables inet mine", "hooks": ["input"], "policy": "drop", "rules": 2, "drops": 1},
        {"where": "nftables ip filter", "hooks": ["input"], "policy": "accept", "rules": 1, "drops": 1},
    ]
    node.answers["nft"] = lambda argv: Result(0, "no JSON")
    assert not look(node)["known"]


def test_rules_of_others_in_iptables(node: Node) -> None:
    saved = (
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD DROP [0:0]\n:PVEFW-INPUT - [0:0]\n-A INPUT -j PVEFW-INPUT\n"
        "-A INPUT -p tcp -j f2b-ssh\n"
        "-A PVEFW-INPUT -j DROP\n-A tap100i0-IN -j DROP\n-A f2b-ssh -j REJECT\n{}COMMIT\n"
    )
    node.answers["iptables-legacy-save"] = lambda argv: Result(
        0, saved.format("-A INPUT -s 1.2.3.4 -j DROP\n")
    )
    assert look(node)["others"] == [], "its module is not loaded, and a look does not load it"
    node.write("/proc/net/ip_tables_names", "nat\nfilter\n")
    (found,) = look(node)["others"]
    assert found == {
        "where": "iptables-legacy ip filter",
        "hooks": ["input", "forward"],
        "policy": "drop",
        "rules": 1,
        "drops": 1,
    }
    node.answers["iptables-legacy-save"] = lambda argv: Result(
        0, saved.replace("FORWARD DROP", "FORWARD ACCEPT").format("")
    )
    assert look(node)["others"] == []


# --- what is not known ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "corosync.conf",
        "firewall/cluster.fw",
        "nodes/pve1/host.fw",
        "datacenter.cfg",
        "firewall/100.fw",
        ".members",
    ],
)
@pytest.mark.parametrize("how", ["folder", "large"])
def test_a_file_that_cannot_be_read(node: Node, path: str, how: str) -> None:
    node.write("/etc/pve/nodes/pve1/qemu-server/100.conf", "")
    place = node.write(f"/etc/pve/{path}", "")
    place.unlink()
    if how == "folder":
        place.mkdir()
    else:
        with open(place, "wb") as file:
            file.truncate(looking.LIMIT_BYTES + 1)
    found = look(node)
    assert not found["known"] and f"/etc/pve/{path}" in found["error"]


@pytest.mark.parametrize(
    "text", ["nodelist {\n", "nodelist {\n  node {\n    name: other\n    ring0_addr: 10.0.0.1\n  }\n}\n"]
)
def test_a_corosync_conf_that_is_broken_or_of_others(node: Node, text: str) -> None:
    node.write("/etc/pve/corosync.conf", text)
    found = look(node)
    assert not found["known"] and "corosync.conf" in found["error"]


def test_a_cluster_file_system_that_never_answers_is_unknown(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: looking.Looking) -> bool:
        while True:
            signal.pause()

    monkeypatch.setattr(looking.Looking, "pve", never)
    monkeypatch.setattr(firewall, "ANSWER_S", 0.2)
    found = look(node)
    assert not found["known"] and "/etc/pve: no answer within" in found["error"]
    assert found["services"]["pve-firewall"]["active"], "the rest is told"


def test_a_mistake_while_the_cluster_file_system_is_read_is_unknown(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(firewall, "_guests", lambda looking: 1 / 0)
    found = look(node)
    assert not found["known"] and "/etc/pve: not understood" in found["error"]


def test_a_cluster_file_system_that_is_not_mounted(node: Node) -> None:
    for path in (".version", ".members", "corosync.conf"):
        node.remove(f"/etc/pve/{path}")
    node.write(
        "/etc/corosync/corosync.conf", corosync().replace("  version: 2", "  version: 2\n  config_version: 3")
    )
    found = look(node)
    assert "/etc/pve: not mounted" in found["error"]
    assert [each["links"]["1"] for each in found["members"]] == ["10.1.0.11", "10.1.0.12", "10.1.0.13"], (
        "of the host's own file"
    )


def test_a_plain_host_has_nothing_of_proxmox(node: Node) -> None:
    for path in (
        "/etc/pve/.version",
        "/etc/pve/.members",
        "/etc/pve/corosync.conf",
        "/usr/bin/pmxcfs",
        "/usr/sbin/pve-firewall",
    ):
        node.remove(path)
    found = look(node)
    assert found["known"], found["error"]
    assert (found["implementation"], found["members"], found["links"]) == ("none", [], [])
    # Debian's package brings an example, which has no config_version.
    node.write(
        "/etc/corosync/corosync.conf",
        "totem {\n}\nnodelist {\n  node {\n    name: node1\n    ring0_addr: 127.0.0.1\n  }\n}\n",
    )
    found = look(node)
    assert found["known"] and found["members"] == []


@pytest.mark.parametrize(
    "answer", ["", "no JSON", '[{"addr_info": [{"local": "x", "prefixlen": 1}]}]', "[1]"]
)
def test_own_addresses_that_are_not_understood(node: Node, answer: str) -> None:
    node.answers["ip"] = lambda argv: Result(0, answer)
    found = look(node)
    assert found["addresses"] == [] and found["known"] is (answer == "")


def test_zones_of_sdn_and_their_other_ends(node: Node) -> None:
    node.write(
        "/etc/pve/sdn/zones.cfg",
        "vxlan: vx\n\tpeers 10.1.0.11,10.1.0.12\n\tvxlan-port 4790\n\nevpn: ev\n\tcontroller ctl\n\tvrf-vxlan 1000\n\n"
        "simple: dh\n\tdhcp dnsmasq\n\nsimple: plain\n\nvlan: v\n\tbridge vmbr0\n\nvxlan: other\n\tpeers 10.0.0.99\n"
        "\tnodes pve2, pve3\n\nvxlan: fab\n\tfabric f\n",
    )
    node.write("/etc/pve/sdn/controllers.cfg", "evpn: ctl\n\tasn 65000\n\tpeers 10.0.0.11, 10.0.0.12\n")
    nothing = {"port": 4789, "peers": [], "fabric": False, "dhcp": False}
    found = look(node)
    assert found["known"], found["error"]
    assert found["sdn"] == [
        {**nothing, "zone": "vx", "kind": "vxlan", "port": 4790, "peers": ["10.1.0.11", "10.1.0.12"]},
        {**nothing, "zone": "ev", "kind": "evpn", "peers": ["10.0.0.11", "10.0.0.12"]},
        {**nothing, "zone": "dh", "kind": "simple", "dhcp": True},
        {**nothing, "zone": "fab", "kind": "vxlan", "fabric": True},
    ]
    node.write("/etc/pve/sdn/zones.cfg", "vxlan: vx\n\tpeers nobody\n\tvxlan-port x\n")
    node.answers["getent"] = lambda argv: Result(2, "")
    found = look(node)
    assert not found["known"] and "the address of nobody (zone vx) is not known" in found["error"]
    assert "vxlan-port x (zone vx) is no port" in found["error"]
