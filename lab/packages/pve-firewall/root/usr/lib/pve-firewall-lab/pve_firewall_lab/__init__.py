# SPDX-License-Identifier: Apache-2.0
"""Lab doubles of Proxmox's two firewalls, for tests only; written from documentation and from what was measured.

It shares no code with the product on purpose: a common mistake would be seen by no test.
"""
