# SPDX-License-Identifier: Apache-2.0
"""How a bench of many rounds ends: its summary, and the exit status that says whether anything was violated."""

from __future__ import annotations

import json
from typing import Any


def show(totals: Any, as_json: bool) -> int:
    """Print the fields of ``totals``, of which ``violations`` is a list of texts; 1 when there are any, else 0."""
    if as_json:
        print(json.dumps(vars(totals), indent=2))
    else:
        for key, value in vars(totals).items():
            if key != "violations":
                print(f"{key.replace('_', ' '):28} {value}")
        for line in totals.violations:
            print(line)
    return 1 if totals.violations else 0
