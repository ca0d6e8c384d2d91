"""ClamAV's files: reading CVDs, CLDs, cdiffs and signatures, and proving that they are genuine."""
