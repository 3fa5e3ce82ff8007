"""study.yaml as a whole: how its parts fit together, how it is read and written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from dtg_ray.config.evaluation import EvaluationConfig, ReportConfig
from dtg_ray.config.inputs import (
    CleaningConfig,
    CohortConfig,
    ConnectomeConfig,
    GridConfig,
    QualityConfig,
    StorageConfig,
)
from dtg_ray.config.models import (
    DEFAULT_MODELS,
    BaselineConfig,
    EnsembleConfig,
    FinetunedConfig,
    ImportedConfig,
    ModelConfig,
    SynthesisConfig,
)
from dtg_ray.config.prediction import (
    CONNECTOME,
    EACH,
    MEASURED,
    SYNTHETIC,
    PredictionConfig,
    Source,
    source,
)
from dtg_ray.config.section import Name, Section
from dtg_ray.errors import ConfigError

LATER = ("evaluation", "report")
"""Sections that studies of earlier versions do not have: their defaults are what these studies mean."""


class StudyConfig(Section):
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
    evaluation: EvaluationConfig = EvaluationConfig()
    prediction: PredictionConfig = PredictionConfig()
    report: ReportConfig = ReportConfig()
    storage: StorageConfig = StorageConfig()

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

    @model_validator(mode="after")
    def _features_exist(self) -> StudyConfig:
        if taken := [name for name in self.prediction.stacks if name in {MEASURED, CONNECTOME}]:
            raise ValueError(f"prediction.stacks: got a stack called {taken[0]}, expected a name of its own")
        for feature in self.feature_sets():
            for part in self.sources_of(feature):
                if part.kind == SYNTHETIC and part.model not in self.models:
                    raise ValueError(f"{feature}: got model {part.model!r}, expected one of {', '.join(self.models)}")
                if part.contrast and part.contrast not in (known := self.contrasts_in(part)):
                    raise ValueError(f"{feature}: got contrast {part.contrast!r}, expected one of {', '.join(known)}")
        folders = [feature_folder(feature) for feature in self.feature_sets()]
        if twice := sorted({one for one in folders if folders.count(one) > 1}):
            raise ValueError(f"prediction.features: got several that would be called {twice}, expected different names")
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
        """The feature sets phenotypes are predicted from, with defaults, and one for each contrast in place of `*`."""
        if self.prediction.features:
            return tuple(one for feature in self.prediction.features for one in self._each(feature))
        predicting = self.models[self.default_model].kind != "retest"
        synthetic = [f"{SYNTHETIC}:{self.default_model}"] if predicting else []
        return (*synthetic, MEASURED, CONNECTOME, *self.prediction.stacks)

    def _each(self, feature: str) -> list[str]:
        if not feature.endswith(f":{EACH}"):
            return [feature]
        part = source(feature.removesuffix(f":{EACH}"))
        if part.kind == SYNTHETIC and part.model not in self.models:
            return [str(part)]  # which is refused by its name
        return [f"{part}:{contrast}" for contrast in self.contrasts_in(part)]

    def sources_of(self, feature: str) -> tuple[Source, ...]:
        """What a feature set is made of."""
        stack = self.prediction.stacks.get(feature)
        return tuple(source(part) for part in stack.of) if stack else (source(feature),)

    def mask_of(self, feature: str) -> str:
        """Which voxels of maps a feature set has: grey_matter, brain or the URI of an image."""
        stack = self.prediction.stacks.get(feature)
        return (stack and stack.mask) or self.prediction.mask

    def contrasts_in(self, part: Source) -> tuple[str, ...]:
        """The contrasts that the maps of an ingredient can have, in the order of its array."""
        return self.maps_of(part.model) if part.kind == SYNTHETIC else self.contrasts


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
    if missing := [name for name in StudyConfig.model_fields if name not in document and name not in LATER]:
        raise ConfigError(
            f"{origin}: got no {', '.join(missing)}, expected every section, as `dtg init` writes them",
            hint="was the file cut off? put it back as it was; `NAME: {}` says that the defaults are meant",
        )
    return parse(document)


def feature_folder(feature: str) -> str:
    """`synthetic:unet` as it is written in paths: `synthetic-unet`."""
    return feature.replace(":", "-")


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
