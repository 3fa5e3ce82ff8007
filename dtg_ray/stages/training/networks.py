"""Networks: who is trained on, on how many workers, and what becomes of it in the end."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dtg_ray import ledger
from dtg_ray.cohort.manifest import TRAINING
from dtg_ray.config import FinetunedConfig, NetworkConfig, TrainConfig, fingerprint, training_settings
from dtg_ray.errors import DTGError, StudyError
from dtg_ray.models import build
from dtg_ray.models.artifact import NetworkModel
from dtg_ray.models.unet import load_weights
from dtg_ray.stages.cluster import gather, room
from dtg_ray.stages.maps import usable, window_counts
from dtg_ray.stages.models import network_config
from dtg_ray.stages.runtime import Options, Resources
from dtg_ray.stages.telemetry import logs
from dtg_ray.stages.training.checkpoints import Checkpoints, Claim
from dtg_ray.stages.training.loop import BEST, Assignment, starting_network, train
from dtg_ray.stages.training.progress import Herald, listening
from dtg_ray.stages.training.recipe import is_over
from dtg_ray.stages.training.world import World
from dtg_ray.study import Study

ATTEMPTS = 3
"""How often in a row workers may die without a new checkpoint before training fails."""


@dataclass(frozen=True)
class Fitted:
    """What came of a training.

    Parameters
    ----------
    assignment : Assignment
    models : dict of str to NetworkModel
        `last`, and the best of validation by name.
    selected : str
        Which of them is the model.
    history : list of dict
        A line per epoch.
    """

    assignment: Assignment
    models: dict[str, NetworkModel]
    selected: str
    history: list[dict[str, float]]


def fit_network(study: Study, name: str, today: str, options: Options) -> Fitted:
    """Train a network of a study; a run that was killed goes on from its last checkpoint.

    Parameters
    ----------
    study : Study
    name : str
        Of the model.
    today : str
        Fingerprint of what it depends on.
    options : Options

    Raises
    ------
    StudyError
        When there are too few subjects, workers die again and again, or another training is there.
    """
    assignment = assign(study, name, today)
    claim, config = claim_of(study, name, assignment), TrainConfig.model_validate(assignment.train)
    claim.take(anew=options.overwrite)
    if options.overwrite and _ended(claim.checkpoints, config):
        claim.checkpoints.clear()
    events = (study.storage, f"{assignment.folder}/tensorboard/events.out.tfevents.dtg_ray")
    herald = Herald(f"train/{name}", config.epochs, events, options, gpus=config.workers if config.gpu else 0)
    if options.inline:
        _train_here(assignment, config, herald)
    else:
        _train_on_ray(assignment, config, claim, herald, options)
    claim.leave_alone()
    fitted = collect(study, name, assignment)
    if fitted.selected != config.select:
        herald.say(
            f"got no {config.select}: validation gives no such figure; the model has the {fitted.selected} weights"
        )
    return fitted


def claim_of(study: Study, name: str, assignment: Assignment) -> Claim:
    """The place of a training among those of its model."""
    settings = training_settings(study.config.models[name])
    return Claim(study.storage, name, settings, assignment.folder.rsplit("/", 1)[1])


def assign(study: Study, name: str, today: str) -> Assignment:
    """What is to be trained on whom.

    Parameters
    ----------
    study : Study
    name : str
        Of the model.
    today : str
        Fingerprint of what it depends on; the checkpoints' folder also depends on who is usable now.

    Raises
    ------
    StudyError
        When nobody is left to train on, or somebody for every worker is not.
    """
    config = study.config.models[name]
    if not isinstance(config, NetworkConfig | FinetunedConfig):
        raise TypeError(f"got {name}, a {config.kind} model, expected a network")
    network = network_config(study, name)
    if network is None:
        raise StudyError(f"{name}: got no network to start from", hint="`dtg status` says what is missing")
    predicted = study.config.contrasts_of(name)
    compared = [contrast for contrast in study.config.contrasts if contrast in predicted]
    book = ledger.Ledger(study)
    training, validation = (usable(book, split, compared) for split in TRAINING)
    least = max(2, 2 * config.train.workers)
    if len(training) < least:
        raise StudyError(
            f"{name}: got {len(training)} subjects to train on with a connectome and a contrast map, expected at least "
            f"{least}: two for each of {config.train.workers} workers",
            hint="`dtg status` says who failed; cohort.validation and cohort.test set the shares of the splits",
        )
    finetuned = config if isinstance(config, FinetunedConfig) else None
    shown = window_counts(book, [*training, *validation])
    return Assignment(
        study=study.uri,
        network=network,
        train=config.train.model_dump(),
        training=training,
        validation=validation,
        windows=shown,
        contrasts=compared,
        outputs=[predicted.index(contrast) for contrast in compared],
        folder=f"train/{name}/{fingerprint(today, training, validation, shown)}",
        start=finetuned.start if finetuned else None,
        head=finetuned.head if finetuned else "new",
    )


def _ended(checkpoints: Checkpoints, config: TrainConfig) -> bool:
    """Whether a training is over."""
    state = checkpoints.newest()
    return state is not None and is_over(state["history"], config)


def collect(study: Study, name: str, assignment: Assignment) -> Fitted:
    """The models of a training that is over.

    Raises
    ------
    StudyError
        When it is not, or all its checkpoints are damaged.
    """
    config = TrainConfig.model_validate(assignment.train)
    state = Checkpoints(study.storage, assignment.folder).newest()
    if state is None or not is_over(state["history"], config):
        raise StudyError(
            f"{study.storage.uri(assignment.folder)}: got no checkpoint of the last epoch, expected one",
            hint="`dtg train` goes on from the last one that is whole",
        )
    _, input_mask = starting_network(study, assignment)
    weights = {"last": state["network"], **{which: best["network"] for which, best in state["best"].items()}}
    models = {}
    for which in ("last", *BEST):
        if which in weights:
            network = build(assignment.network)
            load_weights(network, weights[which], source=f"checkpoint of {name}")
            models[which] = NetworkModel(
                network, assignment.network, study.config.contrasts_of(name), study.grid, input_mask
            )
    selected = config.select if config.select in models else "last"
    epoch = state["best"][selected]["epoch"] if selected in state["best"] else len(state["history"]) - 1
    history = [{**line, "selected": float(line["epoch"] == epoch)} for line in state["history"]]
    return Fitted(assignment, models, selected, history)


def _train_here(assignment: Assignment, config: TrainConfig, herald: Herald) -> None:
    if config.workers > 1 or config.gpu:
        raise StudyError(
            f"got --inline for {config.workers} workers{' with GPUs' if config.gpu else ''}, expected one on the CPU",
            hint="leave --inline out: Ray Train starts them",
        )
    train(assignment, World(), herald)


def _train_on_ray(assignment: Assignment, config: TrainConfig, claim: Claim, herald: Herald, options: Options) -> None:
    """Start workers until training is over; those that die are started again while there is progress."""
    import ray.train

    each = Resources(config.cpus_per_worker, float(config.gpu))
    if (places := room(each)) < config.workers and not gather([each] * config.workers, options):
        raise StudyError(
            f"{herald.title}: got room for {places} workers of {each.claimed_cpus:g} CPU and {each.gpus:g} GPU, "
            f"expected {config.workers}",
            hint="train.workers and train.cpus_per_worker say what is asked for, --cpus what a Ray of its own has",
        )
    attempts = 0
    with listening(herald) as post, tempfile.TemporaryDirectory(prefix="dtg_ray_train_") as nothing_is_kept_here:
        while True:
            before = claim.checkpoints.position()
            try:
                _fit(assignment, config, each, post.mailbox, nothing_is_kept_here)
            except ray.train.TrainingFailedError as error:
                reason = str(error).strip().splitlines()[-1]
                attempts = 1 if claim.checkpoints.position() > before else attempts + 1
                post.read()
                if herald.error:
                    raise StudyError(herald.error[0], hint=herald.error[1]) from error
                if attempts >= ATTEMPTS:
                    raise StudyError(
                        f"{herald.title}: workers died {attempts} times in a row without a checkpoint: {reason}",
                        hint="the last checkpoint is kept: `dtg train` goes on from there",
                    ) from error
                herald.say(f"a worker died ({reason}); going on from the last checkpoint")
            else:
                return


def _fit(assignment: Assignment, config: TrainConfig, each: Resources, mailbox: Any, folder: str) -> None:
    """Let Ray Train start workers that find each other; checkpoints are not its business."""
    import ray.train
    from ray.train.torch import TorchTrainer

    TorchTrainer(
        work,
        train_loop_config={"assignment": assignment, "mailbox": mailbox},
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers,
            use_gpu=config.gpu,
            resources_per_worker=each.claim() | {"CPU": each.claimed_cpus},
        ),
        run_config=ray.train.RunConfig(
            name="run", storage_path=folder, failure_config=ray.train.FailureConfig(max_failures=0)
        ),
    ).fit()


def work(settings: Mapping[str, Any]) -> None:
    """Train in a worker of Ray Train, which has joined the others already."""
    import ray.train
    from ray.train.torch import get_device

    context, put, device = ray.train.get_context(), settings["mailbox"].put.remote, get_device()
    assignment: Assignment = settings["assignment"]
    stage = "/".join(assignment.folder.split("/")[:2])
    logs.at_work(study=assignment.study, stage=stage, worker=context.get_world_rank())
    if device.type == "cuda":
        torch.cuda.set_device(device)  # where nccl exchanges objects
    try:
        train(assignment, World(context.get_world_rank(), context.get_world_size(), device), put)
    except DTGError as error:
        ray.get(put({"error": (str(error), error.hint)}))
        raise
