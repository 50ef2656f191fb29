# SPDX-License-Identifier: Apache-2.0
"""Filters, on the controller only: the one room that knows Ansible. Each file lists its own in FILTERS."""

from pathlib import Path

#: The checkout.
ROOT = Path(__file__).resolve().parents[3]
