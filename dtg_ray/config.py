"""study.yaml: one frozen, versioned configuration of a study. Unknown keys are errors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dtg_ray.errors import ConfigError
from dtg_ray.remote import CONCURRENCY

Strategy = Literal[
    "motion", "high_pass", "wm_csf", "global_signal", "compcor", "ica_aroma", "tedana", "scrub", "non_steady_state"
]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GridConfig(_Frozen):
    """The space all arrays live in: MNI152 at a resolution, or the grid of a mask image."""

    resolution: float = Field(2.0, gt=0, le=20, description="edge of a voxel of the MNI152 grid, mm")
    mask: str | None = Field(None, description="URI of a mask image whose grid is used instead of MNI152")


class CohortConfig(_Frozen):
    """How the cohort is cut into blocks and splits."""

    block_size: int = Field(16, ge=1, description="subjects per block, the unit of work and of commit")
    validation: float = Field(0.1, ge=0, lt=1, description="share of the subjects with task maps, for early choices")
    test: float = Field(0.2, ge=0, lt=1, description="share of the subjects with task maps, held out")
    seed: int = Field(0, ge=0)
    stratify_by: tuple[str, ...] = Field(("sex",), description="columns balanced over the splits, where they exist")
    group_by: tuple[str, ...] = Field(("family",), description="columns whose members stay in one split")

    @model_validator(mode="after")
    def _leave_some_for_training(self) -> CohortConfig:
        if self.validation + self.test >= 1:
            raise ValueError(f"got validation + test = {self.validation + self.test:g}, expected less than 1")
        return self


class ConnectomeConfig(_Frozen):
    """From rest runs to voxel-to-ROI connectomes."""

    windows: int = Field(
        1, ge=1, description="windows per subject, shared among its runs; at most, with window_minutes"
    )
    window_minutes: float | None = Field(None, gt=0, description="duration of a window; shorter runs give none")
    tr: float | None = Field(None, gt=0, description="repetition time in s, where the header is wrong")
    minimum_volumes: int = Field(30, ge=4, description="a run or window with fewer is failed")
    minimum_coverage: float = Field(0.5, gt=0, le=1, description="share of the mask the image must cover")
    interpolation: Literal["linear", "nearest"] = "linear"
    maximum_gigabytes: float = Field(64, gt=0, description="a run that unpacks to more is failed")

    @model_validator(mode="after")
    def _windows_of_some_minutes_are_counted(self) -> ConnectomeConfig:
        if self.window_minutes is not None and "windows" not in self.model_fields_set:
            raise ValueError("got window_minutes without windows, expected the largest number of windows per subject")
        return self


class CleaningConfig(_Frozen):
    """What is taken out of rest runs that are not clean yet, by nilearn. Nothing by default: UKB and HCP are clean."""

    strategy: tuple[Strategy, ...] = Field((), description="groups of fMRIPrep's confounds, as nilearn names them")
    options: dict[str, str | int | float | bool] = Field(
        default_factory=dict,
        description="for nilearn's load_confounds, such as {motion: basic, fd_threshold: 0.2}",
    )
    columns: tuple[str, ...] = Field((), description="columns of the confounds tables, by name")
    low_pass: float | None = Field(None, gt=0, description="Hz")
    high_pass: float | None = Field(None, gt=0, description="Hz")
    detrend: bool = Field(False, description="take out a linear trend")

    @model_validator(mode="after")
    def _band_is_one(self) -> CleaningConfig:
        if self.low_pass and self.high_pass and self.high_pass >= self.low_pass:
            raise ValueError(f"got high_pass {self.high_pass:g} Hz, expected less than low_pass, {self.low_pass:g} Hz")
        return self


class QualityConfig(_Frozen):
    """Who is excluded. A rule that is not given is off; a figure that is not known breaks its rule."""

    minimum_minutes: float | None = Field(None, gt=0, description="of rest left after scrubbing")
    minimum_tsnr: float | None = Field(None, gt=0, description="median over voxels, before cleaning")
    minimum_coverage: float | None = Field(None, gt=0, le=1, description="share of the mask, of the worst run")
    maximum_constant: float | None = Field(None, ge=0, le=1, description="share of the mask without signal")
    maximum_motion: float | None = Field(None, ge=0, description="mean displacement between volumes, mm")
    maximum_scrubbed: float | None = Field(None, ge=0, le=1, description="share of the volumes")
    maximum_mean_abs_r: float | None = Field(None, gt=0, le=1, description="mean |r| of the connectomes")


class TrainConfig(_Frozen):
    """How a network is trained (DeepTaskGen: Adam, CR-R loss over grey matter)."""

    epochs: int = Field(100, ge=1)
    batch_size: int = Field(10, ge=2, description="subjects per step, over all workers")
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0, ge=0, description="of AdamW; 0 is Adam, as published")
    schedule: Literal["constant", "cosine", "plateau"] = Field(
        "constant", description="cosine: rise for a fifth, then fall to 0; plateau: less when validation gets no better"
    )
    plateau_patience: int = Field(10, ge=0, description="epochs without a better loss before the rate falls")
    plateau_factor: float = Field(0.1, gt=0, lt=1, description="what the rate is then multiplied with")
    stop_patience: int | None = Field(None, ge=0, description="epochs without a better loss before training ends")
    clip: float | None = Field(None, gt=0, description="largest norm of the gradient")
    accumulate: int = Field(1, ge=1, description="parts a worker's batch is computed in, one after the other")
    loss: Literal["crr", "rc", "mse", "mae"] = Field("crr", description="rc: with margins that anneal over the epochs")
    margin: float = Field(1.0, ge=0, description="CR-R: by how much others' maps have to be further away")
    alpha: float = Field(0.1, ge=0, description="CR-R: weight of the contrastive part")
    workers: int = Field(1, ge=1, description="Ray Train workers (DDP)")
    global_batch: bool = Field(False, description="the loss of the batch of all workers, not the mean of theirs")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the network; the loss is float32")
    compile: bool = Field(False, description="torch.compile; where it fails, training goes on without")
    cpus_per_worker: int = Field(2, ge=1, description="also the number of torch threads")
    gpu: bool = Field(False, description="one GPU per worker")
    readers: int = Field(2, ge=0, description="processes per worker that read ahead; none: the worker reads")
    cache_gigabytes: float = Field(2, ge=0, description="memory per worker that keeps what was read for the next epoch")
    checkpoint_minutes: float = Field(5, ge=0, description="between checkpoints, in mid-epoch too; 0: after every step")
    select: Literal["best_loss", "best_corr", "best_diag", "last"] = Field(
        "best_loss", description="which weights become the model; the others are kept beside it"
    )
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _workers_share_a_batch(self) -> TrainConfig:
        share, rest = divmod(self.batch_size, self.workers)
        contrasts = self.loss in {"crr", "rc"} and not self.global_batch
        if rest or (share < 2 and contrasts):
            least = "two subjects each, which a contrastive loss needs" if contrasts else "equal shares"
            raise ValueError(f"got batch_size {self.batch_size} for {self.workers} workers, expected {least}")
        if self.global_batch and self.accumulate > 1:
            raise ValueError("got global_batch with accumulate, expected one of them: a loss needs its batch at once")
        return self


class NetworkConfig(_Frozen):
    """A network from connectome to maps. The defaults are those of the published model."""

    kind: Literal["network"] = "network"
    architecture: Literal["attention_unet", "unet", "attention_unet_minimal", "unet_minimal", "resunet", "vnet"] = (
        "attention_unet"
    )
    depth: int = Field(1, ge=1, le=5)
    width: int = Field(64, ge=1)
    convs_per_block: int = Field(1, ge=1)
    activation: Literal["relu", "leaky_relu", "elu"] = "relu"
    norm: Literal["batch", "instance", "none"] = "batch"
    train: TrainConfig = TrainConfig()


class FinetunedConfig(_Frozen):
    """A network that was trained before, trained further on this study."""

    kind: Literal["finetuned"]
    start: Name = Field(description="the model it starts from: a network of this study, trained or imported")
    head: Literal["frozen", "new"] = Field(
        description="frozen: the output layer stays with all its contrasts; new: the contrasts of the study"
    )
    train: TrainConfig = TrainConfig()


class ImportedConfig(_Frozen):
    """A model made elsewhere, as `dtg import-model` writes it down."""

    kind: Literal["imported"]
    source: str = Field(description="where it was read from")
    sha256: str = Field(description="of its weights, which are in the study")
    contrasts: tuple[str, ...] = Field(min_length=1, description="that it predicts")


class BaselineConfig(_Frozen):
    """The mean of the training maps, the linear model of Tavor et al. (2016), or the maps of a second visit."""

    kind: Literal["group_mean", "linear", "retest"]


class EnsembleConfig(_Frozen):
    """The mean of the maps of several models; there is nothing to fit."""

    kind: Literal["ensemble"]
    members: tuple[Name, ...] = Field(min_length=2, description="models of the same contrasts")


ModelConfig = Annotated[
    NetworkConfig | FinetunedConfig | ImportedConfig | BaselineConfig | EnsembleConfig, Field(discriminator="kind")
]
TRAINED_NETWORKS = (NetworkConfig, FinetunedConfig)


DEFAULT_MODELS: dict[str, ModelConfig] = {
    "group_mean": BaselineConfig(kind="group_mean"),
    "linear": BaselineConfig(kind="linear"),
    "unet": NetworkConfig(),
}


class SynthesisConfig(_Frozen):
    """How maps are made and written."""

    contrasts: tuple[str, ...] = Field((), description="only these are computed; none: all that a model predicts")
    precision: Literal["bfloat16", "float32"] = Field("bfloat16", description="that networks compute in")
    spread: bool = Field(
        False, description="store how maps differ: standard deviation over windows, of an ensemble over its members"
    )
    slab: int = Field(65_536, ge=1, description="voxels per chunk")
    compile: bool = Field(False, description="torch.compile; where it fails, synthesis goes on without")
    cpus_per_actor: int = Field(1, ge=1, description="also the number of torch threads")
    gpus_per_actor: float = Field(0, ge=0)
    pools: Literal["auto", "one", "two"] = Field(
        "auto",
        description="one: an actor makes connectomes and maps; two: actors of their own for each; auto: with GPUs",
    )

    def identity(self) -> dict[str, Any]:
        """What maps depend on, but for their weights and connectomes."""
        return self.model_dump(mode="json", include={"contrasts", "precision", "spread"})

    @property
    def two_pools(self) -> bool:
        """Whether connectomes and maps are made by different actors."""
        return self.pools == "two" or (self.pools == "auto" and self.gpus_per_actor > 0)


class PredictionConfig(_Frozen):
    """Which phenotypes are predicted from which features, and how it is tested."""

    targets: tuple[str, ...] = Field((), description="columns of phenotypes.parquet; none: all numeric ones")
    features: tuple[str, ...] = Field(
        (),
        description="synthetic:MODEL, measured, connectome; none: the first network's maps and the other two",
    )
    subjects: Literal["unseen", "all"] = Field("unseen", description="unseen: neither trained nor validated on")
    mask: Literal["grey_matter", "brain"] = "grey_matter"
    folds: int = Field(5, ge=2)
    alpha: float | Literal["features/samples"] = "features/samples"
    permutations: int = Field(1000, ge=0)
    seed: int = Field(42, ge=0)


class StorageConfig(_Frozen):
    """How the study is kept in a bucket. It changes nothing that is computed, and means nothing on a disk."""

    encryption: Literal["AES256", "aws:kms"] | None = Field(
        None, description="by the server, of every object written; none: as the bucket says"
    )
    kms_key: str | None = Field(None, min_length=1, description="with aws:kms: ID or ARN; none: the account's own")
    concurrency: int = Field(CONCURRENCY, ge=1, le=1000, description="requests at the same time, per process")

    @model_validator(mode="after")
    def _a_key_is_for_kms(self) -> StorageConfig:
        if self.kms_key and self.encryption != "aws:kms":
            raise ValueError(f"got kms_key with encryption {self.encryption}, expected encryption: aws:kms")
        return self


OPERATION = {"train": {"readers", "cache_gigabytes", "checkpoint_minutes"}}
"""Settings of a model that change how it is trained, but not what comes out."""


def training_settings(model: ModelConfig) -> dict[str, Any]:
    """The settings that a trained model depends on, for JSON."""
    return model.model_dump(mode="json", exclude=OPERATION)


class StudyConfig(_Frozen):
    """Everything that decides what a study computes."""

    version: Literal[1] = 1
    rois: tuple[str, ...] = Field(description="URIs of the ROI maps: one 4-D image or several 3-D ones")
    roi_kind: Literal["auto", "maps", "labels"] = Field(
        "auto",
        description="soft maps (regression) or label atlas (means); auto: one 3-D image of whole numbers is one",
    )
    contrasts: tuple[str, ...] = Field(description="names of the task contrasts, in the order of the arrays")
    grid: GridConfig = GridConfig()
    cohort: CohortConfig = CohortConfig()
    connectomes: ConnectomeConfig = ConnectomeConfig()
    cleaning: CleaningConfig = CleaningConfig()
    quality: QualityConfig = QualityConfig()
    models: dict[Name, ModelConfig] = Field(default_factory=lambda: dict(DEFAULT_MODELS), min_length=1)
    synthesis: SynthesisConfig = SynthesisConfig()
    prediction: PredictionConfig = PredictionConfig()
    storage: StorageConfig = StorageConfig()

    @model_validator(mode="after")
    def _features_exist(self) -> StudyConfig:
        known = {"measured", "connectome", *(f"synthetic:{name}" for name in self.models)}
        if unknown := [feature for feature in self.prediction.features if feature not in known]:
            raise ValueError(f"prediction.features: got {unknown}, expected some of {sorted(known)}")
        return self

    @model_validator(mode="after")
    def _finetuned_models_have_a_start(self) -> StudyConfig:
        known: list[str] = []
        for name, model in self.models.items():
            if isinstance(model, FinetunedConfig):
                if model.start not in known or isinstance(self.models[model.start], BaselineConfig):
                    raise ValueError(
                        f"models.{name}.start: got {model.start!r}, expected a network that stands before it: {known}"
                    )
                if model.head == "frozen" and not set(self.contrasts_of(name)) & set(self.contrasts):
                    raise ValueError(
                        f"models.{name}: got no contrast of this study that {model.start} predicts, expected at least "
                        "one with head: frozen"
                    )
            known.append(name)
        return self

    @model_validator(mode="after")
    def _ensembles_have_members(self) -> StudyConfig:
        predicting = [name for name, model in self.models.items() if model.kind not in {"ensemble", "retest"}]
        for name, model in self.models.items():
            if isinstance(model, EnsembleConfig):
                if wrong := [member for member in model.members if member not in predicting]:
                    raise ValueError(f"models.{name}.members: got {wrong}, expected some of {predicting}")
                if len({self.contrasts_of(member) for member in model.members}) > 1:
                    raise ValueError(f"models.{name}: got members of different contrasts, expected the same of all")
        return self

    @model_validator(mode="after")
    def _synthesized_contrasts_are_predicted(self) -> StudyConfig:
        for name in self.models:
            if not self.maps_of(name):
                wanted, predicted = self.synthesis.contrasts, self.contrasts_of(name)
                raise ValueError(f"synthesis.contrasts: got {wanted}, none of which {name} predicts, of {predicted}")
        every = {contrast for name in self.models for contrast in self.contrasts_of(name)}
        if unknown := [contrast for contrast in self.synthesis.contrasts if contrast not in every]:
            raise ValueError(f"synthesis.contrasts: got {unknown}, expected some of {sorted(every)}")
        return self

    def maps_of(self, name: str) -> tuple[str, ...]:
        """The contrasts of a model that maps are made of, in the order of its array."""
        predicted, wanted = self.contrasts_of(name), self.synthesis.contrasts
        if not wanted or self.models[name].kind == "retest":
            return predicted
        return tuple(contrast for contrast in predicted if contrast in wanted)

    def contrasts_of(self, name: str) -> tuple[str, ...]:
        """The contrasts a model predicts; those of the study, unless it comes from elsewhere."""
        model = self.models[name]
        if isinstance(model, ImportedConfig):
            return model.contrasts
        if isinstance(model, FinetunedConfig) and model.head == "frozen":
            return self.contrasts_of(model.start)
        if isinstance(model, EnsembleConfig):
            return self.contrasts_of(model.members[0])
        return self.contrasts

    @property
    def default_model(self) -> str:
        """The first network, or the first model where there is no network; second visits last."""
        kinds = {
            name: (isinstance(model, BaselineConfig), model.kind == "retest") for name, model in self.models.items()
        }
        return min(kinds, key=kinds.__getitem__)

    def feature_sets(self) -> tuple[str, ...]:
        """The feature sets phenotypes are predicted from, defaults filled in."""
        if self.prediction.features:
            return self.prediction.features
        predicting = self.models[self.default_model].kind != "retest"
        return (*([f"synthetic:{self.default_model}"] if predicting else []), "measured", "connectome")


def parse(document: Mapping[str, Any]) -> StudyConfig:
    """Validate a configuration.

    Raises
    ------
    ConfigError
        Naming every key that is unknown or has a wrong value.
    """
    try:
        return StudyConfig.model_validate(document)
    except ValidationError as error:
        lines = [f"{_place(item['loc']) or 'study.yaml'}: {item['msg']}" for item in error.errors()]
        raise ConfigError("study.yaml does not hold: " + "; ".join(lines)) from error


def parse_saved(data: bytes, origin: str) -> StudyConfig:
    """A study.yaml that `dtg init` wrote, all sections of which have to be there: defaults could be other settings.

    Raises
    ------
    ConfigError
        When it is cut off, or does not hold.
    """
    try:
        document = read_yaml(data.decode(), origin)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{origin}: not text: {error}") from error
    if missing := [name for name in StudyConfig.model_fields if name not in document]:
        raise ConfigError(
            f"{origin}: got no {', '.join(missing)}, expected every section, as `dtg init` writes them",
            hint="was the file cut off? put it back as it was; `NAME: {}` says that the defaults are meant",
        )
    return parse(document)


def _place(location: tuple[int | str, ...]) -> str:
    """Where in the file something is; pydantic adds the kind of a model, which is no level of the file."""
    in_model = location[:1] == ("models",) and len(location) > 3
    return ".".join(map(str, location[:2] + location[3:] if in_model else location))


def read_yaml(text: str, origin: str) -> dict[str, Any]:
    """A mapping from YAML text; `origin` is named in the error."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: not YAML: {error}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"{origin}: got a {type(document).__name__}, expected a mapping of settings")
    return document


def to_yaml(config: StudyConfig) -> str:
    """The configuration as it stands in study.yaml, defaults included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, mapping by mapping."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(value, Mapping) and isinstance(old, Mapping) else value
    return merged


def fingerprint(*parts: object) -> str:
    """Hash of anything JSON can say, and of configurations: equal parts, equal fingerprint, on every machine."""
    plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
