# SPDX-License-Identifier: Apache-2.0
"""The fixtures of molecule/shared/corosync_fixtures.py."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "molecule/shared"), str(ROOT / "module_utils")]

from corosync_fixtures import background, console, ephemeral, in_order, lab, look, playbook  # noqa: E402

__all__ = ["background", "console", "ephemeral", "in_order", "lab", "look", "playbook"]
