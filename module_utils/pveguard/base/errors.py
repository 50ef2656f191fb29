"""The error every core raises for a condition that an operator can act on."""

from __future__ import annotations


class PveguardError(Exception):
    """A refusal or failure with a message fit for an operator.

    The message names the file or object, the value seen, the value wanted and the variable or command that helps.
    Module shells turn it into ``fail_json(msg=str(error))``; the host name is added by Ansible.
    """
