"""clamproxy: a caching forward HTTP proxy for ClamAV signature databases."""
