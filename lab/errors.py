"""The one error of the lab tool."""

from __future__ import annotations


class LabError(Exception):
    """A condition the user can act on; shown as one line on stderr, exit status 2."""
