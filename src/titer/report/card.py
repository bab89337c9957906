"""Writes a "Safety alignment (Titer)" section into a model's card, from the folder that `titer audit` or `titer evaluate` wrote. L5.

The section has the answer, the rates with their intervals, how they were measured and what was not measured. It contains no prompt,
no model's answer and no path of this machine. In README.md only the text between two pairs of marks is replaced: one pair is in the
YAML header (the results as Hugging Face's `model-index`), one in the body. Every other byte stays. Names and texts from models and
files are escaped, so that none becomes markup. Source of the header: huggingface_hub's ModelCard, whose form the hub reads.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from pydantic import Field

from titer.core.claims import Claim
from titer.core.config import PACKAGES, Record, build
from titer.core.errors import TiterError, visible
from titer.core.run import write_text
from titer.models.checkpoint import Checkpoint
from titer.models.fetch import resolve
from titer.report.documentation import documented, hub_fields
from titer.report.html import shown_text
from titer.report.markdown import code, command, fenced, placeless, plain, prose

SECTION = ("<!-- titer:begin -->", "<!-- titer:end -->")
HEADER = ("# titer:begin", "# titer:end")
AGAIN = "run the report's command again with this version: the answers are kept, only the page is written again."
BOM = "\ufeff"
SHOWN = ("refused", "complied", "partial", "degenerate")


class Summary(Record):
    """The contents of summary.json in a report's folder: title, answer, commands, provenance, and the role of each model."""

    version: Literal[1]
    title: str
    answer: str
    commands: tuple[str, ...]
    provenance: dict[str, str]
    roles: dict[str, str] = Field(default={}, description="model -> base, before, after or benign control")


@dataclass(frozen=True)
class Reported:
    """The contents of a report's folder: the summary, outcome rates (model, set, measure, value, low, high, count, n), and claims."""

    summary: Summary
    rates: pd.DataFrame
    claims: tuple[Claim, ...]

    @property
    def models(self) -> list[str]:
        """The models' names, in the report's order."""
        return list(dict.fromkeys(self.rates.model))


class Written(NamedTuple):
    """The card's file, the model's name in the report, and notes on what was left unchanged."""

    path: Path
    subject: str
    notes: tuple[str, ...]


def read_report(folder: Path, rated: bool = True) -> Reported:
    """Reads a report's folder. `rated`: read its outcome rates too, which not every study has.

    Errors: a file that is missing or not in the form that Titer writes; with `rated`, a report without outcome rates.
    """
    summary = build(Summary, _json(folder / "summary.json"), str(folder / "summary.json"))
    rates = _rates(folder / "results.csv") if rated else pd.DataFrame()
    claims = _json(folder / "claims.json").get("claims", []) if (folder / "claims.json").exists() else []
    if not isinstance(claims, list) or not all(isinstance(claim, dict) for claim in claims):
        raise TiterError(f"{folder / 'claims.json'} holds no list of claims", next_step=AGAIN)
    return Reported(summary, rates, tuple(build(Claim, claim, str(folder / "claims.json")) for claim in claims))


def write_card(report: Path, model: Path) -> Written:
    """Writes the section into README.md of a model's folder.

    Errors: a report that is not about this model (its weights, tokenizer and configuration, by content); a README.md that
    cannot be read, or whose marks do not pair; a README.md that the run store lists as its own. After an error README.md is unchanged.
    """
    found = read_report(report)
    subject = about(found, model)
    readme = model / "README.md"
    _not_listed(readme)
    old, checkpoint = _text(readme), resolve(str(model), trusted=True)
    results = metadata(found, subject)
    new, notes = placed(old, section(found, subject, checkpoint), results.to_yaml(), hub_fields(checkpoint))
    card = _readable(new, readme)
    if not notes and card.data.get("eval_results") != results.eval_results:
        raise TiterError(f"the header of {readme} would not say what was measured", next_step="move its README.md away and try again.")
    write_text(readme, new)
    return Written(readme, subject, notes)


def about(found: Reported, model: Path) -> str:
    """Returns the report's name for the model in a folder, found by the model's content. Errors: the report is about other models."""
    if not model.is_dir():
        raise TiterError(f"no folder at {visible(str(model), 160)!r}", expected="the folder of the model that the report is about")
    checkpoint = resolve(str(model), trusted=True)  # only hashed (with its code, if the report ran the model's code); nothing is loaded
    keys = {name: found.summary.provenance.get(f"model {name}") for name in found.models}
    named = [name for name, key in keys.items() if key == checkpoint.key]
    if not named:
        raise TiterError(
            f"the report is not about {visible(str(model), 160)}: it measured {', '.join(visible(name, 60) for name in keys)}",
            expected="the model that was measured: the same weights, configuration and tokenizer",
            next_step=f"measure this one: titer audit BEFORE {shlex.quote(visible(str(model), 160))} --data PROMPTS.csv",
        )
    return named[-1]


def section(found: Reported, subject: str, checkpoint: Checkpoint) -> str:
    """Returns the section in Markdown, without its marks."""
    said = found.summary.provenance
    judge = placeless(said.get("judge", "not stated"))
    asked = found.rates.groupby("set", sort=False)["n"].max()
    known = documented(checkpoint, subject, said, found.summary.roles, tried(said))
    tasks = [code(name) for name in tasked(found)]
    versions = [f"{name} {code(said[name])}" for name in ("titer", "git", "python", "engine", *PACKAGES) if said.get(name)]
    lines = [
        "## Safety alignment (Titer)",
        "",
        f"**In short:** {prose(found.summary.answer)}",
        "",
        *_table(found, subject),
        "",
        "Rates of the judged answers to the same prompts, with 95% Wilson intervals.",
        "",
        f"- Judge: {code(judge)}" + (f"; answers to {', '.join(tasks)} are compared with right ones" if tasks else ""),
        f"- Prompts: {code(placeless(said.get('data', 'not stated')))} (sha256 {code(said.get('data sha256', 'not stated'))}): "
        + ", ".join(f"{n} {code(name)}" for name, n in asked.items()),
        f"- Answers: one per prompt, decoded as {code(_decoding(said))}",
        f"- Versions: {', '.join(versions)}",
        *_claims(found.claims),
        "",
        "**Not measured:**",
        "",
        *(f"- {gap}" for gap in gaps(found, subject)),
        "",
        "**For the model's documentation** (fields of the EU's Model Documentation Form for general-purpose models):",
        "",
        *(f"- {field}: {prose(placeless(words))}" for field, words in known.items()),
        "",
        "To run it again:",
        "",
        *fenced([command(line) for line in found.summary.commands]),
    ]
    return "\n".join(lines)


def metadata(found: Reported, subject: str) -> ModelCardData:
    """Returns the model's rates as evaluation results in Hugging Face's form: each set of prompts is a split, each outcome a metric."""
    said = found.summary.provenance
    name = placeless(said.get("data", "not stated"))
    hub = re.fullmatch(r"hub:([\w.-]+/[\w.-]+).*", name)
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=hub[1] if hub else "prompts",
            dataset_name=plain(name),
            dataset_split=plain(row.set),
            dataset_args={"sha256": plain(said.get("data sha256", ""))},
            metric_type=f"{row.measure}_rate",
            metric_name=f"{row.measure}, {plain(row.set)}",
            metric_value=round(row.value, 4),
            metric_args={
                "low": round(row.low, 4),
                "high": round(row.high, 4),
                "n": row.n,
                "judge": plain(placeless(said.get("judge", ""))),
            },
        )
        for row in found.rates.itertuples()
        if row.model == subject and row.measure in SHOWN and row.n
    ]
    return ModelCardData(model_name=plain(subject), eval_results=results)


def tried(said: Mapping[str, str]) -> dict[str, str]:
    """Returns the attacks under which prompts were asked: name, as in results.csv -> settings. Errors: an older report."""
    found = {shown_text(name.removeprefix("attack ")): words for name, words in said.items() if name.startswith("attack ")}
    if not found and said.get("attack") != "none":
        raise TiterError("the report does not say which attacks were tried", next_step=AGAIN)
    return found


def tasked(found: Reported) -> list[str]:
    """Returns the sets whose answers are right or wrong: those of --capability, or all of an evaluation by the rows' own answers."""
    known = () if "task" in found.summary.provenance else ("safe", "unsafe", *tried(found.summary.provenance))
    return [name for name in dict.fromkeys(found.rates.set) if name not in known]


def gaps(found: Reported, subject: str) -> list[str]:
    """Returns sentences on what was not measured, where a reader might think that it was."""
    said, sets, roles = found.summary.provenance, set(found.rates.set), found.summary.roles
    attacks, judge = tried(said), said.get("judge", "")
    mine = found.rates[found.rates.model == subject]
    lost = int(mine[mine.measure == "could_not_judge"]["count"].sum())
    cut = int(mine[mine.measure == "cut_in_thought"]["count"].sum())
    tunes = [code(name) for name, role in roles.items() if roles.get(subject) == "before" and role in ("after", "benign control")]
    told = [
        "Other prompts, topics and languages: a rate holds for prompts like those asked.",
        f"The content of the answers: {_checked(said)}.",
        f"Jailbreaks other than {', '.join(map(code, attacks))}." if attacks else "Jailbreaks: no attack was tried.",
        "Later fine-tuning: whether this model's alignment survives it was not tested"
        + (f", except for what led to {', '.join(tunes)}." if tunes else "."),
        "" if "unsafe" in sets else "Refusal of unsafe prompts: no unsafe prompt was asked.",
        "" if "safe" in sets else "Over-refusal: no safe prompt was asked.",
        "" if tasked(found) else "Capability: no task was asked.",
        "" if len(found.models) > 1 else "The model before training: these numbers do not say what training changed.",
        "" if len(found.models) == 1 or "benign control" in roles.values() else "A benign tune as a control: none was measured.",
        "Helpfulness: the judge says whether an answer refuses, not whether it helps." if judge.startswith("refusal") else "",
        f"{lost} answers of this model could not be judged; no rate counts them." if lost else "",
        f"{cut} answers of this model were cut off while it was still thinking; no rate counts them." if cut else "",
    ]
    return [gap for gap in told if gap]


def _checked(said: Mapping[str, str]) -> str:
    """Says who besides the judge judged answers, and which."""
    second, people = (placeless(said.get(name, "")) for name in ("second judge", "labelled answers"))
    again = f"a second judge, {code(second)}, judged the answers to {code(said.get('second judge asked', 'some'))} prompts again"
    errors = f"the judge's errors were measured on answers that people labelled, {code(people)}"
    checks = again if second else "no second judge checked them", errors if people else "no person checked them"
    return f"each verdict is one judge's; {'; '.join(checks)}"


def _decoding(said: Mapping[str, str]) -> str:
    """Returns how answers were decoded, in words. An audit's provenance has one entry for it, an evaluation's one per setting."""
    settings = {name: said[name] for name in ("max_new_tokens", "temperature", "seed") if name in said}
    return said.get("decoding") or ", ".join(f"{name} {value}" for name, value in settings.items()) or "not stated"


def _table(found: Reported, subject: str) -> list[str]:
    """Returns the table of rates: a row per set and outcome, a column per model. Outcomes without answers are left out, except refusals."""
    part = found.summary.roles.get(subject, "") if len(found.models) > 1 else ""
    roles = {**found.summary.roles, subject: ", ".join(filter(None, ("this model", part)))}
    heads = [f"{roles[name]}: {code(name, cell=True)}" if name in roles else code(name, cell=True) for name in found.models]
    lines = ["| Prompts | Outcome | " + " | ".join(heads) + " |", "| --- | --- |" + " ---: |" * len(heads)]
    cells = {(row.model, row.set, row.measure): row for row in found.rates.itertuples()}
    for kind in dict.fromkeys(found.rates.set):
        for outcome in SHOWN:
            rows = [cells.get((name, kind, outcome)) for name in found.models]
            if outcome == "refused" or any(row is not None and row.count for row in rows):
                shown = [
                    f"{row.value:.1%} [{row.low:.1%}, {row.high:.1%}], {row.count} of {row.n}" if row is not None and row.n else "–"
                    for row in rows
                ]
                lines.append(f"| {code(kind, cell=True)} | {outcome} | " + " | ".join(shown) + " |")
    return lines


def _claims(claims: Sequence[Claim]) -> list[str]:
    """Returns one line per claim: its verdict, its value against the control, and its statement."""
    lines = []
    for claim in claims:
        size = "" if claim.value is None else f" ({claim.value:.3g} against {prose(claim.control.name)})"
        lines.append(f"- **{claim.verdict}{', provisional' if claim.provisional else ''}**{size}: {prose(claim.statement)}")
    return ["", "Claims, each about an effect minus its control:", "", *lines] if lines else []


def placed(old: str, body: str, header: str, further: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """Returns the README with both blocks put between their marks, and notes on what was left unchanged. Errors: marks that do not pair.

    `further`: fields that are added to the header, unless its owner has one of that name.
    """
    line = "\r\n" if "\r\n" in old else "\n"
    bom, rest = (BOM, old[1:]) if old.startswith(BOM) else ("", old)
    head = REGEX_YAML_BLOCK.search(rest)
    top, text = (rest[: head.end()], rest[head.end() :]) if head else ("", rest)
    notes: tuple[str, ...] = ()
    span = _between(top, HEADER)
    own = top if span is None else top[: span[0]] + top[span[1] :]
    more = [f"{name}: {value}" for name, value in further.items() if not _names(own, name)]
    block = line.join([*header.split("\n"), *more])
    if head is None:
        top = line.join(["---", HEADER[0], block, HEADER[1], "---", ""]) + (line if text else "")
    elif span is not None:
        top = top[: span[0]] + line + block + line + top[span[1] :]
    elif _names(own, "model-index"):
        notes = ("README.md has its own model-index in its header. It was left unchanged.",)
    else:
        top = top[: head.end(2)] + line + line.join([HEADER[0], block, HEADER[1]]) + top[head.end(2) :]
    shown = body.replace("\n", line)
    if (span := _between(text, SECTION)) is not None:
        text = text[: span[0]] + line + shown + line + text[span[1] :]
    else:
        gap = line if text.endswith("\n") or not text else 2 * line
        text += gap + line.join([SECTION[0], shown, SECTION[1], ""])
    return bom + top + text, notes


def _names(header: str, field: str) -> bool:
    """Tells whether a YAML header has this field."""
    return re.search(rf"""^(["']?){re.escape(field)}\1[ \t]*:""", header, re.MULTILINE) is not None


def _between(text: str, marks: tuple[str, str]) -> tuple[int, int] | None:
    """Returns start and end of the text between two marks, each on a line of its own; None if both are absent. Errors: they do not pair."""
    opened, closed = (list(re.finditer(rf"^{re.escape(mark)}(?=[ \t]*\r?$)", text, re.MULTILINE)) for mark in marks)
    if not opened and not closed:
        return None
    if len(opened) != 1 or len(closed) != 1 or opened[0].end() > closed[0].start():
        raise TiterError(
            f"README.md has {len(opened)} lines {marks[0]!r} and {len(closed)} lines {marks[1]!r}",
            expected="one of each, in this order",
            next_step="remove the extra ones.",
        )
    return opened[0].end(), closed[0].start()


def _readable(text: str, readme: Path) -> ModelCard:
    try:
        return ModelCard(text.removeprefix(BOM))
    except Exception as error:  # noqa: BLE001  a header is YAML of any kind, and its parser raises many types
        raise TiterError(
            f"the header of {readme} cannot be read as that of a model card: {visible(str(error), 200)}",
            expected="YAML between two lines ---",
            next_step="correct it, then write the card again.",
        ) from None


def _not_listed(readme: Path) -> None:
    """Checks that the run store does not list this file: the store would take a change for damage, and build the folder again."""
    for folder in readme.absolute().parents[1:3]:
        listed = _json(folder / "manifest.json").get("sha256", {}) if (folder / "manifest.json").is_file() else {}
        if isinstance(listed, Mapping) and readme.absolute().relative_to(folder).as_posix() in listed:
            raise TiterError(
                f"{readme} belongs to the run store, which would build its folder again", next_step="copy the model's folder, and use that."
            )


def _rates(file: Path) -> pd.DataFrame:
    """Reads the outcome rates in results.csv, with numbers parsed. Errors: a file of another form; no rates."""
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
        rates = table[table["table"] == "rates"][["model", "set", "measure", "value", "low", "high", "count", "n"]]
        numbers = {name: pd.to_numeric(rates[name].where(rates[name] != "")) for name in ("value", "low", "high")}
        counts = {name: pd.to_numeric(rates[name]).astype(int) for name in ("count", "n")}
    except (OSError, ValueError, KeyError) as error:
        raise TiterError(f"{file} cannot be read as a report's results ({visible(str(error), 120)})", next_step=AGAIN) from None
    if rates.empty:
        raise TiterError(f"{file} has no outcome rates", expected="the folder of titer audit or titer evaluate")
    return rates.assign(**numbers, **counts)


def _json(file: Path) -> dict[str, object]:
    """Reads a JSON object of a report's folder. Errors: no such file, or it holds no JSON object."""
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TiterError(f"{file} is missing or cannot be read ({visible(str(error), 120)})", next_step=AGAIN) from None
    if not isinstance(read, dict):
        raise TiterError(f"{file} holds a {type(read).__name__}", expected="a JSON object", next_step=AGAIN)
    return read


def _text(readme: Path) -> str:
    """Reads README.md with its line ends as they are; "" if there is none. Errors: it is not UTF-8."""
    try:
        return readme.read_bytes().decode("utf-8") if readme.exists() else ""
    except UnicodeDecodeError:
        raise TiterError(f"{readme} is not UTF-8", next_step="save it as UTF-8: the hub reads no other.") from None
