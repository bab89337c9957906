"""Lisa: fine-tune in turns on alignment data and on user data, and hold each turn near the weights it began with.

A turn is k1 steps on f (cross-entropy on the stream `alignment`), the next one k2 steps on u (cross-entropy on `train`), and so on.
Each step's loss also has the proximal term rho/2 ||w - w_s||^2, where w_s are the weights at the last switch of turns (in the first
turn: as the stage began).
    w' = argmin f(w) + rho/2 ||w - w_t||^2,   w_t+1 = argmin u(w) + rho/2 ||w - w'||^2
Source: arXiv 2405.18641 (bi-state optimisation with a proximal term; with rho = 0, bi-state optimisation only). As in the paper,
alignment comes first and the proximal term counts from the first step. The official code leaves the term out in the first tenth of the
steps; `skip` sets that number.
A step draws examples of its turn's stream only. A stream is addressed by the step's number, so the examples that would fall into the
other turn's steps are never used.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator

from titer.core.errors import TiterError
from titer.methods.base import Batches, Bundle, Context, Loss, Method, token_nll


class Lisa(Method):
    """Fine-tunes in turns on two streams; the settings are the turns' lengths, and how strongly the weights are held within a turn."""

    STREAMS = ("train", "alignment")
    SOURCE = "arXiv 2405.18641, bi-state optimisation with a proximal term"
    VERSION = 1
    NEUTRAL = {"k1": 0, "rho": 0.0}

    k1: int = Field(default=100, ge=0, description="steps of a turn on alignment data; paper: 100")
    k2: int = Field(default=900, ge=0, description="steps of a turn on user data; paper: 900")
    rho: float = Field(default=1.0, ge=0, description="weight of the proximal term; paper: 1")
    skip: int = Field(default=0, ge=0, description="first steps without the proximal term; paper: 0, official code: a tenth of all")

    @model_validator(mode="after")
    def _some_steps(self) -> Lisa:
        if self.k1 + self.k2 == 0:
            raise ValueError("k1 and k2 are both 0, so there is no step to take")
        return self

    def check_steps(self, steps: int) -> None:
        """Checks the number of steps. Errors: the run would end within the first turn, before the user's data is seen."""
        if 0 < steps <= self.k1:
            raise TiterError(
                f"Lisa of {steps} steps and k1 = {self.k1}: all steps would be in the first turn, on alignment data, and none on the task",
                expected="more steps than k1",
                next_step="shorten both turns in proportion, for example --set k1=1 --set k2=9, or train longer.",
            )

    def turn(self, number: int) -> Literal["alignment", "train"]:
        """Returns the stream that step `number` trains on."""
        return "alignment" if number % (self.k1 + self.k2) < self.k1 else "train"

    def setup(self, c: Context) -> dict[str, torch.Tensor]:
        """Returns `anchor/NAME` (w_s) for each trained parameter; nothing at rho 0."""
        return self._anchors(c) if self.rho > 0 else {}

    def loss(self, c: Context, batch: Batches) -> Loss:
        chosen = batch[self.turn(c.number)]
        return token_nll(c.forward(chosen), chosen.labels)

    def step(self, c: Context) -> None:
        turn = self.turn(c.number)
        c.log("lisa_alignment", float(turn == "alignment"))
        if self.rho > 0:
            if c.number > 0 and turn != self.turn(c.number - 1):
                c.state.update(self._anchors(c))
            if c.number >= self.skip:
                c.add(self.pull(c), self.rho)
        for batch in c.micro(turn):
            c.backward(self.loss(c, batch))

    def pull(self, c: Context) -> Bundle:
        """Returns w - w_s by parameter: the gradient of the proximal term at rho = 1."""
        found, square = {}, torch.zeros(())
        for name, p in c.named:
            key = f"anchor/{name}"
            c.state[key] = c.state[key].to(p.device)  # after a resume it is on the CPU
            found[name] = p.detach() - c.state[key]
            square = square.to(p.device) + (found[name].float() ** 2).sum()
        c.log("lisa_drift", square.sqrt())
        return found

    def _anchors(self, c: Context) -> dict[str, torch.Tensor]:
        return {f"anchor/{name}": p.detach().clone() for name, p in c.named}
