# SPDX-License-Identifier: Apache-2.0
"""Exit codes of pve-state, and the errors that end with them."""

from __future__ import annotations

VERSION = "1"
EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3
EXIT_DAMAGED = 4
EXIT_STORE = 5
EXIT_LOCKED = 6
EXIT_RESTORE = 7
EXIT_SWITCH = 8


class StateError(Exception):
    """A failure with a message for an operator and an exit code."""

    code = EXIT_ERROR


class UsageError(StateError):
    code = EXIT_USAGE


class Refused(StateError):
    code = EXIT_REFUSED


class Damaged(StateError):
    code = EXIT_DAMAGED


class StoreError(StateError):
    code = EXIT_STORE


class Locked(StateError):
    code = EXIT_LOCKED


class NotRead(StateError):
    """A database could not be looked at this time; that says nothing of what it holds."""


class RestoreError(StateError):
    code = EXIT_RESTORE


class SwitchError(StateError):
    code = EXIT_SWITCH
