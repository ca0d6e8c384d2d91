"""Releases: what a new version brings, fetched ahead, and what the cached patches make of it."""
