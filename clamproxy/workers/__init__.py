"""Several processes of one machine that share the listening ports and the cache (`clamproxy run --workers`).

The parent opens the ports, starts the workers, watches them, and speaks for all of them to the service
manager and to `clamproxy reload`. Each worker is a whole proxy.
"""
