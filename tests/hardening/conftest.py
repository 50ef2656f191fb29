# SPDX-License-Identifier: Apache-2.0
"""Nodes of these tests."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible.module_utils.pveguard.base import ssh_login

from tests.hardening.real_sshd import SshdNode
from tests.mounts import own_mounts


@pytest.fixture(autouse=True)
def no_login(monkeypatch: pytest.MonkeyPatch) -> None:
    """The controller of these tests is none that this machine may have."""
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    monkeypatch.setattr(ssh_login, "above", lambda: "")


@pytest.fixture
def sshd_node() -> Iterator[SshdNode]:
    # Of root alone, and with a short name, as sshd asks for.
    root = Path(tempfile.mkdtemp(prefix="sshd-", dir="/tmp"))
    with own_mounts():
        node = SshdNode(root)
        node.mount()
        node.start_sshd()
        try:
            yield node
        finally:
            node.stop_sshd()
    shutil.rmtree(root, ignore_errors=True)
