"""Cores of pveguard: pure Python, standard library only, no Ansible imports, one subject a file."""
