# SPDX-License-Identifier: Apache-2.0
"""Kernel settings and modules: what is set, what never, what others say, and the way back of files and running values."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base import sysctl_files
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.hardening import (
    concerns,
    hardening_changes,
    hardening_files,
    sysctl,
    sysctl_change,
)
from ansible.module_utils.pveguard.hardening.sysctl_change import FILE, KEYS, MODPROBE

from tests.hardening.changing import ChangingNode, changing
from tests.mounts import own_mounts


@pytest.fixture
def node(tmp_path: Path) -> ChangingNode:
    # Debian 12, which has a link to sysctl.conf in sysctl.d.
    return changing(tmp_path / "node", 8)


def runtime(node: ChangingNode, key: str) -> str:
    return node.text(f"/proc/sys/{key.replace('.', '/')}").strip()


def test_nothing_that_guests_need_is_set_and_nothing_that_cannot_be_taken_back() -> None:
    assert not [key for key in KEYS if sysctl.watched(key)]
    for_good = (
        "kexec",
        "bpf",
        "modules_disabled",
        "forward",
        "rp_filter",
        "namespaces",
        "userns",
        "bridge",
        "overcommit",
        "vm.",
    )
    assert not [key for key in KEYS if any(word in key for word in for_good)]
    assert not {"sctp", *sysctl.MODULES} & set(sysctl_change.MODULES)


def test_check_run_second_run_and_back(node: ChangingNode) -> None:
    before = node.others()
    planned = node.apply("sysctl", check=True)
    assert planned.changed and node.others() == before and not node.kept()
    assert "set kernel.kptr_restrict from 0 to 1" in planned.todo
    done = node.apply("sysctl")
    assert done.todo == planned.todo and [each.path for each in done.files] == [FILE, MODPROBE] == [
        each.path for each in planned.files
    ]
    assert sysctl_files.parse(node.text(FILE)) == {key: str(value) for key, value in KEYS.items()}
    assert all(runtime(node, key) == str(value) for key, value in KEYS.items())
    assert "install dccp /bin/false" in node.text(MODPROBE)
    assert not node.apply("sysctl").changed
    assert node.revert(check=True).changed and runtime(node, "kernel.kptr_restrict") == "1"
    assert node.revert().changed
    assert node.others() == before and not node.kept() and not node.revert().changed


def test_what_runs_or_is_set_stricter_stays(node: ChangingNode) -> None:
    node.kernel(
        {
            "kernel/kptr_restrict": "2",
            "kernel/yama/ptrace_scope": "3",
            "net/ipv6/conf/all/accept_source_route": "-1",
        }
    )
    node.write("/usr/lib/sysctl.d/99-protect-links.conf", "fs.protected_regular = 2\n")
    node.kernel({"fs/protected_regular": "2"})
    before = node.others()
    node.apply("sysctl")
    assert (runtime(node, "kernel.kptr_restrict"), runtime(node, "kernel.yama.ptrace_scope")) == ("2", "3")
    assert runtime(node, "net.ipv6.conf.all.accept_source_route") == "-1"
    assert (
        "fs.protected_regular" not in sysctl_files.parse(node.text(FILE))
        and runtime(node, "fs.protected_regular") == "2"
    )
    assert not node.apply("sysctl").changed
    node.revert()
    assert node.others() == before


def test_what_somebody_has_set_since_is_not_put_back(node: ChangingNode) -> None:
    node.apply("sysctl")
    node.kernel({"kernel/kptr_restrict": "2"})
    node.revert()
    assert runtime(node, "kernel.kptr_restrict") == "2" and runtime(node, "kernel.yama.ptrace_scope") == "0"


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/etc/sysctl.d/99-mine.conf", "kernel.kptr_restrict = 0"),
        # Somebody's own file is not overruled either.
        ("/etc/sysctl.d/10-mine.conf", "-net/ipv4/conf/all/accept_redirects=1"),
        ("/usr/lib/sysctl.d/99-package.conf", "kernel.yama.ptrace_scope = 0"),
        ("/etc/sysctl.conf", "net.ipv4.conf.all.send_redirects = 1"),
        ("/run/sysctl.d/x.conf", "kernel.kptr_restrict = rubbish"),
    ],
)
def test_a_file_that_sets_it_looser_is_named_and_nothing_changes(
    node: ChangingNode, path: str, line: str, check: bool
) -> None:
    node.write(path, f"{line}\n")
    before = node.others()
    with pytest.raises(PveguardError, match=f"nothing was changed: {path}.*looser.*node_hardening_sysctl"):
        node.apply("sysctl", check)
    assert node.others() == before and not node.kept()


def test_redirects_and_modules_have_their_own_switches(node: ChangingNode) -> None:
    node.write("/etc/sysctl.d/10-mine.conf", "net.ipv4.conf.all.accept_redirects=1\n")
    node.apply("sysctl", redirects=False, modules="false")
    assert (
        runtime(node, "net.ipv4.conf.all.accept_redirects") == "1"
        and runtime(node, "kernel.kptr_restrict") == "1"
    )
    assert "redirects" not in node.text(FILE) and not node.text(MODPROBE)
    node.remove("/etc/sysctl.d/10-mine.conf")
    assert (
        node.apply("sysctl").changed
        and node.text(MODPROBE)
        and runtime(node, "net.ipv4.conf.all.accept_redirects") == "0"
    )
    # Taken back by a later run, with the file that is not wanted any more.
    assert node.apply("sysctl", modules=False).changed and not node.text(MODPROBE)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/proc/modules", "tipc_diag 1 0 - Live 0x0\n"),
        ("/sys/module/tipc/refcnt", "0\n"),
        ("/etc/modules-load.d/mine.conf", "tipc\n"),
        ("/etc/modules", "# mine\n tipc\n"),
    ],
)
def test_a_module_in_use_stays(node: ChangingNode, path: str, text: str) -> None:
    node.write(path, text)
    assert "the kernel module tipc is in use, and stays" in node.apply("sysctl").advice
    assert "tipc" not in node.text(MODPROBE) and "dccp" in node.text(MODPROBE)


def test_a_kernel_without_a_setting_is_no_reason(node: ChangingNode) -> None:
    node.remove("/proc/sys/kernel/yama/ptrace_scope")
    node.apply("sysctl")
    assert "yama" not in node.text(FILE) and not node.apply("sysctl").changed


def test_a_value_that_the_kernel_does_not_take_brings_everything_back(
    node: ChangingNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = node.others()
    real = Path.write_text

    def write_text(place: Path, text: str, *rest: Any, **more: Any) -> int:
        if place.name == "send_redirects" and text.strip() == "0":
            raise OSError(1, "Operation not permitted")
        return real(place, text, *rest, **more)

    monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(PveguardError, match="Operation not permitted.*the node is as it was before this run"):
        node.apply("sysctl")
    assert node.others() == before and not node.kept()


def test_a_later_failure_goes_back_to_the_run_before(
    node: ChangingNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.apply("sysctl", redirects=False)
    before = node.others()

    def fails(work: hardening_files.Work) -> None:
        real(work)
        if work.options is not None:
            raise PveguardError("planted")

    real = sysctl_change.activate
    monkeypatch.setattr(sysctl_change, "activate", fails)
    with pytest.raises(PveguardError, match="planted"):
        node.apply("sysctl")
    assert node.others() == before
    monkeypatch.undo()
    assert not node.apply("sysctl", redirects=False).changed
    node.revert()
    assert runtime(node, "kernel.kptr_restrict") == "0" and not node.kept()


@pytest.mark.root
def test_a_file_system_that_takes_no_writes_leaves_everything(tmp_path: Path) -> None:
    with own_mounts():
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True)
        node = changing(tmp_path / "node")
        (node.root / "etc/sysctl.d").mkdir(exist_ok=True)
        before = node.others()
        subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        with pytest.raises(PveguardError, match="Read-only file system"):
            node.apply("sysctl")
        assert node.others() == before and not node.kept()


def test_a_run_that_died_between_file_and_kernel_is_finished(
    node: ChangingNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def dies(work: hardening_files.Work) -> None:
        raise Killed

    before = node.others()
    monkeypatch.setattr(sysctl_change, "activate", dies)
    with pytest.raises(Killed):
        node.apply("sysctl")
    monkeypatch.undo()
    assert runtime(node, "kernel.kptr_restrict") == "0" and node.text(FILE)
    assert node.apply("sysctl").changed and runtime(node, "kernel.kptr_restrict") == "1"
    node.revert()
    assert node.others() == before and not node.kept()


def test_somebody_else_s_change_stops_a_revert(node: ChangingNode) -> None:
    node.apply("sysctl")
    node.append(FILE, "vm.swappiness = 10\n")
    before = node.others()
    with pytest.raises(PveguardError, match=f"somebody changed.*{FILE}"):
        node.revert()
    assert node.others() == before
    assert node.revert(drift="overwrite").changed and not node.text(FILE)


def test_a_node_that_cannot_be_read_is_refused(node: ChangingNode) -> None:
    (node.root / "etc/sysctl.d/50-x.conf").mkdir(parents=True)
    with pytest.raises(PveguardError, match="could not be looked at, and nothing was changed: .*50-x.conf"):
        node.apply("sysctl")
    assert not node.kept()


def test_assess_tells_what_a_run_would_do(node: ChangingNode) -> None:
    wanted = {"node_hardening": {"node_hardening_sysctl": True, "node_hardening_sysctl_redirects": False}}

    def told() -> list[str]:
        return hardening_changes.changes(node.facts(), {}, wanted)

    assert "set kernel.kptr_restrict from 0 to 1 (node hardening)" in told()
    assert (
        hardening_changes.changes(node.facts(), {}, {"node_hardening": {"node_hardening_sysctl": False}})
        == []
    )
    assert hardening_changes.changes({}, {}, wanted) == []
    node.apply("sysctl", redirects=False)
    assert told() == [] and concerns.collect("sysctl", node.root, node.run)["kept"]


@pytest.mark.root
def test_the_real_sysctl_takes_the_file_and_a_later_one_wins(node: ChangingNode) -> None:
    """Of the network, which has a kernel's values of its own here."""
    node.apply("sysctl")
    files = node.root / "etc/sysctl.d"
    script = "mount --bind $0 /etc/sysctl.d && sysctl --system --pattern '^net[.]' && cat $1"
    command = [
        "unshare",
        "--net",
        "--mount",
        "sh",
        "-c",
        script,
        str(files),
        "/proc/sys/net/ipv4/conf/all/send_redirects",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    said = done.stdout.splitlines()
    if done.returncode and "unshare" in done.stderr:
        pytest.skip("no namespaces here")
    assert said[-1] == "0" and "net.ipv4.conf.default.accept_source_route = 0" in said, done
    # What a run refuses would count again at the next boot.
    node.write("/etc/sysctl.d/99-mine.conf", "net.ipv4.conf.all.send_redirects = 1\n")
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    assert done.stdout.splitlines()[-1] == "1", done
    with pytest.raises(PveguardError, match="99-mine.conf"):
        node.apply("sysctl", modules=False)
