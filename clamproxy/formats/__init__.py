"""ClamAV's files: CVDs, cdiffs and signatures, read and proven."""
