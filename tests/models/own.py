"""Models that need the code in their folder: a Llama under a name of its own, which tells when its code is imported."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import llama
from titer.data.world import World

CONFIGURATION = """
from pathlib import Path
from transformers import LlamaConfig

Path({marked!r}, "configuration").touch()


class OwnLlamaConfig(LlamaConfig):
    model_type = "own_llama"
"""
MODELLING = """
from pathlib import Path
from transformers import LlamaForCausalLM
from .configuration_own import OwnLlamaConfig

Path({marked!r}, "modelling").touch()


class OwnLlamaForCausalLM(LlamaForCausalLM):
    config_class = OwnLlamaConfig

    def forward(self, *args, **settings):
        found = super().forward(*args, **settings)
        found.logits = found.logits * {scale}
        return found
"""
REGISTERED = """
from transformers import AutoConfig, AutoModelForCausalLM

AutoConfig.register("own_llama", OwnLlamaConfig)
AutoModelForCausalLM.register(OwnLlamaConfig, OwnLlamaForCausalLM)
"""
AUTO_MAP = {"AutoConfig": "configuration_own.OwnLlamaConfig", "AutoModelForCausalLM": "modeling_own.OwnLlamaForCausalLM"}


def own_llama(world: World, folder: Path, seed: int = 0, scale: int = 1, registers: bool = False) -> Path:
    """A tiny Llama in `folder` that only its own code opens. Its logits are a Llama's times `scale`; where that code was imported,
    the folder `marked` beside it is not empty. `registers`: it makes itself known to transformers, as some code does."""
    marked(folder).mkdir(parents=True, exist_ok=True)
    llama(world, seed).save(folder)
    written(folder, model_type="own_llama", architectures=["OwnLlamaForCausalLM"], auto_map=AUTO_MAP)
    (folder / "configuration_own.py").write_text(CONFIGURATION.format(marked=str(marked(folder))))
    modelling = MODELLING.format(marked=str(marked(folder)), scale=scale) + (REGISTERED if registers else "")
    (folder / "modeling_own.py").write_text(modelling)
    return folder


def marked(folder: Path) -> Path:
    return folder.parent / "marked"


def written(folder: Path, file: str = "config.json", **values: object) -> None:
    """Change values of a JSON file in the folder."""
    place = folder / file
    place.write_text(json.dumps({**json.loads(place.read_text()), **values}))
