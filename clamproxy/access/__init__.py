"""Who may use the gateway, and with how many connections at a time."""
