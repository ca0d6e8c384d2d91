"""Benchmarks of clamproxy: `python -m benchmarks.peers` and others, see README.md beside this file."""
