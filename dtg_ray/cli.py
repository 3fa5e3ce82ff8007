"""The command line: parses, calls a stage, and turns what happened into an exit code.

Heavy imports are inside the verbs, so that `dtg --help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dtg_ray import __version__
from dtg_ray.errors import DTGError, UsageError

if TYPE_CHECKING:
    import pandas as pd

    from dtg_ray.cohort.layouts import Found
    from dtg_ray.stages.runtime import Options
    from dtg_ray.study import Study

SOME_FAILED = 3
STAGE_VERBS = {
    "connectomes": "voxel-to-ROI and ROI-to-ROI connectomes of all subjects",
    "contrasts": "read the measured task maps",
    "train": "train the models on subjects with rest and task",
    "synthesize": "synthesize task maps for everybody with a connectome",
    "evaluate": "compare synthetic with measured maps of held-out subjects",
    "predict": "predict phenotypes, with permutation tests",
    "report": "draw synthetic maps beside measured ones",
    "run": "all of these stages, in order",
}
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
EPILOG = "exit codes: 0 all done, 1 failed, 2 usage, 3 done but some subjects failed (a table says which and why)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `dtg`; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    options = parser().parse_args(arguments)
    try:
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


def parser() -> argparse.ArgumentParser:
    """All verbs and their options."""
    top = argparse.ArgumentParser(
        prog="dtg",
        description="Resting-state fMRI in, synthetic task-contrast maps and phenotype predictions out.",
        epilog=EPILOG,
    )
    top.add_argument("--version", action="version", version=__version__)
    verbs = top.add_subparsers(title="verbs", required=True, metavar="VERB")
    _add_simulate(verbs)
    _add_init(verbs)
    for name, text in STAGE_VERBS.items():
        verb = verbs.add_parser(name, help=text, description=text, epilog=EPILOG)
        verb.add_argument("study", help="root of the study: a folder or s3://bucket/prefix")
        _add_run_options(verb)
        if name in WITH_MODEL:
            verb.add_argument("--model", help="only this model of study.yaml")
        verb.set_defaults(verb=_stage, stage=name, model=None)
    _add_import(verbs)
    _add_finetune(verbs)
    _add_transfer_curve(verbs)
    _add_withdraw(verbs)
    _add_export(verbs)
    status = verbs.add_parser("status", help="what is done and who failed, from the receipts alone")
    status.add_argument("study")
    status.add_argument("--json", action="store_true", help="counts and failures for programs")
    status.set_defaults(verb=_status)
    demo = verbs.add_parser("demo", help="simulate a cohort and run everything on it")
    demo.add_argument("study", nargs="?", default="demo/study", help="where the study goes (default: demo/study)")
    demo.add_argument("--data", default="demo/data", help="local folder for the simulated images (default: demo/data)")
    _add_run_options(demo)
    demo.set_defaults(verb=_demo)
    return top


def _add_run_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--address", help="a running Ray cluster, e.g. auto; default: RAY_ADDRESS, or a Ray of its own")
    verb.add_argument("--inline", action="store_true", help="without Ray, in this process")
    verb.add_argument("--cpus", type=int, help="CPUs that a Ray of its own may use (default: all)")
    verb.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    verb.add_argument("--json", action="store_true", help="plans as JSON, a line each")
    verb.add_argument("--retry-failed", action="store_true", help="do blocks with failed subjects again")
    verb.add_argument("--overwrite", action="store_true", help="train anew and replace the models that are there")
    verb.add_argument("--keep-connectomes", action="store_true", help="store everybody's, not only of the training")
    verb.add_argument(
        "--allow-failures", type=int, metavar="N", help="stop when more subjects failed; exit code 0 with up to N"
    )
    verb.add_argument("--quiet", action="store_true", help="no plans and no progress bars")


def _add_import(verbs: Any) -> None:  # argparse gives this object no public name
    text = "make a published checkpoint, or a model of another study, a model of this one"
    verb = verbs.add_parser("import-model", help=text, description=text)
    verb.add_argument("study", help="root of the study: a folder or s3://bucket/prefix")
    verb.add_argument("source", help="a Lightning checkpoint (.ckpt), or a folder such as s3://bucket/hcp/models/unet")
    verb.add_argument("--name", default="imported", help="of the model in this study (default: imported)")
    verb.add_argument("--config", help="YAML: architecture, max_depth, n_conv_layers, fdim ... of a checkpoint")
    verb.add_argument("--overwrite", action="store_true", help="replace a model that was imported under this name")
    verb.set_defaults(verb=_import_model)


def _add_finetune(verbs: Any) -> None:  # argparse gives this object no public name
    text = "train a network further on the people of this study"
    verb = verbs.add_parser("finetune", help=text, description=text, epilog=EPILOG)
    verb.add_argument("study", help="root of the study: a folder or s3://bucket/prefix")
    verb.add_argument(
        "--from", dest="source", required=True, help="a model of this study, or what import-model takes as its source"
    )
    verb.add_argument(
        "--head",
        choices=["frozen", "new"],
        required=True,
        help="frozen: keep the output layer and all its contrasts, compare those this study has; "
        "new: a new output layer for the contrasts of this study",
    )
    verb.add_argument("--name", help="of the model (default: START-HEAD)")
    verb.add_argument(
        "--train", nargs="+", default=[], metavar="NAME=VALUE", help="settings of its training, as in study.yaml"
    )
    verb.add_argument("--config", help="of a checkpoint: see import-model")
    _add_run_options(verb)
    verb.set_defaults(verb=_finetune)


def _add_transfer_curve(verbs: Any) -> None:  # argparse gives this object no public name
    text = "fine-tuned against from-scratch on more and more training subjects"
    verb = verbs.add_parser("transfer-curve", help=text, description=text)
    verb.add_argument("study", help="root of the study: a folder or s3://bucket/prefix")
    verb.add_argument("--finetuned", required=True, metavar="MODEL", help="a model of kind finetuned in study.yaml")
    verb.add_argument("--scratch", required=True, metavar="MODEL", help="a model of kind network in study.yaml")
    verb.add_argument("--seeds", type=int, default=5, help="repetitions of every size (default: 5)")
    verb.add_argument("--sizes", nargs="+", help="subjects, or shares of them (default: 3 1%% 5%% 10%% ... 100%%)")
    _add_run_options(verb)
    verb.set_defaults(verb=_transfer_curve)


def _add_withdraw(verbs: Any) -> None:  # argparse gives this object no public name
    text = "erase participants who withdrew from everything in a study, keep them out, and search it for traces"
    verb = verbs.add_parser("withdraw", help=text, description=text)
    verb.add_argument("study", help="root of the study: a folder or s3://bucket/prefix")
    verb.add_argument("participants", help="text or CSV file: their names, one per line")
    verb.add_argument("--json", action="store_true", help="the outcome for programs, without names")
    verb.set_defaults(verb=_withdraw)


def _add_export(verbs: Any) -> None:  # argparse gives this object no public name
    text = "write maps as NIfTI files: a BIDS derivatives dataset"
    verb = verbs.add_parser("export", help=text, description=text, epilog=EPILOG)
    verb.add_argument("study", help="root of the study: a folder or s3://bucket/prefix")
    verb.add_argument("out", help="root of the dataset: a folder or s3://bucket/prefix")
    verb.add_argument("--model", help="whose maps; measured: those that were read (default: the first network's)")
    verb.add_argument("--subjects", metavar="FILE", help="text file: only these people, one per line")
    verb.add_argument("--contrasts", nargs="+", metavar="NAME", help="only these")
    group = verb.add_mutually_exclusive_group()
    group.add_argument("--group", action="store_true", help="mean and standard deviation over the people, as well")
    group.add_argument("--group-only", action="store_true", help="these, and nobody's own maps")
    verb.add_argument("--space", metavar="LABEL", help="of the images (default: as the names of the study's files say)")
    _add_run_options(verb)
    verb.set_defaults(verb=_export)


def _add_simulate(verbs: Any) -> None:  # argparse gives this object no public name
    verb = verbs.add_parser("simulate", help="write a cohort of NIfTI files with known truth")
    verb.add_argument("out", help="local folder")
    for name, kind, default, text in (
        ("subjects", int, 160, "people"),
        ("resolution", int, 4, "edge of a voxel, mm"),
        ("volumes", int, 120, "length of the rest run"),
        ("rois", int, 16, "functional networks"),
        ("contrasts", int, 7, "task contrasts, up to 47"),
        ("seed", int, 0, "same seed, same bytes"),
        ("missing", float, 0.1, "fraction of subjects that lack some contrasts"),
        ("tr", float, 2.0, "repetition time, s"),
        ("retest", float, 0.0, "fraction of subjects who do the tasks again, on a second visit in OUT/retest"),
    ):
        verb.add_argument(f"--{name}", type=kind, default=default, help=f"{text} (default: {default})")
    verb.set_defaults(verb=_simulate)


def _add_init(verbs: Any) -> None:  # argparse gives this object no public name
    verb = verbs.add_parser("init", help="make a study of UK Biobank, HCP, fMRIPrep and other BIDS data, or a table")
    verb.add_argument("study", help="root of the study: a folder or s3://bucket/prefix")
    source = verb.add_mutually_exclusive_group(required=True)
    source.add_argument("--ukb", metavar="ROOT", help="UK Biobank bulk: *_20227_*.zip and *_20249_*.zip, or unpacked")
    source.add_argument("--hcp", metavar="ROOT", help="HCP Young Adult, such as s3://hcp-openaccess/HCP_1200")
    source.add_argument("--bids", metavar="ROOT", nargs="+", help="derivatives folders of fMRIPrep and of statistics")
    source.add_argument("--table", metavar="FILE", help="CSV, TSV or Parquet: columns subject, rest, contrast:NAME ...")
    verb.add_argument("--rois", nargs="+", help="soft maps: a 4-D image, 3-D ones, a folder; or a 3-D label atlas")
    verb.add_argument(
        "--add",
        action="store_true",
        help="append whom the study does not have yet; nothing else changes",
    )
    verb.add_argument(
        "--retest",
        metavar="ROOT",
        nargs="+",
        help="the same of a second visit, whose maps are compared with the first's (--ukb: of the next instance)",
    )
    verb.add_argument("--config", help="YAML with any settings of study.yaml")
    verb.add_argument("--resolution", type=float, help="of the MNI152 grid, mm (default: 2)")
    verb.add_argument("--mask", help="use the grid of this mask image instead of MNI152")
    verb.add_argument("--tr", type=float, help="repetition time in s, where headers are wrong")
    verb.add_argument("--subjects", metavar="FILE", help="text file: only these people, one per line")
    for name, (layouts, settings) in LAYOUT_OPTIONS.items():
        verb.add_argument(f"--{name}", **{**settings, "help": f"{', '.join(layouts)}: {settings['help']}"})
    verb.set_defaults(verb=_init)


def _options(options: argparse.Namespace) -> Options:
    from dtg_ray.stages.runtime import Options, check_address

    names = (
        "address",
        "inline",
        "dry_run",
        "retry_failed",
        "quiet",
        "json",
        "cpus",
        "overwrite",
        "keep_connectomes",
        "allow_failures",
    )
    chosen = Options(**{name: getattr(options, name) for name in names})
    check_address(chosen)
    return chosen


def _simulate(options: argparse.Namespace) -> int:
    from dtg_ray.stages import simulate

    names = ("subjects", "resolution", "volumes", "rois", "contrasts", "seed", "missing", "tr", "retest")
    summary = simulate.run(options.out, **{name: getattr(options, name) for name in names})
    state = "was complete already" if summary["complete_before"] else f"{summary['written']} files written"
    print(f"{options.out}: {summary['subjects']} subjects, {state}")
    return 0


def _init(options: argparse.Namespace) -> int:
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


def _withdraw(options: argparse.Namespace) -> int:
    from dtg_ray.cohort.withdrawal import read_names
    from dtg_ray.stages import withdraw
    from dtg_ray.store.files import normalize, read
    from dtg_ray.study import Study

    source = normalize(options.participants)
    done = withdraw.withdraw(Study(options.study), read_names(read(source).decode(), source))
    if options.json:
        figures = {"named": len(done.names), "erased": len(done.erased), "trained": done.trained, "files": done.files}
        print(json.dumps({**figures, "traces": [vars(trace) for trace in done.traces]}))
    else:
        print("\n".join(withdraw.describe(done)))
    return 1 if done.traces else 0


def _transfer_curve(options: argparse.Namespace) -> int:
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


def _import_model(options: argparse.Namespace) -> int:
    from dtg_ray.stages import import_model
    from dtg_ray.stages.runtime import Options
    from dtg_ray.study import Study

    how = Options(overwrite=options.overwrite)
    sha256 = import_model.run(Study(options.study), options.source, options.name, options.config, how)
    print(f"{options.study}: model {options.name} of {options.source}, weights {sha256[:16]}")
    return 0


def _finetune(options: argparse.Namespace) -> int:
    from dtg_ray.stages import finetune
    from dtg_ray.study import Study

    settings = _pairs("--train", options.train, "epochs=20")
    study, how = Study(options.study), _options(options)
    return _exit_code(finetune.run(study, options.source, options.head, options.name, settings, options.config, how))


def _export(options: argparse.Namespace) -> int:
    from dtg_ray.stages import export
    from dtg_ray.store.files import normalize, read
    from dtg_ray.study import Study

    subjects = tuple(read(normalize(options.subjects)).decode().split()) if options.subjects else None
    contrasts = tuple(options.contrasts) if options.contrasts else None
    group = options.group or options.group_only
    request = export.Request(options.model, subjects, contrasts, not options.group_only, group, options.space)
    result = export.run(Study(options.study), options.out, request, _options(options))
    if options.json:
        print(json.dumps({"written": result.written, "kept": result.kept, "left_out": result.left_out}))
        return SOME_FAILED if result.left_out else 0
    if not options.dry_run:
        of = f"of {result.source.name}, {result.subjects} subjects"
        print(f"{options.out}: {result.written} images written, {result.kept} were there already ({of})")
    for reason in result.left_out.values():
        print(f"left out: {reason}")
    return SOME_FAILED if result.left_out else 0


def _print_plan(study: Study) -> None:
    """What comes next, in subjects, bytes and memory."""
    from dtg_ray.stages import pipeline
    from dtg_ray.stages.runtime import Options

    print("plan:")
    pipeline.run(study, Options(dry_run=True, quiet=True))


def _stage(options: argparse.Namespace) -> int:
    from dtg_ray.stages import pipeline
    from dtg_ray.study import Study

    study, how = Study(options.study), _options(options)
    stage = pipeline.run if options.stage == "run" else pipeline.STAGES[options.stage]
    extra = {"model": options.model} if options.stage in WITH_MODEL else {}
    rows = stage(study, how, **extra)
    if options.stage == "run" and not (how.dry_run or how.json):
        _print_results(study)
        _print_excluded(rows)
    return _exit_code(rows, how.allow_failures)


def _status(options: argparse.Namespace) -> int:
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


def _demo(options: argparse.Namespace) -> int:
    from dtg_ray.stages import demo

    study, rows = demo.run(options.study, options.data, _options(options))
    if not options.dry_run:
        _print_results(study)
    return _exit_code(rows)


def _print_results(study: Study) -> None:
    """The two tables everybody wants, and where everything is."""
    from dtg_ray.report import tables, text
    from dtg_ray.stages import evaluate, predict

    print()
    tables.show(
        "Reconstruction of held-out subjects' maps (means over contrasts)",
        tables.reconstruction(evaluate.read_summary(study)),
    )
    scores = predict.read_scores(study)
    if len(scores):
        print()
        tables.show("Phenotype prediction", tables.phenotypes(scores))
    print("\n".join(["", *text.where_things_are(study)]))


def _print_excluded(rows: pd.DataFrame) -> None:
    """Why a model was not evaluated or a feature set not used, where that is so."""
    single = rows["stage"].str.startswith(("evaluate", "predict", "report"))
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


if __name__ == "__main__":
    sys.exit(main())
