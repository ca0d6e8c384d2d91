"""What is wrong between a machine and its signatures, and what to do about it."""
