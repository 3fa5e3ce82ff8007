"""study.yaml: one frozen, versioned configuration of a study. Unknown keys are errors."""

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
    TRAINED_NETWORKS,
    BaselineConfig,
    EnsembleConfig,
    FinetunedConfig,
    ImportedConfig,
    ModelConfig,
    NetworkConfig,
    SynthesisConfig,
    TrainConfig,
    training_settings,
)
from dtg_ray.config.prediction import PredictionConfig, Source, StackConfig, TargetConfig, source
from dtg_ray.config.study import StudyConfig, feature_folder, fingerprint, merge, parse, parse_saved, read_yaml, to_yaml

__all__ = [
    "DEFAULT_MODELS",
    "TRAINED_NETWORKS",
    "BaselineConfig",
    "CleaningConfig",
    "CohortConfig",
    "ConnectomeConfig",
    "EnsembleConfig",
    "FinetunedConfig",
    "GridConfig",
    "ImportedConfig",
    "ModelConfig",
    "NetworkConfig",
    "PredictionConfig",
    "QualityConfig",
    "Source",
    "StackConfig",
    "StorageConfig",
    "StudyConfig",
    "SynthesisConfig",
    "TargetConfig",
    "TrainConfig",
    "feature_folder",
    "fingerprint",
    "merge",
    "parse",
    "parse_saved",
    "read_yaml",
    "source",
    "to_yaml",
    "training_settings",
]
