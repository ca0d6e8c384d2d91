"""The object store of a site as this program uses it: within limits of time, and with one kind of error."""
