"""The lab: Debian virtual machines under QEMU in which pveguard is tried and tested."""
