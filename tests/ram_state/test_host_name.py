# SPDX-License-Identifier: Apache-2.0
"""A host name with a domain: the daemon calls the node by what stands before the first dot, and so does pve-state."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from ansible.module_utils.pveguard.cluster.cluster_member import PROGRAM as MEMBER
from ansible.module_utils.pveguard.state.program import PVE_STATE

from tests.host_name import host_named

from .conftest import ROOT, Node, fill, prepare_files

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def qualified() -> Iterator[None]:
    before = os.uname().nodename
    with host_named("pve1.example.org"):
        assert os.uname().nodename == "pve1.example.org"
        yield
    assert os.uname().nodename == before


@pytest.fixture
def started(node: Node) -> Node:
    node.start_daemon()
    fill(node.w)
    prepare_files(node)
    return node


def test_a_locked_guest_of_this_node_refuses_the_switch(
    ps: ModuleType, started: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    started.w.write("nodes/pve1/qemu-server/7.conf", b"lock: backup\nname: x\n")
    capsys.readouterr()
    assert started.command("enable", "--json", "--connection", "") == ps.EXIT_REFUSED
    assert "nodes/pve1/qemu-server/7.conf is locked (backup)" in json.loads(capsys.readouterr().out)["error"]
    assert not Path(started.paths.drop_in).exists()


def test_the_name_that_must_resolve_is_the_daemons(
    ps: ModuleType, started: Node, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(name: str) -> str:
        asked.append(name)
        return "127.0.1.1"

    monkeypatch.setattr(ps, "resolves", answer)
    capsys.readouterr()
    assert started.command("preflight", "--json", "--connection", "") == ps.EXIT_REFUSED
    said = capsys.readouterr().out
    assert set(asked) == {"pve1"} and "the host name pve1 resolves to 127.0.1.1" in said


def test_a_generation_is_of_the_node_and_its_links_are_known(
    ps: ModuleType, started: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    started.w.write("nodes/pve1/lxc/101.conf", b"arch: amd64\n")
    assert started.command("enable", "--json", "--connection", "") == 0
    manifests = [json.loads(path.read_text()) for path in Path(started.paths.generations).glob("*.json")]
    assert {each["node"] for each in manifests} == {"pve1"}
    assert ps.config_path(started.paths, "lxc/101.conf") == "nodes/pve1/lxc/101.conf"
    assert ps.config_path(started.paths, "/etc/pve/local/lxc/101.conf") == "nodes/pve1/lxc/101.conf"


def test_the_host_name_is_asked_for_in_one_place() -> None:
    modules = [ROOT / "module_utils/pveguard" / f"{name.replace('.', '/')}.py" for name in {*PVE_STATE.modules, *MEMBER.modules}]
    assert sum(module.read_text().count("uname().nodename") for module in modules) == 1
    for module in modules:
        assert "gethostname" not in module.read_text()
