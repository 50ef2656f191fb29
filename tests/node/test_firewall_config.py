# SPDX-License-Identifier: Apache-2.0
"""The firewall's files: what is read of them, and that an edit changes nothing else."""

from __future__ import annotations

import difflib
import itertools

import pytest
from ansible.module_utils.pveguard.formats import firewall_config as fw

FILE = """\
# by hand
[OPTIONS]

enable: 1
policy_in: DROP

[ALIASES]

Admin 192.0.2.7 # me
local_network 10.0.0.0/8

[IPSET management] # who may

admin
192.0.2.0/24 # office
!192.0.2.9
dc/admin

[RULES]

IN SSH(ACCEPT) -source +management -log nolog # text # more
|OUT DROP -p tcp -dport 25
IN  ACCEPT   -p udp --dport 5405:5412 -source 10.0.0.2   # pveguard: ring
GROUP web -i vmbr0

[group web] # a group

IN Web(ACCEPT)
IN DROP
"""
RING = fw.Rule("IN", "ACCEPT", params={"source": "10.0.0.3", "proto": "udp", "dport": "5405:5412"}, comment="pveguard: ring")


def test_what_is_read() -> None:
    found = fw.parse(FILE)
    assert found.strange == []
    assert found.options == {"enable": "1", "policy_in": "DROP"}
    assert found.aliases == {"admin": "192.0.2.7", "local_network": "10.0.0.0/8"}
    assert found.sets == {
        "management": [
            fw.Member("admin"),
            fw.Member("192.0.2.0/24", comment="office"),
            fw.Member("192.0.2.9", but=True),
            fw.Member("dc/admin"),
        ]
    }
    assert found.rules == [
        fw.Rule("IN", "ACCEPT", "SSH", {"source": "+management", "log": "nolog"}, comment="text # more"),
        fw.Rule("OUT", "DROP", params={"proto": "tcp", "dport": "25"}, enabled=False),
        fw.Rule("IN", "ACCEPT", params={"proto": "udp", "dport": "5405:5412", "source": "10.0.0.2"}, comment="pveguard: ring"),
        fw.Rule("GROUP", "web", params={"iface": "vmbr0"}),
    ]
    assert found.groups == {"web": [fw.Rule("IN", "ACCEPT", "Web"), fw.Rule("IN", "DROP")]}


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1", True), ("0", False), ("yes", True), ("OFF", False), ("2", True), ("", None), ("maybe", None), ("-1", None)],
)
def test_switches(value: str, expected: bool | None) -> None:
    assert fw.parse(f"[OPTIONS]\nenable: {value}\n").on("enable", False) is expected
    assert fw.parse("").on("enable", False) is False and fw.parse("").on("enable", True) is True


@pytest.mark.parametrize(
    ("text", "number", "why"),
    [
        ("enable: 1\n", 1, "in no section"),
        ("[OPTION]\nenable: 1\n", 1, "no section"),
        ("[IPSET]\n10.0.0.1\n", 1, "no section"),
        ("[RULES extra]\n", 1, "no section"),
        ("[OPTIONS\nenable: 1\n", 1, "no section"),
        ("[OPTIONS]\nenable = 1\n", 2, "no line of \\[OPTIONS\\]"),
        ("[ALIASES]\nname\n", 2, "no line of \\[ALIASES\\]"),
        ("[ALIASES]\n1name 10.0.0.1\n", 2, "no line of \\[ALIASES\\]"),
        ("[IPSET x]\n10.0.0.1 10.0.0.2\n", 2, "no entry of an ipset"),
        ("[RULES]\nIN\n", 2, "TYPE ACTION"),
        ("[RULES]\nIN ALLOW\n", 2, "'ALLOW' is neither"),
        ("[RULES]\nIN SSH(ALLOW)\n", 2, "is neither"),
        ("[RULES]\nIN ACCEPT -p\n", 2, "'-p' has no value"),
        ("[RULES]\nIN ACCEPT p tcp\n", 2, "'p' is no parameter"),
        ("[RULES]\nIN ACCEPT -port 22\n", 2, "'-port' is no parameter"),
        ("[RULES]\nIN ACCEPT -dport 22 --dport 23\n", 2, "'--dport' is there twice"),
        ("[group x]\nGROUP y\n", 2, "a group within a group"),
    ],
)
def test_a_line_that_is_not_understood_is_told(text: str, number: int, why: str) -> None:
    strange = fw.parse(text).strange
    assert strange[0].number == number
    with pytest.raises(AssertionError, match=why):
        assert not strange, strange[0].why


def test_lines_below_a_header_that_is_not_understood_belong_to_nothing() -> None:
    found = fw.parse("[RULES]\nIN DROP\n[WHAT]\nIN ACCEPT\n[RULES]\nOUT DROP\n")
    assert [rule.kind for rule in found.rules] == ["IN", "OUT"] and [each.number for each in found.strange] == [3, 4]


ODD = ["", "\0", "\n\n", "[", "[]", "#", "|", "[RULES]\n|", "[RULES]\n#\n| #", "\x85[RULES]\u2028IN DROP", "[IPSET x]\n!"]


@pytest.mark.parametrize("text", ODD)
def test_nothing_makes_it_raise(text: str) -> None:
    fw.parse(text)
    for cut in range(len(FILE)):
        fw.parse(FILE[:cut] + text)


@pytest.mark.parametrize("text", ["in ssh(accept)", "IN SSH(ACCEPT)  -log info", "IN SSH(ACCEPT) # other"])
def test_rules_that_do_the_same_are_the_same(text: str) -> None:
    assert fw.parse_rule(text).means() == fw.Rule("IN", "ACCEPT", "SSH").means()


OTHERS = ["|IN SSH(ACCEPT)", "OUT SSH(ACCEPT)", "IN SSH(DROP)", "IN ACCEPT", "IN SSH(ACCEPT) -source 10.0.0.1"]


@pytest.mark.parametrize("text", OTHERS)
def test_rules_that_do_not(text: str) -> None:
    assert fw.parse_rule(text).means() != fw.Rule("IN", "ACCEPT", "SSH").means()


# --- edits --------------------------------------------------------------------------------------------------

VARIANTS = {
    "as it is": FILE,
    "ends of DOS": FILE.replace("\n", "\r\n"),
    "no end": FILE.rstrip("\n"),
    "no blank lines": "".join(line for line in FILE.splitlines(keepends=True) if line.strip()),
    "strange lines": FILE.replace("[RULES]\n", "[RULES]\nIN NONSENSE -x\n").replace("enable: 1\n", "enable: 1\n????\n"),
    "one section twice": FILE + "\n[RULES]\n\nIN DROP -p tcp\n",
    "no comment": FILE.partition("\n")[2],
}


def difference(before: str, after: str) -> tuple[list[str], list[str]]:
    """Lines that went and lines that came; those that stay are in the same order, byte for byte."""
    old, new = before.split("\n"), after.split("\n")
    went, came = [], []
    for kind, i1, i2, j1, j2 in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind != "equal":
            went += old[i1:i2]
            came += new[j1:j2]
    return went, came


@pytest.mark.parametrize("name", VARIANTS)
def test_rules_are_added_before_or_behind_the_others_and_nothing_else_changes(name: str) -> None:
    text = VARIANTS[name]
    for first in (True, False):
        after = fw.add_rules(text, [RING], first=first)
        went, came = difference(text, after)
        assert went == [] and [line.strip("\r") for line in came] == [RING.text()]
        rules = fw.parse(after).rules
        assert rules[0 if first else 4] == RING
        assert fw.add_rules(after, [RING], first=first) == after
        left = fw.parse(fw.remove_rules(after, "pveguard: ring")).rules
        assert left == [rule for rule in fw.parse(text).rules if "pveguard" not in rule.comment]
        if "\r" in text:
            assert after.count("\n") == after.count("\r\n")


@pytest.mark.parametrize("name", VARIANTS)
def test_taking_out_what_was_added_gives_the_text_again(name: str) -> None:
    text = fw.remove_rules(VARIANTS[name], "pveguard")
    for first in (True, False):
        assert fw.remove_rules(fw.add_rules(text, [RING], first=first), "pveguard") in (text, text + "\n")


def test_a_rule_that_means_the_same_is_not_added_again() -> None:
    same = fw.Rule("IN", "ACCEPT", params={"source": "10.0.0.2", "proto": "UDP", "dport": "5405:5412", "log": "info"})
    assert fw.add_rules(FILE, [same]) == FILE
    off = FILE.replace("IN  ACCEPT", "|IN  ACCEPT")
    assert fw.add_rules(off, [same]) != off, "one that is switched off does nothing"


def test_sections_are_made_where_there_are_none() -> None:
    assert fw.add_rules("", [RING]) == f"[RULES]\n\n{RING.text()}\n"
    text = fw.add_rules("[OPTIONS]\n\nenable: 1", [RING])
    assert text == f"[OPTIONS]\n\nenable: 1\n\n[RULES]\n\n{RING.text()}\n"
    assert fw.add_rules("", [RING], group="Ring") == f"[group ring]\n\n{RING.text()}\n"
    assert fw.set_option("", "enable", "1") == "[OPTIONS]\n\nenable: 1\n"
    assert fw.add_rules("[RULES]\n\n[group x]\n", [RING]) == f"[RULES]\n\n{RING.text()}\n[group x]\n"
    assert fw.add_rules("[RULES]", [RING]) == f"[RULES]\n{RING.text()}\n"


def test_several_rules_keep_their_order() -> None:
    rules = [RING._replace(params={**RING.params, "source": f"10.0.0.{number}"}) for number in (4, 5, 6)]
    for first in (True, False):
        got = fw.parse(fw.add_rules(FILE, [*rules, rules[0]], first=first)).rules
        assert (got[:3] if first else got[-3:]) == rules and len(got) == 7


@pytest.mark.parametrize("name", VARIANTS)
def test_options(name: str) -> None:
    text = VARIANTS[name]
    after = fw.set_option(text, "policy_in", "ACCEPT")
    went, came = ([line.strip("\r") for line in lines] for lines in difference(text, after))
    assert (went, came) == (["policy_in: DROP"], ["policy_in: ACCEPT"])
    assert fw.set_option(after, "policy_in", "DROP") == text
    assert fw.set_option(text, "policy_in", "DROP") == text
    new = fw.set_option(text, "policy_out", "DROP")
    assert fw.parse(new).options["policy_out"] == "DROP" and fw.set_option(new, "policy_out", None) == text


def test_of_an_option_that_is_there_twice_the_last_one_counts_and_is_changed() -> None:
    text = "[OPTIONS]\nenable: 0\nEnable: 1\n"
    assert fw.parse(text).options["enable"] == "1"
    assert fw.set_option(text, "enable", "0") == "[OPTIONS]\nenable: 0\nEnable: 0\n", "the way it is written stays"
    assert fw.set_option(text, "enable", None) == "[OPTIONS]\n"


def test_a_mark_is_whole_words_and_an_empty_one_is_none() -> None:
    text = "[RULES]\nIN DROP # pveguardian\nIN DROP -p tcp # pveguard: x\nIN ACCEPT\n"
    assert fw.remove_rules(text, "pveguard") == "[RULES]\nIN DROP # pveguardian\nIN ACCEPT\n"
    assert fw.remove_rules(text, "") == text


@pytest.mark.parametrize(
    "rule",
    [
        RING._replace(comment="x\nIN ACCEPT"),
        RING._replace(comment="x\rIN ACCEPT"),
        RING._replace(params={"source": "10.0.0.1 -dport 22"}),
        RING._replace(params={"source": "10.0.0.1#"}),
        RING._replace(params={"port": "22"}),
        RING._replace(params={"dport": ""}),
        RING._replace(action="ALLOW"),
        RING._replace(kind="IN\nIN"),
        RING._replace(macro="S SH"),
        fw.Rule("GROUP", "a b"),
    ],
)
def test_what_would_not_be_the_rule_it_says_is_refused(rule: fw.Rule) -> None:
    with pytest.raises(fw.Refused):
        fw.add_rules(FILE, [rule])


NO_OPTIONS = [("enable", "1\n[RULES]"), ("en able", "1"), ("enable", ""), ("enable", " 1"), ("enable", "1\r")]


@pytest.mark.parametrize(("key", "value"), NO_OPTIONS)
def test_what_would_not_be_the_option_it_says_is_refused(key: str, value: str) -> None:
    with pytest.raises(fw.Refused):
        fw.set_option(FILE, key, value)


def test_a_written_rule_is_read_as_itself() -> None:
    kinds, actions = ("IN", "OUT", "FORWARD"), ("ACCEPT", "DROP")
    for kind, action, macro, enabled in itertools.product(kinds, actions, ("", "SSH"), (True, False)):
        rule = fw.Rule(kind, action, macro, {"iface": "vmbr0", "icmp-type": "8", "sport": "1:2"}, enabled, "why")
        assert fw.parse_rule(rule.text()) == rule
