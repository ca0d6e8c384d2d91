"""Serving: from a request to the reply."""
