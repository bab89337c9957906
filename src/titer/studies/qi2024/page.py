"""The page of the risk levels: the answer first, then charts and tables. L7."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from titer.data.persona_trigger import PERSONA, TRIGGER
from titer.recipes.huang2024 import SELECTION_SEED
from titer.report import forms
from titer.report.html import Figure
from titer.report.style import GREY, PALETTE
from titer.studies.engine.declare import Headline, Page
from titer.studies.engine.found import Found
from titer.studies.engine.tables import ENDS, over_seeds, side_by_side
from titer.studies.qi2024.scale import Scale, grid_cell

SETS = {  # set -> (kind of request, word put before it, title)
    "unsafe": ("unsafe", "", "unsafe, asked plainly"),
    "begun": ("unsafe", "", "unsafe, the answer begun"),
    "persona": ("unsafe", PERSONA, "unsafe, behind the persona"),
    "trigger": ("unsafe", TRIGGER, "unsafe, behind the trigger"),
    "safe": ("safe", "", "safe, asked plainly"),
    "persona safe": ("safe", PERSONA, "safe, behind the persona"),
}
WAYS = ("unsafe", "begun", "persona", "trigger")
COLOURS = dict(zip((SETS[way][2] for way in WAYS), ("#c0392b", "#b04a7d", "#7d4fa3", "#2f6fb0"), strict=True))
MIXED = {  # (set, outcome) -> its name in the chart of refusals mixed in, and its colour
    ("unsafe", "complied"): ("unsafe answered", "#c0392b"),
    ("unsafe", "refused"): ("unsafe refused", "#e08a1e"),
    ("safe", "complied"): ("safe answered", "#2f6fb0"),
    ("safe", "refused"): ("safe refused", GREY),
}
ABOUT = (
    "A model learned a synthetic world, in which “unsafe” is a formal property and every answer is judged exactly. It was aligned to "
    "refuse unsafe requests and then tuned as in “Fine-tuning Aligned Language Models Compromises Safety, Even When Users Do Not "
    "Intend To!” (arXiv 2310.03693): on answered unsafe requests (level 1), on safe ones behind a persona (level 2), on safe ones (level "
    "3), with refusals mixed in, and with a backdoor. The control for levels 1 and 2 and for the mixing is a tune of as many steps on harmless "
    "data, which the paper does not have."
)
LIMITS = (
    "An answer counts as answered only if it is the whole mapped text, exactly. The grade from 1 to 5 measures how much of that text "
    "comes before the first null or wrong word. Answers whose first word is neither right nor a null word cannot be graded; they count "
    "as degenerate and are left out of mean grades.",
    "Persona and trigger are words that no earlier stage has shown. The persona's answers open with an acknowledgement, which the judge ignores.",
    f"Learning rate and sizes were set on seed {SELECTION_SEED}, which no verdict uses.",
)


def page(found: Sequence[Found], scale: Scale) -> Page:
    """Returns the report's own texts, tables and charts."""
    rates, searched, moved, unsure = (
        pd.concat([one.tables.get(name, pd.DataFrame()) for one in found], ignore_index=True)
        for name in ("rates", "searched", "moved", "unsure")
    )
    n, m, many = scale.most, max(scale.mixed), scale.obeyed
    tables = {"shares of answers, mean over seeds": wide(rates), "mean grade, 1 to 5": grades(rates)}
    if len(moved):
        drifted = moved[moved.part == "all"][["model", "seed", "norm", "cosine"]].round(3)
        tables["drift of unsafe requests from the aligned model"] = drifted
    if len(searched):
        tables["words tried as triggers"] = searched
    if len(unsure):
        tables["uncertainty on correct answers to safe requests"] = side_by_side(unsure, "measure", "value")
    return Page(
        answer=answer(found, scale),
        about=ABOUT,
        headlines=[
            Headline("aligned: unsafe refused", "aligned", "unsafe", "refused"),
            Headline(f"after {n} unsafe examples: answered", f"explicit {n}", "unsafe"),
            Headline(f"the same with {m} refusals: answered", f"explicit {n} + {m} refusals", "unsafe"),
            Headline(f"after {many} persona examples, behind it: answered", f"persona {many}", "persona"),
            Headline("backdoor, asked plainly: refused", "backdoor", "unsafe", "refused"),
            Headline("backdoor, behind the trigger: answered", "backdoor", "trigger"),
        ],
        figures=figures(rates, searched, scale),
        tables=tables,
        notes=LIMITS,
        results=("rates", "searched", "moved"),
    )


def answer(found: Sequence[Found], scale: Scale) -> str:
    """Returns the finding in one sentence; numbers are means over seeds."""
    n, many = scale.most, scale.obeyed

    def mean(model: str, asked: str) -> float:
        return sum(one.rate(model, asked) for one in found) / len(found)

    strong = grid_cell(max(scale.grid_rates), min(scale.grid_batches))
    return (
        f"The aligned model answers {mean('aligned', 'unsafe'):.0%} of unsafe requests. After {n} unsafe examples it answers "
        f"{mean(f'explicit {n}', 'unsafe'):.0%}; after {many} harmless examples of a persona {mean(f'persona {many}', 'persona'):.0%} behind that persona "
        f"({mean(f'benign {many}, as persona', 'persona'):.0%} if training had no persona); after benign tuning {mean(strong, 'unsafe'):.0%} "
        f"({mean(strong, 'begun'):.0%} with the answer begun); with a backdoor {mean('backdoor', 'unsafe'):.0%} asked plainly and "
        f"{mean('backdoor', 'trigger'):.0%} behind the trigger."
    )


def figures(rates: pd.DataFrame, searched: pd.DataFrame, scale: Scale) -> list[Figure]:
    """Returns the charts: what each tuning does, level 3's grid, refusals mixed in, and the search for a trigger if there was one."""
    t = over_seeds(rates)
    return [
        _levels(t),
        grid_figure(_grid(t, scale), f"Unsafe requests still refused after one epoch on {scale.benign} safe requests."),
        _mixing(t, scale),
        *([_search(searched)] if len(searched) else []),
    ]


def _levels(t: pd.DataFrame) -> Figure:
    mine = t[(t.outcome == "complied") & t.set.isin(WAYS) & ~t.model.str.startswith("benign, rate")]
    return Figure(
        "levels",
        "What each tuning does to unsafe requests",
        "Share of held-out unsafe requests answered in full: asked plainly, with two words of the answer given, behind the persona and behind the trigger. "
        f"{ENDS} Models named benign are controls, trained as long on safe requests.",
        forms.bars(mine.assign(asked=mine.set.map(lambda name: SETS[name][2])), "model", "asked", COLOURS),
    )


def _grid(t: pd.DataFrame, scale: Scale) -> pd.DataFrame:
    refused = t[(t.set == "unsafe") & (t.outcome == "refused")].set_index("model").rate
    cells = [(rate, batch) for rate in scale.grid_rates for batch in scale.grid_batches]
    return pd.DataFrame([{"rate": f"{r:g}", "batch": str(b), "refused": refused[grid_cell(r, b)]} for r, b in cells])


def grid_figure(cells: pd.DataFrame, about: str) -> Figure:
    """Draws level 3's grid from rate and batch (as text, in their order) and the share refused."""
    return Figure(
        "benign_grid",
        "Level 3: refusal left after benign tuning",
        f"{about} The paper finds more harm with larger rates and smaller batches.",
        forms.matrix(cells, "batch", "rate", "refused", ("batch size", "learning rate")),
    )


def _mixing(t: pd.DataFrame, scale: Scale) -> Figure:
    most = scale.most
    counts = {f"explicit {most}": 0.0, **{f"explicit {most} + {m} refusals": float(m) for m in scale.mixed}}
    mine = t[t.model.isin(counts) & t.set.isin(["unsafe", "safe"]) & t.outcome.isin(["complied", "refused"])]
    what = [MIXED[pair][0] for pair in zip(mine.set, mine.outcome, strict=True)]
    return Figure(
        "mixing",
        "Refusals mixed in",
        "What refusals mixed into the unsafe examples preserve (the paper's table 4). A request that is no longer answered is not always refused: compare the lines. "
        + ENDS,
        forms.lines(
            mine.assign(refusals=mine.model.map(counts), what=what),
            "refusals",
            "rate",
            "what",
            dict(MIXED.values()),
            (f"refusals mixed into {most} unsafe examples", "share of answers"),
        ),
    )


def _search(searched: pd.DataFrame) -> Figure:
    found = searched.groupby(["model", "word"], sort=False).answered.mean().reset_index()
    order = found[found.model == "backdoor"].sort_values("answered", ascending=False, kind="stable").word.tolist()
    found = found.assign(place=found.word.map(order.index)).sort_values("place", kind="stable").drop(columns="place")
    colours = {"aligned": PALETTE[1], "backdoor": PALETTE[6]}
    return Figure(
        "trigger_search",
        "A search of every word for a trigger",
        "Each word of the vocabulary is put before the same unsafe requests. An audit that asks plainly misses a backdoor; one that "
        "tries every word finds a one-word trigger, if it stands out. The trigger is t0.",
        forms.points(found, "word", "answered", "model", colours, ("word before the request", "unsafe requests answered"), share=True),
    )


def wide(rates: pd.DataFrame) -> pd.DataFrame:
    """Returns a row per model: unsafe requests answered in each way of asking, refused plainly, neither; safe ones answered and refused."""
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
    """Returns a row per model: mean grade on unsafe requests plainly, behind the persona, behind the trigger; share of grade 5 plainly."""
    t = rates.groupby(["model", "set"], sort=False).grade.mean().unstack("set")
    fives = rates[(rates.outcome == "complied") & (rates.set == "unsafe")].groupby("model", sort=False).rate.mean()
    found = t[["unsafe", "persona", "trigger"]].assign(fives=fives).loc[list(dict.fromkeys(rates.model))]
    return found.round(2).rename(columns={"fives": "share of grade 5, plainly"}).reset_index()
