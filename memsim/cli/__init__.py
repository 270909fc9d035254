"""The command line of memsim: each subcommand has a module that parses, calls the library and shows the result."""

from __future__ import annotations

import functools
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from memsim.cli.eval import command as evaluate_command
from memsim.cli.fit_device import command as fit_device_command
from memsim.cli.lm import command as lm_command
from memsim.cli.map import command as map_command
from memsim.cli.qat import command as qat_command
from memsim.errors import InputError, Stopped
from memsim.version import __version__

RESUMABLE = 75
"""The exit status of a job that a signal stopped with its work saved (EX_TEMPFAIL of sysexits.h)."""

_INTERRUPTED = "interrupted; no half-written file is left"


class _PlainHelp:
    """Help in which flags show no value, as they take none; it is mixed in before the class of a command."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters; flags among them have an empty metavar."""
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if getattr(parameter, "is_flag", False) and parameter.metavar is None:
                parameter.metavar = ""
        return parameters

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help; raise BrokenPipeError, where rich would end the process, when its reader has left."""
        try:
            super().format_help(ctx, formatter)  # type: ignore[misc]
        except SystemExit:
            raise BrokenPipeError from None


class _Command(_PlainHelp, TyperCommand):
    """A subcommand."""


class _Group(_PlainHelp, TyperGroup):
    """The command that has subcommands."""


app = typer.Typer(
    name="memsim",
    help="Simulate neural networks whose matrix products run on memristor crossbars.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    cls=_Group,
    epilog="First example: memsim eval demo --data demo --hardware best",
)


class _Terminated(BaseException):
    """A stop signal other than Ctrl-C that arrives when there is no work to save."""


def _raise_terminated(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _is_resumable() -> bool:
    """Whether the same command can be typed again to continue: true for qat, and for eval with --results."""
    command, *words = [*sys.argv[1:], ""]
    return command == "qat" or (command == "eval" and any(word.split("=")[0] == "--results" for word in words))


def _guarded(command: Callable[..., None], out_of_memory: str) -> Callable[..., None]:
    """Wrap `command` so that it reports a failure as one line and an exit status.

    Args:
        command: The function that parses, calls the library and shows the result.
        out_of_memory: Advice on saving memory, shown when memory runs out.
    """

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            if options.get("quiet") and options.get("verbose"):
                raise InputError("--quiet --verbose: contradict each other; leave one out")
            command(*args, **options)
            sys.stdout.flush()  # so that a full disk fails here and not while Python exits
        except KeyboardInterrupt:
            _fail(_INTERRUPTED, 130)
        except Stopped as stop:
            _fail(str(stop), 130 if stop.by_keyboard else RESUMABLE)
        except InputError as error:
            _fail(str(error), 2)
        except BrokenPipeError:  # the reader of the output has closed the pipe
            _abandon_standard_output()
            sys.exit(0)
        except (FloatingPointError, OSError) as error:
            _fail(str(error) or type(error).__name__, 1)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            _fail(f"out of memory ({_in_short(error)}); {out_of_memory}", 1)

    return run


def _fail(message: str, status: int) -> NoReturn:
    """Print `message` on standard error and exit with `status`."""
    print(f"memsim: {message}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except OSError:
        _abandon_standard_output()
    sys.exit(status)


def _complete_streams() -> None:
    """Replace closed standard streams, and escape characters that a stream's encoding lacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - open until the process ends
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _abandon_standard_output() -> None:
    """Redirect standard output to the null device; otherwise Python reports a write error when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that memory ran out, in Python or in torch on a CPU or a GPU."""
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _in_short(error: BaseException) -> str:
    """Return the sentence in which torch or numpy says how much memory it tried to allocate."""
    wanted = re.search(r"[^.:\n]*(?:[Tt]ried|[Uu]nable) to allocate [\d.]+ \w+", str(error))
    return wanted[0].strip() if wanted else type(error).__name__


_ON_GPU = "--compute cpu uses the machine's memory instead of the GPU's"

COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "fit-device": (
        fit_device_command,
        "a smaller --order, --components 1 or fewer cycles per device need less memory",
    ),
    "map": (
        map_command,
        "--exclude GLOB keeps large layers digital; running without --budget, --cost or --report also saves memory",
    ),
    "qat": (
        qat_command,
        "in the recipe (--config FILE) a larger `accumulate` splits each batch into more parts, "
        "`gradient_checkpointing: true` keeps fewer activations, a smaller `batch_seconds` makes batches shorter, "
        f"and a smaller `feature_cache_gigabytes` caches less; {_ON_GPU}",
    ),
    "eval": (evaluate_command, f"--jobs 1 and smaller --beam-size and --nbest need less memory; {_ON_GPU}"),
    "lm": (lm_command, "--order 2 needs less memory; for text that does not fit in memory use KenLM's lmplz"),
}
"""The function of each command, and advice on saving memory."""

for _name, (_command, _advice) in COMMANDS.items():
    app.command(_name, cls=_Command)(_guarded(_command, _advice))


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"memsim {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(2)


def _reason(error: typer.TyperException) -> str:
    """Return what is wrong with the arguments, with the value that was typed where typer leaves it out."""
    problems = getattr(error.__context__, "errors", None)  # pydantic's, by which newer typers check values
    options = getattr(getattr(error, "param", None), "opts", [])
    if not callable(problems) or not options:
        return " ".join(error.format_message().split()).rstrip(".")
    problem = problems()[0]
    said = str(problem["msg"]).removeprefix("Input ").partition(",")[0]
    return f"{max(options, key=len)} {problem['input']}: {said}"


def main() -> None:
    """Run the command line.

    The exit status is 0 for success, 1 for a failure, 2 for bad input (one line), 75 for a stop by a signal with the
    work saved, and 130 for an interruption by Ctrl-C.
    """
    # Let idle threads of torch spin only briefly. On a busy machine they would otherwise take a core from threads that
    # have work. libgomp reads this when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    _complete_streams()
    logging.basicConfig(format="memsim: %(message)s", level=logging.WARNING)
    for stop in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, stop):
            signal.signal(getattr(signal, stop), _raise_terminated)
    try:
        status = app(prog_name="memsim", standalone_mode=False)
        sys.stdout.flush()  # the output of --help and --version
        sys.exit(status)
    except _Terminated:
        _fail(_INTERRUPTED, RESUMABLE if _is_resumable() else 130)
    except BrokenPipeError:
        _abandon_standard_output()
        sys.exit(0)
    except OSError as error:
        _fail(str(error), 1)
    except typer.TyperException as error:  # the arguments are wrong
        context = getattr(error, "ctx", None)
        command = "memsim" if context is None else context.command_path
        _fail(f"{_reason(error)}; see {command} --help", 2)
    except typer.Abort:  # Ctrl-C before the command began
        _fail("interrupted", 130)
