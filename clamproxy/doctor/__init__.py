"""The doctor: what is wrong between a machine and its virus signatures, and what to do about it."""
