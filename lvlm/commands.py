"""What the three command lines (`python -m lvlm`, `sweeps`, `ablations`) share: overrides in any place, an example to
paste under every `--help`, and one way to end. Imports nothing heavy."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from lvlm.errors import InputError, StartAgain
from lvlm.processes import AFTER_THE_FIRST, STARTS_AGAIN, process_index

HOME_HELP = "work folder (default: the environment variable LVLM_HOME, else ./runs)"
Command = Callable[[argparse.Namespace], int | None]


class CommandLine:
    """A parser of subcommands; calling it runs one and returns the exit status."""

    def __init__(self, module: str, description: str, example: str) -> None:
        self.module = module
        self.parser = argparse.ArgumentParser(
            prog=f"python -m {module}",
            description=description,
            epilog=self._closing(example),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self._commands = self.parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(self, name: str, command: Command, text: str, example: str) -> argparse.ArgumentParser:
        """Add a subcommand; `example` is what follows `python -m module` in its closing line."""
        sub = self._commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=self._closing(example),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=command)
        return sub

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """0 or what the command returns; 2 with one paragraph on standard error for bad input, `STARTS_AGAIN` where the
        same command is to be started again, 130 after Ctrl-C."""
        options = self._parse(argv)
        options.called_with = list(sys.argv[1:] if argv is None else argv)
        try:
            return options.command(options) or 0
        except InputError as error:
            if process_index() > 0:
                time.sleep(AFTER_THE_FIRST)
            print(f"error: {error}", file=sys.stderr)
            return STARTS_AGAIN if isinstance(error, StartAgain) else 2
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:
            return 0
        except OSError as error:
            print(f"error: {_told(error)}", file=sys.stderr)
            return 2

    def _parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        options, rest = self.parser.parse_known_args(argv)
        # Overrides may stand behind options (`train tiny --home x seed=1`), where argparse does not look for them.
        overrides = [*getattr(options, "overrides", []), *rest]
        if rest and not hasattr(options, "overrides"):
            self.parser.error(f"not understood here: {' '.join(rest)}")
        if wrong := [text for text in overrides if text.startswith("-") or "=" not in text]:
            self.parser.error(f"not understood: {' '.join(wrong)} (overrides are key=value)")
        options.overrides = overrides
        return options

    def _closing(self, example: str) -> str:
        return f"Example:\n  python -m {self.module} {example}"


def _told(error: OSError) -> str:
    """A refusal of the system in one paragraph, with the file that it names."""
    if error.filename is None:
        return " ".join(str(error).split()) or type(error).__name__
    files = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    return f"{files}: {error.strerror or type(error).__name__}."


def add_overrides(sub: argparse.ArgumentParser, text: str) -> None:
    """Let a command take `key=value` texts; `text` is their help."""
    sub.add_argument("overrides", metavar="key=value", nargs="*", default=[], help=text)
