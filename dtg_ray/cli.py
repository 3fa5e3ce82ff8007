"""The command line: parses, calls a verb, and turns what happened into an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from dtg_ray.arguments import parser
from dtg_ray.errors import DTGError
from dtg_ray.stages.telemetry import logs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `dtg`; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        logs.set_up()
        return int(options.verb(options))
    except DTGError as error:
        return _complain(str(error), error.hint, error.exit_code)
    except BrokenPipeError:  # whoever reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        from dtg_ray.store.files import is_trouble

        if os.environ.get("DTG_TRACEBACK") or not is_trouble(error):
            raise
        return _complain(f"storage: {type(error).__name__}: {error}", "DTG_TRACEBACK=1 shows where")
    except KeyboardInterrupt:
        print(
            "dtg: interrupted; what has a receipt is done, the same command goes on from there",
            file=sys.stderr,
        )
        return 130


def _complain(message: str, hint: str = "", exit_code: int = 1) -> int:
    print(f"dtg: {message}", file=sys.stderr)
    if hint:
        print(f"     {hint}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
