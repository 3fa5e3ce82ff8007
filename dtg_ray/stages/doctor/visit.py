"""`dtg doctor`: every check, in the order in which things are needed."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
from pathlib import Path
from typing import Any

from dtg_ray.stages import pipeline
from dtg_ray.stages.cluster import room, shortage
from dtg_ray.stages.doctor import cluster, machine, storage
from dtg_ray.stages.doctor.findings import FAIL, HERE, OK, WARN, Finding, checked, failed, merged
from dtg_ray.stages.runtime import Options, Resources, gigabytes
from dtg_ray.store.files import Storage, is_remote
from dtg_ray.study import CONFIG, Study


def visit(uri: str | None, options: Options) -> list[Finding]:
    """Look at this machine, the place of a study, Ray and all its nodes, and whether the study fits them.

    Parameters
    ----------
    uri : str, optional
        Of a study, which need not be there yet.
    options : Options
        Address of a cluster; by default a Ray of its own is started.
    """
    place, findings = None, []
    if uri is not None:
        findings = checked("study", functools.partial(study, uri))
        place = _place(uri)
    folders = {"disk": place.root} if place and not is_remote(place.root) else {"disk": str(Path.cwd())}
    told = {HERE: machine.examine({}, folders) + (storage.examine(place, "", b"") if place else [])}
    with cluster.attached(options) as attached:
        findings += attached
        if attached[0].state == OK:
            address = options.address or os.environ.get("RAY_ADDRESS", "")
            try:
                together, by_node = cluster.examine(place, address)
                findings, told = findings + together, told | by_node
            except Exception as error:  # noqa: BLE001 - the doctor tells, whatever it is
                findings.append(failed("nodes", error, "`ray status`, and the logs of the head node"))
            if place and uri is not None:
                findings += checked("fits", functools.partial(fits, uri))
    return findings + merged(told)


def _place(uri: str) -> Storage | None:
    """Where a study is, or will be, with the settings it has; nothing where that is no place at all."""
    try:
        plain = Storage(uri)
    except Exception:  # noqa: BLE001 - `study` says why
        return None
    try:
        return Study(uri).storage
    except Exception:  # noqa: BLE001 - there is none yet, or its settings cannot be read
        return plain


def study(uri: str) -> Finding:
    """Whether a study is there, and can be understood."""
    one = Study(uri)
    if not Storage(uri).exists(CONFIG):
        return Finding("study", OK, f"{uri}: not made yet")
    return Finding("study", OK, f"{uri}: {len(one.cohort)} subjects, models {', '.join(one.config.models)}")


def plans(uri: str) -> list[dict[str, Any]]:
    """What every stage of a study would do, as `dtg run --dry-run --json` prints it."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        pipeline.run(Study(uri), Options(dry_run=True, json=True))
    return [json.loads(line) for line in printed.getvalue().splitlines() if line.startswith("{")]


def fits(uri: str) -> Finding | None:
    """Whether a worker of every stage that is owed fits a node."""
    if not Storage(uri).exists(CONFIG):
        return None
    owed = [plan for plan in plans(uri) if plan["pending"]]
    if owed and not room(Resources(1)):
        advice = "nothing, where an autoscaler starts them when a stage asks; look again then"
        return Finding("fits", WARN, "no node offers a CPU yet", advice)
    waiting = sum(bool(plan["waiting"]) for plan in owed)
    needs = {plan["stage"]: Resources(plan["cpus"], plan["gpus"], plan["memory"]) for plan in owed}
    if too_large := [f"{stage}: {text}" for stage, needed in needs.items() if (text := shortage(needed))]:
        advice = "larger nodes, a smaller cohort.block_size or a coarser grid"
        return Finding("fits", FAIL, "; ".join(too_large), advice)
    if not owed:
        return Finding("fits", OK, "nothing is owed")
    largest = max(owed, key=lambda plan: plan["memory"])
    words = f"the largest worker is that of {largest['stage']}: {largest['cpus']:g} CPU, {gigabytes(largest['memory'])}"
    if waiting:
        return Finding("fits", OK, f"{words}; {waiting} stages that wait for others say later what they need")
    return Finding("fits", OK, words)


def worst(findings: list[Finding]) -> str:
    """The state of all together."""
    states = {finding.state for finding in findings}
    return FAIL if FAIL in states else WARN if WARN in states else OK
