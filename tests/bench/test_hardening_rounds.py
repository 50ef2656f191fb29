# SPDX-License-Identifier: Apache-2.0
"""The judge of the rounds of hardening: what it draws, what it takes for a change, and that its blind copy is the product's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hardening_nodes
import hardening_rounds as bench
import pytest


def test_every_kind_comes_once_before_one_comes_again(tmp_path: Path) -> None:
    drawn = bench.kinds(list(bench.PLANTS), ["seen", "blind"], bench.FAULTS)
    nodes = object.__new__(hardening_nodes.Nodes)
    nodes.names = ["pve1", "pve2", "pve3"]
    campaign = bench.Campaign(nodes, "7", "", tmp_path, drawn)
    first = [campaign.plan(number)[0] for number in range(1, len(drawn) + 1)]
    assert sorted(first) == sorted(drawn) and first != drawn
    again = bench.Campaign(nodes, "7", "", tmp_path, drawn)
    assert [again.plan(number) for number in (1, 30)] == [campaign.plan(number) for number in (1, 30)]
    assert {kind[0] for kind in drawn} == set(bench.PLANTS)


def test_where_the_role_refuses_nothing_is_interrupted() -> None:
    assert bench.kinds(["no_include"], ["seen", "blind"], bench.FAULTS) == [("no_include", "seen", "none")]
    assert bench.kinds(["no_key"], ["blind"], ["kill"]) == [("no_key", "blind", "kill")]


@pytest.mark.parametrize(
    ("name", "core", "has", "has_not"),
    [
        ("allow_users", "sshd_change", "'AllowUsers nobody\\n'", "    judge(text"),
        ("firewall_no_controller", "firewall_change", "policy_in: DROP", "    if why:\n        raise"),
    ],
)
def test_the_blind_copy_has_the_lines_and_no_judgement(
    tmp_path: Path, name: str, core: str, has: str, has_not: str
) -> None:
    file = Path(bench.blind(tmp_path, bench.PLANTS[name]), f"pveguard/hardening/{core}.py")
    text = file.read_text()
    assert has in text and has_not not in text
    compile(text, file, "exec")


def test_any_change_of_a_file_is_seen() -> None:
    before = {"/etc/a": "-rw-r--r-- 0:0 1", "/etc/b": "-rw-r--r-- 0:0 2"}
    for path, now in (
        ("/etc/a", "-rw-r--r-- 0:0 9"),
        ("/etc/a", "-rw------- 0:0 1"),
        ("/etc/a", "-rw-r--r-- 0:1 1"),
    ):
        assert [
            line.partition(":")[0] for line in hardening_nodes.differences(before, {**before, path: now})
        ] == [path]
    assert hardening_nodes.differences(before, {"/etc/a": before["/etc/a"], "/etc/c": ""}) == [
        "/etc/b: -rw-r--r-- 0:0 2 -> is gone",
        "/etc/c: was not there -> ",
    ]
    assert hardening_nodes.differences(before, dict(before)) == []


@pytest.mark.parametrize("program", [hardening_nodes.LOOK, hardening_nodes.MEMBER, hardening_nodes.REACH])
def test_what_runs_on_a_node_is_a_program(program: str) -> None:
    compile(program.replace("PEERS", "[]").replace("SECONDS", "1"), "node", "exec")


def test_the_table_counts_violations_of_a_kind() -> None:
    totals = bench.Totals("1", kinds={"no_key, blind, kill": 2, "good, good, none": 1})
    totals.violations = [
        "round 1 (no_key, blind, kill on pve2 after 1.0 s): LOCKED OUT: controller to pve2: no"
    ]
    rows = [line.split() for line in bench.table(totals).splitlines()[1:]]
    assert rows == [["good", "good", "none", "1", "0"], ["no_key", "blind", "kill", "2", "1"]]


def test_what_is_not_known_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, bench.__file__, "--plants", "nothing"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "nothing: wanted some of good," in done.stderr
