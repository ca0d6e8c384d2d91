"""Benchmarks of clamproxy: `python -m benchmarks.throughput`, see README.md beside this file."""
