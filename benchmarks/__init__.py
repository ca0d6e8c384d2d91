"""Benchmarks of clamproxy: `python -m benchmarks.peers` and others; README.md here describes them."""
