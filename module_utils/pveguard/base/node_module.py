"""AnsibleModule whose line in the node's log stays a line.

Every module call is logged with its parameters. Here those carry report pages and the texts of files: 100 KiB a run in a
journal that may lie on the very disk whose writes are to be saved.
"""

from __future__ import annotations

from typing import Any

from ansible.module_utils.basic import AnsibleModule

#: Characters of one value that are logged; a corosync.conf of 16 nodes is about this long.
LOGGED = 2000


def shortened(value: Any) -> Any:
    """``value`` with the length in place of each text in it that is longer than LOGGED."""
    if isinstance(value, str):
        return value if len(value) <= LOGGED else f"({len(value)} characters)"
    if isinstance(value, dict):
        return {key: shortened(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shortened(each) for each in value]
    return value


class NodeModule(AnsibleModule):
    """AnsibleModule, with long parameters logged by their length."""

    params: dict[str, Any]

    # Private in Ansible, which has no public way: no_log hides a value in the result as well.
    def _log_invocation(self) -> None:
        whole = self.params
        self.params = shortened(whole)
        try:
            super()._log_invocation()
        finally:
            self.params = whole
