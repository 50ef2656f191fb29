# SPDX-License-Identifier: Apache-2.0
"""The rules that a node needs, how they get into cluster.fw and out of it, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.formats import firewall_config
from ansible.module_utils.pveguard.formats.firewall_config import Refused, Rule
from ansible.module_utils.pveguard.hardening import firewall_rules as fw
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hardening.firewall_facts import GUEST, MANAGED, facts

RULES = fw.Options(fw.RULES, ("192.0.2.0/24",))
ENFORCE = fw.Options(fw.ENFORCE, ("192.0.2.0/24",))
WANTED = fw.wanted(facts(), RULES)
PORTS = "22,3128,5900:5999,8006,60000:60050"


def texts(found: dict[str, Any], options: fw.Options = RULES) -> list[str]:
    return [rule.text() for rule in fw.wanted(found, options)]


# --- what is wanted ---------------------------------------------------------------------------------------------


def test_each_link_has_its_port_between_its_addresses_alone() -> None:
    ring0, ring1 = "10.0.0.11,10.0.0.12,10.0.0.13", "10.1.0.11,10.1.0.12,10.1.0.13"
    assert texts(facts())[:4] == [
        f"IN ACCEPT -source {ring0} -dest {ring0} -p udp -dport 5405 # pveguard: corosync link 0",
        f"OUT ACCEPT -source {ring0} -dest {ring0} -p udp -dport 5405 # pveguard: corosync link 0",
        f"IN ACCEPT -source {ring1} -dest {ring1} -p udp -dport 5406 # pveguard: corosync link 1",
        f"OUT ACCEPT -source {ring1} -dest {ring1} -p udp -dport 5406 # pveguard: corosync link 1",
    ]


def test_management_is_what_the_operators_say_and_members_and_the_controller() -> None:
    found = facts(migration={"type": "secure", "network": "10.2.0.0/24"})
    options = fw.Options(fw.RULES, ("198.51.100.0/24",))
    members = "10.0.0.11,10.0.0.12,10.0.0.13,10.1.0.11,10.1.0.12,10.1.0.13"
    assert texts(found, options)[4:] == [
        f"IN ACCEPT -source {members},10.2.0.0/24,192.0.2.9,198.51.100.0/24 -p tcp -dport {PORTS} # pveguard: management",
        f"OUT ACCEPT -dest 10.0.0.11,10.0.0.12,10.0.0.13,10.2.0.0/24 -p tcp -dport {PORTS} # pveguard: to other members",
    ]


def test_an_address_that_is_in_a_network_is_not_said_twice() -> None:
    assert fw.management(facts(), fw.Options(fw.RULES, ("10.0.0.0/8", "192.0.2.9"))) == [
        "10.0.0.0/8",
        "192.0.2.9",
    ]


def test_another_port_of_ssh_is_open_too() -> None:
    assert f"-dport {PORTS},2222 #" in texts(facts(ssh_port=2222))[4]


def test_ipv4_and_ipv6_have_rules_of_their_own() -> None:
    found = facts()
    for number, each in enumerate(found["members"], 1):
        each["links"]["1"] = f"fd00::{number}"
    assert [text for text in texts(found) if "link 1" in text and text.startswith("IN")] == [
        "IN ACCEPT -source fd00::1,fd00::2,fd00::3 -dest fd00::1,fd00::2,fd00::3 -p udp -dport 5406 # pveguard: corosync link 1"
    ]
    assert [re.search(r"-source (\S+)", text)[1] for text in texts(found) if text.endswith("management")] == [  # type: ignore[index]
        "10.0.0.11,10.0.0.12,10.0.0.13,192.0.2.0/24",
        "fd00::1,fd00::2,fd00::3",
    ]


def test_many_members_have_lists_that_proxmox_takes() -> None:
    found = facts()
    found["members"] = [
        {
            **found["members"][0],
            "name": f"n{number}",
            "links": {"0": f"fd00:1234:5678:9abc::{number:x}"},
            "address": "",
        }
        for number in range(40)
    ]
    found["links"] = [0]
    ring = [rule for rule in fw.wanted(found, RULES) if "corosync" in rule.comment and rule.kind == "IN"]
    assert len(ring) == 4, "two lists for each side"
    assert all(len(rule.params[key]) <= 512 for rule in ring for key in ("source", "dest"))
    pairs = {
        (s, d)
        for rule in ring
        for s in rule.params["source"].split(",")
        for d in rule.params["dest"].split(",")
    }
    assert len(pairs) == 1600


def test_drbd_and_qdevice_have_rules_where_they_are_used() -> None:
    drbd = [{"resource": "a", "path": "", "port": 7790, "addresses": ["10.1.0.11", "10.1.0.12"]}]
    drbd += [
        {**drbd[0], "resource": f"r{port}", "port": port}
        for port in [*range(7000, 7030), *range(7100, 7140, 2)]
    ]
    found = texts(facts(drbd=drbd, qdevice={"host": "q", "address": "10.0.0.5"}))
    assert "OUT ACCEPT -dest 10.0.0.5 -p tcp -dport 5403 # pveguard: QDevice" in found
    ports = [
        re.search(r"-dport (\S+)", text)[1] for text in found if "DRBD" in text and text.startswith("IN")
    ]  # type: ignore[index]
    assert ports[0].startswith("7000:7029,7100,7102,") and ports[-1].endswith(",7790")
    for each in ports:
        assert sum(2 if ":" in part else 1 for part in each.split(",")) <= 15, "iptables takes no more"
    assert "DRBD" not in " ".join(texts(facts())) and "QDevice" not in " ".join(texts(facts()))


def test_all_nodes_of_a_cluster_want_the_same() -> None:
    one = facts(drbd=[{"resource": "a", "path": "", "port": 7790, "addresses": ["10.1.0.11", "10.1.0.12"]}])
    two = facts(node="pve2", controller="192.0.2.10", ssh_port=2222)
    assert texts(fw.together([one, two])) == texts(fw.together([two, one]))
    both = " ".join(texts(fw.together([one, two]), fw.Options()))
    assert "192.0.2.9,192.0.2.10" in both and "7790" in both and "2222" in both


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"node_hardening_firewall": "on"}, "node_hardening_firewall: 'on' is none of audit, rules, enforce"),
        (
            {"node_hardening_firewall_management": ["10.0.0.300"]},
            "node_hardening_firewall_management: '10.0.0.300' is neither",
        ),
        ({"node_hardening_firewall_management": "pve1"}, "'pve1' is neither an address nor a network"),
    ],
)
def test_variables_without_sense_are_refused(variables: dict[str, Any], message: str) -> None:
    with pytest.raises(PveguardError, match=re.escape(message)):
        fw.Options.of(variables)


def test_variables() -> None:
    assert fw.Options.of({}) == fw.Options("audit", (), "")
    given = {
        "node_hardening_firewall": "rules",
        "node_hardening_firewall_management": ["10.0.0.7/24", "fd00::1"],
    }
    assert fw.Options.of({**given, "node_hardening_firewall_cluster_name": "blue"}) == fw.Options(
        "rules", ("10.0.0.0/24", "fd00::1"), "blue"
    )


# --- into cluster.fw and out of it ------------------------------------------------------------------------------

FILE = """# of the administrator
[OPTIONS]

policy_in:  reject
enable: 0

[ALIASES]
admin 192.0.2.7 # me

[RULES]

IN DROP -p tcp -dport 111 # no portmapper
|OUT DROP -p tcp -dport 25

[group web] # pages
IN HTTP(ACCEPT)
"""
_WORDS = st.sampled_from(["", "x", "pveguardian", "no pveguard: here", "ümlaut  ", "a\x0bb\u2028c"])
_RULES = st.builds(
    lambda off, kind, action, port, note: (
        f"{off}{kind} {action} -p tcp -dport {port}{f' # {note}' if note else ''}"
    ),
    st.sampled_from(["", "|"]),
    st.sampled_from(["IN", "out"]),
    st.sampled_from(["DROP", "Accept", "REJECT"]),
    st.integers(1, 65535),
    _WORDS,
)
_ENTRIES = {
    "[OPTIONS]": st.sampled_from(
        [
            "enable: 0",
            "enable:  1",
            "policy_in: drop",
            "  policy_in: ACCEPT  ",
            "policy_out: DROP",
            "ebtables: 0",
        ]
    ),
    "[ALIASES]": st.sampled_from(["admin 192.0.2.7", "net 10.0.0.0/8 # x"]),
    "[IPSET management]": st.sampled_from(["admin", "!10.0.0.1", "10.0.0.0/24 # pveguard is not ours"]),
    "[RULES]": _RULES,
    "[group web]": _RULES,
}
_BETWEEN = st.sampled_from(["", "", "# a comment", "   ", "# pveguard"])


@st.composite
def files(draw: st.DrawFn) -> str:
    lines = []
    for title in draw(st.lists(st.sampled_from(list(_ENTRIES)), max_size=4)):
        lines += [title, *draw(st.lists(st.one_of(_ENTRIES[title], _BETWEEN), max_size=4))]
    lines += draw(st.lists(_BETWEEN, max_size=2))
    ending = draw(st.sampled_from(["\n", "\r\n"]))
    return ending.join(lines) + (ending if lines and draw(st.booleans()) else "")


def ended(text: str) -> str:
    """With its last line's end."""
    return text if not text or text.endswith("\n") else text + ("\r\n" if "\r\n" in text else "\n")


@settings(max_examples=150, deadline=None)
@given(files())
def test_others_lines_stay_byte_for_byte_and_twice_is_once(text: str) -> None:
    after = fw.merged(text, WANTED)
    assert fw.merged(after, WANTED) == after
    own = [line for line in after.split("\n") if "# pveguard: " in line]
    assert len(own) == len(WANTED) + (0 if "[RULES]" in text else 1)
    rest = after
    for line in own:
        rest = rest.replace(f"{line}\n", "", 1)
    if "[RULES]" in text:
        assert rest == ended(text) or rest == text
    parsed, before = firewall_config.parse(after), firewall_config.parse(text)
    assert parsed.rules == WANTED + before.rules, "and they come first"
    assert parsed.strange == [] and parsed.options == before.options and parsed.sets == before.sets


@settings(max_examples=150, deadline=None)
@given(files(), st.booleans())
def test_a_revert_gives_back_each_byte(text: str, enforce: bool) -> None:
    after = fw.merged(text, WANTED)
    if enforce:
        after = fw.enforced(after)
        assert fw.enforced(after) == after and fw.merged(after, WANTED) == after
        parsed = firewall_config.parse(after)
        assert parsed.on("enable", False) and parsed.options["policy_in"].upper() == "DROP"
    back = fw.reverted(after)
    # The last line of a section that was there may have been given its end.
    assert back == text or back == ended(text)
    if "[RULES]" not in text and not enforce:
        assert back == text, "of one that was not there it is known"
    assert fw.reverted(back) == back


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="[]RULESOPTIN# \n:|pveguard", max_size=60))
def test_a_revert_never_raises_and_leaves_what_is_not_ours(text: str) -> None:
    assert fw.reverted(text) == text or "# pveguard" in text


def test_a_file_of_everything() -> None:
    after = fw.enforced(fw.merged(FILE, WANTED))
    lines = after.split("\n")
    assert lines[lines.index("[RULES]") + 2] == WANTED[0].text(), "before the rule that drops"
    assert "policy_in:  DROP" in lines and "enable: 1" in lines
    note = "|IN ACCEPT -source 127.0.0.1 -dest 127.0.0.1 # pveguard before enforce: enable=0 policy_in=reject"
    assert lines[lines.index("|OUT DROP -p tcp -dport 25") + 1] == note
    assert fw.reverted(after) == FILE


def test_a_file_that_is_not_there() -> None:
    after = fw.enforced(fw.merged("", WANTED))
    parsed = firewall_config.parse(after)
    assert parsed.options == {"enable": "1", "policy_in": "DROP"} and parsed.rules[:-1] == WANTED
    assert fw.reverted(after) == ""


def saved_in_the_web_interface(text: str) -> str:
    """Proxmox writes the file anew, without comments that stand alone and without blank lines."""
    parsed = firewall_config.parse(text)
    lines = [
        "[OPTIONS]",
        "",
        *(f"{key}: {value}" for key, value in parsed.options.items()),
        "",
        "[RULES]",
        "",
    ]
    return "\n".join([*lines, *(rule.text() for rule in parsed.rules), ""])


def test_own_rules_and_options_are_known_after_the_web_interface_has_saved_the_file() -> None:
    saved = saved_in_the_web_interface(fw.enforced(fw.merged(FILE, WANTED)))
    assert fw.enforced(fw.merged(saved, WANTED)) == saved
    assert fw.reverted(saved) == saved_in_the_web_interface(FILE)


def test_what_somebody_has_set_since_stays() -> None:
    after = fw.enforced(fw.merged(FILE, WANTED))
    mended = firewall_config.set_option(after, "policy_in", "REJECT") + "IN HTTPS(ACCEPT)\n"
    back = fw.reverted(mended)
    assert "policy_in:  REJECT" in back and "enable: 0" in back and back.endswith("IN HTTPS(ACCEPT)\n")


def test_the_first_note_of_what_was_before_counts() -> None:
    """Somebody switches it off after a run, and the next run on again."""
    after = fw.enforced(fw.merged(FILE.replace("enable: 0", "enable: 2"), WANTED))
    again = fw.enforced(firewall_config.set_option(after, "policy_in", "ACCEPT"))
    assert again == after and fw.reverted(again) == FILE.replace("enable: 0", "enable: 2")
    dropping = "[OPTIONS]\nenable: 0\npolicy_in: DROP\n"
    accepting = firewall_config.set_option(fw.enforced(dropping), "policy_in", "ACCEPT")
    assert fw.reverted(fw.enforced(accepting)) == dropping


def test_rules_that_are_no_longer_wanted_go() -> None:
    more = fw.wanted(facts(qdevice={"host": "q", "address": "10.0.0.5"}), RULES)
    after = fw.merged(FILE, more)
    assert fw.merged(after, WANTED) == fw.merged(FILE, WANTED)
    assert fw.merged(after, []) == FILE


@pytest.mark.parametrize("planted", ["IN DROP -p udp", "IN REJECT", "GROUP web"])
def test_own_rules_come_before_one_that_could_drop(planted: str) -> None:
    after = fw.merged(FILE, WANTED)
    moved = firewall_config.add_rules(after, [firewall_config.parse_rule(planted)])
    assert firewall_config.parse(moved).rules[0].text() == planted
    assert firewall_config.parse(fw.merged(moved, WANTED)).rules[: len(WANTED)] == WANTED


def test_own_rules_stay_where_they_are_behind_one_that_accepts() -> None:
    moved = firewall_config.add_rules(
        fw.merged(FILE, WANTED), [firewall_config.parse_rule("IN Ping(ACCEPT)")]
    )
    assert fw.merged(moved, WANTED) == moved


def test_an_own_rule_that_somebody_has_switched_off_is_on_again() -> None:
    after = fw.merged(FILE, WANTED)
    off = after.replace(WANTED[2].text(), f"|{WANTED[2].text()}")
    assert off != after and fw.merged(off, WANTED) == after


def test_a_rule_like_an_own_one_does_not_take_its_place() -> None:
    theirs = WANTED[0]._replace(comment="mine").text()
    text = f"[RULES]\nIN DROP\n{theirs}\n"
    after = fw.merged(text, WANTED)
    assert firewall_config.parse(after).rules[0] == WANTED[0] and fw.reverted(after) == text


@pytest.mark.parametrize("change", [lambda text: fw.merged(text, WANTED), fw.enforced])
def test_a_malformed_file_is_refused_with_its_lines(change: Any) -> None:
    with pytest.raises(
        Refused, match=r"/etc/pve/firewall/cluster.fw: line 2: .* line 4: .*correct it or take it out"
    ):
        change("[RULES]\nIN WHAT\n[nonsense]\nx\n")


@pytest.mark.parametrize("option", ["enable: maybe", "policy_in: LOG"])
def test_options_without_sense_are_refused(option: str) -> None:
    with pytest.raises(Refused, match="has no sense"):
        fw.enforced(f"[OPTIONS]\n{option}\n")


def test_a_rule_without_the_mark_is_refused() -> None:
    with pytest.raises(Refused, match="mark"):
        fw.merged("", [Rule("IN", "ACCEPT", "", {}, True, "pveguard before enforce: enable=1")])


def test_what_the_note_says_is_no_more_than_options() -> None:
    planted = "[OPTIONS]\nenable: 1\n[RULES]\n|IN ACCEPT # pveguard before enforce: enable=1;x policy_in policy_out=DROP\n"
    assert fw.reverted(planted) == "[OPTIONS]\nenable: 1\n[RULES]\n"


# --- what is refused --------------------------------------------------------------------------------------------


def refused(found: dict[str, Any], options: fw.Options = ENFORCE) -> str:
    return "\n".join(fw.refusals(found, options.mode, options))


def test_nothing_speaks_against_a_node_in_order() -> None:
    assert refused(facts()) == refused(facts(), RULES) == ""
    broken = facts(known=False, error="planted")
    assert fw.refusals(broken, fw.AUDIT, fw.Options()) == [], "nothing is done then"


@pytest.mark.parametrize("options", [RULES, ENFORCE])
def test_what_is_not_known_is_refused(options: fw.Options) -> None:
    assert "could be read: planted" in refused(facts(known=False, error="planted"), options)
    ring = facts()
    ring["members"][1]["links"]["1"] = ""
    assert "the address of pve2 on link 1 (pve2-ring1) is not known" in refused(ring, options)
    assert "the QDevice (q) is not known" in refused(facts(qdevice={"host": "q", "address": ""}), options)
    assert "/etc/drbd.d/x.res: odd, so the ports" in refused(
        facts(drbd_strange=[{"path": "/etc/drbd.d/x.res", "why": "odd"}]), options
    )
    assert "/etc/pve/firewall/cluster.fw: line 2:" in refused(facts("[RULES]\nIN WHAT\n"), options)
    assert "/etc/pve/nodes/pve1/host.fw: line 2:" in refused(facts(host="[RULES]\nIN WHAT\n"), options)


def test_a_controller_that_is_not_in_the_management_set_is_refused() -> None:
    options = fw.Options(fw.ENFORCE)
    said = refused(facts("", controller="198.51.100.7"), options)
    assert (
        "the controller (198.51.100.7) is not in the management set: add it to node_hardening_firewall_management"
        in said
    )
    assert "[IPSET management] of /etc/pve/firewall/cluster.fw" in said
    assert refused(facts("[IPSET management]\n198.51.100.0/24\n", controller="198.51.100.7"), options) == ""
    assert "(198.51.100.7) is not" in refused(
        facts("[IPSET management]\n198.51.100.0/24\n!198.51.100.7\n", controller="198.51.100.7")
    )
    assert "the address of the controller is not known" in refused(facts(controller=""), options)


def test_a_member_that_is_not_in_the_management_set_is_refused() -> None:
    found = facts(local_network="10.0.0.11/32")
    assert "pve2 (10.0.0.12) is not in the management set" in refused(found)
    assert refused(found, fw.Options(fw.ENFORCE, ("10.0.0.0/24",))) == ""


@pytest.mark.parametrize(
    "planted", ["IN DROP -p udp", "IN REJECT -source 10.1.0.0/24", "IN DROP", "IN DROP -i eno2"]
)
def test_a_rule_of_the_host_that_cuts_the_ring_is_refused(planted: str) -> None:
    """host.fw comes before cluster.fw, so own rules do not help."""
    said = refused(facts(host=f"[RULES]\n{planted}\n"))
    assert (
        f"corosync link 1 from pve2 (udp 5406, 10.1.0.12 to 10.1.0.11) would not pass (host.fw: {planted})"
        in said
    )


def test_a_rule_of_another_network_card_is_none_of_the_ring() -> None:
    rule = "[RULES]\nIN DROP -i vmbr9\nIN ACCEPT -i vmbr9\n"
    assert refused(facts(host=rule)) == ""
    assert "would not pass (host.fw: IN DROP -i vmbr9)" in refused(facts(host=rule, cards={})), (
        "cards are not known"
    )


def test_a_ring_without_its_rule_is_refused() -> None:
    rules = [rule for rule in WANTED if "link 1" not in rule.comment]
    (first, *_) = fw.refusals(facts(), fw.ENFORCE, ENFORCE, rules)
    assert (
        "corosync link 1 from pve2 (udp 5406, 10.1.0.12 to 10.1.0.11) would not pass (policy_in DROP)"
        in first
    )
    out = facts(f"[OPTIONS]\npolicy_out: DROP\n{MANAGED}")
    assert refused(out) == "", "the own rules let it out"
    assert "corosync link 1 to pve2" in "\n".join(fw.refusals(out, fw.ENFORCE, ENFORCE, rules))


@pytest.mark.parametrize("planted", ["IN DROP", "GROUP closed"])
def test_own_rules_stand_before_those_of_the_cluster(planted: str) -> None:
    assert refused(facts(f"{MANAGED}[group closed]\nIN DROP\n[RULES]\n{planted}\n")) == ""


def test_what_goes_out_to_members_needs_a_rule_where_proxmox_has_none() -> None:
    found = facts(f"[OPTIONS]\npolicy_out: DROP\n{MANAGED}")
    ring = [rule for rule in WANTED if "members" not in rule.comment]
    said = fw.refusals(found, fw.ENFORCE, ENFORCE, ring)
    assert [each.partition(" (")[0] for each in said] == ["migration to pve2", "migration to pve3"], (
        "ssh and 8006 it lets out itself"
    )
    found["local_network"] = "10.0.0.11/32"
    options = fw.Options(fw.ENFORCE, ("10.0.0.0/24",))
    assert "ssh to pve2" in "\n".join(fw.refusals(found, fw.ENFORCE, options, ring))
    assert "ssh from pve2" not in "\n".join(fw.refusals(found, fw.ENFORCE, options, ring))


def test_a_blacklisted_controller_is_refused() -> None:
    said = refused(facts(f"{MANAGED}[IPSET blacklist]\n192.0.2.9\n"))
    assert "ssh from the controller (tcp 22, 192.0.2.9 to 10.0.0.11) would not pass (ipset blacklist)" in said


def test_what_nobody_has_a_rule_for_is_refused() -> None:
    found = facts(inbound=[{"what": "LINSTOR satellite", "port": 3366}])
    assert "LINSTOR satellite (tcp 3366, 10.0.0.12 to 10.0.0.11) would not pass" in refused(found)
    allowed = facts(
        f"{MANAGED}[RULES]\nIN ACCEPT -p tcp -dport 3366 -source 10.0.0.0/24\n", inbound=found["inbound"]
    )
    assert refused(allowed) == ""


def zone(kind: str, **more: Any) -> dict[str, Any]:
    return {"zone": "z", "kind": kind, "port": 4789, "peers": [], "fabric": False, "dhcp": False, **more}


def test_overlays_of_sdn_are_not_cut() -> None:
    found = facts(sdn=[zone("evpn")])
    assert refused(found).split("\n") == [
        f"SDN zone z ({what}) would not pass (policy_in DROP): put this rule into [RULES] of /etc/pve/firewall/cluster.fw: "
        f"IN ACCEPT -source 10.0.0.12,10.0.0.13 -p {proto} -dport {port}"
        for what, proto, port in (("VXLAN", "udp", 4789), ("BGP", "tcp", 179), ("BFD", "udp", 3784))
    ]
    lines = re.findall("IN ACCEPT.*", refused(found))
    assert refused(facts(MANAGED + "[RULES]\n" + "\n".join(lines), sdn=found["sdn"])) == "", "what it says helps"
    macros = f"{MANAGED}[RULES]\nIN VXLAN(ACCEPT)\nIN BGP(ACCEPT)\nIN ACCEPT -p udp -dport 3784\n"
    assert refused(facts(macros, sdn=found["sdn"])) == "" and refused(found, RULES) == ""
    closed = facts(f"[OPTIONS]\npolicy_out: DROP\n{MANAGED}", sdn=found["sdn"])
    assert "OUT ACCEPT -dest 10.0.0.12,10.0.0.13 -p tcp -dport 179" in refused(closed)
    other = refused(facts(sdn=[zone("vxlan", port=4790, peers=["10.1.0.11", "10.1.0.12", "198.51.100.9"])]))
    assert other.endswith("IN ACCEPT -source 10.1.0.12,198.51.100.9 -p udp -dport 4790") and "\n" not in other
    assert refused(facts(sdn=[zone("vxlan", fabric=True)])) == (
        "SDN zone z lies on a fabric, and whether its packets would pass cannot be judged: leave the mode at rules"
    )


def test_dhcp_of_guests_is_not_cut() -> None:
    sdn = [zone("simple", dhcp=True)]
    assert refused(facts(sdn=sdn)) == (
        "SDN zone z (DHCP of guests) would not pass (policy_in DROP): put this rule into [RULES] of "
        "/etc/pve/firewall/cluster.fw: IN ACCEPT -p udp -dport 67"
    )
    for rule in ("IN ACCEPT -p udp -dport 67", "IN DHCPfwd(ACCEPT)"):
        assert refused(facts(f"{MANAGED}[RULES]\n{rule}\n", sdn=sdn)) == ""


def test_guests_that_would_wake_are_named_until_the_clusters_name_is_typed() -> None:
    found = facts(guests=[GUEST])
    said = refused(found)
    assert "the sleeping rules of 1 guest would wake: 100 web on pve2 (net0, 2 rules, policy_in DROP)" in said
    assert "node_hardening_firewall_cluster_name" in said and "it was not typed" in said
    assert "'Blue' was typed" in refused(found, fw.Options(fw.ENFORCE, ENFORCE.management, "Blue"))
    assert refused(found, fw.Options(fw.ENFORCE, ENFORCE.management, "blue")) == ""
    assert refused(found, RULES) == "", "rules alone wake nobody"
    assert refused(facts(f"[OPTIONS]\nenable: 1\n{MANAGED}", guests=[GUEST])) == "", "they are awake"
    strange = facts(guests_strange=[{"path": "/etc/pve/firewall/100.fw", "line": 3, "why": "odd"}])
    assert "/etc/pve/firewall/100.fw: line 3: odd" in refused(strange)


def test_a_node_that_has_switched_its_firewall_off_is_refused() -> None:
    assert "host.fw: enable: 0 keeps the firewall off" in refused(facts(host="[OPTIONS]\nenable: 0\n"))
    assert "neither yes nor no" in refused(facts(host="[OPTIONS]\nenable: maybe\n"))


# --- nftables ---------------------------------------------------------------------------------------------------


def plain(**more: Any) -> dict[str, Any]:
    return facts("", implementation="none", cluster_name="", members=[], links=[], **more)


def test_the_table_is_own_and_no_other_is_touched() -> None:
    text = fw.nftables(plain(), RULES)
    assert set(re.findall(r"\btable (\S+ \S+)", text)) == {"inet pveguard"} and "flush" not in text
    assert text.index("table inet pveguard\ndelete table inet pveguard\ntable inet pveguard {")
    assert "policy accept;" in text and "policy drop;" in fw.nftables(plain(), ENFORCE)
    assert "ip saddr { 192.0.2.0/24 } tcp dport { 22, 3128, 5900-5999, 8006, 60000-60050 } accept" in text
    assert text.index("saddr { 192") < text.index("ct state"), (
        "what matters does not ask the table of connections"
    )
    assert "dport { 5403 }" in fw.nftables(plain(qnetd=True), RULES) and "5403" not in text
    with pytest.raises(PveguardError, match="audit sets no rules"):
        fw.nftables(plain(), fw.Options())


def test_a_plain_host_is_refused_without_its_controller() -> None:
    assert refused(plain()) == ""
    assert (
        "the controller (192.0.2.9) is not in the management set: add it to node_hardening_firewall_management"
        in refused(plain(), fw.Options(fw.ENFORCE))
    )
    assert "cluster.fw" not in refused(plain(), fw.Options(fw.ENFORCE))
