# SPDX-License-Identifier: Apache-2.0
"""The table of a host without Proxmox's firewall, in the real netfilter of a network namespace."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.pveguard.base import managed_file, rollback_timer
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.base.run import Result
from ansible.module_utils.pveguard.base.run import run as real_run
from ansible.module_utils.pveguard.hardening import firewall_change
from ansible.module_utils.pveguard.hardening.firewall_rules import Options

from tests.base.test_rollback_timer import Systemd

pytestmark = [pytest.mark.root, pytest.mark.skipif(shutil.which("nft") is None, reason="needs nft")]
CONTROLLER = "192.0.2.9"
FACTS = {
    "known": True, "implementation": "none", "node": "cellar", "members": [], "links": [], "addresses": ["192.0.2.5/24"],
    "address": "192.0.2.5", "controller": CONTROLLER, "controllers": [CONTROLLER],
}  # fmt: skip


class Host(Systemd):
    def __init__(self, root: Path) -> None:
        super().__init__(root)
        shell = ["unshare", "--net", "sh", "-c", "echo; exec cat"]
        self.holder = subprocess.Popen(shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.holder.stdout is not None and self.holder.stdout.readline() == b"\n"
        self.inside = ["nsenter", "--net", "--target", str(self.holder.pid)]
        self.bin = root / "bin"
        self.bin.mkdir()
        nft = shutil.which("nft")
        for name, text in {"nft": f'exec {" ".join(self.inside)} {nft} "$@"', "systemctl": "exit 0", "sync": "exit 0"}.items():
            (self.bin / name).write_text(f"#!/bin/sh\n{text}\n")
            (self.bin / name).chmod(0o755)

    def __call__(self, argv: Any, **more: Any) -> Result:
        if argv[0] == "systemctl":
            return super().__call__(argv, **more)
        return real_run([*self.inside, *argv], **more)

    def _here(self, command: str) -> list[str]:
        return ["env", f"PATH={self.bin}:{os.environ['PATH']}", *super()._here(command)]

    @property
    def table(self) -> str:
        return self(["nft", "list", "ruleset"]).stdout

    def arm(self, mode: str = "enforce", *networks: str, **more: Any) -> firewall_change.Result:
        options = Options(mode, networks or ("192.0.2.0/24",))
        return firewall_change.arm(options, FACTS, **{"seconds": 300, **more}, root=self.root, run=self)

    def make(self, mode: str = "enforce", *networks: str) -> None:
        digest = self.arm(mode, *networks).digest
        firewall_change.write(digest, root=self.root, run=self)
        firewall_change.present(digest, root=self.root, run=self)

    def confirm_change(self) -> bool:
        return firewall_change.confirm(root=self.root, run=self, pid=1)

    def timer(self) -> str:
        return str(rollback_timer.status(firewall_change.TIMER, root=self.root, ticks=lambda: self.now)["state"])

    def picture(self) -> dict[str, str]:
        skip = (self.bin, self.root / "proc")
        found = (path for path in self.root.rglob("*") if path.is_symlink() or path.is_file())
        return {
            str(path.relative_to(self.root)): os.readlink(path) if path.is_symlink() else path.read_text()
            for path in sorted(found)
            if not any(each in path.parents for each in skip)
        }


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.holder.kill()
    made.holder.communicate()


def test_loaded_kept_done_once_and_taken_back(host: Host) -> None:
    before = host.picture()
    seen = host.arm(check=True)
    assert seen.changed and "policy drop" in seen.after and host.picture() == before and not host.table
    host.make()
    assert "policy drop" in host.table and "22" in host.table and host.timer() == "armed"
    assert host.confirm_change()
    host.elapse(10_000)
    again = host.arm()
    assert "policy drop" in host.table and not again.todo and not again.unproved
    assert (host.root / "etc/systemd/system/multi-user.target.wants/pveguard-firewall.service").is_symlink()
    assert firewall_change.revert(check=True, root=host.root, run=host).changed and host.table
    assert firewall_change.revert(root=host.root, run=host).changed
    assert host.table == "" and host.picture() == before
    assert not firewall_change.revert(root=host.root, run=host).changed


def test_without_a_proof_the_table_goes_in_time_and_twice_is_once(host: Host) -> None:
    before = host.picture()
    host.make()
    host.elapse(300)
    assert host.table == "" and host.timer() == "rolled_back"
    assert not firewall_change.undo(root=host.root, run=host)
    assert not [name for name in host.picture() if name.startswith("etc/")]
    firewall_change.revert(root=host.root, run=host)
    assert host.picture() == before


def test_a_change_of_a_kept_table_leads_back_to_it(host: Host) -> None:
    host.make("rules")
    host.confirm_change()
    kept = host.table
    host.make("enforce", "192.0.2.0/24", "198.51.100.0/24")
    assert host.table != kept
    assert firewall_change.undo(root=host.root, run=host)
    assert host.table == kept and not host.arm("rules").todo
    assert managed_file.names(host.root)


def test_a_reboot_in_between_leaves_no_table(host: Host) -> None:
    host.make()
    host(["nft", "flush", "ruleset"])
    host.reboot()
    assert not [name for name in host.picture() if "etc/nftables" in name or name.endswith("pveguard-firewall.service")]
    assert host.table == "" and host.timer() == "rolled_back"


def test_other_tables_stay(host: Host) -> None:
    host(["nft", "add", "table", "inet", "others"])
    host.make()
    host.elapse(300)
    assert host.table.split() == ["table", "inet", "others", "{", "}"]


def test_refused_before_anything_is_changed(host: Host) -> None:
    before = host.picture()
    with pytest.raises(PveguardError, match=r"the controller \(192.0.2.9\) is not in the management set"):
        host.arm("enforce", "198.51.100.0/24")
    assert host.picture() == before and host.timer() == "none"
