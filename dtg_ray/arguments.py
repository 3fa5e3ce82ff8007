"""The verbs of the command line and their options."""

from __future__ import annotations

import argparse
from typing import Any

from dtg_ray import __version__, arguments_cluster
from dtg_ray import verbs as does
from dtg_ray.verbs import LAYOUT_OPTIONS, WITH_MODEL

STAGE_VERBS = {
    "connectomes": "voxel-to-ROI and ROI-to-ROI connectomes of all subjects",
    "contrasts": "read the measured task maps",
    "train": "train the models on subjects with rest and task",
    "synthesize": "synthesize everybody's task maps, from rest runs or stored connectomes",
    "evaluate": "compare synthetic with measured maps of held-out subjects",
    "predict": "predict phenotypes, with permutation tests",
    "report": "draw synthetic maps beside measured ones",
    "run": "all of these stages, in order",
}
EPILOG = "exit codes: 0 all done, 1 failed, 2 usage, 3 done but some subjects failed (a table says which and why)"


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
    _add_stages(verbs)
    _add_import(verbs)
    _add_withdraw(verbs)
    status = verbs.add_parser("status", help="what is done and who failed, from the receipts alone")
    status.add_argument("study")
    status.add_argument("--json", action="store_true", help="counts and failures for programs")
    status.set_defaults(verb=does.status)
    demo = verbs.add_parser("demo", help="simulate a cohort and run everything on it")
    demo.add_argument("study", nargs="?", default="demo/study", help="where the study goes (default: demo/study)")
    demo.add_argument("--data", default="demo/data", help="local folder for the simulated images (default: demo/data)")
    _add_run_options(demo)
    _add_again_options(demo)
    demo.set_defaults(verb=does.demo)
    _add_doctor(verbs)
    arguments_cluster.add(verbs, _add_stages)
    return top


def _add_doctor(verbs: Any) -> None:  # argparse gives this object no public name
    text = "check versions, Ray, GPU, rights on the study's place, clocks, disks, and say what to do"
    epilog = "exit codes: 0 all is well, or there are warnings; 1 a check failed"
    verb = verbs.add_parser("doctor", help=text, description=text, epilog=epilog)
    verb.add_argument("study", nargs="?", help="root of a study: a folder or s3://bucket/prefix; need not be there yet")
    verb.add_argument("--address", help="a running Ray cluster, e.g. auto; default: RAY_ADDRESS, or a Ray of its own")
    verb.add_argument("--json", action="store_true", help="everything as one line of JSON")
    verb.set_defaults(verb=does.doctor)


def _add_stages(verbs: Any) -> None:  # argparse gives this object no public name
    """All that runs on a cluster."""
    for name, text in STAGE_VERBS.items():
        verb = verbs.add_parser(name, help=text, description=text, epilog=EPILOG)
        verb.add_argument("study", help="root of the study: a folder or s3://bucket/prefix")
        _add_run_options(verb)
        _add_again_options(verb)
        if name in WITH_MODEL:
            verb.add_argument("--model", help="only this model of study.yaml")
        if name in ("predict", "run"):
            verb.add_argument(
                "--scheduler",
                help="of Dask: threads, ray (default on a cluster), or tcp://HOST:PORT of a cluster",
            )
        if name == "connectomes":
            verb.add_argument("--training-only", action="store_true", help="only of those whom models are trained on")
        verb.set_defaults(verb=does.stage, stage=name, model=None)
    _add_finetune(verbs)
    _add_transfer_curve(verbs)
    _add_interpret(verbs)
    _add_export(verbs)


def _add_run_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--address", help="a running Ray cluster, e.g. auto; default: RAY_ADDRESS, or a Ray of its own")
    verb.add_argument(
        "--wait-for-nodes",
        type=float,
        default=10,
        metavar="MINUTES",
        help="on a cluster, for an autoscaler to start such that are large enough (default: 10)",
    )
    verb.add_argument(
        "--allow-unauthenticated", action="store_true", help="use a cluster that lets everybody in, on a closed network"
    )
    verb.add_argument("--inline", action="store_true", help="without Ray, in this process")
    verb.add_argument("--cpus", type=int, help="CPUs that a Ray of its own may use (default: all)")
    verb.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    verb.add_argument("--json", action="store_true", help="plans as JSON, a line each")
    verb.add_argument("--quiet", action="store_true", help="no plans and no progress bars")


def _add_again_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--retry-failed", action="store_true", help="do blocks with failed subjects again")
    verb.add_argument("--overwrite", action="store_true", help="train anew and replace the models that are there")
    verb.add_argument("--keep-connectomes", action="store_true", help="store everybody's, not only of the training")
    verb.add_argument(
        "--allow-failures", type=int, metavar="N", help="stop when more subjects failed; exit code 0 with up to N"
    )


def _add_import(verbs: Any) -> None:  # argparse gives this object no public name
    text = "make a published checkpoint, or a model of another study, a model of this one"
    verb = verbs.add_parser("import-model", help=text, description=text)
    verb.add_argument("study", help="root of the study: a folder or s3://bucket/prefix")
    verb.add_argument("source", help="a Lightning checkpoint (.ckpt), or a folder such as s3://bucket/hcp/models/unet")
    verb.add_argument("--name", default="imported", help="of the model in this study (default: imported)")
    verb.add_argument("--config", help="YAML: architecture, max_depth, n_conv_layers, fdim ... of a checkpoint")
    verb.add_argument("--overwrite", action="store_true", help="replace a model that was imported under this name")
    verb.set_defaults(verb=does.import_model)


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
    _add_again_options(verb)
    verb.set_defaults(verb=does.finetune)


def _add_transfer_curve(verbs: Any) -> None:  # argparse gives this object no public name
    text = "fine-tuned against from-scratch on more and more training subjects"
    verb = verbs.add_parser("transfer-curve", help=text, description=text)
    verb.add_argument("study", help="root of the study: a folder or s3://bucket/prefix")
    verb.add_argument("--finetuned", required=True, metavar="MODEL", help="a model of kind finetuned in study.yaml")
    verb.add_argument("--scratch", required=True, metavar="MODEL", help="a model of kind network in study.yaml")
    verb.add_argument("--seeds", type=int, default=5, help="repetitions of every size (default: 5)")
    verb.add_argument("--sizes", nargs="+", help="subjects, or shares of them (default: 3 1%% 5%% 10%% ... 100%%)")
    _add_run_options(verb)
    verb.set_defaults(verb=does.transfer_curve)


def _add_interpret(verbs: Any) -> None:  # argparse gives this object no public name
    text = "which ROIs and voxels of the connectome drive synthetic contrasts, or predicted phenotypes"
    verb = verbs.add_parser("interpret", help=text, description=text)
    verb.add_argument("study", help="root of the study: a folder or s3://bucket/prefix")
    verb.add_argument("--model", help="a network of study.yaml (default: the first)")
    verb.add_argument("--contrast", nargs="+", metavar="NAME", help="only these (default: all, without --phenotype)")
    verb.add_argument("--phenotype", nargs="+", metavar="NAME", help="as predicted from the maps of the model")
    verb.add_argument("--subjects", type=int, default=50, metavar="N", help="at most, evenly chosen (default: 50)")
    verb.add_argument("--split", default="test", help="of the cohort, that they are from (default: test)")
    methods = ("integrated_gradients", "smooth_grad")
    verb.add_argument("--method", choices=methods, default=methods[0], help=f"(default: {methods[0]})")
    verb.add_argument("--steps", type=int, default=32, help="of integrated gradients (default: 32)")
    verb.add_argument("--samples", type=int, default=32, help="noisy copies of smooth_grad (default: 32)")
    verb.add_argument("--noise", type=float, default=0.15, help="share of a connectome's range (default: 0.15)")
    verb.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    verb.add_argument("--images", type=int, default=0, metavar="N", help="NIfTI images of the N most important ROIs")
    _add_run_options(verb)
    verb.set_defaults(verb=does.interpret)


def _add_withdraw(verbs: Any) -> None:  # argparse gives this object no public name
    text = "erase participants who withdrew from everything in a study, keep them out, and search it for traces"
    verb = verbs.add_parser("withdraw", help=text, description=text)
    verb.add_argument("study", help="root of the study: a folder or s3://bucket/prefix")
    verb.add_argument("participants", help="text or CSV file: their names, one per line")
    verb.add_argument("--json", action="store_true", help="the outcome for programs, without names")
    verb.set_defaults(verb=does.withdraw)


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
    verb.set_defaults(verb=does.export)


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
    verb.set_defaults(verb=does.simulate)


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
    verb.set_defaults(verb=does.init)
