"""Leases: work that only one process of a machine, or one gateway of a site, should do at a time."""
