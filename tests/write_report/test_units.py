# SPDX-License-Identifier: Apache-2.0
"""Texts of numbers, bytes, rates and durations."""

from __future__ import annotations

import pytest
from ansible.module_utils.pveguard.base import units


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "unknown"),
        (0, "0"),
        (0.004, "<0.01"),
        (0.05, "0.05"),
        (1.5, "1.5"),
        (36, "36"),
        (36.04, "36"),
        (99.96, "100"),
        (2049, "2,049"),
        (108.4, "108"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    assert units.number_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "unknown"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (4096, "4 KiB"),
        (53248, "52 KiB"),
        (1395864, "1.33 MiB"),
        (2794303488, "2.6 GiB"),
        (1024 * 1024, "1 MiB"),
        (2**70, "1,048,576 PiB"),
    ],
)
def test_bytes(value: float | None, text: str) -> None:
    assert units.bytes_text(value) == text


def test_rate() -> None:
    assert units.rate_text(4096) == "4 KiB/min"
    assert units.rate_text(4096, "s") == "4 KiB/s"
    assert units.rate_text(None) == "unknown"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "unknown"),
        (0, "0 s"),
        (0.4, "0.4 s"),
        (59, "59 s"),
        (59.7, "1 min"),
        (125, "2 min 5 s"),
        (3600, "1 h"),
        (15000, "4 h 10 min"),
        (86400 * 3 + 4 * 3600, "3 d 4 h"),
        (86405, "1 d"),
        (-125, "-2 min 5 s"),
    ],
)
def test_duration(value: float | None, text: str) -> None:
    assert units.duration_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "unknown"),
        (0, "0 s"),
        (0.05, "18 d"),
        (0.4, "5 months"),
        (0.95, "11 months"),
        (0.97, "1 year"),
        (2.74, "2.7 years"),
        (36.4, "36 years"),
        (140, "over 100 years"),
    ],
)
def test_years(value: float | None, text: str) -> None:
    assert units.years_text(value) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (117, 6, "19.5 times less"),
        (117, 0, "none left"),
        (0, 6, "none before"),
        (0, 0, "as before"),
        (100, 100.5, "as before"),
        (100, 120, "+20 %"),
        (6, 15, "2.5 times more"),
        (None, 6, "unknown"),
        (6, None, "unknown"),
    ],
)
def test_change(before: float | None, after: float | None, text: str) -> None:
    assert units.change_text(before, after) == text


def test_times_and_ages() -> None:
    assert units.time_text("2026-11-21T10:20:30Z") == "2026-11-21 10:20 UTC"
    assert units.time_text(None) == units.time_text("2026-11-21T10:20:30") == "unknown"
    assert units.age_seconds("2026-11-21T10:20:30Z", "2026-11-21T10:21:30Z") == 60
    assert units.age_seconds("2026-11-21T10:21:30Z", "2026-11-21T10:20:30Z") == 0, "clocks differ a little"
    assert units.age_seconds("yesterday", "2026-11-21T10:20:30Z") is None
    assert units.percent_text(12) == "12 %" and units.percent_text(None) == "unknown"
