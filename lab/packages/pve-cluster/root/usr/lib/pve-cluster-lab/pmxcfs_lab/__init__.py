# SPDX-License-Identifier: Apache-2.0
"""Lab double of pmxcfs, the cluster file system of Proxmox VE.

For tests only. It shows the paths, limits, writes and failures of the real daemon, and nothing of its code:
it is written from measurements of behaviour, in Python over the FUSE kernel interface, SQLite and libcpg.

memdb       the tree in memory and its SQLite backend: one transaction per update
fuse        the FUSE kernel protocol on /dev/fuse, no library
filesystem  file operations and virtual files on top of memdb
dcdb        ordered updates and state synchronisation between members, over any transport
corosync    the transport over libcpg and libquorum
hostconf    the two copies of corosync.conf
rrd         statistics: from pvestatd, to all members, into rrdcached
daemon      start, event loop, stop

Like the real one it opens its database and then forks, so it holds no lock that another process could see, and the
next process that opens the live database through SQLite in the ordinary way (also with mode=ro) truncates the file
config.db-shm that the daemon has mapped: it dies of SIGBUS. With `-f` there is no fork and the locks are held: that is
kinder than what runs on a node, so tests and units start it without.
"""
