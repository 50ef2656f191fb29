# SPDX-License-Identifier: Apache-2.0
"""A module on the hosts of an inventory, by Ansible itself, on this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ad_hoc
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "ansible_user": ""}
    nowhere = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_user": "root"}
    hosts = {"one": local, "two": local, "gone": nowhere}
    path = tmp_path / "hosts.yml"
    path.write_text(json.dumps({"all": {"hosts": hosts}}))
    return path


def test_results_by_host(inventory: Path) -> None:
    script = "echo $GREETING {{ inventory_hostname }}"
    found = ad_hoc.run(
        "one:two", inventory, "ansible.builtin.shell", script, environment={"GREETING": "hello"}, timeout=300
    )
    assert {host: result["stdout"] for host, result in found.items()} == {"one": "hello one", "two": "hello two"}


def test_a_module_of_this_project_that_fails_says_why(inventory: Path) -> None:
    with pytest.raises(ad_hoc.ModuleFailed, match="(?s)managed_file ended with 2.*one.*/etc/pve/x: files on") as caught:
        ad_hoc.run("one", inventory, "managed_file", {"files": [{"path": "/etc/pve/x"}]}, timeout=300)
    assert caught.value.results["one"]["msg"].startswith("/etc/pve/x: files on /etc/pve")


def test_a_host_that_is_not_reached_is_no_result(inventory: Path) -> None:
    with pytest.raises(ad_hoc.ModuleFailed, match=r"(?s)ended with \d+.*Connection refused.*gone"):
        ad_hoc.run("all", inventory, "ansible.builtin.command", "true", timeout=300)


def test_no_host_is_no_result(inventory: Path) -> None:
    with pytest.raises(ad_hoc.ModuleFailed):
        ad_hoc.run("elsewhere", inventory, "ansible.builtin.command", "true", timeout=300)
