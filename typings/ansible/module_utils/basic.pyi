# SPDX-License-Identifier: Apache-2.0
"""What the modules use of AnsibleModule; Ansible itself has no types."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

class AnsibleModule:
    params: dict[str, Any]
    check_mode: bool
    _diff: bool  # --diff; the name is the documented one

    def __init__(
        self,
        argument_spec: Mapping[str, Mapping[str, Any]],
        *,
        mutually_exclusive: Sequence[Sequence[str]] = ...,
        required_together: Sequence[Sequence[str]] = ...,
        required_one_of: Sequence[Sequence[str]] = ...,
        required_if: Sequence[Sequence[Any]] = ...,
        required_by: Mapping[str, Sequence[str]] = ...,
        supports_check_mode: bool = ...,
    ) -> None: ...
    def warn(self, warning: str) -> None: ...
    def exit_json(self, **results: Any) -> NoReturn: ...
    def fail_json(self, msg: str, **results: Any) -> NoReturn: ...
    def _log_invocation(self) -> None: ...
