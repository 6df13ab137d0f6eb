"""Typed schemas of every config group, and the one way to load a config.

Hydra composes YAML files and overrides; pydantic checks the result. An unknown key is an error that names the nearest
known one. A *component* (``{name: simclr, temperature: 0.1}``) is checked against the signature of what it names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from catalign import plugins
from catalign.errors import CatalignError, unknown


class Schema(BaseModel):
    """A mapping whose keys are all known and whose values are immutable once checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Component(BaseModel):
    """A registered component by name; every other key is one of its options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The component's options, without its name."""
        return dict(self.__pydantic_extra__ or {})


class WeightedComponent(Component):
    """An objective in a stage: its loss is multiplied by ``weight``."""

    weight: float = Field(default=1.0, ge=0)


class ColumnsConfig(Schema):
    """Which columns of a table mean what. A null ``id`` numbers the rows; a null ``group`` finds groups."""

    id: str | None = "id"
    image: str | None = "image"
    text: dict[str, float] = Field(default={"title": 1.0}, description="text columns and their sampling weights")
    attributes: list[str] = []
    joined: dict[str, list[str]] = Field(
        default={}, description="text columns made here: the values of these attributes, joined by commas"
    )
    group: str | None = None
    split: str | None = None
    rename: dict[str, str] = Field(default={}, description="source column -> the name used above")
    unpack: dict[str, dict[str, str]] = Field(
        default={}, description="column of JSON objects -> their keys -> names, which are among attributes"
    )

    @field_validator("text")
    @classmethod
    def _positive(cls, weights: dict[str, float]) -> dict[str, float]:
        if not weights or min(weights.values()) < 0 or sum(weights.values()) <= 0:
            raise ValueError("needs at least one text column, weights >= 0 and one of them > 0")
        return weights

    @model_validator(mode="after")
    def _unpackable(self) -> ColumnsConfig:
        names = [name for keys in self.unpack.values() for name in keys.values()]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two keys would be column {repeated[0]!r}; give each a name of its own")
        for name, column in self.unpacked.items():
            if name not in self.attributes:
                raise ValueError(f"unpack.{column} makes {name!r}, which is not among attributes")
        return self

    @model_validator(mode="after")
    def _joinable(self) -> ColumnsConfig:
        for name, parts in self.joined.items():
            if unlisted := [part for part in parts if part not in self.attributes]:
                raise ValueError(f"joined.{name} names {unlisted[0]!r}, which is not among attributes")
            if name not in self.text:
                raise ValueError(f"joined.{name} has no weight in text; give it one, 0 where only some stages read it")
            if name == next(iter(self.text)):
                raise ValueError(f"the primary text column {name!r} cannot be a joined one")
        return self

    @property
    def read(self) -> list[str]:
        """The text columns that the source itself has."""
        return [name for name in self.text if name not in self.joined]

    @property
    def unpacked(self) -> dict[str, str]:
        """The names that keys of JSON objects have here, each with the column it comes from."""
        return {name: column for column, keys in self.unpack.items() for name in keys.values()}

    def original(self, column: str) -> str:
        """What the source calls a column."""
        return next((old for old, new in self.rename.items() if new == column), column)


class SplitConfig(Schema):
    """Shares of a leak-aware split, for catalogues that bring none. Products of one group stay together."""

    val: float = Field(default=0.05, ge=0, lt=1)
    test: float = Field(default=0.1, ge=0, lt=1)
    seed: int = 0
    near_duplicates: bool = Field(default=True, description="also join photos that differ by a re-encoding")


class LogColumnsConfig(Schema):
    """Which columns of a log mean what; null finds one by its usual names (user_id, item_id, timestamp, …)."""

    user: str | None = None
    item: str | None = None
    time: str | None = None
    event: str | None = Field(default=None, description="the kind of event, such as view or purchase")
    history: str | None = Field(default=None, description="a user's items in one cell, for tables of one row per user")
    target: str | None = Field(default=None, description="the item after the history, in a column of its own")


class InteractionsConfig(Schema):
    """A log of what users bought or viewed, how it is cleaned, and which of its events are held out."""

    path: str | None = Field(default=None, description="the log; null for the histories that the source itself has")
    format: Literal["lines", "csv", "parquet", "jsonl", "recbole"] | None = Field(
        default=None, description="null tells it by the file's ending"
    )
    delimiter: str | None = Field(default=None, description="between cells of a CSV file; null: comma, tab for .tsv")
    columns: LogColumnsConfig = LogColumnsConfig()
    events: list[str] | None = Field(default=None, description="kinds of event that count; null: all")
    unknown_items: Literal["leave_out", "stop"] = Field(
        default="leave_out", description="what to do with items that the catalogue lacks"
    )
    repeats: Literal["keep", "drop"] | None = Field(
        default=None, description="events of the same user, item and time; null drops them where times are known"
    )
    min_user: int = Field(default=3, ge=1, description="users with fewer events are left out")
    min_item: int = Field(default=1, ge=1, description="items with fewer events are left out, until both hold")
    split: Literal["leave_one_out", "user_time", "global_time", "cold_items"] = "leave_one_out"
    val: float = Field(default=0.1, ge=0, lt=1, description="share of events, for user_time and global_time")
    test: float = Field(default=0.1, ge=0, lt=1, description="share of events, for user_time and global_time")
    cold: float = Field(default=0.1, gt=0, lt=1, description="share of items that are cold, for cold_items")
    seed: int = Field(default=0, ge=0, description="draws the cold items")

    @model_validator(mode="after")
    def _something_trains(self) -> InteractionsConfig:
        if self.val + self.test >= 1:
            raise ValueError("val + test must leave a share of the events to train on")
        return self


class DataConfig(Schema):
    """A catalogue: where rows come from, what their columns mean, how they are prepared."""

    name: str
    root: str | None = Field(default=None, description="folder of local copies of public data")
    home: str | None = Field(default=None, description="where the data is public, told when it is not found")
    source: Component
    fallback: Component | None = Field(default=None, description="source used when root is not given")
    columns: ColumnsConfig = ColumnsConfig()
    fallback_columns: ColumnsConfig | None = None
    split: SplitConfig = SplitConfig()
    interactions: InteractionsConfig | None = Field(default=None, description="what users bought or viewed")
    image_size: tuple[int, int] = Field(default=(64, 64), description="stored height and width in pixels")
    tokenizer: str | None = Field(default=None, description="a Hugging Face tokenizer; null trains a WordPiece")
    vocabulary_size: int = Field(default=8000, ge=200)
    max_tokens: int = Field(default=64, ge=8, description="tokens kept of one text, specials not counted")
    max_bad_share: float = Field(default=0.05, ge=0, le=1, description="preparation stops above this share of bad rows")
    workers: int | None = Field(default=None, description="decoding processes; null uses every core")
    cache: str = "~/.cache/catalign"


class TrainerConfig(Schema):
    """How a stage is optimised (Loshchilov & Hutter 2019 for AdamW; Goyal et al. 2017 for warm-up)."""

    epochs: float = Field(default=1.0, gt=0)
    max_steps: int | None = Field(default=None, gt=0, description="optimiser steps, instead of epochs")
    batch_size: int = Field(default=256, gt=1)
    lr: float = Field(default=1e-3, gt=0)
    lr_scale: dict[str, float] = Field(default={}, description="factor per encoder, such as {image: 0.3}")
    weight_decay: float = Field(default=0.05, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps")
    final_lr: float = Field(default=0.01, ge=0, le=1, description="share of the peak at the end of the cosine")
    clip: float | None = Field(default=1.0, gt=0)
    accumulate: int = Field(default=1, ge=1)
    gradient_chunks: int = Field(default=1, ge=1, description="encode a batch in chunks with one chunk in memory")
    ema: float | None = Field(default=None, gt=0, lt=1, description="decay of averaged weights; null for none")
    precision: Literal["32", "bf16"] = "32"
    channels_last: bool = False
    compile: bool = False
    accelerator: str = "auto"
    devices: int = Field(default=1, ge=1)
    log_every: int = Field(default=10, ge=1)
    evaluations: int = Field(default=4, ge=1, description="validation passes during a stage, besides the first")
    eval_batches: int = Field(default=8, ge=1)
    checkpoint_minutes: float = Field(default=5.0, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _precision_text(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("precision"), int):
            values = {**values, "precision": str(values["precision"])}
        return values


class StageConfig(Schema):
    """Encoders plus weighted objectives. ``trainer`` and ``encoder`` hold what differs from the run's own."""

    objectives: dict[str, WeightedComponent] = Field(min_length=1)
    init: list[str] | None = Field(
        default=None, description="earlier stages to start from; null: those with its encoders"
    )
    locked: list[str] = Field(default=[], description="encoders that do not learn; their features are cached")
    text: dict[str, float] | None = Field(default=None, description="sampling weights of text columns, if other")
    second_text: dict[str, float] | None = Field(
        default=None, description="sampling weights of text columns for a second text (contrastive, text_views)"
    )
    split: list[str] = ["train"]
    share: float = Field(
        default=1.0, gt=0, le=1, description="share of those products: whole groups, the same ones for every seed"
    )
    without: dict[str, list[str]] = Field(
        default={}, description="products left out by their attributes, such as {article_type: [Belts, Ties]}"
    )
    trainer: dict[str, Any] = {}
    encoder: dict[str, dict[str, Any]] = Field(
        default={},
        description="options that differ, per encoder, such as {image: {size: [48, 36]}}",
    )


class IndexConfig(Schema):
    """A FAISS index by factory string."""

    factory: str = "Flat"
    nprobe: int | None = Field(default=None, gt=0)
    ef_search: int | None = Field(default=None, gt=0)


class Config(Schema):
    """A whole experiment."""

    name: str
    seed: int = Field(default=0, ge=0)
    output: str = Field(default="runs/${name}/seed${seed}", description="the run folder")
    plugins: list[str] = Field(default=[], description="your own packages, whose components this config names")
    data: DataConfig
    encoder: dict[str, Component]
    stages: dict[str, StageConfig] = Field(min_length=1)
    trainer: TrainerConfig = TrainerConfig()
    reuse: list[str] = Field(
        default=[], description="run folders whose finished stages, if of the same inputs, are copied, not trained"
    )
    fusion: Component
    untrained: bool = Field(default=True, description="also embed with the untrained model, a baseline of protocols")
    index: IndexConfig = IndexConfig()
    evaluation: dict[str, Component] = {}

    def encoder_of(self, stage: str, modality: str) -> Component:
        """The run's encoder of a modality with what the stage changes."""
        changes = self.stages[stage].encoder.get(modality, {})
        return Component.model_validate({**self.encoder[modality].model_dump(), **changes})

    def trainer_of(self, stage: str) -> TrainerConfig:
        """The run's trainer with what the stage changes."""
        return _check(
            TrainerConfig, {**self.trainer.model_dump(), **self.stages[stage].trainer}, f"stages.{stage}.trainer"
        )


def config_folder() -> Path:
    """Where the YAML files are: inside an installed wheel, else in the checkout beside ``ssl/``."""
    here = Path(__file__).resolve().parent
    for folder in (here / "configs", here.parents[1] / "configs"):
        if (folder / "config.yaml").is_file():
            return folder
    raise CatalignError(
        "the configs folder is missing", "reinstall catalign, or install it from a checkout: pip install -e ."
    )


def config_folders() -> list[Path]:
    """Where YAML files are looked for: :func:`config_folder`, then the configs folders of plugins."""
    return [config_folder(), *plugins.config_folders()]


def compose(overrides: Sequence[str] = ()) -> Config:
    """Compose and check a config from overrides, as the command line does.

    Args:
        overrides: Hydra overrides such as ``"experiment=fashion"`` or ``"stages.align.trainer.lr=1e-3"``.

    Raises:
        CatalignError: An override or file names something that does not exist, or a value is out of range.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException

    try:
        plugins.use_named(overrides)
        with initialize_config_dir(config_dir=str(config_folder()), version_base="1.3"):
            return check(hydra_compose("config", overrides=[permissive(override) for override in overrides]))
    except (HydraException, ValueError) as error:  # ValueError: a group set to null
        raise _explained(error, overrides) from None


def preset(group: str, name: str) -> dict[str, Any]:
    """What a group's YAML file, ours or a plugin's, sets under its own key, such as ``evaluation.images``; {} if none.

    Raises:
        CatalignError: The file cannot be composed.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    if name not in presets(group):
        return {}
    try:
        plugins.use_named([])
        with initialize_config_dir(config_dir=str(config_folder()), version_base="1.3"):
            values: Any = OmegaConf.to_container(hydra_compose(f"{group}/{name}"), resolve=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise _explained(error, [f"{group}={name}"]) from None
    return values.get(group, {}).get(name, {})


def presets(group: str) -> list[str]:
    """Names of a group's YAML files, ours and the plugins'."""
    return sorted({path.stem for folder in config_folders() for path in (folder / group).glob("*.yaml")})


def permissive(override: str) -> str:
    """Let an override set a key that no YAML file spells out; :func:`check` then knows whether the schema has it.

    Raises:
        CatalignError: It sets a group to ``{}``, which Hydra merges, so that nothing would change.
    """
    key, _, value = override.partition("=")
    is_group = (config_folder() / key.partition("@")[0]).is_dir()
    if is_group and value.strip() == "{}":
        raise CatalignError(f"{override} changes nothing", f"take keys out one by one, such as ~{key}.KEY")
    return override if is_group or "=" not in override or key[:1] in "+~" else f"++{override}"


def _explained(error: Exception, overrides: Sequence[str]) -> CatalignError:
    """Hydra's complaint in one sentence with the remedy."""
    from hydra.errors import MissingConfigException

    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        return unknown(f"{group or 'config'} config", name, presets(group))
    lines = [line for line in str(error.__cause__ or error).splitlines() if line.strip()]
    given = " ".join(overrides) or "none"
    return CatalignError(f"the config cannot be composed: {lines[0]}", f"overrides are key=value; given: {given}")


def check(composed: Any) -> Config:
    """Resolve and check what Hydra composed, and import the plugins that it names.

    Raises:
        CatalignError: An unknown key (with the nearest one), a value of the wrong type or out of range, or a plugin
            that cannot be imported.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    OmegaConf.register_new_resolver("cpu_precision", cpu_precision, replace=True)
    try:
        values = OmegaConf.to_container(composed, resolve=True) if OmegaConf.is_config(composed) else composed
    except OmegaConfBaseException as error:
        raise CatalignError(f"config key {error.full_key}: {str(error).splitlines()[0]}") from None
    config = _check(Config, values, "")
    plugins.use(config.plugins)
    for stage in config.stages:
        config.trainer_of(stage)
    return config


def cpu_precision() -> Literal["32", "bf16"]:
    """The faster precision of this processor, as ``${cpu_precision:}`` in YAML: bf16 where it has instructions for it.

    Without them (AVX512-BF16 or AMX), oneDNN emulates bf16 convolutions and takes tens of times as long as with fp32.
    """
    import torch

    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "32"  # no processor has AMX alone


def _check(schema: type[Any], values: Any, where: str) -> Any:
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        path = [str(part) for part in first["loc"]]
        full = ".".join(filter(None, [where, *path]))
        if first["type"] == "extra_forbidden":
            known = [*_known_keys(schema, path[:-1]), *([] if path[1:] or where else ["experiment"])]
            raise unknown(f"config key {full!r}; the part", path[-1], known) from None
        given = first["input"]
        words = first["type"] == "list_type" and isinstance(given, str)
        remedy = f"write {full}=[{given}]" if words else f"it was {given!r}"
        raise CatalignError(f"config key {full or 'root'}: {first['msg']}", remedy[:300]) from None


def _known_keys(schema: Any, path: list[str]) -> list[str]:
    for part in path:
        annotation = (
            schema.model_fields[part].annotation
            if hasattr(schema, "model_fields") and part in schema.model_fields
            else None
        )
        nested = [a for a in getattr(annotation, "__args__", ()) if hasattr(a, "model_fields")]
        if annotation is None:
            continue  # the key of a dict[str, Schema]: the schema is already the value's
        schema = annotation if hasattr(annotation, "model_fields") else (nested[-1] if nested else annotation)
    return list(getattr(schema, "model_fields", {}))
