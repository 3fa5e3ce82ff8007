"""`dtg train`: the models of a study, networks by Ray Train, baselines by Ray Data; committed by model.json."""

from __future__ import annotations

import functools
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from dtg_ray import __version__, ledger
from dtg_ray.config import BaselineConfig, NetworkConfig, fingerprint
from dtg_ray.errors import StudyError
from dtg_ray.models.artifact import Model, NetworkModel, dump, load
from dtg_ray.models.baselines import GroupMean, Linear, RunningMean, fit_linear_subject, parcels_from_rois
from dtg_ray.stages.maps import SubjectReader, chosen_models, require_settled, usable
from dtg_ray.stages.plan import Plan
from dtg_ray.stages.runtime import Options, Resources, map_units, session
from dtg_ray.stages.single import settle
from dtg_ray.store.files import is_remote
from dtg_ray.store.receipts import Row
from dtg_ray.store.tables import write_table
from dtg_ray.study import Study

log = logging.getLogger(__name__)
MAXIMUM_WORKER_FAILURES = 5


def run(study: Study, options: Options, model: str | None = None) -> pd.DataFrame:
    """Train one model of a study, or all; returns the rows of their receipts.

    Raises
    ------
    StudyError
        When connectomes or contrasts are unfinished, or nobody is left to train on.
    ModelError
        When the study has no such model.
    """
    rows = [_run_one(study, name, options) for name in chosen_models(study, model)]
    return pd.concat(rows, ignore_index=True)


def load_model(study: Study, name: str) -> Model:
    """A trained model of a study.

    Raises
    ------
    MissingFileError
        When it has not been trained.
    ModelError
        When its files are damaged.
    """
    description = json.loads(study.storage.read(f"models/{name}/model.json"))
    return load(study.storage.read(f"models/{name}/model.safetensors"), description)


def _run_one(study: Study, name: str, options: Options) -> pd.DataFrame:
    account = ledger.account(study, f"train/{name}")
    pending = account.pending(retry_failed=options.retry_failed)
    todo = plan(study, name, pending)
    return settle(study, account, todo, functools.partial(_train, study, name, options), options)


def _train(study: Study, name: str, options: Options, today: str) -> Row:
    """Fit a model and write it."""
    training, validation = usable(study, "train"), usable(study, "validation")
    if len(training) < 2:
        raise StudyError(
            f"got {len(training)} subjects to train on with a connectome and a contrast map, expected at least 2",
            hint="`dtg status` says who failed; cohort.validation and cohort.test set the shares of the splits",
        )
    _check_contrasts(study, training)
    with session(options):
        fitted, history = _fit(study, name, training, validation, today, options)
    _commit(study, name, fitted, history, {"training": training, "validation": validation, "fingerprint": today})
    figures = history[-1] if history else {}
    return Row(name, "done", qc={"subjects": float(len(training)), **{key: float(figures[key]) for key in figures}})


def plan(study: Study, name: str, pending: list[str]) -> Plan:
    """Subjects and bytes of one pass; memory of a worker, mostly the activations of a batch."""
    config = study.config.models[name]
    members = study.cohort[study.cohort["split"].isin(["train", "validation"])]
    one = study.grid.n_voxels * (study.n_rois + len(study.config.contrasts))
    memory, cpus = one * 8 + 500 * 2**20, 1.0
    if isinstance(config, NetworkConfig):
        cpus = config.train.cpus_per_worker
        memory += config.train.batch_size * (one + 12 * config.width * study.grid.mask.size) * 4 // config.train.workers
    return Plan(
        stage=f"train/{name}",
        units=1,
        pending=len(pending),
        subjects=len(members),
        bytes_in=one * 2 * len(members),
        bytes_out=0,
        memory=memory,
        cpus=cpus,
        waiting=require_settled(study, ["connectomes", "contrasts"], "training") if pending else "",
    )


def _fit(
    study: Study, name: str, training: list[str], validation: list[str], today: str, options: Options
) -> tuple[Model, list[dict[str, float]]]:
    config = study.config.models[name]
    if isinstance(config, BaselineConfig):
        fit = _fit_group_mean if config.kind == "group_mean" else _fit_linear
        return fit(study, training, options), []
    if options.inline:
        raise StudyError(
            "got --inline for a network, which Ray Train trains", hint="leave --inline out for `dtg train`"
        )
    return _fit_network(study, name, config, training, validation, today, options)


def _fit_group_mean(study: Study, training: list[str], options: Options) -> Model:
    """The mean of the training maps."""
    reader = SubjectReader(study)
    mean = RunningMean((len(study.config.contrasts), study.grid.n_voxels))
    for subject in tqdm(training, desc="train/group_mean", unit="subject", disable=options.quiet):
        mean.add(reader.maps(subject))
    maps = mean.mean().astype(np.float32)
    return GroupMean(maps, study.config.contrasts, study.grid, study.n_rois)


def _fit_linear(study: Study, training: list[str], options: Options) -> Model:
    """Mean over subjects of their own fits, added up in the order of the cohort whatever order they end in."""
    parcels = parcels_from_rois(study.rois)
    memory = study.grid.n_voxels * (study.n_rois + len(study.config.contrasts)) * 12 + 300 * 2**20
    results = map_units(LinearFit, (study.uri,), training, Resources(1, 0, memory), options)
    done: dict[str, np.ndarray] = {}
    for result in tqdm(results, total=len(training), desc="train/linear", unit="subject", disable=options.quiet):
        done[result["unit"]] = np.asarray(result["coefficients"])
    mean = RunningMean(done[training[0]].shape)
    for subject in training:
        mean.add(done[subject])
    coefficients = mean.mean()
    return Linear(coefficients, parcels, study.config.contrasts, study.grid)


class LinearFit:
    """Fits the linear model to one subject after the other."""

    def __init__(self, uri: str) -> None:
        self.study = Study(uri)
        self.reader = SubjectReader(self.study)

    @functools.cached_property
    def parcels(self) -> np.ndarray:
        """Parcel of each voxel."""
        return parcels_from_rois(self.study.rois)

    def __call__(self, subject: str) -> dict[str, Any]:
        """Coefficients (C, P, K + 1) of a subject; windows are averaged."""
        connectome = self.reader.connectomes(subject).mean(axis=0)
        return {
            "unit": subject,
            "coefficients": fit_linear_subject(connectome, self.reader.maps(subject), self.parcels),
        }


def _check_contrasts(study: Study, training: list[str]) -> None:
    """Refuse a contrast without a training map: a network would make its maps up."""
    acquired = {name for subject in training for name in study.cohort.loc[[subject], "contrasts"].iloc[0]}
    if absent := [name for name in study.config.contrasts if name not in acquired]:
        raise StudyError(
            f"got no training subject with {', '.join(absent)}, expected at least one for each contrast",
            hint="leave them out (contrasts: in study.yaml), or change cohort.seed or the shares of the splits",
        )


def _fit_network(
    study: Study,
    name: str,
    config: NetworkConfig,
    training: list[str],
    validation: list[str],
    today: str,
    options: Options,
) -> tuple[Model, list[dict[str, float]]]:
    """Train a network; a run that was killed goes on from its last checkpoint."""
    import ray.train
    from ray.train.torch import TorchTrainer

    from dtg_ray.models import build
    from dtg_ray.models.unet import load_weights
    from dtg_ray.stages import training_loop

    settings = training_loop.network_settings(config, study.n_rois, len(study.config.contrasts))
    with _epoch_reporter(config.train.epochs, f"train/{name}", options) as reporter:
        trainer = TorchTrainer(
            training_loop.train,
            train_loop_config={
                "study": study.uri,
                "network": settings,
                "train": config.train.model_dump(),
                "training": training,
                "validation": validation,
                "reporter": reporter,
            },
            scaling_config=ray.train.ScalingConfig(
                num_workers=config.train.workers,
                use_gpu=config.train.gpu,
                resources_per_worker={
                    "CPU": config.train.cpus_per_worker,
                    **({"GPU": 1} if config.train.gpu else {}),
                },
            ),
            run_config=ray.train.RunConfig(
                name=f"{name}-{today}",
                failure_config=ray.train.FailureConfig(max_failures=MAXIMUM_WORKER_FAILURES),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
                **_train_storage(study),
            ),
        )
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise StudyError(
                f"train/{name}: training failed: {str(error).strip().splitlines()[-1]}",
                hint="the last checkpoint is kept: `dtg train` goes on from there",
            ) from error
    with result.checkpoint.as_directory() as folder:
        from pathlib import Path

        state = training_loop.read_state((Path(folder) / training_loop.STATE).read_bytes())
    network = build(settings)
    load_weights(network, state["best_network"], source="checkpoint")
    history = [{**line, "best": float(line["epoch"] == state["best_epoch"])} for line in state["history"]]
    return NetworkModel(network, settings, study.config.contrasts, study.grid), history


def _train_storage(study: Study) -> dict[str, Any]:
    """Where Ray Train keeps its checkpoints: `train/` below the study, locally or on S3."""
    root = study.storage.uri("train")
    if not is_remote(root):
        return {"storage_path": root}
    import pyarrow.fs

    handler = pyarrow.fs.FSSpecHandler(study.storage.fs)
    return {"storage_path": root.split("://")[1], "storage_filesystem": pyarrow.fs.PyFileSystem(handler)}


def _commit(study: Study, name: str, model: Model, history: list[dict[str, float]], provenance: dict[str, Any]) -> None:
    """Write the weights, then the history, then model.json: what has no model.json is no model."""
    tensors, description = dump(model)
    study.storage.write(f"models/{name}/model.safetensors", tensors)
    if history:
        write_table(study.storage, f"models/{name}/history.parquet", pd.DataFrame(history))
    document = {
        **description,
        "provenance": {
            "dtg_ray": __version__,
            "rois": study.space_fingerprint,
            "settings": study.config.models[name].model_dump(mode="json"),
            "settings_fingerprint": fingerprint(study.config.models[name]),
            **provenance,
        },
    }
    study.storage.write(f"models/{name}/model.json", json.dumps(document, indent=1).encode())


@contextmanager
def _epoch_reporter(epochs: int, title: str, options: Options) -> Iterator[Any]:
    """An actor that workers tell their epochs, and a thread here that shows them in a progress bar."""
    import ray

    mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
    stop = threading.Event()

    def show() -> None:
        with tqdm(total=epochs, desc=title, unit="epoch", disable=options.quiet) as bar:
            while not stop.wait(0.5):
                for line in ray.get(mailbox.take.remote()):
                    bar.update(int(line["epoch"]) + 1 - bar.n)
                    bar.set_postfix(
                        {key.removeprefix("validation_"): f"{line[key]:.3f}" for key in line if key != "epoch"}
                    )

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield mailbox
    finally:
        stop.set()
        thread.join(timeout=5)
        ray.kill(mailbox)


class Mailbox:
    """Holds messages until somebody takes them."""

    def __init__(self) -> None:
        self.messages: list[dict[str, float]] = []

    def put(self, message: dict[str, float]) -> None:
        """Add a message."""
        self.messages.append(message)

    def take(self) -> list[dict[str, float]]:
        """All messages since the last call."""
        messages, self.messages = self.messages, []
        return messages
