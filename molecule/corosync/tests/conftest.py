# SPDX-License-Identifier: Apache-2.0
"""The fixtures of molecule/shared/corosync_fixtures.py."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "molecule/shared"), str(ROOT / "module_utils")]

import nodes  # noqa: E402
import pytest  # noqa: E402
from corosync_fixtures import background, console, ephemeral, in_order, lab, look, playbook, recover  # noqa: E402

__all__ = ["background", "console", "ephemeral", "in_order", "lab", "look", "playbook", "recover"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    nodes.sort_by_folder(items, ["change", "drift", "membership", "dead"])
