"""The subcommands of ``freewheel``, one a file; cli.py puts them together."""
