# SPDX-License-Identifier: Apache-2.0
"""Proofs of several targets: members that do not answer must not cost their time one after the other."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from ansible.module_utils.pveguard.hardening import sshd_proof
from ansible.module_utils.pveguard.hardening.sshd import Who


def test_members_are_asked_at_once_and_answers_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    everybody = threading.Barrier(3, timeout=60)

    def prove(who: Who, *, seconds: float) -> dict[str, Any]:
        # None goes on before all of them have begun.
        everybody.wait()
        return {"name": who.name, "seconds": seconds}

    monkeypatch.setattr(sshd_proof, "prove", prove)
    targets = [Who(name, "192.0.2.1") for name in ("pve2", "pve3", "pve4")]
    assert [each["name"] for each in sshd_proof.prove_all(targets, seconds=7)] == ["pve2", "pve3", "pve4"]
    assert sshd_proof.prove_all([]) == []
