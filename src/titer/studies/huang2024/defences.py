"""Every defence of the study by name, for one seed: the aligned model it starts from and what the provider does. L6.

Alignments are controls of Vaccine: SFT with as many passes (twice the steps), SFT stopped where its alignment loss is
Vaccine's, a random perturbation of equal norm. Fine-tuning and repair methods start from the SFT-aligned model.
"""

from __future__ import annotations

import math
from dataclasses import replace

from titer.core.errors import unknown
from titer.methods.antidote import Antidote
from titer.methods.base import Method
from titer.methods.booster import Booster
from titer.methods.constrained_sft import ConstrainedSFT
from titer.methods.ewc import EWC
from titer.methods.kl import KL
from titer.methods.lisa import Lisa
from titer.methods.rep_noise import RepNoise
from titer.methods.safe_lora import SafeLoRA
from titer.methods.sft import SFT
from titer.methods.t_vaccine import TVaccine
from titer.methods.vaccine import Vaccine
from titer.studies.huang2024.attack import Defence, kept_file, state
from titer.studies.huang2024.subject import Alignment, Subject

LISA = Lisa(k1=2, k2=18)  # the paper's one step in ten on alignment data, in turns that fit runs of some hundred steps
GUARD = 0.5  # VLGuard's 500 safety examples to 1,000 of the user's
TWICE, EQUAL = "sft, twice the steps", "sft, equal loss"
CONTROLS = (TWICE, EQUAL, "noise")  # what Vaccine must beat
CORE = ("non-aligned", "sft", TWICE, EQUAL, "noise", "vaccine", "lisa")
FAMILY = ("ewc", "kl", "vlguard", "constrained_sft", "booster", "rep_noise", "t_vaccine", "safe_lora", "antidote", "vaccine + ewc")
TUNED: dict[str, Method] = {  # what the provider trains the user's data with; these start from an alignment of another name
    "lisa": LISA,
    "ewc": EWC(),
    "vaccine + ewc": EWC(),
    "kl": KL(),
    "constrained_sft": ConstrainedSFT(),
    "safe_lora": SafeLoRA(),
    "antidote": Antidote(),
}


def alignment_of(s: Subject, name: str, rho: float, number: int = 0) -> Alignment:
    """How the defence `name` aligns the base; `number` counts alignment seeds."""
    if name == EQUAL:
        return replace(Alignment(SFT(), number=number), steps=equal_loss_step(s, rho, number))
    own = {
        TWICE: Alignment(SFT(), passes=2),
        "vaccine": Alignment(Vaccine(rho=rho)),
        "vaccine + ewc": Alignment(Vaccine(rho=rho)),
        "noise": Alignment(Vaccine(rho=rho, noise="norm")),
        "booster": Alignment(Booster()),
        "rep_noise": Alignment(RepNoise()),
        "t_vaccine": Alignment(TVaccine(layers=max(1, s.scale.base.architecture.layers // 2))),
    }
    return replace(own.get(name, Alignment(SFT())), number=number)


def defence(s: Subject, name: str, rho: float, number: int = 0) -> Defence:
    """A defence. Errors: an unknown name."""
    if name not in {*CORE, *FAMILY}:
        unknown("defence", name, [*CORE, *FAMILY])
    if name == "non-aligned":
        return Defence(name, None)
    guard = round(GUARD * s.scale.budget.examples) if name == "vlguard" else 0
    return Defence(name, alignment_of(s, name, rho, number), TUNED.get(name), guard)


def equal_loss_step(s: Subject, rho: float, number: int = 0) -> int:
    """The step of SFT's alignment whose alignment loss, on fresh requests, is nearest to Vaccine's (in its logarithm)."""
    sft, vaccine = (s.aligned(alignment_of(s, name, rho, number)) for name in ("sft", "vaccine"))
    wanted = math.log(float(state(s, vaccine, vaccine, 0).alignment_loss.iloc[0]))
    losses = {s.scale.align_steps: float(state(s, sft, sft, 0).alignment_loss.iloc[0])}
    for step in s.kept_steps:
        losses[step] = float(state(s, sft, sft, step, kept_file(sft, step)).alignment_loss.iloc[0])
    return min(losses, key=lambda step: abs(math.log(losses[step]) - wanted))
