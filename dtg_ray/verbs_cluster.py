"""What `dtg submit` and `dtg jobs` do."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dtg_ray import __version__
from dtg_ray.errors import DTGError, UsageError

if TYPE_CHECKING:
    import pandas as pd
    from ray.job_submission import JobDetails

    from dtg_ray.stages.jobs.cluster import Cluster, Patience

INTERRUPTED, NOT_FOUND = 130, 127
FILES = {"export": ("study", "out", "subjects"), "finetune": ("study", "config")}
"""Options of stages that name files or folders; of all others, only the study."""


def submit(options: argparse.Namespace, words: Callable[[argparse.Namespace], list[str]]) -> int:
    """Run a stage on a cluster and follow it.

    Parameters
    ----------
    options : argparse.Namespace
        Of the stage and of the submission.
    words : callable
        Gives the stage's command line for its options.
    """
    from dtg_ray.stages.jobs import request

    _check_stage(options)
    local = _make_absolute(options)
    job: dict[str, Any] = {
        "submission_id": request.new_id(options.stage),
        "entrypoint": request.entrypoint(options.stage, words(options)),
        "metadata": {"stage": options.stage, "study": options.study, "version": __version__},
        "entrypoint_num_cpus": options.driver_cpus,
        "entrypoint_memory": options.driver_memory,
    }
    environment = request.environment(options.env, os.environ)
    cluster, patience = _connect(options)
    if local and not options.shared_filesystem:
        _refuse_local(local, cluster)
    if not (options.beside or options.dry_run):
        _refuse_second(options, cluster)
    with request.code() as folder, _told(cluster, job["submission_id"]):
        runtime_env = {"env_vars": environment} | ({} if options.installed else {"working_dir": str(folder)})
        patience.insist(lambda: cluster.submit(**job, runtime_env=runtime_env))
    if options.no_follow:
        print(job["submission_id"])
        return 0
    return _follow(cluster, job["submission_id"], patience, as_json=options.json)


@contextlib.contextmanager
def _told(cluster: Cluster, job: str) -> Iterator[None]:
    """Say that a job is handed in, or may be: whoever lost patience has to know its name."""
    try:
        yield
    except (KeyboardInterrupt, DTGError):
        say(f"{job} may be submitted or not: dtg jobs --address {cluster.url}")
        raise
    say(f"{job} is submitted to {cluster.url}")


def _check_stage(options: argparse.Namespace) -> None:
    """What would be refused on the cluster is refused here."""
    from dtg_ray.stages.jobs.cluster import dashboard
    from dtg_ray.stages.runtime import Options, check

    options.address = dashboard(options.address)
    if getattr(options, "scheduler", "") is None:
        options.scheduler = "ray"
        say("permutation tests run on the nodes of the cluster; --scheduler threads keeps them on the head")
    names = ("address", "inline", "cpus", "allow_failures", "scheduler")
    check(Options(**{name: getattr(options, name) for name in names if hasattr(options, name)}))


def _make_absolute(options: argparse.Namespace) -> list[str]:
    """Write paths as the cluster has to know them; those that are of this machine's file system."""
    from dtg_ray.store.files import is_remote, normalize

    names = FILES.get(options.stage, ("study",))
    given = {name: normalize(value) for name in names if (value := getattr(options, name)) is not None}
    if options.stage == "finetune" and ("/" in options.source or options.source.startswith("~")):
        given["source"] = normalize(options.source)  # otherwise it is a model of the study
    for name, path in given.items():
        setattr(options, name, path)
    return [path for path in given.values() if not is_remote(path)]


def _refuse_local(paths: list[str], cluster: Cluster) -> None:
    """A file of this machine is of use to a cluster when all its nodes have it."""
    others = sorted(cluster.hosts() - {socket.gethostname()})
    if others:
        raise UsageError(
            f"got {paths[0]} on this machine, expected a place that all nodes reach, such as {', '.join(others[:3])}",
            hint="use s3://bucket/prefix, or say --shared-filesystem when this path is the same files on every node",
        )


def _refuse_second(options: argparse.Namespace, cluster: Cluster) -> None:
    same = {"stage": options.stage, "study": options.study}
    for job in cluster.jobs():
        if not job.status.is_terminal() and same.items() <= (job.metadata or {}).items():
            raise UsageError(
                f"{job.submission_id} of the same stage and study is {str(job.status).lower()}",
                hint=f"follow it: {_how(cluster, 'follow', str(job.submission_id))}; or start another with --beside",
            )


def jobs(options: argparse.Namespace) -> int:
    """List, follow or stop jobs."""
    from dtg_ray.stages.jobs.cluster import UnknownJobError, dashboard

    options.address = dashboard(options.address)
    cluster, patience = _connect(options)
    try:
        if options.follow:
            patience.insist(lambda: cluster.info(options.follow))
            return _follow(cluster, options.follow, patience, as_json=options.json)
        if options.stop:
            return _stop(cluster, options.stop, patience, as_json=options.json)
    except UnknownJobError as error:
        known = ", ".join(str(job.submission_id) for job in cluster.jobs())
        raise UsageError(str(error), hint=f"there is {known or 'none'}") from None
    _list(cluster, as_json=options.json)
    return 0


def _connect(options: argparse.Namespace) -> tuple[Cluster, Patience]:
    from dtg_ray.stages.jobs.cluster import Cluster, Patience, is_loopback, refuse_unprotected

    if options.patience <= 0:
        raise UsageError(f"got --patience {options.patience:g}, expected minutes")
    if not options.allow_unauthenticated:
        refuse_unprotected(options.address)
    if options.address.startswith("http://") and not is_loopback(options.address):
        say("the token travels in clear text: use https://, or a tunnel to http://127.0.0.1:8265")
    cluster = Cluster(options.address)
    here, there = cluster.ray_versions()
    if here.split(".")[:2] != there.split(".")[:2]:
        say(f"the cluster has Ray {there}, and this dtg_ray is made for Ray {here}")
    return cluster, Patience(options.patience * 60, say)


def _follow(cluster: Cluster, job: str, patience: Patience, *, as_json: bool) -> int:
    """Print the log of a job and what became of it; its exit code."""
    from dtg_ray.stages.jobs.cluster import UnknownJobError, UnreachableError
    from dtg_ray.stages.jobs.following import Screen, exit_code, follow

    try:
        info = follow(cluster, job, Screen(), patience)
    except KeyboardInterrupt:
        say(f"the job goes on; to follow it again: {_how(cluster, 'follow', job)}")
        say(f"to stop it: {_how(cluster, 'stop', job)}")
        return INTERRUPTED
    except UnknownJobError:
        raise DTGError(
            f"{cluster.url} has been started anew, and {job} is lost",
            hint="what has a receipt is done; submit the stage again",
        ) from None
    except UnreachableError as error:
        error.hint = f"the job may go on; once the cluster answers again: {_how(cluster, 'follow', job)}"
        raise
    code = exit_code(info)
    if code and info.driver_exit_code is None:
        say(f"{job}: {info.message}")
    if code == NOT_FOUND:
        say("the cluster's image has no `python` on its path")
    say(f"{job}: {str(info.status).lower()}, exit code {code}")
    if as_json:
        print(json.dumps({"id": job, "status": str(info.status), "exit_code": code}))
    return code or 0


def _stop(cluster: Cluster, job: str, patience: Patience, *, as_json: bool) -> int:
    """Stop a job and wait until it has stopped; 1 when that takes too long."""
    from dtg_ray.stages.jobs.following import exit_code, wait

    before = patience.insist(lambda: cluster.info(job))
    if before.status.is_terminal():
        say(f"{job} had ended before: {str(before.status).lower()}")
    else:
        patience.insist(lambda: cluster.stop(job))
        say(f"{job} is {str(before.status).lower()}, and is told to stop")
    info = wait(cluster, job, patience)
    if not info.status.is_terminal():
        raise DTGError(
            f"{job} is told to stop, but is {str(info.status).lower()} still: {info.message}",
            hint="Ray stops a job that waits for room once it begins, or gives it up after 15 minutes",
        )
    if as_json:
        print(json.dumps({"id": job, "status": str(info.status), "exit_code": exit_code(info)}))
    else:
        print(f"{job}: {str(info.status).lower()}; what has a receipt is done")
    return 0


def _list(cluster: Cluster, *, as_json: bool) -> None:
    from rich.console import Console

    from dtg_ray.report import tables

    rows = [_row(job) for job in cluster.jobs()]
    if as_json:
        print(json.dumps({"jobs": rows}))
    elif rows:
        table = _for_people(rows)
        needed = sum(max(map(len, [name, *table[name]])) + 3 for name in table)
        console = Console(width=max(needed, tables.default_console().width), highlight=False)
        tables.show(f"Jobs of {cluster.url}", table, console)  # names are for copying: no line breaks in them
    else:
        print(f"{cluster.url} has no jobs of dtg")


def _row(job: JobDetails) -> dict[str, Any]:
    """A job for programs: times in UTC, durations in seconds."""
    from dtg_ray.stages.jobs.following import exit_code

    began = (job.start_time or 0) / 1000
    ended = job.end_time / 1000 if job.end_time else datetime.now(UTC).timestamp()
    return {
        "id": job.submission_id,
        "stage": job.metadata["stage"],
        "study": job.metadata.get("study", ""),
        "status": str(job.status),
        "began": datetime.fromtimestamp(began, UTC).isoformat(timespec="seconds"),
        "lasted": round(max(ended - began, 0), 1),
        "exit_code": exit_code(job),
    }


def _for_people(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    from dtg_ray.stages.runtime import duration

    lines = [
        {
            **row,
            "status": row["status"].lower(),
            "began": datetime.fromisoformat(row["began"]).astimezone().strftime("%Y-%m-%d %H:%M"),
            "lasted": duration(row["lasted"]),
            "exit_code": "" if row["exit_code"] is None else str(row["exit_code"]),
        }
        for row in rows
    ]
    return pd.DataFrame(lines).rename(columns={"exit_code": "exit code"})


def _how(cluster: Cluster, verb: str, job: str) -> str:
    return f"dtg jobs --address {cluster.url} --{verb} {job}"


def say(text: str) -> None:
    """Tell people something beside the log."""
    print(f"dtg: {text}", file=sys.stderr, flush=True)
