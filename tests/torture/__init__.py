"""Tries to break the promises of SECURITY.md: at length by `make torture`, a little by `make test`."""
