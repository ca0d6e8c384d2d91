"""Several gateways with one object store: what a site costs the origin, and what it survives."""
