# SPDX-License-Identifier: Apache-2.0
"""The programs of bench/ find each other beside themselves."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))
