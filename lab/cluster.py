"""Profile ``cluster``: nodes made a cluster by hand, in the steps of pvecm, with a few guest configurations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import LabError

if TYPE_CHECKING:
    from .labs import Lab


def build(lab: Lab, nodes: Sequence[str]) -> None:
    raise LabError("profile cluster is not there yet")
