"""Releases: fetching new versions ahead of clients, and what the cached patches make of them."""
