"""The options of `dtg submit` and `dtg jobs`: stages on a cluster that is somewhere else."""

from __future__ import annotations

import argparse
import copy
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

from dtg_ray import verbs_cluster as does

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
OF_A_DRIVER = ("address", "inline", "cpus")
"""Options of a stage about its own Ray: a job has that of its cluster."""
EPILOG = (
    "The exit code is that of the stage: 0 all done, 1 failed, 2 usage, 3 done but some subjects failed; 130 when the "
    "job was stopped. Ctrl-C ends following, not the job."
)


def add(verbs: Any, add_stages: Callable[[Any], None]) -> None:  # argparse gives this object no public name
    """`submit` with every stage below it, and `jobs`.

    Parameters
    ----------
    verbs : object
        Of `ArgumentParser.add_subparsers`.
    add_stages : callable
        Adds all stages that run on a cluster to such an object.
    """
    text = "run a stage on a Ray cluster elsewhere and follow it"
    submit = verbs.add_parser("submit", help=text, description=text, epilog=EPILOG)
    again = functools.partial(argparse.ArgumentParser, conflict_handler="resolve")  # some options mean something else
    stages = submit.add_subparsers(title="stages", required=True, metavar="STAGE", parser_class=again)
    add_stages(stages)
    for name, parser in stages.choices.items():
        _add_submission(name, parser)
    _add_jobs(verbs)


def _add_submission(name: str, parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("--inline", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--cpus", type=int, help=argparse.SUPPRESS)
    if name in ("predict", "run"):
        parser.add_argument("--scheduler", help="of Dask: ray (default), threads, or tcp://HOST:PORT of a cluster")
    own = [_kept(action) for action in parser._actions]  # noqa: SLF001 - it has no public name
    group = parser.add_argument_group("cluster")
    _add_connection(group)
    group.add_argument("--no-follow", action="store_true", help="print the job's id and return")
    group.add_argument("--beside", action="store_true", help="though a job of this stage and study is running")
    group.add_argument(
        "--env", action="append", default=[], metavar="NAME[=VALUE]", help="a variable of the job's environment"
    )
    group.add_argument("--driver-cpus", type=float, metavar="N", help="reserved for the driver (default: none)")
    group.add_argument("--driver-memory", type=n_bytes, metavar="SIZE", help="reserved for the driver, such as 8GB")
    group.add_argument("--installed", action="store_true", help="use the dtg_ray of the cluster's image, upload none")
    group.add_argument(
        "--shared-filesystem", action="store_true", help="local paths are the same files on every node of the cluster"
    )
    parser.set_defaults(verb=functools.partial(_submit, own), stage=name)


def _kept(action: argparse.Action) -> argparse.Action:
    """An option of the stage as it is: argparse takes the name from one when another of that name is added."""
    kept = copy.copy(action)
    kept.option_strings = list(action.option_strings)
    return kept


def _submit(own: Sequence[argparse.Action], options: argparse.Namespace) -> int:
    return does.submit(options, functools.partial(words, own))


def words(actions: Sequence[argparse.Action], options: argparse.Namespace) -> list[str]:
    """The command line that gives these options to the parser of these actions."""
    positional: list[str] = []
    optional: list[str] = []
    for action in actions:
        value = getattr(options, action.dest, None)
        if value == action.default or value is None or action.dest in OF_A_DRIVER:
            continue
        values = [str(item) for item in value] if isinstance(value, list) else [str(value)]
        if not action.option_strings:
            positional += values
        elif value is True:
            optional.append(action.option_strings[0])
        elif isinstance(value, list):
            optional += [action.option_strings[0], *values]
        else:
            optional.append(f"{action.option_strings[0]}={value}")
    return positional + optional


def _add_jobs(verbs: Any) -> None:  # argparse gives this object no public name
    text = "the jobs of `dtg submit` on a cluster: list, follow, stop"
    jobs = verbs.add_parser("jobs", help=text, description=text, epilog=EPILOG)
    _add_connection(jobs)
    what = jobs.add_mutually_exclusive_group()
    what.add_argument("--follow", metavar="ID", help="show the job's log from its beginning, return its exit code")
    what.add_argument("--stop", metavar="ID", help="stop the job, and wait until it has stopped")
    jobs.add_argument("--json", action="store_true", help="for programs")
    jobs.set_defaults(verb=does.jobs)


def _add_connection(group: Any) -> None:  # argparse gives this object no public name
    group.add_argument(
        "--address",
        metavar="URL",
        help="the cluster's dashboard, such as http://127.0.0.1:8265 (default: RAY_API_SERVER_ADDRESS)",
    )
    group.add_argument(
        "--patience", type=float, default=10, metavar="MINUTES", help="how long the cluster may be away (default: 10)"
    )
    group.add_argument(
        "--allow-unauthenticated", action="store_true", help="though the cluster asks nobody for a token"
    )


def n_bytes(text: str) -> int:
    """Bytes of a size for people: 8GB, 512MiB."""
    size = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?", text.strip().upper())
    if size is None:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a size such as 8GB")
    return int(float(size[1]) * UNITS[size[2] or ""])
