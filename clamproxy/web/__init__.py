"""The gateway's pages about itself: status, metrics, health, and what clients need to be set up."""
