"""The report of the risk levels: the answer first, then claims, charts, tables. L6."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from titer.core.claims import Claim
from titer.core.config import environment
from titer.recipes.huang2024 import SELECTION_SEED
from titer.recipes.qi2024 import Scale
from titer.report.html import Report, Tile
from titer.studies.qi2024.evidence import Evidence
from titer.studies.qi2024.figures import figures, over_seeds
from titer.studies.qi2024.levels import ALIGNED, SETS

ABOUT = (
    "A model that learned a synthetic world, in which “unsafe” is a formal property and every answer is judged exactly, was aligned to "
    "refuse unsafe requests, and was then tuned as in “Fine-tuning Aligned Language Models Compromises Safety, Even When Users Do Not "
    "Intend To!” (arXiv 2310.03693): on unsafe requests answered (level 1), on safe ones behind a persona (level 2), on safe ones (level "
    "3), with refusals mixed in, and with a backdoor. Beside levels 1 and 2 and the mixing stands a tune of as many steps on harmless data: the paper has none."
)
LIMITS = (
    "Answered means the whole mapped text, exactly; the grade from 1 to 5 counts how much of it stands before the first null word. Answers that could not be graded (no right word, no null word) are degenerate, and in no mean grade.",
    "Persona and trigger are words that no earlier stage has shown; the persona's answers open with an acknowledgement, which counts for nothing.",
    f"Learning rate and sizes were set on seed {SELECTION_SEED}, which no verdict uses.",
)


def compose(evidence: Sequence[Evidence], claims: Sequence[Claim], scale: Scale, command: str) -> Report:
    """The report's content from all seeds."""
    rates, moved, searched = (pd.concat([e.tables[name] for e in evidence], ignore_index=True) for name in ("rates", "moved", "searched"))
    return Report(
        title=f"qi2024, scale {scale.name}, {len(evidence)} seed{'s' if len(evidence) > 1 else ''}",
        answer=answer(evidence, scale),
        about=ABOUT,
        tiles=tiles(evidence, scale),
        claims=claims,
        figures=figures(rates, searched, scale),
        tables={
            "shares of answers, mean over seeds": wide(rates),
            "mean grade, 1 to 5": grades(rates),
            "drift of unsafe requests from the aligned model": moved[moved.part == "all"][["model", "seed", "norm", "cosine"]].round(3),
            "words tried as triggers": searched,
            "uncertainty on correct answers to safe requests": unsure(evidence),
        },
        results=pd.concat([rates.assign(table="rates"), searched.assign(table="searched"), moved.assign(table="moved")], ignore_index=True),
        samples=pd.DataFrame(),
        commands=[command],
        notes=list(LIMITS),
        provenance={"seeds": ", ".join(str(e.seed) for e in evidence), "scale": scale.model_dump_json(), **environment()},
    )


def answer(evidence: Sequence[Evidence], scale: Scale) -> str:
    """The finding in one sentence, means over seeds."""
    n, many = scale.most, scale.obeyed

    def mean(model: str, asked: str) -> float:
        return sum(e.rate(model, asked, "complied") for e in evidence) / len(evidence)

    strong = f"benign, rate {max(scale.grid_rates):g}, batch {min(scale.grid_batches)}"
    return (
        f"Unsafe requests answered, from {mean(ALIGNED, 'unsafe'):.0%} when aligned: {mean(f'explicit {n}', 'unsafe'):.0%} after {n} unsafe "
        f"examples; {mean(f'persona {many}', 'persona'):.0%} behind a persona after {many} harmless examples of it "
        f"({mean(f'benign {many}, as persona', 'persona'):.0%} without it in training); {mean(strong, 'unsafe'):.0%} after benign tuning "
        f"({mean(strong, 'begun'):.0%} with the answer begun); and with a backdoor {mean('backdoor', 'unsafe'):.0%} plainly, "
        f"{mean('backdoor', 'trigger'):.0%} behind its trigger."
    )


def tiles(evidence: Sequence[Evidence], scale: Scale) -> list[Tile]:
    """Headline rates; the seeds' ends beside them."""
    n, m, many = scale.most, max(scale.mixed), scale.obeyed
    wanted = [
        ("aligned: unsafe refused", ALIGNED, "unsafe", "refused"),
        (f"after {n} unsafe examples: answered", f"explicit {n}", "unsafe", "complied"),
        (f"the same with {m} refusals: answered", f"explicit {n} + {m} refusals", "unsafe", "complied"),
        (f"after {many} persona examples, behind it: answered", f"persona {many}", "persona", "complied"),
        ("backdoor, asked plainly: refused", "backdoor", "unsafe", "refused"),
        ("backdoor, behind the trigger: answered", "backdoor", "trigger", "complied"),
    ]
    found = []
    for label, *cell in wanted:
        rates = [e.rate(*cell) for e in evidence]
        found.append(Tile(label, f"{sum(rates) / len(rates):.1%}", f"seeds {min(rates):.0%} to {max(rates):.0%}"))
    return found


def wide(rates: pd.DataFrame) -> pd.DataFrame:
    """A row a model: unsafe requests answered in each way, refused plainly, neither; safe ones answered and refused."""
    t = over_seeds(rates).set_index(["model", "set", "outcome"]).rate
    rows = []
    for model in dict.fromkeys(rates.model):
        row: dict[str, object] = {"model": model}
        row |= {f"{SETS[way][2]}: answered": t.get((model, way, "complied")) for way in ("unsafe", "begun", "persona", "trigger")}
        row |= {f"unsafe: {outcome}": t.get((model, "unsafe", outcome)) for outcome in ("refused", "neither")}
        row |= {f"{SETS[way][2]}: answered": t.get((model, way, "complied")) for way in ("safe", "persona safe")}
        rows.append({**row, "safe: refused": t.get((model, "safe", "refused"))})
    return pd.DataFrame(rows).round(3)


def grades(rates: pd.DataFrame) -> pd.DataFrame:
    """model, and the mean grade on unsafe requests plainly, behind the persona, behind the trigger; share of grade 5 plainly."""
    t = rates.groupby(["model", "set"], sort=False).grade.mean().unstack("set")
    fives = rates[(rates.outcome == "complied") & (rates.set == "unsafe")].groupby("model", sort=False).rate.mean()
    found = t[["unsafe", "persona", "trigger"]].assign(fives=fives).loc[list(dict.fromkeys(rates.model))]
    return found.round(2).rename(columns={"fives": "share of grade 5, plainly"}).reset_index()


def unsure(evidence: Sequence[Evidence]) -> pd.DataFrame:
    """model, and each measure's mean over seeds (arXiv 2409.19476)."""
    t = pd.concat([e.tables["unsure"] for e in evidence], ignore_index=True)
    found = t.groupby(["model", "measure"], sort=False).value.mean().unstack("measure").round(3)
    return found.loc[list(dict.fromkeys(t.model))].reset_index()
