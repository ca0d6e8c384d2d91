"""The mitmproxy layer: the only part of clamproxy that imports mitmproxy."""
