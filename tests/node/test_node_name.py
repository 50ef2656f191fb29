"""A node is called by its host name up to the first dot, as the daemon calls it, whatever the kernel's host name is."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible.module_utils.pveguard.base import node_name
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.cluster import corosync_recover, node_info, pmxcfs_package

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def full_name(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(node_name.os, "uname", lambda: SimpleNamespace(nodename="pve1.example.org"))
    return "pve1.example.org"


def test_the_first_label() -> None:
    assert [node_name.own(name) for name in ("pve1", "pve1.example.org", "pve1.", "a.b.c")] == ["pve1", "pve1", "pve1", "a"]


def test_the_facts_have_the_name_and_the_address_that_the_daemon_takes(
    full_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # /etc/hosts as it often is: only the full name has the real address.
    addresses = {"pve1.example.org": "192.0.2.1", "pve1": "127.0.1.1"}
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda name, *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (addresses[name], 0))]
    )
    facts = node_info.collect(run=nothing_installed, root=tmp_path)
    assert (facts["hostname"], facts["resolved_address"]) == ("pve1", "127.0.1.1")


def test_a_preflight_looks_up_that_name(full_name: str, tmp_path: Path) -> None:
    asked: list[str] = []

    def resolve(name: str) -> list[str]:
        asked.append(name)
        return []

    with pytest.raises(PveguardError, match="host name pve1 does not resolve"):
        pmxcfs_package.refuse_host(tmp_path, resolve)
    assert asked == ["pve1"]


def nothing_installed(argv: object, **_: object) -> object:
    from ansible.module_utils.pveguard.base.run import CommandMissing

    raise CommandMissing(str(argv))


def test_nothing_takes_the_host_name_as_it_is() -> None:
    """Everything on a node asks :mod:`node_name`; the controller's own name stands aside."""
    files = [*(REPOSITORY / "module_utils/pveguard").rglob("*.py"), *(REPOSITORY / "library").glob("*.py")]
    found = [
        f"{path.name}:{number}"
        for path in sorted(files)
        if path.name != "node_name.py" and "filters" not in path.parts
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"gethostname\(\)|uname\(\)\.nodename|platform\.node\(", line)
    ]
    assert found == []
    assert corosync_recover.node_name is node_name
