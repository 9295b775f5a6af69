"""The command line. Each command calls one public function of the package."""

from xclip_deploy.cli.program import main

__all__ = ["main"]
