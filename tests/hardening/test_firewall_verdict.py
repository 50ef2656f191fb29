# SPDX-License-Identifier: Apache-2.0
"""What becomes of a packet, as the product says and as the lab's double does; they share no code, so what both say alike is no
mistake of one.
"""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.pveguard.formats import firewall_config
from ansible.module_utils.pveguard.hardening.firewall_verdict import Filter, Packet, within
from hypothesis import event, given, settings
from hypothesis import strategies as st

from lab.tests.packages import test_firewall as double
from tests.hardening.firewall_facts import facts

NETWORKS = [
    "10.0.0.0/24",
    "10.0.0.12",
    "10.1.0.0/16",
    "192.0.2.9",
    "192.0.2.0/25",
    "0.0.0.0/0",
    "10.0.0.1-10.0.0.200",
]
NAMES = [
    "admin",
    "dc/admin",
    "Nobody",
    "local_network",
    "+management",
    "+dc/mine",
    "+mine",
    "+nobody",
    "10.0.0.300",
]
ADDRESS = st.sampled_from([*NETWORKS, *NAMES])
#: Of a set; none that is another one by an alias, as of two that are alike with and without "!" nobody knows which one decides.
ENTRIES = [
    "10.0.0.12",
    "10.1.0.0/16",
    "192.0.2.0/25",
    "0.0.0.0/0",
    "10.0.0.1-10.0.0.200",
    "dc/admin",
    "Nobody",
]
SIDE = st.lists(ADDRESS, min_size=1, max_size=2).map(",".join)
PORTS = ["22", "5405", "5405:5412", "8006,22", "60000:60050", "1:65535", "5406", "ssh", "22,99999"]


MACROS = ["SSH(ACCEPT)", "ssh(DROP)", "VNC(ACCEPT)", "Ceph(REJECT)"]


@st.composite
def rules(draw: st.DrawFn, of_group: bool = False) -> str:
    """Those of a group have sense: what one without it does to the others of its group, nobody knows."""
    off = draw(st.sampled_from(["", "", "", "|"]))
    if not of_group and draw(st.integers(0, 5)) == 0:
        return f"{off}GROUP {draw(st.sampled_from(['g', 'G', 'none']))}"
    what = draw(st.sampled_from(["ACCEPT", "DROP", "REJECT", *([] if of_group else MACROS)]))
    words = [f"{off}{draw(st.sampled_from(['IN', 'IN', 'OUT']))} {what}"]
    for key in ("-source", "-dest"):
        if draw(st.integers(0, 2)) == 0:
            words.append(f"{key} {draw(st.sampled_from(NETWORKS) if of_group else SIDE)}")
    proto, ports = draw(st.sampled_from([(False, False), (True, False), (True, True), (not of_group, True)]))
    if proto:
        words.append(f"-p {draw(st.sampled_from(['tcp', 'udp'] if ports else ['tcp', 'udp', 'icmp']))}")
    if ports and not (of_group and not proto):
        words.append(f"-dport {draw(st.sampled_from(PORTS[:-2] if of_group else PORTS))}")
    return " ".join(words)


@st.composite
def clusters(draw: st.DrawFn) -> str:
    policies = [
        f"{key}: {draw(st.sampled_from(['DROP', 'accept', 'REJECT']))}"
        for key in ("policy_in", "policy_out")
        if draw(st.booleans())
    ]
    lines = [
        "[OPTIONS]",
        f"enable: {draw(st.sampled_from([1, 1, 1, 0]))}",
        *policies,
        "[ALIASES]",
        "admin 192.0.2.9",
    ]
    if draw(st.integers(0, 3)) == 0:
        lines.append("local_network 10.1.0.0/24")
    for name in ("management", "mine", "blacklist"):
        if draw(st.integers(0, 3 if name == "blacklist" else 1)) == 0:
            entries = draw(st.lists(st.sampled_from(ENTRIES), max_size=3, unique=True))
            lines += [
                f"[IPSET {name}]",
                *(f"{draw(st.sampled_from(['', '', '!']))}{each}" for each in entries),
            ]
    lines += [
        "[RULES]",
        *draw(st.lists(rules(), max_size=4)),
        "[group g]",
        *draw(st.lists(rules(of_group=True), max_size=2)),
    ]
    return "\n".join([*lines, ""])


def of_double(cluster: str, host: str, nftables: bool) -> Any:
    node = double.node
    peers = [
        (f"pve{number}", link, f"10.{link}.0.1{number}", f"10.{link}.0.11")
        for number in (2, 3)
        for link in (0, 1)
    ]
    config = double.config
    built = node.Node(
        "pve1",
        "10.0.0.11",
        "10.0.0.0/24",
        peers,
        config.parse("cluster.fw", cluster),
        config.parse("host.fw", host),
        [],
    )
    return (double.nftables if nftables else double.iptables).compile_rules(built)


@settings(max_examples=250, deadline=None)
@given(
    clusters(),
    st.lists(rules(), max_size=3),
    st.sampled_from(["tcp", "udp"]),
    st.sampled_from([22, 8006, 5900, 3128, 60000, 5404, 5405, 5406, 5412, 6789, 111]),
    st.sampled_from(["10.0.0.12", "10.1.0.12", "192.0.2.9", "192.0.2.200", "203.0.113.7", "10.0.0.77"]),
    st.booleans(),
)
def test_both_say_the_same_of_a_packet(
    cluster: str, own: list[str], proto: str, port: int, peer: str, nftables: bool
) -> None:
    host = "\n".join(["[OPTIONS]", f"nftables: {int(nftables)}", "[RULES]", *own, ""])
    found = facts(cluster, host, implementation="nftables" if nftables else "legacy")
    alias = firewall_config.parse(cluster).aliases.get("local_network")
    found |= {"local_network": alias or "10.0.0.0/24", "cards": {}}
    here = "10.1.0.11" if peer.startswith("10.1.") else "10.0.0.11"
    compiled = of_double(cluster, host, nftables)
    prefix = "" if nftables else "PVEFW-"
    for kind, source, dest in (("IN", peer, here), ("OUT", here, peer)):
        values = {"protocol": proto, "source": source, "dest": dest, "sport": "", "dport": str(port)}
        expected = double.packet.verdict(compiled, f"{prefix}HOST-{kind}", values)
        verdict = Filter(found).verdict(Packet("x", kind, proto, source, dest, port))
        event(f"{verdict.action} {verdict.by.partition(':')[0].partition(' ')[0]}")
        assert verdict.action == expected, (verdict, host)


@pytest.mark.parametrize(
    ("networks", "expected"),
    [
        (["192.0.2.0/24"], True),
        (["192.0.2.0/24", "!192.0.2.9"], False),
        (["!192.0.2.0/24", "192.0.2.9"], True),
        (["192.0.2.9", "!192.0.2.9"], False),
        (["192.0.2.1-192.0.2.20"], True),
        (["::/0", "nonsense"], False),
        ([], False),
    ],
)
def test_the_narrowest_network_decides(networks: list[str], expected: bool) -> None:
    assert within("192.0.2.9", networks) is expected
    assert within("no address", networks) is False
