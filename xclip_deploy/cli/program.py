"""The ``xclip-deploy`` program, which finds commands and turns errors into exit statuses."""

from __future__ import annotations

import importlib
import logging
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from xclip_deploy import __version__
from xclip_deploy.cli.display import say
from xclip_deploy.cli.options import Group
from xclip_deploy.cli.streams import READER_GONE_STATUS, ReaderGone, standard_streams
from xclip_deploy.errors import XclipDeployError

# This maps a command's name to its module and its line in --help. A module is imported when its
# command runs, so that one command does not load the libraries of another.
_COMMANDS = {
    "train": ("train", "Train a model on videos with captions."),
    "export": ("export", "Export a checkpoint to a bundle of ONNX graphs."),
    "build-trt": ("build_trt", "Build the TensorRT engines of a bundle."),
    "build-scan": ("build_scan", "Compile the kernels that search galleries on a GPU."),
    "export-triton": ("export_triton", "Write a model repository for Triton Inference Server."),
    "index": ("index", "Bring a gallery up to date with folders of videos."),
    "gallery": ("gallery", "List, show and remove videos of a gallery, or compact it."),
    "search": ("search", "Find videos of a gallery by text, video or image."),
    "cut": ("cut", "Cut seconds out of a video, with sound."),
    "explain": ("explain", "Explain why a video has its score for a text."),
    "evaluate": ("evaluate", "Measure retrieval of a bundle or checkpoint on a dataset."),
    "verify": ("verify", "Compare every graph and engine of a bundle with its model."),
    "bench": ("bench", "Measure how fast a bundle runs on this machine."),
    "serve": ("serve", "Serve a page and a JSON API over a bundle and a gallery."),
    "inspect": ("inspect", "Show what is in a bundle."),
}


class _Commands(Group):
    """A group that imports a command when the command is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"xclip_deploy.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's
        """Run a command. Raises RuntimeError for a broken pipe, which click would pass over.

        The pipe is another than standard output, whose failures are not OSErrors here.
        """
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise RuntimeError(f"a process or connection went away ({error})") from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="xclip-deploy")
@click.option("-v", "--verbose", is_flag=True, help="Show the log messages of the libraries.")
@click.option("--traceback", is_flag=True, expose_value=False, help="Show an error's traceback.")
def cli(verbose: bool) -> None:
    """Take an X-CLIP video-text retrieval model from a checkpoint to search.

    Exit statuses: 0 done, 1 unexpected error, 2 wrong usage, 3 something is not installed,
    4 checkpoint, 5 export, 6 bundle, 7 engine, 8 video, 9 device or session, 10 gallery,
    11 dataset, 12 training, 13 verification, 14 standard output cannot be written (closed,
    or a full disk), 15 service, 130 interrupted, 141 the reader of standard output went away.

    Completion of commands and options in bash:
    eval "$(_XCLIP_DEPLOY_COMPLETE=bash_source xclip-deploy)"; zsh_source and fish_source
    serve the other shells.

    Messages go to standard error. If that is closed or full, they are lost, and the status
    alone tells the result.
    """
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(name)s: %(message)s", handlers=[_LogLines()])


class _LogLines(logging.Handler):
    """Log messages on standard error, escaped."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record in one line."""
        try:
            say(_one_line(self.format(record)), err=True)
        except Exception:  # noqa: BLE001 - as every handler of logging does
            self.handleError(record)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status.

    Args:
        arguments: Words after the program's name; None takes those of the process.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    with standard_streams():
        status = _run(arguments)
    sys.exit(status)


def _run(arguments: Sequence[str]) -> int:
    # The option acts here, and not in the command.
    shows_traceback = "--traceback" in arguments
    try:
        # Users add this option afterwards, so it may stand anywhere on the line.
        rest = [argument for argument in arguments if argument != "--traceback"]
        status = cli.main(rest or ["--help"], prog_name="xclip-deploy", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        return int(error.exit_code)
    except ReaderGone:
        return READER_GONE_STATUS
    except (click.Abort, KeyboardInterrupt):
        say("interrupted", err=True)
        return 130
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "xclip-deploy"
        message = error.format_message().rstrip(".")
        say(f"error: {message}; see: {command} --help", err=True)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - of which one line or a traceback is shown
        if shows_traceback:
            # The interpreter would print it unescaped and end with status 1.
            say(*traceback.format_exc().rstrip().split("\n"), err=True)
        elif isinstance(error, XclipDeployError):
            say(f"error: {error}", err=True)
        else:
            say(
                f"unexpected error: {type(error).__name__}: {_one_line(error)} "
                "(run again with --traceback to see where)",
                err=True,
            )
        return error.exit_code if isinstance(error, XclipDeployError) else 1
    return int(status or 0)


def _one_line(error: object) -> str:
    """Return the text of a library, which may have several lines, as one."""
    return " ".join(str(error).split())
