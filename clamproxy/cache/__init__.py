"""The cache: published objects, partial files and the index, below the cache directory."""
