# SPDX-License-Identifier: Apache-2.0
"""A change of the firewall is kept when it was proved, and otherwise each node opens itself and puts the former file back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible.module_utils.pveguard.base import ssh_login, supervised
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.formats import firewall_config
from ansible.module_utils.pveguard.hardening import firewall_change, firewall_rules, firewall_undo
from ansible.module_utils.pveguard.pmxcfs import pve_file

from tests.hardening.firewall_node import BEFORE, ENFORCE, RULES, FirewallNode, Shared
from tests.mounts import own_mounts

pytestmark = pytest.mark.root
FORMER = BEFORE.encode()


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FirewallNode, FirewallNode]]:
    monkeypatch.setattr(pve_file, "is_mounted", lambda root: (root / "etc/pve/.version").exists())
    with own_mounts():
        shared = Shared(tmp_path / "shared")
        yield tuple(FirewallNode(tmp_path / f"pve{each}", shared, each) for each in (1, 2))  # type: ignore[misc]


@pytest.fixture
def node(pair: tuple[FirewallNode, FirewallNode]) -> FirewallNode:
    return pair[0]


def enforced(*nodes: FirewallNode) -> None:
    """Armed everywhere, written by the first."""
    digests = {each.arm().digest for each in nodes}
    assert len(digests) == 1
    for each in nodes:
        each.present(*digests, write=each is nodes[0])
    assert all(each.closed and each.timer() == "armed" for each in nodes)


# --- the way forth ------------------------------------------------------------------------------------------


def test_it_is_armed_everywhere_before_one_writes_and_kept_when_all_say_so(pair: tuple[FirewallNode, FirewallNode]) -> None:
    one, two = pair
    seen = [each.arm() for each in pair]
    assert seen[0].digest == seen[1].digest and one.shared.bytes == FORMER and not one.closed
    assert seen[0].todo == [
        "set the firewall's rules (/etc/pve/firewall/cluster.fw)",
        "switch the firewall on, with policy DROP, for all nodes of the cluster",
    ]
    assert one.present(seen[0].digest).changed and not two.present(seen[1].digest, write=False).changed
    assert one.closed and two.closed
    assert one.confirm() and two.confirm()
    for each in pair:
        each.elapse(10_000)
        each.boot()
        each.mount()
        assert each.runs and each.closed and not each.held and not each.forced and each.timer() == "confirmed"
        assert not list(each.root.glob("etc/systemd/system/*.d")) and not each.left()
        again = each.arm()
        assert not again.todo and not again.unproved and not again.changed


def test_check_judges_and_changes_nothing(node: FirewallNode) -> None:
    before = node.picture()
    seen = node.arm(check=True)
    assert seen.changed and not seen.unproved and seen.before == BEFORE and "policy_in: DROP" in seen.after
    assert node.picture() == before and node.timer() == "none"


def test_rules_of_a_firewall_that_is_off_need_no_proof_and_no_timer(node: FirewallNode) -> None:
    seen = node.arm(RULES)
    assert seen.todo and not seen.unproved and node.timer() == "none"
    assert node.present(seen.digest).changed and not node.closed
    assert "pveguard: corosync link 1" in node.shared.text
    assert not node.arm(RULES).todo and node.revert(check=True).before != BEFORE
    assert node.revert().changed and node.shared.bytes == FORMER


ON = BEFORE.replace("enable: 0", "enable: 1")


def test_rules_wait_for_no_node_whose_own_firewall_is_off(node: FirewallNode) -> None:
    node.shared.write(ON)
    (node.bin / "stopped").write_text("")
    off = {"host": {"path": "/etc/pve/local/host.fw", "present": True, "enable": False, "rules": [], "strange": []}}
    seen = node.arm(RULES, facts={**off, "services": {"pve-firewall": {"active": True}}})
    node.present(seen.digest)
    assert node.confirm() and "pveguard: corosync link 1" in node.shared.text


def test_rules_of_a_firewall_that_is_on_are_refused_where_it_does_not_run(node: FirewallNode) -> None:
    node.shared.write(ON)
    refused(node, "pve-firewall.service does not run, so nothing would be enforced", RULES, facts={"services": {}})


def test_rules_of_a_firewall_that_is_on_need_a_controller_that_is_written_down(node: FirewallNode) -> None:
    node.shared.write(ON)
    other = {"controller": "192.0.2.77", "controllers": ["192.0.2.77"]}
    refused(node, r"the controller \(192.0.2.77\) is not in the management set", RULES, facts=other)
    node.shared.write(BEFORE)
    assert not node.arm(RULES, facts=other).unproved


def test_ansible_on_the_node_itself_in_an_ssh_session_is_refused(node: FirewallNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody could prove it afterwards."""

    def local() -> None:
        raise PveguardError("nothing was changed: ansible runs on this node itself")

    monkeypatch.setattr(ssh_login, "refuse_local", local)
    refused(node, "ansible runs on this node itself", ENFORCE)
    assert not node.arm(RULES).unproved


def test_rules_of_a_firewall_that_is_on_are_proved(node: FirewallNode) -> None:
    node.shared.write(firewall_config.set_option(BEFORE, "enable", "1"))
    seen = node.arm(RULES)
    assert seen.unproved and node.timer() == "armed"
    node.present(seen.digest)
    node.elapse(300)
    assert node.shared.text == firewall_config.set_option(BEFORE, "enable", "1") and node.closed


# --- the way back -------------------------------------------------------------------------------------------


def test_without_a_proof_it_is_taken_back_in_time(pair: tuple[FirewallNode, FirewallNode]) -> None:
    enforced(*pair)
    for each in pair:
        each.elapse(299)
    assert all(each.closed for each in pair)
    for each in pair:
        each.elapse(1)
        assert each.shared.bytes == FORMER and each.timer() == "rolled_back"
        assert each.runs and not each.closed and not each.held and not each.forced
    with pytest.raises(PveguardError, match="too late"):
        pair[0].confirm()


def test_without_the_clusters_file_system_the_node_opens_itself_and_the_file_follows(node: FirewallNode) -> None:
    enforced(node)
    ours = node.shared.text
    node.unmount()
    # Left beneath the mount point by somebody: it is not the cluster's file.
    beneath = node.at / "firewall/cluster.fw"
    beneath.parent.mkdir()
    beneath.write_bytes(ours.encode())
    node.elapse(300)
    assert not node.runs and node.held and node.forced and node.timer() == "rolling_back"
    assert beneath.read_bytes().decode() == ours
    node.retry()
    assert (node.bin / "calls").read_text().count("pve-firewall stop") == 1, "once a boot"
    assert node.shared.bytes != FORMER and node.timer() == "rolling_back"
    node.mount()
    node.retry()
    assert node.shared.bytes == FORMER and node.timer() == "rolled_back"
    assert node.runs and not node.closed and not node.held and not node.forced


def test_without_quorum_as_well(pair: tuple[FirewallNode, FirewallNode]) -> None:
    one, two = pair
    enforced(*pair)
    for each in pair:
        each.quorum(False)
        each.elapse(300)
        assert each.held and not each.runs and each.timer() == "rolling_back"
    assert one.shared.bytes != FORMER
    two.quorum(True)
    two.retry()
    assert one.shared.bytes == FORMER and two.timer() == "rolled_back" and not two.held
    # It sees the file of the others, and needs to write nothing.
    one.retry()
    assert one.timer() == "rolled_back" and not one.held and one.runs


def test_a_reboot_in_between_keeps_the_node_open_until_the_file_is_back(node: FirewallNode) -> None:
    enforced(node)
    node.boot()
    assert node.held and not node.runs and node.forced and node.timer() == "rolling_back"
    node.mount()
    node.quorum(False)
    node.boot()
    assert node.held and not node.runs and node.forced, "also at the second boot"
    node.mount()
    node.retry()
    assert node.shared.bytes == FORMER and not node.held and not node.forced and node.timer() == "rolled_back"
    assert node.runs and not node.closed


def test_an_undo_is_safe_twice_and_where_nothing_was_written(node: FirewallNode) -> None:
    node.arm()
    assert node.undo() and node.shared.bytes == FORMER and node.timer() == "rolled_back" and node.runs
    assert not node.undo()
    enforced(node)
    node.elapse(300)
    node.start_program()
    assert node.shared.bytes == FORMER and node.runs and not node.held


def test_a_failed_proof_takes_it_back_at_once_on_every_member(pair: tuple[FirewallNode, FirewallNode]) -> None:
    enforced(*pair)
    before = {name for name in pair[0].picture() if "pveguard" in name}
    assert before
    for each in pair:
        assert each.undo() and not each.closed and each.runs and not each.held and not each.left()
    assert pair[0].shared.bytes == FORMER
    with pytest.raises(PveguardError, match="too late"):
        pair[0].confirm()


def test_the_one_that_was_kept_takes_part_where_another_takes_it_back(pair: tuple[FirewallNode, FirewallNode]) -> None:
    enforced(*pair)
    assert pair[0].confirm()
    pair[1].elapse(300)
    assert pair[0].shared.bytes == FORMER and not pair[0].closed and not pair[1].closed


def test_what_nobody_has_written_leaves_only_the_timer_to_take_away(node: FirewallNode) -> None:
    before = node.picture()
    node.arm()
    assert node.undo(made=False) and node.timer() == "none"
    assert node.picture() == before
    assert not (node.bin / "calls").exists(), "the firewall has not been stopped"


def test_somebodys_later_edit_stays_and_the_node_stays_open(node: FirewallNode) -> None:
    enforced(node)
    edited = node.shared.text + "IN DROP -p tcp -dport 22\n"
    node.shared.write(edited)
    node.elapse(300)
    assert node.shared.text == edited and node.timer() == "rolled_back"
    assert node.held and not node.runs and node.forced
    node.boot()
    node.mount()
    assert node.held and not node.runs, "at the next boot as well"
    # A next run makes it count, and has it proved.
    node.shared.write(BEFORE)
    seen = node.arm(facts={"services": {"pve-firewall": {"active": True}}})
    node.present(seen.digest)
    assert node.runs and node.closed and not node.forced and not node.held
    assert node.confirm() and not node.held


@pytest.fixture
def held(node: FirewallNode) -> FirewallNode:
    """Open, as somebody has edited the file after a change that nobody proved."""
    enforced(node)
    node.shared.write(node.shared.text + "IN DROP -p tcp -dport 22\n")
    node.elapse(300)
    assert node.held and node.forced and not node.runs
    return node


def stays_open(node: FirewallNode) -> None:
    assert node.held and node.forced and not node.runs
    node.boot()
    node.mount()
    assert node.held and not node.runs


def test_a_node_that_is_held_open_stays_so_where_another_member_refuses(held: FirewallNode) -> None:
    held.arm()
    assert held.undo(made=False)
    stays_open(held)


def test_a_node_that_is_held_open_stays_so_where_nothing_can_be_armed(held: FirewallNode) -> None:
    held.refuses = "restart"
    with pytest.raises(PveguardError, match="nothing was changed: the rollback timer"):
        held.arm()
    stays_open(held)


def test_a_node_that_is_held_open_is_so_again_after_a_failed_proof(held: FirewallNode) -> None:
    edited = held.shared.text
    held.shared.write(edited.replace("9100", "9101"))
    before = held.shared.text
    held.present(held.arm().digest)
    assert held.runs and held.closed and not held.forced
    assert held.undo() and held.shared.text == before
    stays_open(held)


def test_a_node_that_is_held_open_is_so_again_after_a_failed_proof_and_an_edit(held: FirewallNode) -> None:
    held.shared.write(held.shared.text.replace("9100", "9101"))
    held.present(held.arm().digest)
    held.shared.write(held.shared.text + "IN DROP -p tcp -dport 8006\n")
    held.elapse(300)
    stays_open(held)


def test_a_node_that_is_held_open_runs_again_where_the_firewall_is_off_now(held: FirewallNode) -> None:
    held.shared.write(BEFORE)
    seen = held.arm(RULES)
    assert not seen.unproved and "let the firewall of this node run again, which an earlier undo holds open" in seen.todo
    held.present(seen.digest)
    assert held.runs and not held.forced and not held.held and not held.closed and not held.left()
    assert not held.arm(RULES).todo


def test_somebodys_later_edit_of_a_firewall_that_was_on_before_counts(node: FirewallNode) -> None:
    node.shared.write(firewall_config.set_option(BEFORE, "enable", "1"))
    node.present(node.arm(RULES).digest)
    edited = node.shared.text + "IN ACCEPT -p tcp -dport 1\n"
    node.shared.write(edited)
    node.elapse(300)
    assert node.shared.text == edited and node.closed and not node.held and node.timer() == "rolled_back"


def test_the_former_file_is_kept_where_somebodys_later_edit_stays(node: FirewallNode) -> None:
    enforced(node)
    node.shared.write("IN DROP\n")
    node.elapse(300)
    copy = node.root / f"{firewall_undo.FOLDER.lstrip('/')}/cluster.fw.before"
    assert node.shared.text == "IN DROP\n" and copy.read_bytes() == FORMER


def test_a_file_that_is_empty_for_a_moment_is_nobodys_edit(node: FirewallNode) -> None:
    enforced(node)
    ours = node.shared.text
    node.shared.write("")
    node.elapse(300)
    assert node.timer() == "rolling_back" and node.held and not node.runs
    node.shared.write(ours)
    node.retry()
    assert node.shared.bytes == FORMER and node.timer() == "rolled_back" and node.runs and not node.held


def test_the_former_file_comes_in_one_step(node: FirewallNode) -> None:
    enforced(node)
    ours = node.shared.text
    (node.bin / "cmp").write_text(f"""#!/bin/sh
case "$3" in *.pveguard.*) exit 1 ;; esac
exec {shutil.which("cmp")} "$@"
""")
    (node.bin / "cmp").chmod(0o755)
    node.elapse(300)
    assert node.shared.text == ours and node.timer() == "rolling_back", "what was written is not right"
    (node.bin / "cmp").unlink()
    node.retry()
    assert node.shared.bytes == FORMER and node.timer() == "rolled_back"
    assert [each.name for each in node.shared.file.parent.iterdir()] == ["cluster.fw"]


def test_a_file_that_was_not_there_is_gone_again(node: FirewallNode) -> None:
    node.shared.file.unlink()
    enforced(node)
    node.elapse(300)
    assert node.shared.bytes is None and node.timer() == "rolled_back" and not node.held
    enforced(node)
    assert node.confirm() and node.revert().changed and node.shared.bytes is None


def test_what_disables_the_other_firewall_and_is_somebodys_stays(node: FirewallNode) -> None:
    enforced(node)
    force = node.root / firewall_undo.FORCE_DISABLE.lstrip("/")
    force.parent.mkdir(parents=True, exist_ok=True)
    force.write_text("")
    node.elapse(300)
    assert force.read_text() == "" and node.timer() == "rolled_back"
    with pytest.raises(PveguardError, match="force-disable is there: somebody has opened this node by it"):
        node.arm()


def test_a_firewall_that_does_not_stop_is_killed_and_its_rules_are_cut_off(node: FirewallNode) -> None:
    enforced(node)
    noted = 'echo "iptables-legacy $*" >>"$here/calls"; exit 1'
    for name, text in {"pve-firewall": "exec sleep 600", "iptables-legacy": noted}.items():
        (node.bin / name).write_text(f"#!/bin/sh\nhere={node.bin}\n{text}\n")
    program = node.root / firewall_undo.PROGRAM.lstrip("/")
    program.write_text(program.read_text().replace("within 60 ", "within 1 "))
    node.elapse(300)
    calls = (node.bin / "calls").read_text().splitlines()
    assert calls[0] == "systemctl kill --signal=KILL pve-firewall.service"
    cut = [f"iptables-legacy -w 10 -D {chain} -j PVEFW-{chain}" for chain in ("INPUT", "OUTPUT", "FORWARD")]
    assert [each for each in calls if each.startswith("iptables")] == cut
    assert node.shared.bytes == FORMER and node.timer() == "rolled_back"


# --- refusals -----------------------------------------------------------------------------------------------


def refused(node: FirewallNode, message: str, options: firewall_rules.Options = ENFORCE, **more: object) -> None:
    before = node.picture()
    with pytest.raises(PveguardError, match=message):
        node.arm(options, **more)
    assert node.picture() == before and node.timer() == "none"


def test_lines_that_proxmox_passes_over(node: FirewallNode) -> None:
    node.shared.write(f"{BEFORE}IN ALLOW\n")
    refused(node, r"/etc/pve/firewall/cluster.fw has lines that Proxmox passes over, and nothing was changed: line 7: 'ALLOW'")


def test_a_node_without_quorum(node: FirewallNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pve_file, "has_quorum", lambda _root: False)
    refused(node, "nothing was changed: /etc/pve is read-only because this node has no quorum")


def test_a_node_whose_file_system_is_not_mounted(node: FirewallNode) -> None:
    node.unmount()
    refused(node, "cluster.fw cannot be read, and nothing was changed: /etc/pve is not mounted")


def test_a_file_system_that_never_answers(node: FirewallNode, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(_work: object, _seconds: float) -> dict[str, object]:
        raise supervised.Stalled

    monkeypatch.setattr(supervised, "ask", ask)
    refused(node, "/etc/pve does not answer within 20 s")


def test_a_ring_that_could_not_be_proved(node: FirewallNode) -> None:
    refused(node, "the ring is not whole.*link 1 to pve2: disconnected", ring=["link 1 to pve2: disconnected"])


def test_a_firewall_that_does_not_run(node: FirewallNode) -> None:
    refused(node, "pve-firewall.service does not run, so nothing would be enforced", facts={"services": {}})


def test_a_controller_that_is_not_in_the_management_set(node: FirewallNode) -> None:
    refused(node, r"the controller \(192.0.2.77\) is not in the management set", facts={"controllers": ["192.0.2.77"]})


def test_an_earlier_change_that_waits(node: FirewallNode) -> None:
    enforced(node)
    with pytest.raises(PveguardError, match="waits for its proof, and is taken back.*systemctl start pveguard-rollback-"):
        node.arm()
    assert node.timer() == "armed"


def test_an_edit_between_the_look_and_the_write_stays_and_opens_nothing(node: FirewallNode) -> None:
    seen = node.arm()
    node.shared.write(f"{BEFORE}IN DROP\n")
    with pytest.raises(firewall_change.Untouched, match="somebody has edited .*cluster.fw since it was looked at"):
        node.present(seen.digest)
    assert node.undo(made=False)
    assert node.shared.text == f"{BEFORE}IN DROP\n" and node.runs and not node.held and node.timer() == "none"


def test_nothing_is_written_after_the_undo_or_for_another_change(node: FirewallNode) -> None:
    seen = node.arm()
    with pytest.raises(PveguardError, match="or another one"):
        node.present("x")
    node.elapse(300)
    with pytest.raises(PveguardError, match="no change of the firewall is armed here"):
        node.present(seen.digest)
    assert node.shared.bytes == FORMER


def test_what_became_of_an_earlier_change_is_not_said_of_one_without_a_timer(node: FirewallNode) -> None:
    enforced(node)
    node.confirm()
    assert node.timer() == "confirmed"
    node.shared.write(BEFORE)
    assert node.arm(RULES, check=True).todo and node.timer() == "confirmed"
    assert not node.arm(RULES).unproved and node.timer() == "none"
    assert node.undo(made=False) and node.shared.bytes == FORMER


def test_a_firewall_that_does_not_load_it_proves_nothing(node: FirewallNode) -> None:
    seen = node.arm()
    (node.bin / "stopped").write_text("")
    with pytest.raises(PveguardError, match="the node's firewall has not loaded it in time"):
        node.present(seen.digest)
    with pytest.raises(PveguardError, match="when the firewall loaded the change is not known"):
        node.confirm()
    assert node.undo() and node.shared.bytes == FORMER


def test_rules_of_others_that_change_meanwhile_prove_nothing(node: FirewallNode) -> None:
    node.shared.write(ON)
    seen = node.arm(RULES)
    node.stuck = ON

    def sleep(_seconds: float) -> None:
        node.others = """\
:f2b-sshd - [0:0]
-A INPUT -p tcp -j f2b-sshd
:tap100i0-IN - [0:0]
-A PVEFW-FWBR-IN -m physdev --physdev-out tap100i0 -j tap100i0-IN
-A tap100i0-IN -j PVEFW-Drop
create PVEFW-100-ipfilter-net0-v4 hash:net
add PVEFW-100-ipfilter-net0-v4 192.0.2.1
"""

    with pytest.raises(PveguardError, match="the node's firewall has not loaded it in time"):
        node.present(seen.digest, sleep=sleep)
    assert node.undo() and node.shared.text == ON


def test_what_changes_nothing_in_the_kernel_is_not_waited_for(node: FirewallNode) -> None:
    """As a rule whose comment has other words now."""
    node.shared.write(ON)
    kept(node, RULES)
    node.shared.write(node.shared.text.replace("corosync link 1", "Corosync, link 1"))
    node.stuck = node.shared.text
    node.present(node.arm(RULES).digest)
    assert node.confirm() and "corosync link 1" in node.shared.text


def test_the_firewall_gets_two_rounds_before_anything_is_proved(node: FirewallNode) -> None:
    now = [100.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    node.present(node.arm().digest, sleep=sleep, clock=lambda: now[0])
    assert 125 <= now[0] < 127


def test_a_systemd_that_takes_no_timer(node: FirewallNode) -> None:
    node.refuses = "restart"
    before = node.picture()
    with pytest.raises(PveguardError, match="nothing was changed: the rollback timer"):
        node.arm()
    assert not node.left() and not list(node.root.glob("etc/systemd/system/*.d"))
    left = {name for name in node.picture() if name not in before}
    assert left <= {f"{firewall_undo.FOLDER.lstrip('/')}/kept.json"}


# --- everything as it was -----------------------------------------------------------------------------------


def test_revert_byte_for_byte_by_the_first_member(pair: tuple[FirewallNode, FirewallNode]) -> None:
    one, two = pair
    before = [each.picture() for each in pair]
    enforced(*pair)
    for each in pair:
        each.confirm()
    seen = two.revert(check=True)
    assert seen.changed and seen.after == BEFORE and one.closed
    assert two.revert().changed and one.shared.bytes == FORMER
    assert not one.revert().changed and not one.revert().changed and not two.revert().changed
    assert [each.picture() for each in pair] == before


def test_revert_of_a_file_that_was_edited_since_takes_out_what_is_ours(node: FirewallNode) -> None:
    enforced(node)
    node.confirm()
    node.shared.write(node.shared.text + "IN ACCEPT -p tcp -dport 9200\n")
    assert node.revert().changed
    text = node.shared.text
    assert "9200" in text and "9100" in text and "pveguard" not in text and "enable: 0" in text and not node.closed


def test_revert_of_a_change_that_waits(node: FirewallNode) -> None:
    before = node.picture()
    enforced(node)
    node.revert()
    assert node.picture() == before and not node.closed and node.timer() == "none"


def test_revert_lets_a_node_that_is_held_open_run_again(node: FirewallNode) -> None:
    before = node.picture()
    enforced(node)
    node.shared.write(node.shared.text.replace("9100", "9101"))
    node.elapse(300)
    assert node.held
    node.revert()
    assert not node.held and node.runs and not node.closed and not node.forced
    assert set(node.picture()) == set(before) and "9101" in node.shared.text


def test_a_member_that_came_later_takes_no_rules_of_the_others_for_the_original(
    pair: tuple[FirewallNode, FirewallNode],
) -> None:
    one, two = pair
    one.present(one.arm(RULES).digest)
    enforced(*pair)
    for each in pair:
        each.confirm()
    assert "original" not in json.loads((two.root / firewall_undo.FOLDER.lstrip("/") / "kept.json").read_text())
    two.revert()
    one.revert()
    assert one.shared.bytes == FORMER


def kept(node: FirewallNode, *options: firewall_rules.Options) -> None:
    for each in options:
        seen = node.arm(each)
        node.present(seen.digest)
        if seen.unproved:
            node.confirm()


def test_revert_keeps_what_somebody_has_added_between_two_runs(node: FirewallNode) -> None:
    kept(node, RULES)
    node.shared.write(node.shared.text + "IN ACCEPT -p tcp -dport 9200\n")
    kept(node, ENFORCE)
    assert node.revert().changed
    assert node.shared.text == BEFORE + "IN ACCEPT -p tcp -dport 9200\n"


def test_revert_keeps_what_somebody_has_added_after_an_undo(node: FirewallNode) -> None:
    enforced(node)
    node.elapse(300)
    edited = BEFORE + "IN ACCEPT -p tcp -dport 9200\n"
    node.shared.write(edited)
    kept(node, ENFORCE)
    assert node.revert().changed and node.shared.text == edited


def test_revert_of_a_node_that_has_joined_a_cluster_since_leaves_the_clusters_file(node: FirewallNode) -> None:
    node.shared.file.unlink()
    kept(node, RULES)
    node.shared.write(BEFORE)
    kept(node, RULES)
    assert node.revert().changed and node.shared.bytes == FORMER


def test_a_refused_second_run_keeps_the_note_of_the_first(node: FirewallNode) -> None:
    kept(node, RULES)
    node.shared.write(node.shared.text + "IN ACCEPT -p tcp -dport 9200\n")
    before = node.picture()
    node.arm()
    assert node.undo(made=False) and node.picture() == before
    assert node.revert().changed and node.shared.text == BEFORE + "IN ACCEPT -p tcp -dport 9200\n"


def test_the_word_pveguard_in_somebodys_comment_is_no_rule_of_ours(node: FirewallNode) -> None:
    former = BEFORE + "IN ACCEPT -p tcp -dport 9200 # see pveguard\r\n"
    node.shared.write(former)
    kept(node, ENFORCE)
    note = json.loads((node.root / firewall_undo.FOLDER.lstrip("/") / "kept.json").read_text())
    assert note["original"] == former and node.revert().changed and node.shared.text == former


@pytest.fixture
def needed(node: FirewallNode) -> FirewallNode:
    """Its firewall was on before, and stays so; by now what pveguard has added is all that lets the ring in."""
    node.shared.write(BEFORE.replace("enable: 0", "enable: 1"))
    kept(node, RULES)
    node.shared.write(node.shared.text + "IN DROP -p udp -dport 5406\n")
    return node


def test_revert_of_a_firewall_that_stays_on_is_judged_first(needed: FirewallNode) -> None:
    node, text = needed, needed.shared.text
    why = r"nothing was changed: without .* corosync link 1 from pve2 \(udp 5406, .* IN DROP"
    for check in (True, False):
        with pytest.raises(PveguardError, match=why):
            node.revert(check=check, look=node.facts)
    assert node.shared.text == text and node.closed
    with pytest.raises(PveguardError, match="the firewall cannot be judged, and nothing was changed: no answer"):
        node.revert(look=lambda: {"known": False, "error": "no answer"})
    # What does not pass with them either speaks against nothing.
    rules = text.partition("[RULES]\r\n")[2].replace("IN DROP -p udp -dport 5406\n", "")
    options = "[OPTIONS]\nenable: 1\npolicy_in: ACCEPT\n"
    node.shared.write(f"{options}[RULES]\nOUT DROP -p udp -dport 5406\n{rules}")
    assert node.revert(look=node.facts).changed and "pveguard" not in node.shared.text


def test_revert_of_a_node_that_is_held_open_is_judged_too(needed: FirewallNode) -> None:
    node = needed
    held = node.root / firewall_undo.HELD.lstrip("/")
    held.write_text("")
    node.shared.write("[OPTIONS]\nenable: 1\n[RULES]\nIN DROP -p udp -dport 5406\n")
    with pytest.raises(PveguardError, match="corosync link 1 from pve2"):
        node.revert(look=node.facts)
    assert held.exists()


def test_revert_is_for_all_members(node: FirewallNode) -> None:
    enforced(node)
    node.confirm()
    text = node.shared.text
    for hosts in ([], ["pve3"]):
        with pytest.raises(PveguardError, match="one file for all members, and this run leaves out pve2: run it without --limit"):
            node.revert(look=node.facts, hosts=hosts)
    assert node.shared.text == text
    for hosts in (["pve2"], ["10.99.0.2"]):
        assert node.revert(check=True, look=node.facts, hosts=hosts).changed
    assert node.revert(look=node.facts, hosts=["pve2"]).changed and node.shared.bytes == FORMER
    assert not node.revert(look=node.facts, hosts=[]).changed


def test_a_damaged_note_is_said(node: FirewallNode) -> None:
    enforced(node)
    node.confirm()
    (node.root / firewall_undo.FOLDER.lstrip("/") / "kept.json").write_text("[")
    with pytest.raises(PveguardError, match="kept.json is damaged: put /etc/pve/firewall/cluster.fw back by hand"):
        node.revert()


def test_the_units_of_the_undo_come_before_the_firewalls(node: FirewallNode) -> None:
    node.arm()
    unit = (node.root / f"etc/systemd/system/pveguard-rollback-{firewall_change.TIMER}.service").read_text()
    assert "Before=pve-firewall.service proxmox-firewall.service\n" in unit and "WantedBy=multi-user.target" in unit
