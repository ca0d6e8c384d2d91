"""The cache directory."""
