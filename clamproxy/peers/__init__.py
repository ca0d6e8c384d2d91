"""Other gateways: their state and machines, shown with this gateway's own."""
