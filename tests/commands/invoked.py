"""The command, called within the test's process."""

from __future__ import annotations

from typer.testing import CliRunner

from freewheel.cli import app

runner = CliRunner()


def run(*arguments: str, code: int = 0) -> str:
    """What the command prints; it must end with this exit code."""
    result = runner.invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.output
