# SPDX-License-Identifier: Apache-2.0
"""The role's way with sshd, with Debian's own: refused beforehand, proved afterwards, and taken back where no proof comes."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import pytest
from ansible.module_utils.pveguard.base import managed_file, rollback_timer
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.hardening import sshd, sshd_change

from tests.hardening.real_sshd import SSHD, SshdNode

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.root, pytest.mark.skipif(SSHD is None, reason="openssh-server is not installed here")]


def test_hardened_proved_and_kept(sshd_node: SshdNode) -> None:
    before = sshd_node.files()
    assert sshd_node.methods() == "publickey,password"
    done = sshd_node.present()
    assert done.changed and done.unproved and sshd_node.reloads == 1
    assert sshd_node.methods() == "publickey"
    proof = sshd_node.prove()
    assert (proof["login"], proof["forward"], proof["error"]) == (True, True, "")
    assert sshd_node.ssh("true").returncode == 0
    # The fresh login keeps it; a second run changes nothing; the way back is byte for byte.
    assert confirm(sshd_node) == 0
    assert rollback_timer.status(sshd.TIMER, root=sshd_node.root)["state"] == "confirmed"
    again = sshd_node.present()
    assert not again.changed and not again.unproved and sshd_node.reloads == 1
    assert not again.facts["weak"] and again.facts["managed"] and again.facts["known_host_key"] is True
    assert list(again.facts["problems"]) == ["pve2 (127.0.0.2)", "controller (127.0.0.3)"]
    assert not any(again.facts["problems"].values())
    assert revert(sshd_node).changed and sshd_node.files() == before
    assert sshd_node.methods() == "publickey,password"
    assert not revert(sshd_node).changed and not list(sshd_node.root.rglob("*pveguard-rollback*"))
    assert not (sshd_node.root / "var/lib/pveguard/node_hardening").exists()


def test_check_mode_judges_and_changes_nothing(sshd_node: SshdNode) -> None:
    before, everything = sshd_node.files(), sorted(sshd_node.root.rglob("*"))
    done = sshd_node.present(check=True)
    (change,) = done.files
    assert done.changed and not done.unproved and change.path == sshd.DROP_IN
    assert change.after == sshd.drop_in(True, True) and change.before == ""
    assert sshd_node.files() == before and sorted(sshd_node.root.rglob("*")) == everything and not sshd_node.reloads
    sshd_node.add("AllowUsers admin\n")
    with pytest.raises(PveguardError, match="AllowUsers admin leaves root out"):
        sshd_node.present(check=True)


def test_what_pvecm_writes_into_the_main_file_does_not_undo_it(sshd_node: SshdNode) -> None:
    sshd_node.present()
    assert confirm(sshd_node) == 0
    main = sshd_node.text("/etc/ssh/sshd_config")
    sshd_node.write("/etc/ssh/sshd_config", main.replace("#PermitRootLogin prohibit-password", "PermitRootLogin yes"))
    sshd_change._reload(sshd_node.root, sshd_node)
    assert sshd_node.methods() == "publickey"
    assert not sshd_node.present().changed


#: A change by somebody else that the next reload would make count: what planted it, what the refusal says of it.
BAD = {
    "no key": ("AuthorizedKeysFile .ssh/keys_that_are_not_there\n", "root has no key: sshd looks in /root/.ssh/keys_that"),
    "no root": ("AllowUsers admin\n", r"AllowUsers admin leaves root out \[/etc/ssh/sshd_config.d/50-other.conf:1"),
    "not from the peer": ("AllowUsers root@127.0.0.3\n", r"from pve2 \(127.0.0.2\).*AllowUsers root@127.0.0.3 leaves root out"),
    "not from the controller": ("AllowUsers root@127.0.0.2/32\n", r"from controller \(127.0.0.3\).*leaves root out"),
    "no group": ("AllowGroups ssh-users\n", "AllowGroups ssh-users leaves root out"),
    "denied": ("DenyUsers root\n", "DenyUsers root keeps root out"),
    "no RSA host key": ("HostKey /etc/ssh/ssh_host_ed25519_key\n", "there is no RSA host key"),
    "no forwarding": ("DisableForwarding yes\n", "DisableForwarding yes: a migration forwards a UNIX socket"),
    "no sockets": ("AllowStreamLocalForwarding no\n", "AllowStreamLocalForwarding no: a migration"),
    "a second factor": ("AuthenticationMethods publickey,publickey\n", "a key alone does not suffice"),
    "no command": ("ForceCommand /bin/false\n", "ForceCommand /bin/false: root's commands do not run"),
    "no sense": ("NoSuchThing yes\n", "Bad configuration option: NoSuchThing"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_a_bad_change_is_refused_beforehand_and_nothing_changes(sshd_node: SshdNode, case: str) -> None:
    text, told = BAD[case]
    sshd_node.add(text)
    before = sshd_node.files()
    with pytest.raises(PveguardError, match=told):
        sshd_node.present()
    assert sshd_node.files() == before and not sshd_node.reloads and not rollback_timer.names(sshd_node.root)


def test_too_little_time_for_so_many_members_is_refused(sshd_node: SshdNode) -> None:
    before = sshd_node.files()
    peers = [sshd.Who(f"pve{each}", "127.0.0.2") for each in range(2, 40)]
    told = "the proofs of 38 members may need 182 s, and node_hardening_sshd_confirm_seconds is 180: set it to 182 or more"
    for check in (True, False):
        with pytest.raises(PveguardError, match=told):
            sshd_node.present(peers=peers, check=check)
    assert sshd_node.files() == before and not sshd_node.reloads and not rollback_timer.names(sshd_node.root)


#: The same where nobody has seen it beforehand; what the proof of the peer sees then.
UNSEEN = ["no key", "no root", "not from the peer", "no RSA host key", "no forwarding", "no sockets"]
UNSEEN += ["a second factor", "no command"]


@pytest.mark.slow
@pytest.mark.parametrize("case", UNSEEN)
def test_a_bad_change_that_nobody_saw_fails_its_proof_and_is_taken_back(
    sshd_node: SshdNode, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sshd_node.files()
    plant(sshd_node, BAD[case][0], monkeypatch)
    proof = sshd_node.prove()
    assert not (proof["login"] and proof["forward"]) and proof["error"], proof
    assert proof["login"] is (case in ("no forwarding", "no sockets"))
    assert sshd_change.undo(root=sshd_node.root, run=sshd_node)
    assert sshd_node.files() == before
    assert sshd_node.prove()["forward"] and sshd_node.ssh("true").returncode == 0
    with pytest.raises(PveguardError, match="too late"):
        sshd_change.confirm(root=sshd_node.root, run=sshd_node)


def test_the_controller_is_gone_and_the_timer_takes_it_back(sshd_node: SshdNode, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sshd_node.files()
    plant(sshd_node, "AllowUsers admin\n", monkeypatch)
    assert sshd_node.ssh("true").returncode == 255
    sshd_node.elapse(sshd_change.SECONDS - 1)
    assert sshd_node.drop_in.exists()
    sshd_node.elapse(1)
    assert sshd_node.files() == before and sshd_node.prove()["forward"] and sshd_node.ssh("true").returncode == 0
    assert rollback_timer.status(sshd.TIMER, root=sshd_node.root)["state"] == "rolled_back"
    # The next run begins from the start.
    monkeypatch.undo()
    assert sshd_node.present().unproved and confirm(sshd_node) == 0


def test_a_reboot_in_between_takes_it_back_before_sshd_starts(sshd_node: SshdNode, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sshd_node.files()
    plant(sshd_node, "AllowUsers admin\n", monkeypatch)
    unit = sshd_node.text(f"/etc/systemd/system/{rollback_timer.PREFIX}{sshd.TIMER}.service")
    assert "Before=ssh.service ssh.socket\n" in unit
    sshd_node.boot()
    assert sshd_node.files() == before
    assert sshd_node.prove()["forward"] and sshd_node.ssh("true").returncode == 0


def test_an_update_that_is_not_confirmed_leaves_the_former_drop_in(sshd_node: SshdNode) -> None:
    assert sshd_node.present(keys_only=False, algorithms=False).unproved and confirm(sshd_node) == 0
    former = sshd_node.files()
    sshd_node.present()
    assert sshd_node.files() != former
    # A run that was killed, and the next: what is put back is still what was there before both.
    assert sshd_node.present().todo == ["prove the change of sshd that nobody has confirmed"]
    sshd_change.undo(root=sshd_node.root, run=sshd_node)
    assert sshd_node.files() == former and sshd_node.drop_in.read_text() == sshd.drop_in(False, False)
    # That is what pveguard wrote: no drift, and the way back leads to the beginning.
    assert managed_file.drifted(sshd.KEPT_FOR, sshd_node.root) == {}
    assert revert(sshd_node).changed and not sshd_node.drop_in.exists()


def test_a_login_from_before_the_change_proves_nothing(sshd_node: SshdNode) -> None:
    way = ("-o", f"ControlPath={sshd_node.root}/control")
    master = sshd_node.ssh("true", options=(*way, "-o", "ControlMaster=yes", "-o", "ControlPersist=300"))
    assert master.returncode == 0, master.stderr
    try:
        sshd_node.present()
        assert confirm(sshd_node, *way) == 1
        assert rollback_timer.status(sshd.TIMER, root=sshd_node.root)["state"] == "armed"
        assert confirm(sshd_node) == 0
    finally:
        sshd_node.ssh(options=(*way, "-O", "exit"))


def test_a_revert_that_would_lock_out_by_itself_is_not_made_to_count(sshd_node: SshdNode) -> None:
    before = sshd_node.files()
    sshd_node.present()
    assert confirm(sshd_node) == 0
    sshd_node.add("AllowUsers admin\n")
    reloads = sshd_node.reloads
    with pytest.raises(PveguardError, match="the files are as they were, and sshd has not read them.*AllowUsers admin"):
        revert(sshd_node)
    (sshd_node.root / "etc/ssh/sshd_config.d/50-other.conf").unlink()
    assert sshd_node.files() == before and sshd_node.reloads == reloads and sshd_node.ssh("true").returncode == 0


def test_a_revert_whose_reload_fails_is_finished_by_the_next(sshd_node: SshdNode, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sshd_node.files()
    sshd_node.present()
    assert confirm(sshd_node) == 0

    def fails(root: object, run: object) -> None:
        raise PveguardError("systemctl reload ssh.service: refused")

    with monkeypatch.context() as patch, pytest.raises(PveguardError, match="sshd has not read them: .*refused.*run again"):
        patch.setattr(sshd_change, "_reload", fails)
        revert(sshd_node)
    assert sshd_node.files() == before and sshd_node.methods() == "publickey"
    assert sshd_change.revert(check=True, root=sshd_node.root, run=sshd_node).changed and sshd_node.methods() == "publickey"
    assert revert(sshd_node).changed and sshd_node.methods() == "publickey,password"
    assert not revert(sshd_node).changed


def test_a_revert_counts_where_pve_does_not_answer(sshd_node: SshdNode, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sshd_node.files()
    sshd_node.present()
    assert confirm(sshd_node) == 0
    monkeypatch.setattr(sshd, "silent", lambda: "no answer within 5 s")
    monkeypatch.setattr(sshd, "controller_address", lambda: sshd_node.controller)
    sshd_node.add("AllowUsers admin\n")
    with pytest.raises(PveguardError, match="sshd has not read them, .*AllowUsers admin leaves root out"):
        revert(sshd_node)
    (sshd_node.root / "etc/ssh/sshd_config.d/50-other.conf").unlink()
    assert revert(sshd_node).changed and sshd_node.files() == before and sshd_node.methods() == "publickey,password"
    assert not revert(sshd_node).changed


def test_a_change_that_sshd_does_not_read_is_taken_back(sshd_node: SshdNode, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sshd_node.files()

    def fails(root: object, run: object) -> None:
        raise PveguardError("systemctl reload ssh.service: refused")

    monkeypatch.setattr(sshd_change, "_reload", fails)
    with pytest.raises(PveguardError, match="was taken back: systemctl reload ssh.service: refused"):
        sshd_node.present()
    assert sshd_node.files() == before and rollback_timer.status(sshd.TIMER, root=sshd_node.root)["state"] == "rolled_back"


# -- refusals


def test_a_main_file_without_a_leading_include_is_refused_with_the_line(sshd_node: SshdNode) -> None:
    main = sshd_node.text("/etc/ssh/sshd_config")
    for text, told in (
        (main.replace(sshd.INCLUDE_LINE, ""), "it does not read /etc/ssh/sshd_config.d"),
        (main.replace(sshd.INCLUDE_LINE, "") + sshd.INCLUDE_LINE, "stands before its Include"),
        (f"#PermitRootLogin yes\n{main}", "sshd_config:1 #PermitRootLogin yes stands before its Include"),
    ):
        sshd_node.write("/etc/ssh/sshd_config", text)
        refused(sshd_node, f"{told}.*Make this its first line.*{sshd.INCLUDE_LINE[:20]}")


def test_a_member_that_is_offline_is_refused_by_name(sshd_node: SshdNode) -> None:
    path = "/etc/pve/.members"
    sshd_node.write(path, sshd_node.text(path).replace('"id": 2, "online": 1', '"id": 2, "online": 0'))
    refused(sshd_node, "pve2 of the cluster is offline, .*nothing was changed", peers=None)
    refused(sshd_node, "pve2 of the cluster is offline", peers=None, check=True)


def test_a_match_block_about_root_is_refused_and_others_are_not(sshd_node: SshdNode) -> None:
    sshd_node.add("Match Address 192.0.2.0/24\n PermitRootLogin yes\n")
    refused(sshd_node, r"50-other.conf:2 \(Match Address 192.0.2.0/24\): permitrootlogin yes")
    sshd_node.add("Match User backup\n ForceCommand /bin/false\nMatch Address 127.0.0.2\n PermitRootLogin without-password\n")
    assert sshd_node.present(check=True).changed


def test_keys_that_lie_on_pve_alone_are_refused(sshd_node: SshdNode) -> None:
    login = {"independent": False, "file": None, "how": "the key in use (SHA256:x) stands only on /etc/pve"}
    refused(sshd_node, "stands only on /etc/pve.*authorized_keys2.*node_hardening_sshd_keys_only: false", login=login)
    refused(sshd_node, "no login by a key", login={"independent": True, "file": None, "how": "login by password"})
    # The proof of another moment: by now no key lies elsewhere.
    (sshd_node.root / "root/.ssh/authorized_keys2").unlink()
    refused(sshd_node, "root's keys are only on /etc/pve")
    assert sshd_node.present(keys_only=False, login={}).unproved
    assert sshd_node.methods() == "publickey,password"


def test_a_file_that_is_read_first_is_named(sshd_node: SshdNode) -> None:
    sshd_node.add("Ciphers aes128-cbc,aes256-ctr\n", "00-first.conf")
    refused(sshd_node, r"Ciphers still has aes128-cbc \[/etc/ssh/sshd_config.d/00-first.conf:1")
    sshd_node.add("X11Forwarding yes\n", "00-first.conf")
    refused(sshd_node, "X11Forwarding is yes, not no")


def plain(node: SshdNode) -> SshdNode:
    """A host of Debian alone."""
    shutil.rmtree(node.root / "etc/pve")
    return node


@pytest.mark.parametrize("line", ["AllowUsers admin", "PermitRootLogin no"])
def test_a_host_of_debian_that_keeps_root_out_is_refused_in_its_own_words(sshd_node: SshdNode, line: str) -> None:
    """With the drop-in PermitRootLogin no would not count any more."""
    plain(sshd_node).add(f"{line}\n")
    refused(sshd_node, f"sshd keeps root out here.*{line}.*node_hardening_sshd: false. Nothing was changed$", peers=None)


def test_a_host_of_debian_needs_nothing_of_what_members_need(sshd_node: SshdNode) -> None:
    plain(sshd_node).add("HostKey /etc/ssh/ssh_host_ed25519_key\nDisableForwarding yes\n")
    assert sshd_node.present(peers=None).unproved and sshd_node.methods() == "publickey" and confirm(sshd_node) == 0


def refused(node: SshdNode, told: str, **more: object) -> None:
    before, reloads = node.files(), node.reloads
    with pytest.raises(PveguardError, match=told):
        node.present(**more)
    assert node.files() == before and node.reloads == reloads and not rollback_timer.names(node.root)


def plant(node: SshdNode, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of pveguard's own that is bad, as if the judgement beforehand had not been there."""
    monkeypatch.setattr(sshd_change, "judge", lambda *_a, **_k: None)
    monkeypatch.setattr(sshd, "drop_in", lambda *_a: text)
    assert node.present().unproved


def confirm(node: SshdNode, *options: str) -> int:
    """The confirmation, as a command over the controller's login. ssh's own code is 255."""
    program = (
        "import sys, pathlib; sys.path[:0] = sys.argv[2:]; import conftest;"
        "from ansible.module_utils.pveguard.base.errors import PveguardError;"
        "from ansible.module_utils.pveguard.base.run import Result;"
        "from ansible.module_utils.pveguard.hardening import sshd_change\n"
        "try: sshd_change.confirm(root=pathlib.Path(sys.argv[1]), run=lambda argv, **more: Result(0))\n"
        "except PveguardError as error: sys.exit(str(error))"
    )
    here = [path for path in sys.path if path]
    done = node.ssh(shlex.join([sys.executable, "-c", program, str(node.root), str(ROOT), *here]), options=options)
    assert done.returncode == 0 or "is older than the change" in done.stderr, done.stderr
    if done.returncode == 0:
        # The double of systemd is in this process: its timer ends as the confirmation has stopped it.
        node.timers.clear()
    return done.returncode


def revert(node: SshdNode) -> sshd_change.Result:
    return sshd_change.revert(root=node.root, run=node)


OF_TCP = ["AllowTcpForwarding no", "AllowTcpForwarding remote", "PermitOpen none", "PermitOpen localhost:22"]


@pytest.mark.parametrize("line", OF_TCP)
def test_settings_of_tcp_take_the_socket_of_a_migration_too(sshd_node: SshdNode, line: str) -> None:
    """Against what sshd_config(5) says: the real sshd denies it, so the look has to say so."""
    sshd_node.add(f"{line}\n")
    sshd_change._reload(sshd_node.root, sshd_node)
    proof = sshd_node.prove()
    assert proof["login"] and not proof["forward"]
    facts = sshd.look(sshd_node.root, sshd_node, peers=[sshd_node.peer], controller=sshd_node.controller)
    assert [line in text for said in facts["problems"].values() for text in said.values()] == [True, True]


@pytest.mark.parametrize("line", ["AllowTcpForwarding local", "PermitListen none", "GatewayPorts no"])
def test_settings_that_leave_it_are_no_problem(sshd_node: SshdNode, line: str) -> None:
    sshd_node.add(f"{line}\n")
    sshd_change._reload(sshd_node.root, sshd_node)
    assert sshd_node.prove()["forward"]
    facts = sshd.look(sshd_node.root, sshd_node, peers=[sshd_node.peer], controller=sshd_node.controller)
    assert not any(facts["problems"].values())
