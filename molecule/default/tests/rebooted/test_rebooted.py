# SPDX-License-Identifier: Apache-2.0
"""What was written right before all nodes rebooted is there again."""

from __future__ import annotations

from typing import Any


def test_last_change_before_the_reboot_survived(everywhere: Any) -> None:
    look = everywhere("look.py")
    seen = {name: node["markers"]["molecule-reboot"] for name, node in look.items()}
    assert seen == dict.fromkeys(look, "written before the reboot\n")
