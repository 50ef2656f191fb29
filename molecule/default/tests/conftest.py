# SPDX-License-Identifier: Apache-2.0
"""The nodes as every scenario sees them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "shared"))

import nodes as shared

ephemeral, everywhere, nodes = shared.ephemeral, shared.everywhere, shared.nodes
