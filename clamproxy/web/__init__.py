"""The gateway's own pages: status, metrics, health, and what is needed to set up clients."""
