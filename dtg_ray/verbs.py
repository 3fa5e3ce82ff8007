"""What the verbs of the command line do: call a stage, print what came of it, and say the exit code.

Heavy imports are inside, so that `dtg --help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from dtg_ray.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

    from dtg_ray.cohort.layouts import Found
    from dtg_ray.stages.runtime import Options
    from dtg_ray.study import Study

SOME_FAILED = 3
WITH_MODEL = ("train", "synthesize", "evaluate")
LAYOUT_OPTIONS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "rest-task": (("bids",), {"help": "value of task- of the rest runs (default: rest)"}),
    "select": (("bids",), {"action": "append", "metavar": "ENTITY=VALUE", "help": "which version of files to take"}),
    "retest-select": (
        ("bids",),
        {"action": "append", "metavar": "ENTITY=VALUE", "help": "the same for --retest, beside and over --select"},
    ),
    "instance": (("ukb",), {"type": int, "help": "imaging visit: 2 the first (default), 3 the repeat"}),
    "smoothing": (("hcp",), {"type": int, "help": "of the z-maps, mm, where there are several"}),
    "analysis": (
        ("hcp",),
        {"choices": ["level2vol", "level2_MSMAll"], "help": "which z-maps, where there are several"},
    ),
    "phenotypes": (("ukb", "hcp"), {"nargs": "+", "metavar": "TABLE", "help": "CSV, TSV or Parquet about the people"}),
}
"""Options of `dtg init` that belong to some layouts only."""
PARAMETERS = {"rest-task": "rest_task", "phenotypes": "tables"}


def _options(options: argparse.Namespace) -> Options:
    from dtg_ray.stages.runtime import Options, check

    given = dict(vars(options))
    if "scheduler" in given and given["scheduler"] is None:
        is_elsewhere = not options.inline and (options.address or os.environ.get("RAY_ADDRESS"))
        given["scheduler"] = "ray" if is_elsewhere else "threads"
    chosen = Options(**{item.name: given[item.name] for item in fields(Options) if item.name in given})
    check(chosen)
    return chosen


def simulate(options: argparse.Namespace) -> int:
    """Write a simulated cohort."""
    from dtg_ray.stages import simulate

    names = ("subjects", "resolution", "volumes", "rois", "contrasts", "seed", "missing", "tr", "retest")
    summary = simulate.run(options.out, **{name: getattr(options, name) for name in names})
    state = "was complete already" if summary["complete_before"] else f"{summary['written']} files written"
    print(f"{options.out}: {summary['subjects']} subjects, {state}")
    return 0


def init(options: argparse.Namespace) -> int:
    """Make a study, or add people to one."""
    from dtg_ray.config import merge
    from dtg_ray.stages import init

    if options.add:
        return _append(options)
    if not options.rois:
        raise UsageError("got no --rois, expected ROI maps or a label atlas")
    chosen: dict[str, Any] = {}
    if options.resolution is not None:
        chosen["grid"] = {"resolution": options.resolution}
    if options.mask is not None and options.resolution is not None:
        raise UsageError("got --mask and --resolution, expected one: the grid of a mask has its own resolution")
    if options.mask is not None:
        chosen["grid"] = {"mask": options.mask}
    if options.tr is not None:
        chosen["connectomes"] = {"tr": options.tr}
    found = _find(options)
    summary = init.init(options.study, found, options.rois, merge(init.load_settings(options.config), chosen))
    print("\n".join(init.describe(summary)))
    _print_plan(summary.study)
    return 0


def _append(options: argparse.Namespace) -> int:
    from dtg_ray.stages import add
    from dtg_ray.study import Study

    of_study = ("rois", "config", "resolution", "mask", "tr")
    if given := [f"--{name}" for name in of_study if getattr(options, name) is not None]:
        raise UsageError(f"got --add with {given[0]}, expected it without: the study has its settings")
    study = Study(options.study)
    _ = study.config  # the study has to be there before hours of listing begin
    added = add.add(study, _find(options))
    print("\n".join(add.describe(added)))
    return 0


def withdraw(options: argparse.Namespace) -> int:
    """Erase participants; exit code 1 when the scan finds traces of them."""
    from dtg_ray.cohort.withdrawal import read_names
    from dtg_ray.stages import withdraw
    from dtg_ray.store.files import normalize, read
    from dtg_ray.study import Study

    source = normalize(options.participants)
    done = withdraw.withdraw(Study(options.study), read_names(read(source), source))
    if options.json:
        figures = {"named": len(done.names), "erased": len(done.erased), "trained": done.trained, "files": done.files}
        print(json.dumps({**figures, "traces": [vars(trace) for trace in done.traces]}))
    else:
        print("\n".join(withdraw.describe(done)))
    return 1 if done.traces else 0


def transfer_curve(options: argparse.Namespace) -> int:
    """Compare fine-tuned with from-scratch training."""
    from dtg_ray.report import tables
    from dtg_ray.stages import transfer_curve
    from dtg_ray.study import Study

    study, how = Study(options.study), _options(options)
    sizes = options.sizes or transfer_curve.SIZES
    table = transfer_curve.run(study, options.finetuned, options.scratch, how, options.seeds, sizes)
    if len(table):
        tables.show(f"Held-out subjects' maps, means over {options.seeds} seeds", transfer_curve.summary(table))
        print(f"\n{study.storage.uri('transfer')}/{options.finetuned}-{options.scratch}.parquet and .png")
    return 0


def interpret(options: argparse.Namespace) -> int:
    """Say what in the connectome drives contrasts and phenotypes."""
    from dtg_ray.report import tables
    from dtg_ray.stages import interpret
    from dtg_ray.stages.interpretation.parts import Method
    from dtg_ray.study import Study

    given = vars(options)
    method = Method(options.method, *(given[name] for name in ("steps", "samples", "noise", "seed")))
    asked = (tuple(options.contrast or ()), tuple(options.phenotype or ()))
    request = interpret.Request(options.model, *asked, options.subjects, options.split, method, options.images)
    study, how = Study(options.study), _options(options)
    table = interpret.run(study, request, how)
    if len(table) and not how.json:
        title = f"What drives them, by {method.name} over {table['subjects'].max()} subjects"
        tables.show(title, interpret.summary(table))
        print(f"\n{interpret.where(study, request)}")
    return 0


def _find(options: argparse.Namespace) -> Found:
    """The people, by the layout that was chosen."""
    from dtg_ray.stages import init

    layout = next(name for name in ("ukb", "hcp", "bids", "table") if getattr(options, name))
    chosen = {name: getattr(options, name.replace("-", "_")) for name in LAYOUT_OPTIONS}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if foreign := [name for name in chosen if layout not in LAYOUT_OPTIONS[name][0]]:
        others = ", ".join(f"--{name}" for name in LAYOUT_OPTIONS[foreign[0]][0])
        raise UsageError(f"got --{foreign[0]} with --{layout}, expected it with {others}")
    if "retest-select" in chosen and options.retest is None:
        raise UsageError("got --retest-select without --retest, expected both")
    settings: dict[str, Any] = {PARAMETERS.get(name, name): value for name, value in chosen.items()}
    if "select" in settings:
        settings["select"] = _pairs("--select", settings["select"], "space=MNI152NLin6Asym")
    again = settings.pop("retest-select", None)
    found = init.find(layout, getattr(options, layout), options.subjects, settings)
    if options.retest is None:
        return found
    if again:
        settings["select"] = settings.get("select", {}) | _pairs("--retest-select", again, "ses=2")
    return init.find_retest(found, layout, _retest_root(layout, options.retest), settings)


def _retest_root(layout: str, roots: list[str]) -> str | list[str]:
    """What the layout's `find` takes: several folders for BIDS, otherwise one root."""
    if layout == "bids":
        return roots
    if len(roots) > 1:
        raise UsageError(f"got --retest with {len(roots)} roots, expected one with --{layout}")
    return roots[0]


def _pairs(option: str, texts: list[str], example: str) -> dict[str, str]:
    if wrong := [text for text in texts if text.count("=") != 1]:
        raise UsageError(f"got {option} {wrong[0]}, expected NAME=VALUE such as {example}")
    return dict(text.split("=") for text in texts)


def import_model(options: argparse.Namespace) -> int:
    """Take in a model made elsewhere."""
    from dtg_ray.stages import import_model
    from dtg_ray.stages.runtime import Options
    from dtg_ray.study import Study

    how = Options(overwrite=options.overwrite)
    sha256 = import_model.run(Study(options.study), options.source, options.name, options.config, how)
    print(f"{options.study}: model {options.name} of {options.source}, weights {sha256[:16]}")
    return 0


def finetune(options: argparse.Namespace) -> int:
    """Train a network further."""
    from dtg_ray.stages import finetune
    from dtg_ray.study import Study

    settings = _pairs("--train", options.train, "epochs=20")
    study, how = Study(options.study), _options(options)
    return _exit_code(finetune.run(study, options.source, options.head, options.name, settings, options.config, how))


def export(options: argparse.Namespace) -> int:
    """Write maps as NIfTI files."""
    from dtg_ray.stages import export
    from dtg_ray.store.files import normalize, read
    from dtg_ray.study import Study

    subjects = tuple(read(normalize(options.subjects)).decode("utf-8-sig").split()) if options.subjects else None
    contrasts = tuple(options.contrasts) if options.contrasts else None
    group = options.group or options.group_only
    request = export.Request(options.model, subjects, contrasts, not options.group_only, group, options.space)
    result = export.run(Study(options.study), options.out, request, _options(options))
    if options.json:
        counts = {"written": result.written, "kept": result.kept, "removed": result.removed}
        print(json.dumps({**counts, "left_out": result.left_out}))
        return SOME_FAILED if result.left_out else 0
    if not options.dry_run:
        of = f"of {result.source.name}, {result.subjects} subjects"
        print(f"{options.out}: {result.written} images written, {result.kept} were there already ({of})")
        if result.removed:
            print(f"{result.removed} images were removed: of people and contrasts without maps now")
    for reason in result.left_out.values():
        print(f"left out: {reason}")
    return SOME_FAILED if result.left_out else 0


def _print_plan(study: Study) -> None:
    """What comes next, in subjects, bytes and memory."""
    from dtg_ray.stages import pipeline
    from dtg_ray.stages.runtime import Options

    print("plan:")
    pipeline.run(study, Options(dry_run=True, quiet=True))


def stage(options: argparse.Namespace) -> int:
    """Run one stage, or all."""
    from dtg_ray.cohort.manifest import TRAINING
    from dtg_ray.stages import pipeline
    from dtg_ray.stages.plan import how_to_change
    from dtg_ray.study import Study

    study, how = Study(options.study), _options(options)
    stage = pipeline.run if options.stage == "run" else pipeline.STAGES[options.stage]
    extra: dict[str, Any] = {"model": options.model} if options.stage in WITH_MODEL else {}
    if options.stage == "connectomes" and options.training_only:
        extra["splits"] = TRAINING
    rows = stage(study, how, **extra)
    if how.dry_run and not how.json:
        print("\n".join(how_to_change()))
    if options.stage == "run" and not (how.dry_run or how.json):
        _print_results(study)
        _print_excluded(rows)
    return _exit_code(rows, how.allow_failures)


def status(options: argparse.Namespace) -> int:
    """Print what is done and who failed."""
    from dtg_ray import ledger
    from dtg_ray.report import tables
    from dtg_ray.study import Study

    study = Study(options.study)
    book = ledger.Ledger(study)
    status, failures = ledger.status(book), ledger.failures(book)
    if options.json:
        listed = {key: failures[failures["status"] == key].to_dict("records") for key in ("failed", "excluded")}
        stages = status.to_dict("records")
        print(json.dumps({"stages": stages, "failures": listed["failed"], "excluded": listed["excluded"]}))
    else:
        tables.show(study.uri, status)
        if len(failures):
            print()
            tables.show_failures(failures)
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Check everything that a study needs; exit code 1 when something has to be done."""
    import pandas as pd

    from dtg_ray.report import tables
    from dtg_ray.stages.doctor.visit import visit, worst
    from dtg_ray.stages.runtime import Options

    findings = visit(options.study, Options(address=options.address))
    state = worst(findings)
    if options.json:
        print(json.dumps({"state": state, "checks": [asdict(one) for one in findings]}))
    else:
        rows = [(one.name, one.state, one.found, one.advice) for one in findings]
        tables.show("dtg doctor", pd.DataFrame(rows, columns=["check", "state", "found", "what to do"]))
    return int(state == "fail")


def demo(options: argparse.Namespace) -> int:
    """Run everything on a simulated cohort."""
    from dtg_ray.stages import demo

    study, rows = demo.run(options.study, options.data, _options(options))
    if not options.dry_run:
        _print_results(study)
    return _exit_code(rows)


def _print_results(study: Study) -> None:
    """The two tables everybody wants, and where everything is."""
    from dtg_ray.report import tables, text
    from dtg_ray.results import Results
    from dtg_ray.stages import evaluate

    print()
    tables.show(
        "Reconstruction of held-out subjects' maps (means over contrasts)",
        tables.reconstruction(evaluate.read_summary(study)),
    )
    scores = Results(study).scores
    if len(scores):
        print()
        tables.show("Phenotype prediction", tables.phenotypes(scores))
    print("\n".join(["", *text.where_things_are(study)]))


def _print_excluded(rows: pd.DataFrame) -> None:
    """Why a model was not evaluated or a phenotype not predicted, where that is so."""
    from dtg_ray.ledger import COMMON

    single = rows["stage"].str.startswith(("evaluate", "predict", "report")) & ~rows["subject"].str.endswith(COMMON)
    for _, row in rows[single & (rows["status"] == "excluded")].iterrows():
        print(f"left out: {row['stage']}: {row['message']}")


def _exit_code(rows: pd.DataFrame, allowed: int | None = None) -> int:
    """A table of who failed or was excluded by a rule; 3 when more failed than are allowed, 0 otherwise."""
    from dtg_ray import ledger
    from dtg_ray.report import tables

    troubles = ledger.troubles(rows)
    if not len(troubles):
        return 0
    print()
    tables.show_failures(troubles)
    failed = troubles.loc[troubles["status"] == "failed", "subject"].nunique()
    return SOME_FAILED if failed > (allowed or 0) else 0
