"""Completing attack: the request without the chat format, as a plain text that the model continues.

A refusal that depends on the tokens of a conversation does not appear without them. The attack needs control of the model's whole input,
which anyone who runs the model has. Source: arXiv 2407.09121, CompletingAttack.

On the synthetic world, the word that ends a request is left out, and the model has to write it before its answer. The word that begins a
request stays, since it begins every text that a model of the world has read. (Version 1 left it out; then no model answered, not even
a base model, and not even safe requests.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from titer.attacks.base import Attack, Attempt, State
from titer.data.example import Example
from titer.data.vocabulary import EOT
from titer.data.world import World


class Completing(Attack):
    """Asks each request as plain text, without a chat template; earlier turns and a system text come before it."""

    SOURCE = "arXiv 2407.09121, CompletingAttack"
    VERSION = 2

    def attempts(self, examples: Sequence[Example], state: State, world: World | None) -> list[Attempt]:
        if world is None:
            return [Attempt(example, raw=True) for example in examples]
        end = world.words[EOT]

        def bare(e: Example) -> Example:
            comply, refuse = (text and f"{end} {text}" for text in (e.comply, e.refuse))
            return replace(e, prompt=e.prompt.removesuffix(end).rstrip(), comply=comply, refuse=refuse)

        return [Attempt(bare(e)) for e in examples]  # a world has no template to leave out
