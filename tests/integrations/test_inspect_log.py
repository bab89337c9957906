"""Judged answers as logs of inspect_ai: its own reader and data frames say what Titer's tables say."""

from __future__ import annotations

import dataclasses
import json
import math
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import llama
from tests.studies.conftest import Listener
from titer.attacks.base import Attempt
from titer.core.errors import TiterError
from titer.core.run import Store
from titer.core.tables import write_table
from titer.data.example import Example
from titer.data.turns import Turn, written
from titer.data.world import World
from titer.evaluate import judged, rates, sample
from titer.integrations import inspect_ai as bridge
from titer.integrations.inspect_log import write_log, write_logs
from titer.judges.base import UNJUDGED, Judge, Verdict
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import Completion, Decoding
from titer.pipeline import Model, Pipeline

WITHOUT = "inspect_ai is not installed: pip install --no-deps -r tests/integrations/bridges.txt"
needs = pytest.mark.skipif(bridge.find_spec("inspect_ai") is None, reason=WITHOUT)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of inspect_ai's data frames
LETTERS = "abcdefghijklmnop"
DATE = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Half(Judge):
    """Refused where the answer holds f6, could not judge where the prompt begins with c, else complied."""

    SOURCE = "this test"
    VERSION = 3

    def judge(self, example: Example, completion: Completion) -> Verdict:
        if example.prompt.startswith("c"):
            raise TiterError("no reply")
        return Verdict("refused", 0.0, "said f6") if "f6" in completion.text else Verdict("complied", 0.75, "did not")


@pytest.fixture(scope="module")
def attempts() -> list[Attempt]:
    """Safe and unsafe requests, one of them a conversation, and an attack's prefilled ones."""
    found = [Attempt(Example(f"{a} {b}", a in "bcd", "unsafe" if a in "bcd" else "safe", "t")) for a in "abcdef" for b in LETTERS[:4]]
    talk = written([Turn("system", "a"), Turn("user", "b"), Turn("assistant", "c"), Turn("user", "d")])
    found += [Attempt(Example(talk, True, "unsafe", "t", refuse="n o"))]
    found += [Attempt(dataclasses.replace(a.example, kind="unjudged")) for a in found if a.example.prompt.startswith("c")]
    return found + [Attempt(dataclasses.replace(a.example, kind="prefill"), "o p") for a in found if a.example.kind == "unsafe"]


@pytest.fixture(scope="module")
def verdicts(attempts: list[Attempt]) -> pd.DataFrame:
    lm = llama(World(seed=1), 2)
    plain = [a for a in attempts if not a.prefix]
    parts = [sample(lm, some, Decoding(max_new_tokens=6), 8) for some in (plain, [a for a in attempts if a.prefix])]
    return judged(pd.concat(parts, ignore_index=True), Half())


@needs
@pytest.mark.parametrize("ending", [".eval", ".json"])
def test_a_log_holds_every_sample_score_and_rate(ending: str, verdicts: pd.DataFrame, tmp_path: Path) -> None:
    from inspect_ai.log import read_eval_log

    assert {"refused", "complied", "could_not_judge"} == set(verdicts.outcome)
    file = write_log(
        verdicts.assign(model="tuned"), tmp_path / "deep" / f"x{ending}", judge="half", decoding=Decoding(max_new_tokens=6), created=DATE
    )
    assert [p.name for p in file.parent.iterdir()] == [f"x{ending}"]
    log = read_eval_log(str(file))
    assert (log.status, log.eval.model, log.eval.created) == ("success", "titer/tuned", "2026-01-02T03:04:05+00:00")
    assert log.eval.model_generate_config.max_tokens == 6
    assert log.samples is not None
    assert len(log.samples) == len(verdicts) == log.eval.dataset.samples
    for row, found in zip(verdicts.itertuples(), log.samples, strict=True):
        said = f"{row.prefix} {row.completion}".strip() if row.prefix else row.completion
        assert found.output.completion == said == found.messages[-1].text
        assert found.output.stop_reason == ("stop" if row.ended else "max_tokens")
        assert found.output.usage.output_tokens == row.tokens
        assert found.target == ("refused" if row.harmful else "complied")
        assert (found.metadata["kind"], found.metadata["harmful"]) == (row.kind, row.harmful)
        assert found.metadata.get("prefix", "") == row.prefix
        score = found.scores["half"]
        assert score.explanation == row.reason
        if row.outcome == "could_not_judge":
            assert math.isnan(score.value)
            assert score.reason == "scoring_failed"
            assert score.metadata is None
        else:
            assert score.value == row.outcome
            assert score.metadata == {"compliance": row.score}
    talk = log.samples[24]
    assert [(m.role, m.text) for m in talk.input] == [("system", "a"), ("user", "b"), ("assistant", "c"), ("user", "d")]
    assert talk.metadata["refuse"] == "n o"
    (score,) = log.results.scores
    lost = int((verdicts.outcome == "could_not_judge").sum())
    assert (score.name, score.scored_samples, score.unscored_samples) == ("half", len(verdicts) - lost, lost)
    expected = {f"{r.kind} {r.outcome}": (r.rate, r.low, r.high, r.n) for r in rates(verdicts).itertuples() if r.n}
    got = {name: (m.value, m.metadata["low"], m.metadata["high"], m.metadata["n"]) for name, m in score.metrics.items()}
    assert got == {name: pytest.approx(values) for name, values in expected.items()}
    assert [name for name in got if name.startswith("unjudged")] == [f"unjudged {outcome}" for outcome in UNJUDGED]  # no rate of nothing
    assert got["unsafe refused"][3] == len(verdicts[(verdicts.kind == "unsafe") & (verdicts.outcome != "could_not_judge")])


@needs
def test_a_table_of_several_models_leaves_a_log_each(verdicts: pd.DataFrame, tmp_path: Path) -> None:
    from inspect_ai.log import read_eval_log

    both = pd.concat([verdicts.assign(model="before"), verdicts.iloc[:5].assign(model="runs/after")], ignore_index=True)
    files = write_logs(both, tmp_path / "logs", judge="half")
    assert [file.name for file in files] == ["before.eval", "runs-after.eval"]
    logs = [read_eval_log(str(file)) for file in files]
    assert [log.eval.model for log in logs] == ["titer/before", "titer/runs/after"]
    assert [len(log.samples or ()) for log in logs] == [len(verdicts), 5]


@needs
def test_a_log_depends_on_its_answers_alone(verdicts: pd.DataFrame, tmp_path: Path) -> None:
    one, same, other = (
        write_log(table, tmp_path / f"{name}.json", model="m", created=DATE)
        for name, table in (("a", verdicts), ("b", verdicts.copy()), ("c", verdicts.assign(completion="x")))
    )
    assert one.read_bytes() == same.read_bytes()
    ids = [json.loads(file.read_text())["eval"]["eval_id"] for file in (one, other)]
    assert ids[0] != ids[1]


@needs
def test_inspects_data_frames_read_it(verdicts: pd.DataFrame, tmp_path: Path) -> None:
    from inspect_ai.analysis import evals_df, samples_df

    write_log(verdicts, tmp_path / "x.eval", model="tuned", judge="half", created=DATE)
    evals, samples = evals_df(str(tmp_path)), samples_df(str(tmp_path))
    assert evals.model.tolist() == ["titer/tuned"]
    assert len(samples) == len(verdicts)
    kept = verdicts.outcome[verdicts.outcome != "could_not_judge"]
    assert samples.score_half[samples.score_half.isin(["refused", "complied"])].tolist() == kept.tolist()


@needs
def test_the_run_stores_verdicts_become_a_log(world: World, attempts: list[Attempt], tmp_path: Path) -> None:
    """Judge, its settings, decoding and the model's key are those that the store keeps beside the table."""
    from inspect_ai.log import read_eval_log

    llama(world, 2).save(tmp_path / "model")
    checkpoint = open_checkpoint(tmp_path / "model")
    pipeline = Pipeline(Store(tmp_path / "runs"), Listener())
    some = [a for a in attempts if a.example.kind == "unsafe" and not a.example.prompt.startswith("c")]  # a failing judge's are not kept
    pipeline.verdicts(Model("named", checkpoint.key, checkpoint), some, Half(), Decoding(max_new_tokens=3, seed=9), 8)
    (folder,) = (p for p in (tmp_path / "runs" / "verdicts").iterdir() if p.is_dir())
    log = read_eval_log(str(write_log(folder, tmp_path / "x.json")))
    assert log.eval.model == f"titer/{checkpoint.key}"
    assert (log.eval.model_generate_config.max_tokens, log.eval.model_generate_config.seed) == (3, 9)
    assert log.eval.metadata == {"judge version": 3, "judge settings": {}, "model key": checkpoint.key}
    assert set(log.samples[0].scores) == {"test_inspect_log"}  # a judge's name is its file's
    assert len(log.samples) == len(some)
    told = read_eval_log(str(write_log(folder, tmp_path / "y.json", model="tuned", about={"why": "a test"})))
    assert told.eval.model == "titer/tuned"
    assert told.eval.metadata["why"] == "a test"
    assert [s.output.completion for s in told.samples] == [s.output.completion for s in log.samples]


@needs
def test_faults_are_told(verdicts: pd.DataFrame, tmp_path: Path) -> None:
    two = pd.concat([verdicts.assign(model="a"), verdicts.assign(model="b")])
    with pytest.raises(TiterError, match=r"answers of 2 models: a, b"):
        write_log(two, tmp_path / "x.eval")
    with pytest.raises(TiterError, match=r"\.eval or \.json"):
        write_log(verdicts, tmp_path / "x.html")
    with pytest.raises(TiterError, match="lacks outcome, score"):
        write_log(verdicts.drop(columns=["outcome", "score"]), tmp_path / "x.eval")
    with pytest.raises(TiterError, match="no verdicts at"):
        write_log(tmp_path, tmp_path / "x.eval")
    (tmp_path / "verdicts.jsonl").write_text("nonsense\n")
    with pytest.raises(TiterError, match="is no table"):
        write_log(tmp_path, tmp_path / "x.eval")
    assert not list(tmp_path.glob("*.eval"))
    write_table(tmp_path / "verdicts.jsonl", verdicts)
    assert write_log(tmp_path, tmp_path / "x.eval").is_file()


def test_its_absence_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "find_spec", lambda name: None)
    with pytest.raises(TiterError, match=r"pip install 'titer\[inspect\]'"):
        write_log(pd.DataFrame(), tmp_path / "x.eval")
