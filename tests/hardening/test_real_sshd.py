# SPDX-License-Identifier: Apache-2.0
"""The role's way with sshd, with Debian's own: refused beforehand, proved afterwards, and taken back where no proof comes."""

from __future__ import annotations

import pytest
from ansible.module_utils.pveguard.base import managed_file, rollback_timer
from ansible.module_utils.pveguard.base.errors import PveguardError
from ansible.module_utils.pveguard.hardening import sshd, sshd_change

from tests.hardening.real_sshd import SSHD, SshdNode

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
