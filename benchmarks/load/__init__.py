"""The load: machines that ask as freshclam does, cheap enough that the server is the limit."""
