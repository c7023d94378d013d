"""``python -m freewheel`` is the command ``freewheel``."""

from freewheel.cli import main

main()
