"""A model is encoders plus the objectives that were trained with them."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from catalign import registry
from catalign.artifacts import atomic
from catalign.config import Config
from catalign.data.catalogue import Catalogue
from catalign.encoders import build_encoders
from catalign.errors import CatalignError, unknown
from catalign.objectives.base import Objective

WEIGHTS = "weights.safetensors"


class Model(nn.Module):
    """The encoders of a stage, its objectives and their weights in the loss.

    Args:
        encoders: One encoder per modality.
        objectives: One objective per name in the stage.
        weights: Factor of each objective's loss.
    """

    def __init__(self, encoders: nn.ModuleDict, objectives: nn.ModuleDict, weights: dict[str, float]) -> None:
        super().__init__()
        self.encoders, self.objectives, self.weights = encoders, objectives, weights

    def embed(self, modality: str, pooled: Tensor) -> Tensor:
        """What the embedding store holds of an encoder's pooled output ``(B, D)``.

        The first objective that projects this modality decides (the cross-modal head in an aligned model); without
        one, the pooled output is the embedding.
        """
        for objective in self.tasks().values():
            if modality in objective.modalities and type(objective).embed is not Objective.embed:
                return objective.embed(modality, pooled)
        return pooled

    def describes_products(self, modality: str) -> bool:
        """Whether a product has an embedding of this modality: of behaviour it has one if objectives score items."""
        return modality != "behaviour" or any(objective.scores_items for objective in self.tasks().values())

    def tasks(self) -> dict[str, Objective]:
        """The objectives by their names in the stage."""
        return {name: cast(Objective, objective) for name, objective in self.objectives.items()}

    def save(self, path: Path) -> None:
        """Write all weights as safetensors."""
        with atomic(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, str(temporary))

    def load(self, path: Path) -> None:
        """Read all weights.

        Raises:
            CatalignError: The file does not fit the model that the config describes.
        """
        try:
            self.load_state_dict(load_file(str(path)))
        except (RuntimeError, OSError) as error:
            problem = f"{path} does not fit this config: {str(error)[:300]}"
            raise CatalignError(problem, "train the stage again") from None


def build_model(config: Config, stage: str, catalogue: Catalogue) -> Model:
    """An untrained model of a stage, drawn from the run's seed alone.

    Raises:
        CatalignError: An objective needs an encoder that the config lacks, or an option is wrong.
    """
    modalities = check_stage(config, stage)
    torch.manual_seed(config.seed)
    encoders = build_encoders({m: config.encoder_of(stage, m) for m in modalities}, catalogue)
    chosen = config.stages[stage].objectives
    built = {
        key: registry.build("objective", c.name, encoders, where=f"stages.{stage}.objectives.{key}", **c.options)
        for key, c in chosen.items()
    }
    return Model(encoders, nn.ModuleDict(built), {key: component.weight for key, component in chosen.items()})


def modalities_of(config: Config, stage: str) -> list[str]:
    """The modalities that a stage's objectives read, sorted."""
    modalities: set[str] = set()
    for component in config.stages[stage].objectives.values():
        default = registry.get("objective", component.name).modalities
        modalities.update(component.options.get("modalities", default))
    return sorted(modalities)


def parents_of(config: Config, name: str) -> list[str]:
    """The earlier stages that this one starts from: by default those that trained one of its encoders."""
    if (chosen := config.stages[name].init) is not None:
        return chosen
    own = set(modalities_of(config, name))
    earlier = list(config.stages)[: list(config.stages).index(name)]
    return [stage for stage in earlier if own & set(modalities_of(config, stage))]


def check_stage(config: Config, stage: str) -> list[str]:
    """Check a stage without building it; its modalities.

    Raises:
        CatalignError: An unknown objective, option, encoder or earlier stage.
    """
    chosen = config.stages[stage]
    for key, component in chosen.objectives.items():
        registry.validate("objective", component.name, component.options, f"stages.{stage}.objectives.{key}")
    modalities = modalities_of(config, stage)
    for modality in modalities:
        if modality not in config.encoder:
            raise unknown(f"encoder (needed by stages.{stage})", modality, config.encoder)
        encoder, own = config.encoder_of(stage, modality), chosen.encoder.get(modality)
        where = f"encoder.{modality}"
        registry.validate("encoder", encoder.name, encoder.options, f"stages.{stage}.{where}" if own else where)
    for key, named in (("locked", chosen.locked), ("encoder", chosen.encoder)):
        for modality in named:
            if modality not in modalities:
                raise unknown(f"encoder in stages.{stage}.{key}", modality, modalities)
    earlier = list(config.stages)[: list(config.stages).index(stage)]
    for parent in chosen.init or []:
        if parent not in earlier:
            raise unknown(f"earlier stage in stages.{stage}.init", parent, earlier)
    return modalities
