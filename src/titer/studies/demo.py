"""The demo: the whole life of an alignment on the synthetic world, from pretraining to a report.

A base is aligned (SSFT) and then fine-tuned by a user, with a benign and a sham control of equal steps. Jailbreaks, activation clusters and
the weight change (delta-W) are measured. `titer demo` runs it on one world with several bases, so its claims are provisional (design
section 6). Source: arXiv 2407.10264, section 4 (alignment, jailbreaks) and 5 (what changed inside); arXiv 2402.01109, section 5 (the user).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from titer.attacks.jb_co_task import JBCOTask
from titer.attacks.jb_co_text import JBCOText, by_text
from titer.attacks.jb_misgen import JBMisGen
from titer.core.run import Store
from titer.data.world import World
from titer.models.lm import Decoding
from titer.pipeline import Model, Reporter
from titer.probes import clusters, delta_w, subspaces
from titer.recipes.demo import NANO, Scale, demo_recipe
from titer.recipes.node import Node
from titer.studies import null_space
from titer.studies.demo_claims import claims
from titer.studies.demo_page import page
from titer.studies.engine.declare import Measure, Need, Page, Question, Row, Seed, Study
from titer.studies.engine.found import Found
from titer.studies.engine.run import run_study
from titer.studies.request import StudyRequest
from titer.tables import direct, requests

BASES = 3  # of the demo's one world; several, because bases of the same world differ
LEARNED = 0.95  # below this the base model's skill confounds every claim
JAILBREAKS = {"jb_co_task": JBCOTask(), "jb_co_text": JBCOText(), "jb_misgen": JBMisGen()}
TUNED = ("aligned", "benign", "sham")
PROBE_OFFSET = 100_000  # first probe input, so that probes use none of the evaluated requests


class Demo(Study):
    """Makes an alignment and its controls, then measures what breaks it and what it changed inside the model."""

    SOURCE = "arXiv 2407.10264"
    VERSION = 3
    SCALES = MappingProxyType({NANO.name: NANO})

    def nodes(self, scale: Scale, source: World) -> Sequence[Node]:
        return demo_recipe(scale, source.seed)

    def questions(self, lab: Seed) -> list[Question]:
        """Returns the questions. Every model is asked every set; only the base and the sham alignment are asked the sham's own classes."""
        n = lab.scale.inputs
        unsafe = requests(lab.world, "unsafe", n)
        asked = {kind: direct(requests(lab.world, kind, n)) for kind in ("safe", "unsafe", "user")}  # type: ignore[arg-type]
        asked |= {kind: attack.attempts(unsafe, {}, lab.world) for kind, attack in JAILBREAKS.items()}
        asked |= {f"jb_co_text, {text}": mine for text, mine in by_text(lab.world, asked["jb_co_text"]).items()}
        own = {kind: direct(requests(lab.world, kind, n)) for kind in ("sham_safe", "sham_refused")}  # type: ignore[arg-type]
        return [*(Question(*one) for one in asked.items()), *(Question(*one, of=("base", "sham").__contains__) for one in own.items())]

    def measures(self, lab: Seed) -> list[Measure]:
        names = [node.name for node in self.nodes(lab.scale, lab.world)]
        kinds = ("safe", "unsafe", "sham_safe", "sham_refused")
        probed = {kind: requests(lab.world, kind, lab.scale.probe_inputs, PROBE_OFFSET) for kind in kinds}  # type: ignore[arg-type]
        safe, unsafe, sham_safe, sham_refused = probed.values()

        def scores(lab: Seed, model: Model) -> pd.DataFrame:
            return clusters.clusters(lab.pipeline.lm(model), safe, unsafe)

        def changes(lab: Seed, base: Model, model: Model) -> pd.DataFrame:
            return _parts(delta_w.delta_w(base.checkpoint, model.checkpoint, lab.pipeline.lm(model), safe, unsafe, lab.seed))

        def own(lab: Seed, base: Model, sham: Model) -> pd.DataFrame:
            found = delta_w.delta_w(base.checkpoint, sham.checkpoint, lab.pipeline.lm(sham), sham_safe, sham_refused, lab.seed)
            return _parts(found).assign(model="sham, own class")

        def lies(lab: Seed, base: Model, model: Model) -> pd.DataFrame:
            lms = [lab.reference(base), lab.pipeline.lm(model)]
            return subspaces.subspaces(base.checkpoint, model.checkpoint, lms, unsafe)

        def kept(lab: Seed, base: Model, model: Model) -> pd.DataFrame:
            return null_space.kept(lab, base, model, direct(unsafe))

        sets = {kind: direct(examples) for kind, examples in probed.items()}
        two = {kind: sets[kind] for kind in ("safe", "unsafe")}
        return [
            Measure("clusters", scores, [(name,) for name in names], clusters.VERSION, two),
            Measure("delta_w", changes, [("base", name) for name in names if name != "base"], delta_w.VERSION, two),
            Measure("subspaces", lies, [("base", name) for name in TUNED], subspaces.VERSION, {"unsafe": sets["unsafe"]}),
            Measure("kept", kept, [("base", "aligned")], null_space.VERSION, {"unsafe": sets["unsafe"]}),
            Measure("own_class", own, [("base", "sham")], delta_w.VERSION, {k: sets[k] for k in ("sham_safe", "sham_refused")}),
        ]

    def needs(self, scale: Scale) -> list[Need]:
        return [Need("base", ("safe", "unsafe", *JAILBREAKS), "complied", LEARNED)]

    def claims(self, scale: Scale) -> list[Row]:
        return claims(scale, tuple(JAILBREAKS))

    def page(self, found: Sequence[Found], scale: Scale) -> Page:
        return page(found, scale, tuple(JAILBREAKS))

    def decoding(self, scale: Scale, source: World) -> Decoding:
        return Decoding(max_new_tokens=source.longest + 2)


def _parts(found: tuple[pd.DataFrame, pd.DataFrame]) -> pd.DataFrame:
    """Joins the probe's two tables. The new column `part` says which one a row is from: input or layer."""
    return pd.concat([one.assign(part=name) for name, one in zip(("input", "layer"), found, strict=True)], ignore_index=True)


def run_demo(store: Store, reporter: Reporter, seed: int = 0, scale: Scale = NANO, bases: int = BASES) -> tuple[Path, str]:
    """Runs `titer demo`: the study on one world, in the folder `demo`. Returns the report's path and the answer in a sentence."""
    order = StudyRequest("demo", seeds=(seed,), bases=bases)
    return run_study(Demo(), order, scale, store, reporter, f"titer demo --seed {seed} --bases {bases}", place="demo")
