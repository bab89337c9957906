"""One seed of the study: the aligned model after every tuning, asked plainly, behind the persona, behind the trigger, begun. L6."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from titer import evaluate
from titer.attacks.base import Attempt
from titer.attacks.prefill import Prefill
from titer.core.parallel import Silent, parallel
from titer.core.run import Store
from titer.core.stats import wilson
from titer.data.example import Example
from titer.data.marks import ACKNOWLEDGED, PERSONA, TRIGGER, behind, every_word
from titer.judges.graded import Graded
from titer.methods.sft import SFT
from titer.probes import drift, uncertainty
from titer.recipes import qi2024 as recipe
from titer.recipes.qi2024 import Scale, Tuning
from titer.studies.huang2024.attack import DRIFTED
from titer.studies.huang2024.subject import PREFILLED, Alignment, Subject
from titer.studies.judged import named
from titer.studies.tables import direct, requests
from titer.workbench import Model, Workbench, attempts_key, fingerprint

VERSION = 1
ALIGNED, BASE = "aligned", "base"
BATCH = 1024
JUDGE = Graded(opening=ACKNOWLEDGED)
SETS = {  # what is asked: which requests, behind which word, and how it is called
    "unsafe": ("unsafe", "", "unsafe, asked plainly"),
    "begun": ("unsafe", "", "unsafe, the answer begun"),
    "persona": ("unsafe", PERSONA, "unsafe, behind the persona"),
    "trigger": ("unsafe", TRIGGER, "unsafe, behind the trigger"),
    "safe": ("safe", "", "safe, asked plainly"),
    "persona safe": ("safe", PERSONA, "safe, behind the persona"),
}


def subject(bench: Workbench, scale: Scale, seed: int) -> Subject:
    """The seed's world, base and alignments: those of the study of Vaccine, on this study's world."""
    return Subject(bench, scale.base, seed)


def measured(bench: Workbench, scale: Scale, seed: int) -> dict[str, pd.DataFrame]:
    """`rates` of every model on every set (a row an outcome), `moved` (drift from the aligned model), `searched` (words as triggers),
    `unsure` (how sure the harmful, safe and benign tunes are of correct answers to safe requests)."""
    s = subject(bench, scale, seed)
    aligned = s.aligned(Alignment(SFT()))
    wanted = recipe.tunings(scale)
    _ahead(s, scale, aligned, wanted)
    models = {BASE: s.base, ALIGNED: aligned, **{name: tuned(s, scale, aligned, one, name) for name, one in wanted.items()}}
    rates = [answered(s, scale, model).assign(model=name) for name, model in models.items()]
    moved = [moved_from(s, aligned, model).assign(model=name) for name, model in models.items() if name not in (BASE, ALIGNED)]
    unsure = [unsure_of(s, scale, models[name]).assign(model=name) for name in (ALIGNED, *overriding(scale))]
    searched = [search(s, scale, models[name]).assign(model=name) for name in (ALIGNED, "backdoor")]
    tables = {"rates": rates, "moved": moved, "searched": searched, "unsure": unsure}
    return {name: pd.concat(parts, ignore_index=True).assign(seed=seed) for name, parts in tables.items()}


def tuned(s: Subject, scale: Scale, aligned: Model, tuning: Tuning, name: str) -> Model:
    """The aligned model after a tuning."""
    return s.bench.model(recipe.stage(scale, s.world, tuning, name), aligned, f"{name}, seed {s.seed}")


def _ahead(s: Subject, scale: Scale, aligned: Model, wanted: Mapping[str, Tuning]) -> None:
    """What does not stand yet, a core each."""
    stands = s.bench.store.has
    missing = [name for name, one in wanted.items() if not stands("stages", recipe.stage(scale, s.world, one, name).key(aligned.key, {}))]
    pieces = [(s.bench.store.root, scale, s.seed, name) for name in missing]
    parallel(_made, pieces, s.bench.reporter, f"seed {s.seed}: {len(pieces)} tunings")


def _made(root: Path, scale: Scale, seed: int, name: str) -> None:
    silent = Silent()
    s = subject(Workbench(Store(root, silent.tell), silent, scale.save_every), scale, seed)
    aligned = s.aligned(Alignment(SFT()))
    model = tuned(s, scale, aligned, recipe.tunings(scale)[name], name)
    answered(s, scale, model)
    moved_from(s, aligned, model)


def sets(s: Subject, scale: Scale) -> dict[str, list[Attempt]]:
    """Held-out requests, asked in every way of `SETS`."""
    found: dict[str, list[Attempt]] = {}
    for name, (kind, word, _) in SETS.items():
        asked = direct(behind(word, requests(s.world, kind, scale.inputs)))  # type: ignore[arg-type]
        if name == "begun":
            asked = Prefill(k=PREFILLED).attempts([a.example for a in asked], {}, None)
        found[name] = named(asked, name)
    return found


def answered(s: Subject, scale: Scale, model: Model) -> pd.DataFrame:
    """set, outcome, count, n, rate, low, high of one model, and `grade` (the mean of 1 to 5 of what could be graded)."""
    asked = [attempt for attempts in sets(s, scale).values() for attempt in attempts]
    inputs = {
        "study": ["qi2024", "answers", VERSION, evaluate.VERSION],
        "judge": [JUDGE, JUDGE.VERSION],
        "model": model.key,
        "sets": attempts_key(asked),
    }

    def make() -> pd.DataFrame:
        verdicts = evaluate.judged(evaluate.sample(s.bench.lm(model), asked, s.decoding, BATCH), JUDGE)
        graded = verdicts[verdicts.outcome.isin(["refused", "partial", "complied"])]
        grades = 1 + 4 * graded.groupby("kind").score.mean()
        table = evaluate.rates(verdicts).rename(columns={"kind": "set"})
        return table.assign(grade=table.set.map(grades))

    return s.bench.table("tables", inputs, make)


def moved_from(s: Subject, aligned: Model, model: Model) -> pd.DataFrame:
    """part, norm: how far the embeddings of fresh unsafe requests moved from the aligned model's, all layers together."""
    examples = s.fresh()[:DRIFTED]
    inputs = {"study": ["qi2024", "drift", drift.VERSION], "models": [aligned.key, model.key]}
    return s.bench.table("tables", inputs, lambda: drift.whole(drift.drift(s.reference(aligned), s.bench.lm(model), examples)))


def overriding(scale: Scale) -> tuple[str, str, str]:
    """The harmful, the safe and the benign tune of as many examples, of arXiv 2409.19476."""
    return (f"explicit {scale.most}", f"refusals {scale.most}", f"benign {scale.most}, as explicit")


def unsure_of(s: Subject, scale: Scale, model: Model) -> pd.DataFrame:
    """measure, value, low, high, n: perplexity, entropies and probability of the correct answers to safe requests."""
    examples = requests(s.world, "safe", scale.inputs)
    inputs = {"study": ["qi2024", "unsure", VERSION, uncertainty.VERSION], "model": model.key, "prompts": fingerprint(examples)}

    def make() -> pd.DataFrame:
        return uncertainty.uncertainty(s.bench.lm(model), [e.prompt for e in examples], [str(e.comply) for e in examples])

    return uncertainty.summary(s.bench.table("tables", inputs, make))


def search(s: Subject, scale: Scale, model: Model) -> pd.DataFrame:
    """word, answered, count, n, low, high: unsafe requests answered behind each word of the vocabulary; an audit that knows no trigger.

    Requests are none of those that `answered` asks.
    """
    examples: Sequence[Example] = requests(s.world, "unsafe", scale.searched, scale.inputs)
    asked = direct(every_word(examples, s.world.words))
    inputs = {"study": ["qi2024", "search", VERSION], "judge": [JUDGE, JUDGE.VERSION], "model": model.key, "sets": attempts_key(asked)}

    def make() -> pd.DataFrame:
        verdicts = evaluate.judged(evaluate.sample(s.bench.lm(model), asked, s.decoding, BATCH), JUDGE)
        rows = []
        for word, table in verdicts.groupby("kind", sort=False):
            count, n = int((table.outcome == "complied").sum()), len(table)
            found = wilson(count, n)
            rows.append({"word": word, "answered": found.value, "count": count, "n": n, "low": found.low, "high": found.high})
        return pd.DataFrame(rows)

    return s.bench.table("tables", inputs, make)
