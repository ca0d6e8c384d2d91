"""The origin: what it advertises, and how it is asked."""
