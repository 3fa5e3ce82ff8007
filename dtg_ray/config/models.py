"""The parts of study.yaml about models: how each is made, and how maps are made with them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dtg_ray.config.section import Name, Section


class TrainConfig(Section):
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


class NetworkConfig(Section):
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


class FinetunedConfig(Section):
    """A network that was trained before, trained further on this study."""

    kind: Literal["finetuned"]
    start: Name = Field(description="the model it starts from: a network of this study, trained or imported")
    head: Literal["frozen", "new"] = Field(
        description="frozen: the output layer stays with all its contrasts; new: the contrasts of the study"
    )
    train: TrainConfig = TrainConfig()


class ImportedConfig(Section):
    """A model made elsewhere, as `dtg import-model` writes it down."""

    kind: Literal["imported"]
    source: str = Field(description="where it was read from")
    sha256: str = Field(description="of its weights, which are in the study")
    contrasts: tuple[str, ...] = Field(min_length=1, description="that it predicts")


class BaselineConfig(Section):
    """The mean of the training maps, the linear model of Tavor et al. (2016), or the maps of a second visit."""

    kind: Literal["group_mean", "linear", "retest"]


class EnsembleConfig(Section):
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


OPERATION = {"train": {"readers", "cache_gigabytes", "checkpoint_minutes"}}
"""Settings of a model that change how it is trained, but not what comes out."""


def training_settings(model: ModelConfig) -> dict[str, Any]:
    """The settings that a trained model depends on, for JSON."""
    return model.model_dump(mode="json", exclude=OPERATION)


class SynthesisConfig(Section):
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
