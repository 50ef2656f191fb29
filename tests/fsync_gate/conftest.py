# SPDX-License-Identifier: Apache-2.0
"""The disk below the tests."""

from __future__ import annotations

import pytest
from ansible.module_utils.pveguard.gates import suspicion


@pytest.fixture
def unsuspected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk of a machine with tests may be a virtual one that is too fast to be honest."""
    monkeypatch.setattr(suspicion, "suspects", lambda *_: [])
