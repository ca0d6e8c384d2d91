"""Serving: from a request to the response."""
