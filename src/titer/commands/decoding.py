"""Decoders in a command: a decoder by name, the models that it reads, and the prompts that it may learn from. L6.

A decoder that learns does so separately for each model, once; the result is kept in the store.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from titer.attacks.base import Attempt
from titer.commands import tuning
from titer.commands.attacking import LEAST, held_back
from titer.commands.requests import Judged
from titer.core.config import build
from titer.core.errors import TiterError
from titer.core.plugins import plugin
from titer.data.example import Example
from titer.data.sources import TextData
from titer.decoders.base import Decoder, Guided, learns
from titer.models.checkpoint import Checkpoint
from titer.models.vllm_engine import undecoded
from titer.models.weights import shapes_of
from titer.pipeline import Model, Pipeline, fingerprint

Sets = Mapping[str, Sequence[Attempt]]
WITHHELD = "(not shown: these answers measure a risk)"


@dataclass(frozen=True)
class Decoded:
    """A decoder that has not learned yet, and the examples that it may learn from; none of them is asked."""

    guided: Guided
    held: Sequence[Example] = ()

    def on(self, pipeline: Pipeline, model: Model) -> Guided:
        """Returns the decoder with what it learned on a model. To learn, if it has not yet, it loads that model and those it reads."""
        one = self.guided
        if not learns(one.decoder):
            return one
        kind = type(one.decoder)
        inputs = {
            "decoder": [one.name, kind.VERSION, one.decoder],
            "reads": {role: read.key for role, read in one.models.items()},
            "model": model.key,
            "examples": fingerprint(self.held),
            "dtype": pipeline.dtype,
        }

        def learned() -> Mapping[str, object]:
            pipeline.reporter.tell(f"{one.name} learns from {len(self.held)} examples on {model.name}")
            lm = pipeline.lm(model)  # first, since loading it frees other models
            return one.decoder.fit(lm, pipeline.beside(one), self.held)

        return replace(one, state=pipeline.state("decoders", inputs, learned), learned_on=model.key)

    def over(self, pipeline: Pipeline, model: Model, attempts: Sequence[Attempt]) -> list[Attempt]:
        guided = self.on(pipeline, model)
        return [one._replace(decoder=guided) for one in attempts]

    def shown(self, verdicts: pd.DataFrame) -> pd.DataFrame:
        """Returns the verdicts as a report shows them: without the answers' texts if these measure a risk."""
        if self.guided.decoder.SHOWN:
            return verdicts
        return verdicts.assign(completion=WITHHELD, **({"thought": ""} if "thought" in verdicts else {}))

    def identity(self) -> dict[str, object]:
        return {"decoder": [self.guided.key, fingerprint(self.held)]}

    def priced(self, subject: Checkpoint, bf16: bool) -> dict[str, str]:
        """Says, for --dry-run, how many models are in memory at once and how large they are."""
        held = [subject, *self.guided.models.values()]
        bytes_ = (2 if bf16 else 4) * sum(map(size, held))
        words = f"{len(held)} model{'s' if len(held) > 1 else ''} in memory at once, {bytes_ / 1e9:.2f} GB in {'bfloat16' if bf16 else 'float32'}"
        return {"decoder": words + (f"; it learns from {len(self.held)} examples that are not asked" if self.held else "")}


def size(checkpoint: Checkpoint) -> int:
    """Returns the number of a checkpoint's parameters."""
    return sum(math.prod(shape) for shape, _ in shapes_of(checkpoint).values())


def chosen(order: Judged, subjects: Sequence[Checkpoint], trusted: bool) -> Guided | None:
    """Makes the decoder that a command names; None if it names none.

    Errors: an unknown decoder; settings without a decoder, or out of range; a missing or unknown model; vocabularies that differ; vLLM.
    """
    if order.decoder is None:
        if order.decoder_set or order.reads:
            raise TiterError(
                f"{'--decoder-set' if order.decoder_set else '--read'} was given without --decoder", next_step="add --decoder NAME."
            )
        return None
    kind = plugin("decoders", order.decoder, Decoder)
    made = build(kind, order.decoder_set, f"decoder {order.decoder}")
    read = tuning.roles_read(f"decoder {order.decoder}", kind.MODELS, order.reads, trusted)
    guided = Guided(made, {role: one.checkpoint for role, one in read.items()})
    if order.engine == "vllm":
        raise undecoded(f"the decoder {guided.name}")
    for subject in subjects:
        guided.check(subject)
    return guided


def apart(text: TextData, prompts: int | None, guided: Guided | None) -> tuple[TextData, Decoded | None]:
    """Separates the prompts to ask from those to learn from. Returns (the prompts to ask, the decoder with the examples to learn from).

    A decoder that learns does so from the prompts that are not drawn or, if these are too few, from one in four of each class. Errors: a
    class with too few prompts for both; examples that the decoder cannot learn from.
    """
    if guided is None or not learns(guided.decoder):
        return text, Decoded(guided) if guided else None
    held: list[Example] = []
    for harmful in (True, False):
        whole, asked = text.of_class(harmful), text.of_class(harmful, prompts)
        left, mine = held_back(whole, asked)
        if len(left) < min(LEAST, len(asked)):  # prompts were taken for learning, and too few are left
            raise TiterError(
                f"the decoder {guided.name} learns from prompts, and there are only {len(whole)} {'unsafe' if harmful else 'safe'} ones",
                expected=f"at least {LEAST} to learn from and {LEAST} others to ask",
            )
        held += mine
    guided.decoder.check(held)
    out = {e.prompt for e in held}
    rows = tuple(row for row in text.rows if row[0] not in out)
    return text.model_copy(update={"rows": rows}), Decoded(guided, held)
