"""Every defence of the study by name, for one seed: the aligned model it starts from and what the provider does. L7.

Controls of Vaccine: SFT with as many passes (twice the steps), SFT of fewer steps whose alignment loss is Vaccine's, a random
perturbation of equal norm. Lisa's: the user's data with Lisa's share of alignment data mixed in. Fine-tuning and repair methods
start from the SFT-aligned model; but for Vaccine's rho nothing is tuned, they have their papers' settings.
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
from titer.studies.huang2024.attack import Defence, state
from titer.studies.huang2024.subject import Alignment, Subject

LISA = Lisa(k1=2, k2=18)  # the paper's one step in ten on alignment data, in turns that fit runs of some hundred steps
GUARD = 0.5  # VLGuard's 500 safety examples to 1,000 of the user's
TWICE, EQUAL, MIXED = "sft, twice the steps", "sft, equal loss", "sft, same safety data"
LENGTHS = (0.15, 0.25, 0.4, 0.6, 0.8)  # of the scale's alignment steps
CONTROLS = (TWICE, EQUAL, "noise")  # what Vaccine must beat
CORE = ("non-aligned", "sft", TWICE, EQUAL, "noise", "vaccine", "lisa", MIXED)
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
        return equal_loss(s, rho, number)
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
    guard = round({"vlguard": GUARD, MIXED: LISA.k1 / LISA.k2}.get(name, 0) * s.scale.budget.examples)
    return Defence(name, alignment_of(s, name, rho, number), TUNED.get(name), guard)


def equal_loss(s: Subject, rho: float, number: int = 0) -> Alignment:
    """SFT's alignment, a whole schedule of some length, whose loss on fresh requests is nearest to Vaccine's (in its logarithm)."""
    wanted = math.log(loss_of(s, alignment_of(s, "vaccine", rho, number)))
    return min(shortened(s, number), key=lambda how: abs(math.log(loss_of(s, how)) - wanted))


def shortened(s: Subject, number: int = 0) -> list[Alignment]:
    """SFT's alignments of fewer steps, among which the one of equal loss is sought."""
    return [Alignment(SFT(), number=number, steps=max(1, round(share * s.scale.align_steps))) for share in LENGTHS]


def loss_of(s: Subject, how: Alignment) -> float:
    """Alignment loss before any attack, nats a token."""
    model = s.aligned(how)
    return float(state(s, model, model, 0).alignment_loss.iloc[0])
