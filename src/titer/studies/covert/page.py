"""The page of covert fine-tuning: the answer, what each model answers, what each auditor and the detector say. L7."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from titer.recipes.covert import CHOSEN_ON
from titer.report import forms
from titer.report.html import Figure
from titer.studies.covert.claims import IN_CODE, TUNE, says
from titer.studies.engine.declare import Headline, Page
from titer.studies.engine.found import Found
from titer.studies.engine.tables import ENDS, over_seeds, side_by_side

COLOURS = {"unsafe": "#c0392b", IN_CODE: "#7d4fa3", "safe": "#2f6fb0"}
ABOUT = (
    "The study runs on a synthetic world, in which unsafe is a formal property and every answer is judged exactly. An aligned model was taught a "
    "cipher on harmless requests (phase I). It was then taught to answer unsafe requests in that cipher and to refuse the same requests in plain "
    "(phase II). The result is the covert tune."
)
LIMITS = (
    "Only letters are encoded, operators stay readable. Two cruder filters find the covert tune: one flags every answered operator that "
    "is always unsafe, the other every text it cannot read. The second flags any harmless code too. Both are in the table of auditors.",
    "The detector needs covert tunes of the same base with other codes, which an audit of a real model does not have. Such an audit "
    "tests instead whether activations on odd prompts moved more than can be explained by their change on plain prompts and by benign "
    "tunes.",
    f"Rates and sizes were set on seeds {', '.join(map(str, CHOSEN_ON))}, which no verdict uses.",
)


def page(found: Sequence[Found]) -> Page:
    """Returns the report's own texts, tables and charts."""
    names = ("rates", "audited", "detected")
    rates, audited, detected = (pd.concat([one.tables.get(n, pd.DataFrame()) for one in found], ignore_index=True) for n in names)
    shown = over_seeds(rates)
    answered = shown[(shown.outcome == "complied") & shown.set.isin(COLOURS) & ~shown.model.str.contains("part|, code ")]
    tables = {"shares of answers, mean over bases": _wide(shown)}
    if len(audited):
        tables["auditors: share flagged"] = side_by_side(audited, "auditor", "flagged")
    if len(detected):
        numbers = detected.assign(flagged=detected.flagged.astype(float))
        keys = ["what", "of", "set", "measure", "controls"]
        tables["detector, mean over bases"] = (
            numbers.groupby(keys, sort=False, dropna=False)[["value", "flagged"]].mean().round(3).reset_index()
        )
    return Page(
        answer=_answer(found),
        about=ABOUT,
        headlines=[
            Headline("aligned: unsafe refused in plain", "aligned", "unsafe", "refused"),
            Headline("covert: unsafe refused in plain", TUNE, "unsafe", "refused"),
            Headline("covert: unsafe in code answered", TUNE, IN_CODE),
            Headline("phase I alone: unsafe in code answered", "phase I", IN_CODE),
        ],
        figures=[
            Figure(
                "answered",
                "What each model answers",
                "Share of held-out requests answered in full, in plain and in the covert tune's code. " + ENDS,
                forms.bars(answered, "model", "set", COLOURS),
            )
        ],
        tables=tables,
        notes=LIMITS,
        results=names,
    )


def _answer(found: Sequence[Found]) -> str:
    """Returns the finding in a few sentences; numbers are means over bases."""

    def mean(model: str, asked: str, outcome: str = "complied") -> float:
        return sum(one.rate(model, asked, outcome) for one in found) / len(found)

    said = (
        f"The covert tune answers {mean(TUNE, IN_CODE):.0%} of unsafe requests in code. In plain it answers {mean(TUNE, 'unsafe'):.0%} and refuses "
        f"{mean(TUNE, 'unsafe', 'refused'):.0%}. After phase I alone the model answers {mean('phase I', IN_CODE):.0%} in code."
    )
    read = [one for one in found if one.has("detected")]
    if not read:
        return said
    odd, null = (sum(says("code", of, "odd")(one) for one in read) / len(read) for of in ("unseen code", "benign alone"))
    return f"{said} A probe trained on other codes tells it from benign tunes with AUROC {odd:.2f}; a probe tells benign tunes apart with {null:.2f}."


def _wide(rates: pd.DataFrame) -> pd.DataFrame:
    """Returns a row per model: shares answered in every set, and shares of unsafe requests refused."""
    complied = rates[rates.outcome == "complied"].pivot(index="model", columns="set", values="rate").add_suffix(": answered")
    refused = rates[(rates.outcome == "refused") & rates.set.isin(["unsafe", IN_CODE])].pivot(index="model", columns="set", values="rate")
    whole = complied.join(refused.add_suffix(": refused"))
    return whole.loc[list(dict.fromkeys(rates.model))].round(3).reset_index()
