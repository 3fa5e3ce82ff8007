"""The verb `dtg doctor`: its options and what it prints. Heavy imports are inside."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add(verbs: Any) -> None:  # argparse gives this object no public name
    """Make it a verb of the command line."""
    text = "check versions, Ray, GPU, rights on the study's place, clocks, disks, and say what to do"
    epilog = "exit codes: 0 all is well, or there are warnings; 1 a check failed"
    verb = verbs.add_parser("doctor", help=text, description=text, epilog=epilog)
    verb.add_argument("study", nargs="?", help="root of a study: a folder or s3://bucket/prefix; need not be there yet")
    verb.add_argument("--address", help="a running Ray cluster, e.g. auto; default: RAY_ADDRESS, or a Ray of its own")
    verb.add_argument("--json", action="store_true", help="everything as one line of JSON")
    verb.set_defaults(verb=doctor)


def doctor(options: argparse.Namespace) -> int:
    """Check everything; exit code 1 when something has to be done."""
    import json
    from dataclasses import asdict

    import pandas as pd

    from dtg_ray.report import tables
    from dtg_ray.stages.doctor.visit import visit, worst
    from dtg_ray.stages.runtime import Options

    findings = visit(options.study, Options(address=options.address))
    state = worst(findings)
    if options.json:
        sys.stdout.write(json.dumps({"state": state, "checks": [asdict(one) for one in findings]}) + "\n")
    else:
        rows = [(one.name, one.state, one.found, one.advice) for one in findings]
        tables.show("dtg doctor", pd.DataFrame(rows, columns=["check", "state", "found", "what to do"]))
    return int(state == "fail")
