"""``python -m clamproxy.cli``."""

from clamproxy.cli import main

main(prog_name="clamproxy")
