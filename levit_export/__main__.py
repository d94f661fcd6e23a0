"""``python -m levit_export`` is the command ``levit-export``."""

from levit_export.cli import main

main()
