"""What a measured model's files and report say for its documentation, by the fields that regulators and the hub ask for. L5.

Source of the fields: the Model Documentation Form of the EU's General-Purpose AI Code of Practice (transparency chapter, measure 1.1)
and the hub's model card metadata. A field that Titer did not measure is named as the provider's, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping

from titer.models.checkpoint import Checkpoint

LEFT = (
    "legal name, release dates, licence, distribution, intended and forbidden uses, training process and data, "
    "training computation and energy: Titer does not measure them"
)


def documented(checkpoint: Checkpoint, subject: str, provenance: Mapping[str, str], roles: Mapping[str, str]) -> dict[str, str]:
    """Field -> what is known of it. `subject`: its name in the report; `roles`: model of the report -> its part there.

    A model whose folder needs code of its own is not opened for this: its architecture is said by name alone.
    """
    before = [name for name, role in roles.items() if role in ("base", "before") and name != subject]
    attack = provenance.get("attack", "none")
    return {
        "Model authenticity": f"content key {provenance[f'model {subject}']}, from the sha256 of configuration, tokenizer and weights",
        "Model dependencies": "measured beside "
        + " and ".join(f"{name} ({provenance.get(f'model {name}', 'key not stated')})" for name in before)
        + "; that it was made from it was not measured"
        if before
        else "not measured",
        **_sizes(checkpoint),
        "Adversarial testing": "none" if attack == "none" else f"attack {attack}, in the table above",
        "Left to the provider": LEFT,
    }


def _sizes(checkpoint: Checkpoint) -> dict[str, str]:
    """Architecture, number of parameters, and the tokens that fit."""
    if checkpoint.runs_code:
        kind = checkpoint.config.get("model_type", "not stated")
        return {"Model architecture": f"{kind}, by code of its own, which was not run for this card"}
    text, outline, window = checkpoint.configuration.get_text_config(decoder=True), checkpoint.outline, checkpoint.window
    named = {"layers": getattr(text, "num_hidden_layers", None), "wide": getattr(text, "hidden_size", None)}
    further = (checkpoint.quantised, "and an adapter" if checkpoint.adapter else "")
    return {
        "Model architecture": ", ".join([type(outline).__name__, *(f"{size} {name}" for name, size in named.items() if size)]),
        "Total model size": ", ".join(filter(None, (f"{outline.num_parameters():,} parameters", *further))),
        "Input and output": "text, as it was asked here" + (f"; at most {window:,} tokens together" if window else ""),
    }


def hub_fields(checkpoint: Checkpoint) -> dict[str, str]:
    """The hub's metadata that loading and asking the model has shown."""
    return {"library_name": "peft" if checkpoint.adapter else "transformers", "pipeline_tag": "text-generation"}
