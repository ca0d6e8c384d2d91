"""What an administrator puts on the machines of the site."""
