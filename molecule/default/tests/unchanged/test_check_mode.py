# SPDX-License-Identifier: Apache-2.0
"""Check mode changed nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def after(everywhere: Any) -> dict[str, Any]:
    found = everywhere("fingerprint.py")
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("what", ["files", "packages", "unit_files", "units", "mounts", "rows"])
def test_is_as_before(what: str, ephemeral: Path, after: dict[str, Any]) -> None:
    for name, fingerprint in after.items():
        before = json.loads((ephemeral / "before" / f"{name}.json").read_text())
        assert fingerprint[what] == before[what], f"{name}: {what}"
