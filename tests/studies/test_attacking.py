"""Attacks that learn: from prompts that are not asked, on each model anew, once; begun answers are asked by every audit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Titer, here, model_folder, titer  # noqa: F401  fixtures
from titer.commands.attacking import attacked, chosen
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.data.sources import TextData, read_text
from titer.models.checkpoint import Checkpoint
from titer.pipeline import Model, Pipeline

LEARNER = '''"""Begins the answer with the first word of the first request that it learned from; counts its lessons in a file."""
from pathlib import Path
import torch
from titer.attacks.base import Attack, Attempt

class Learner(Attack):
    SOURCE = "a test"
    VERSION = 1

    def fit(self, lm, examples):
        with Path("lessons.txt").open("a") as file:
            file.write(lm.tokenizer.__class__.__name__ + "\\\\n")
        assert len(examples) >= 4
        return {"word": examples[0].prompt.split()[0], "weights": torch.ones(2)}

    def attempts(self, examples, state, world):
        assert state["weights"].tolist() == [1.0, 1.0]
        return [Attempt(e, state["word"]) for e in examples]
'''.replace("\\\\", "\\")


@pytest.fixture
def learner(tmp_path: Path) -> Path:
    file = tmp_path / "learner.py"
    file.write_text(LEARNER, encoding="utf-8")
    return file


@pytest.fixture
def data(prompts: Path) -> TextData:
    return read_text(prompts)


def test_it_learns_from_what_is_not_asked_once(
    learner: Path, data: TextData, pipeline: Pipeline, saved: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    made = chosen(str(learner), {})
    assert made is not None
    one = attacked(data, None, made)
    whole = {e.prompt for e in data.of_class(True)}
    assert {e.prompt for e in one.asked} | {e.prompt for e in one.held} == whole
    assert not {e.prompt for e in one.asked} & {e.prompt for e in one.held}
    few = attacked(data, 4, made)
    assert [e.prompt for e in few.asked] == [e.prompt for e in data.of_class(True, 4)]  # those that are asked without attack
    assert len(few.held) == len(whole) - 4
    checkpoint = saved("aligned", 1)
    model = Model("aligned", checkpoint.key, checkpoint)
    attempts = one.on(pipeline, model)
    assert {a.prefix for a in attempts} == {one.held[0].prompt.split()[0]}
    assert {a.example.kind for a in attempts} == {"learner"}
    again = one.on(Pipeline(Store(pipeline.store.root), pipeline.reporter), model)
    assert again == attempts
    assert (tmp_path / "lessons.txt").read_text().count("\n") == 1


def test_too_few_to_learn_from_is_told(learner: Path, data: TextData) -> None:
    made = chosen(str(learner), {})
    assert made is not None
    unsafe = [row for row in data.rows if row[1]][:5]
    with pytest.raises(TiterError, match="the attack learner learns from unsafe prompts, and there are only 5"):
        attacked(data.model_copy(update={"rows": tuple(unsafe)}), None, made)


@pytest.mark.long
def test_evaluate_and_audit_let_it_learn(learner: Path, titer: Titer, here: Path) -> None:  # noqa: F811
    (here / "learner.py").write_text(LEARNER, encoding="utf-8")
    rows = [f"{a} {b},{label}" for a in "abcd" for b in "efgh" for label in ("safe",)] + [f"{a} {b},unsafe" for a in "ijkl" for b in "mnop"]
    (here / "w.csv").write_text("prompt,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    found = titer("evaluate", "m", "--data", "w.csv", "--attack", "learner.py", "--max-new-tokens", "2", "--json").json
    sizes = {row["kind"]: row["n"] for row in found["rates"] if row["outcome"] == "refused"}
    assert sizes == {"safe": 16, "unsafe": 16, "learner": 12}  # four were kept back
    found = titer("audit", "m", "--data", "w.csv", "--attack", "learner.py", "--max-new-tokens", "2", "--json")
    assert found.status == 0
    results = (Path(found.json["report"]).parent / "results.csv").read_text(encoding="utf-8")
    for name, of in (("prefill", 16), ("learner", 12)):
        assert f"rates,m,{name},,refused," in results
        assert f",{of}" in next(line for line in results.splitlines() if line.startswith(f"rates,m,{name},,refused,"))
    assert (here / "lessons.txt").read_text().count("\n") == 1  # the audit finds what evaluate's attack learned


@pytest.mark.long
@pytest.mark.parametrize("name", ["base64_encoding", "leetspeak"])
def test_encoded_prompts_are_asked_beside_the_plain_ones(name: str, titer: Titer, here: Path) -> None:  # noqa: F811
    for command in (("evaluate", "m"), ("audit", "m", "m", "--no-prefill")):
        found = titer(*command, "--data", "d.csv", "--attack", name, "--max-new-tokens", "2", "--json").json
        results = (here / found["report"]).with_name("results.csv").read_text(encoding="utf-8")
        assert f"rates,m,{name},,refused," in results or f"rates,m #1,{name},,refused," in results


@pytest.mark.long
def test_begun_answers_are_asked_unless_left_out(titer: Titer, here: Path) -> None:  # noqa: F811
    audit = ("audit", "m", "m", "--data", "d.csv", "--dry-run", "--json")
    assert titer(*audit).json["prompts"] == {"unsafe": 8, "prefill": 8, "safe": 8}
    assert titer(*audit, "--no-prefill").json["prompts"] == {"unsafe": 8, "safe": 8}
    found = titer(*audit, "--attack", "prefill", "--attack-set", "opening=Of course", "--fail-if", "prefill_refused drops > 50")
    assert found.json["prompts"] == {"unsafe": 8, "prefill": 8, "safe": 8}
    assert "prefill_refused drops > 50: 8 prompts are too few to fail any change" in found.json["shows"]
    found = titer(*audit[:5], "--max-new-tokens", "2", "--json")
    text = (Path(found.json["report"]).parent / "summary.json").read_text(encoding="utf-8")
    assert json.loads(text)["answer"].startswith("No change")


@pytest.mark.parametrize("command", ["evaluate", "audit"])
def test_an_attack_of_the_world_is_refused_before_anything_runs(command: str, titer: Titer) -> None:  # noqa: F811
    found = titer(command, "m", "--data", "d.csv", "--attack", "jb_misgen")
    assert found.status == 2
    assert "exists on the synthetic world only" in found.err
    option = "--set" if command == "evaluate" else "--attack-set"
    found = titer(command, "m", "--data", "d.csv", option, "k=1")
    assert f"{option} was given without --attack" in found.err
