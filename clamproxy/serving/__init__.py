"""Serving: turns a request for a file of ClamAV into a response."""
