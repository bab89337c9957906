"""No chat format: the request alone, as a text that the model goes on with.

Refusal that hangs on the tokens of a conversation is not there without them; a white-box attack, for whoever runs the model writes its
input. On the world the words that begin a request and hand it over are left out. Source: arXiv 2407.09121, CompletingAttack.
"""

from __future__ import annotations

from collections.abc import Sequence

from titer.attacks.base import Attack, Attempt, State, reworded
from titer.data.example import Example
from titer.data.vocabulary import BOS, EOT
from titer.data.world import World


class Completing(Attack):
    """Each request as plain text, without a chat template; earlier turns and a system text stand before it."""

    SOURCE = "arXiv 2407.09121, CompletingAttack"
    VERSION = 1

    def attempts(self, examples: Sequence[Example], state: State, world: World | None) -> list[Attempt]:
        if world is None:
            return [Attempt(example, raw=True) for example in examples]
        marks = {world.words[BOS], world.words[EOT]}
        bare = reworded(examples, lambda request: " ".join(word for word in request.split() if word not in marks))
        return [one._replace(raw=True) for one in bare]
