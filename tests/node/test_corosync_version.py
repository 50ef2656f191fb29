# SPDX-License-Identifier: Apache-2.0
"""The config_version that programs on a node read without the document."""

from __future__ import annotations

import pytest
from ansible.module_utils.pveguard.formats import corosync_conf, corosync_version


@pytest.mark.parametrize(
    ("value", "version"),
    [
        ("7", 7), ("007", 7), ("0", 0), (str(2**64 - 1), 2**64 - 1), (str(2**64), 2**64 - 1), ("9" * 5000, 2**64 - 1),
        ("0" * 5000 + "7", 7), ("seven", None), ("7.0", None), ("7 8", None), ("", None), ("\u0667", None),
    ],
)  # fmt: skip
def test_what_is_read(value: str, version: int | None) -> None:
    assert corosync_version.config_version(f"totem {{\n  version: 2\n\tconfig_version: {value}\n}}\n") == version


def test_what_cannot_be_parsed_is_read_too() -> None:
    assert corosync_version.config_version("totem {\nconfig_version : 3\n}}}}\x00") == 3
    assert corosync_version.config_version("totem {\n  # config_version: 3\n}\n") is None


def test_the_document_reads_the_same() -> None:
    text = "totem {\n  cluster_name: c\n  config_version: 12\n}\n"
    assert corosync_version.config_version(text) == corosync_conf.parse(text).config_version == 12
