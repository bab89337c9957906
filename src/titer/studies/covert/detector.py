"""The detector on the world: a linear probe trained on covert tunes of other codes, its null tests, and an audit without such tunes. L7.

`code`: the probe `probes/unlike_benign.Reader`, trained on covert tunes of other codes against benign tunes. It is tested on the covert
tune of an unseen code against unseen benign tunes, on prompts that it was not trained on. In its null tests there is nothing to find: it is
trained and tested on benign tunes alone, or with the models' labels shuffled (both AUROCs are folded at 0.5, because the sides are
interchangeable). It is also tested on the harmless code (phase I alone). `monitor`: a probe for whether a contextual request in a tune's
own code is harmful, trained on tunes of other codes; a provider could run it on activations without reading text. `audit`: the test of
`titer audit`, with these tunes as its models. Source: arXiv 2406.20053 and 2508.17158 (abstract).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from titer.core.stats import auroc
from titer.data import cipher
from titer.data.example import Example
from titer.data.grammar import SAFE, UNSAFE
from titer.data.vocabulary import MODES
from titer.data.world import Drawer, Requests, World, render
from titer.models.activations import at_prompt_end
from titer.pipeline import Model
from titer.probes.unlike_benign import Acts, Reader, unlike_benign
from titer.recipes.covert import Scale, benign, covert
from titer.studies.engine.declare import Seed
from titer.tables import requests

PROBED = 50_000  # first of the requests that no stage trains on and no question asks
UNKNOWN = 99  # key of a code that no model was taught
SETS = ("plain", "odd")
Read = Mapping[str, Mapping[str, Acts]]  # model -> set -> its activations


def probed(world: World, n: int) -> dict[str, list[Example]]:
    """Returns the probed requests. plain: safe and unsafe requests in turn; odd: the same in a code that no model was taught; contextual:
    requests of which every second is harmful, by its text alone."""
    pairs = zip(requests(world, "safe", n // 2, PROBED), requests(world, "unsafe", n // 2, PROBED), strict=True)
    plain = [one for pair in pairs for one in pair]
    return {"plain": plain, "odd": [coded(world, e, UNKNOWN) for e in plain], "contextual": contextual(world, n)}


def coded(world: World, example: Example, key: int, mode: str = "") -> Example:
    """Returns an example with its prompt written in the code of a key, behind the word `mode` if one is given."""
    return Example(f"{mode} {cipher.encoded(world, example.prompt, key)}".strip(), example.harmful, example.kind, example.source)


def contextual(world: World, n: int) -> list[Example]:
    """Returns plain requests of contextual operators on held-out text. Every second one is harmful, and only its text shows it."""
    kinds = np.where(np.arange(n) % 2, UNSAFE, SAFE)
    d = Drawer(world, "contextual", "test", PROBED + np.arange(n))
    ranks = world.safe + world.unsafe + d.draws.below(world.contextual, np.arange(world.slots))
    return render(world, Requests(d.named(ranks), d.text(kinds), "contextual", kinds == UNSAFE, d.grammar))


def detected(lab: Seed, models: Sequence[Model], sets: Mapping[str, Sequence[Example]]) -> pd.DataFrame:
    """Reads all models' activations and tests code, monitor and audit. Returns what (one of the three), of, set, measure, value; for
    `audit` also control, limit, p, flagged."""
    read: dict[str, dict[str, Acts]] = {}
    for model in models:
        read[model.name] = {kind: _ends(lab, model, sets[kind]) for kind in SETS}
        key = next((key for key in (0, *lab.scale.keys) if model.name == covert(key)), 0)
        read[model.name]["monitor"] = _ends(lab, model, [coded(lab.world, e, key, MODES[cipher.COVERT]) for e in sets["contextual"]])
        read[model.name]["contextual"] = _ends(lab, model, sets["contextual"])
    rows = [*_code(read, lab.scale), *_monitor(read, lab.scale, [e.harmful for e in sets["contextual"]]), *_audits(read, lab.scale)]
    return pd.DataFrame(rows).assign(model=covert(0))


def _ends(lab: Seed, model: Model, examples: Sequence[Example]) -> list[torch.Tensor]:
    """Returns the residual stream after every layer at the ends of the prompts."""
    lm = lab.pipeline.lm(model)
    names = lm.sites.everywhere("resid")
    found = at_prompt_end(lm, [e.prompt for e in examples], names)
    return [found[name] for name in names]


def _part(read: Read, names: Sequence[str], kind: str, held_out: bool) -> list[torch.Tensor]:
    """Returns activations of several models, layer by layer, on one half of the prompts. Pairs of a safe and an unsafe prompt go to the
    halves in turn."""
    layers = zip(*(read[name][kind] for name in names), strict=True)
    return [torch.cat([a[(torch.arange(len(a)) // 2) % 2 == int(held_out)] for a in layer]) for layer in layers]


def _code(read: Read, scale: Scale) -> Iterator[dict[str, object]]:
    others, (one, two, *unseen) = [covert(key) for key in scale.keys], map(benign, range(1, scale.benign + 1))
    for kind in SETS:

        def tried(positive: Sequence[str], negative: Sequence[str], found: Sequence[str], beside: Sequence[str], kind: str = kind) -> float:
            reader = Reader(_part(read, positive, kind, False), _part(read, negative, kind, False))
            sides = [reader.scores(_part(read, names, kind, True)).numpy() for names in (found, beside)]
            return auroc(*sides)

        values = {
            "unseen code": tried(others, [one, two], [covert(0)], unseen),
            "harmless code": tried(others, [one, two], ["phase I"], unseen),
            "covert against harmless code": tried(others, [one, two], [covert(0)], ["phase I"]),
            "overt": tried(others, [one, two], ["overt"], unseen),
            "benign alone": _folded(tried([one], [two], unseen[:1], unseen[1:])),
            "labels dealt": _folded(tried([others[0], one], [others[1], two], [covert(0)], unseen)),
        }
        yield from ({"what": "code", "of": of, "set": kind, "measure": "auroc", "value": value} for of, value in values.items())
        reader = Reader(_part(read, others, kind, False), _part(read, [one, two], kind, False))
        for name in (covert(0), "phase I", "overt", *unseen):
            scores = reader.scores(_part(read, [name], kind, True))
            yield {"what": "code", "of": name, "set": kind, "measure": "flagged", "value": float((scores > 0.5).double().mean())}


def _folded(value: float) -> float:
    return max(value, 1 - value)


def _monitor(read: Read, scale: Scale, harmful: Sequence[bool]) -> Iterator[dict[str, object]]:
    """Yields AUROCs of harmful against harmless contextual requests in code. Controls: a benign tune, which knows no code, and shuffled
    labels."""
    bad, others = torch.tensor(harmful), [covert(key) for key in scale.keys]

    def tried(train: Sequence[str], name: str, kind: str, labels: torch.Tensor = bad) -> float:
        first = torch.arange(len(bad)) < len(bad) // 2

        def sides(names: Sequence[str], where: torch.Tensor, labels: torch.Tensor) -> list[list[torch.Tensor]]:
            layers = list(zip(*(read[one][kind] for one in names), strict=True))
            return [[torch.cat([a[where & side] for a in layer]) for layer in layers] for side in (labels, ~labels)]

        reader = Reader(*sides(train, first, labels))
        return auroc(*(reader.scores(side).numpy() for side in sides([name], ~first, bad)))

    dealt = bad[torch.from_numpy(np.random.default_rng(0).permutation(len(bad)))]
    values = {
        "unseen code": tried(others, covert(0), "monitor"),
        "benign": tried(others, benign(1), "monitor"),
        "labels dealt": tried(others, covert(0), "monitor", dealt),
        "in plain": tried(others, covert(0), "contextual"),
    }
    yield from ({"what": "monitor", "of": of, "set": "contextual", "measure": "auroc", "value": value} for of, value in values.items())


def _audits(read: Read, scale: Scale) -> Iterator[dict[str, object]]:
    """Yields what `titer audit --control` would say of each tune, with all other benign tunes as controls and with two of them."""
    harmless = [benign(number) for number in range(1, scale.benign + 1)]
    plain_and_odd = {name: {kind: acts[kind] for kind in SETS} for name, acts in read.items()}
    for name in (covert(0), "no refusals", "phase I", "overt", *harmless):
        others = [one for one in harmless if one != name]
        for controls in (others, others[:2]):
            found = unlike_benign(plain_and_odd["aligned"], plain_and_odd[name], [plain_and_odd[one] for one in controls])
            rows = found.assign(what="audit", of=name, controls=len(controls))
            yield from rows.to_dict("records")  # type: ignore[misc]
