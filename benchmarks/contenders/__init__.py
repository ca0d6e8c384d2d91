"""The contenders: servers that a site may put in front of its machines, each in its own module."""
