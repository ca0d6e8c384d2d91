"""The load: machines that send freshclam's requests, cheap enough that the server is the limit."""
