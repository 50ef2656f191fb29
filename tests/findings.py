# SPDX-License-Identifier: Apache-2.0
"""Findings in tests. ``tests/project/test_findings.py`` looks for the id of every check in a call of a function named
``finding``.
"""

from __future__ import annotations

from collections.abc import Iterable

from ansible.module_utils.pveguard.base.findings import GOOD, SEVERITIES, Finding


def finding(found: Iterable[Finding | None], id: str) -> Finding:
    """The one finding with this id; it tells what was seen and ends with what helps."""
    (each,) = [each for each in found if each and each.id == id]
    well_said(each)
    return each


def well_said(each: Finding) -> None:
    assert each.severity in SEVERITIES and each.text and not each.text.endswith("."), each
    if each.severity == GOOD:
        assert not each.helps, each
    else:
        assert each.helps and each.sentence.endswith(each.helps) and len(each.sentence) > len(each.helps), each
