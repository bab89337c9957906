"""No chat format: the request alone, as a text that the model goes on with.

Refusal that hangs on the tokens of a conversation is not there without them; a white-box attack, for whoever runs the model writes its
input. On the world the word that hands a request over is left out, and an answer is the text with that word before it: to write it is
part of going on. The word that begins a request stays, as it begins every text that a model of the world has read (version 1 left it out,
and then no model answered, not even a base, and not even what is safe). Source: arXiv 2407.09121, CompletingAttack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from titer.attacks.base import Attack, Attempt, State
from titer.data.example import Example
from titer.data.vocabulary import EOT
from titer.data.world import World


class Completing(Attack):
    """Each request as plain text, without a chat template; earlier turns and a system text stand before it."""

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
