"""What an administrator installs on the machines of the site."""
