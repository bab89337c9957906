"""Fills fields of a model's documentation, which regulators and the hub ask for, from the model's files and its report. L5.

Source of the fields: the Model Documentation Form of the EU's General-Purpose AI Code of Practice (transparency chapter, measure 1.1)
and the hub's model card metadata. A field that Titer did not measure is left to the model's provider, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping

from titer.models.checkpoint import Checkpoint

LEFT = (
    "legal name, release dates, licence, distribution, intended and forbidden uses, training process and data, "
    "training computation and energy: Titer does not measure them"
)


def documented(
    checkpoint: Checkpoint, subject: str, provenance: Mapping[str, str], roles: Mapping[str, str], attacks: Mapping[str, str]
) -> dict[str, str]:
    """Returns field -> what is known about it. `subject`: the model's name in the report; `roles`: model in the report -> its role;
    `attacks`: attack -> its settings.

    A model that needs code from its own folder is not opened for this: only the name of its architecture is given.
    """
    before = [name for name, role in roles.items() if role in ("base", "before") and name != subject]
    return {
        "Model authenticity": f"content key {provenance[f'model {subject}']}, from the sha256 of configuration, tokenizer and weights",
        "Model dependencies": "measured together with "
        + " and ".join(f"{name} ({provenance.get(f'model {name}', 'key not stated')})" for name in before)
        + "; whether it was made from that model was not measured"
        if before
        else "not measured",
        **_sizes(checkpoint),
        "Adversarial testing": "none"
        if not attacks
        else f"{'; '.join(f'{name} ({how})' for name, how in attacks.items())}: in the table above",
        "Left to the provider": LEFT,
    }


def _sizes(checkpoint: Checkpoint) -> dict[str, str]:
    """Returns the fields for the architecture, the number of parameters, and the number of tokens that fit."""
    if checkpoint.runs_code:
        kind = checkpoint.config.get("model_type", "not stated")
        return {"Model architecture": f"{kind}, defined by code in the model's own folder, which was not run for this card"}
    text, outline, window = checkpoint.configuration.get_text_config(decoder=True), checkpoint.outline, checkpoint.window
    named = {"layers": getattr(text, "num_hidden_layers", None), "wide": getattr(text, "hidden_size", None)}
    further = (checkpoint.quantised, "and an adapter" if checkpoint.adapter else "")
    return {
        "Model architecture": ", ".join([type(outline).__name__, *(f"{size} {name}" for name, size in named.items() if size)]),
        "Total model size": ", ".join(filter(None, (f"{outline.num_parameters():,} parameters", *further))),
        "Input and output": "text, as in this measurement" + (f"; at most {window:,} tokens together" if window else ""),
    }


def hub_fields(checkpoint: Checkpoint) -> dict[str, str]:
    """Returns the fields of the hub's metadata that are known from loading the model and prompting it."""
    return {"library_name": "peft" if checkpoint.adapter else "transformers", "pipeline_tag": "text-generation"}
