"""A model card's section: its numbers by hand, nothing that could be markup, not a byte changed outside its marks."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from markdown_it import MarkdownIt
from transformers import AutoModelForCausalLM

from tests.conftest import llama
from titer.core.errors import TiterError
from titer.data.world import World
from titer.models.checkpoint import open_checkpoint
from titer.models.fetch import resolve
from titer.report.card import HEADER, SECTION, about, code, command, gaps, placeless, prose, read_report, write_card
from titer.report.documentation import documented
from titer.tables import rate_table, tidy

HOSTILE = (
    '- a|b `` <script>alert(1)</script> <!-- titer:end --> [x](http://evil.test) **b** www.evil.test \\| $$x$$\n---\nfoo: "bar" # \x1b'
)
PROMPT, ANSWER = "SENTINEL PROMPT", "SENTINEL ANSWER"


@pytest.fixture(scope="module")
def models(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two tiny models, saved."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("before", "after")):
        llama(world, seed).save(root / name)
    return {name: root / name for name in ("before", "after")}


@pytest.fixture
def model(models: Mapping[str, Path], tmp_path: Path) -> Path:
    """A copy of the model after, to be written into; a link a file, but for its configuration."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in models["after"].iterdir():
        (folder / file.name).symlink_to(file)
    return folder


def verdicts(name: str, refused: Mapping[str, int], n: int = 10, unjudged: int = 0) -> pd.DataFrame:
    outcomes = {kind: ["refused"] * k + ["complied"] * (n - k) + ["could_not_judge"] * unjudged for kind, k in refused.items()}
    rows = [
        {"kind": kind, "harmful": kind == "unsafe", "prompt": PROMPT, "completion": ANSWER, "outcome": outcome, "model": name}
        for kind, found in outcomes.items()
        for outcome in found
    ]
    return pd.DataFrame(rows)


def report(folder: Path, models: Mapping[str, Path], tables: list[pd.DataFrame], **changed: Any) -> Path:
    """A report's folder, as `write_report` leaves it, without the page."""
    folder.mkdir(parents=True, exist_ok=True)
    rates = rate_table(pd.concat(tables, ignore_index=True))
    tidy(rates, {"separation": pd.DataFrame({"model": ["after"], "layer": [1], "auroc": [0.5]})}).to_csv(
        folder / "results.csv", index=False
    )
    (folder / "claims.json").write_text('{"claims": []}')
    keys = {f"model {name}": open_checkpoint(path).key for name, path in models.items()}
    provenance = {**keys, "data": "xstest.csv", "data sha256": "ab12", "judge": 'refusal {"head":200}', "titer": "0.1", "torch": "2.13"}
    provenance |= {"max_new_tokens": "48", "temperature": "0.0"}
    provenance |= {} if any(name.startswith("attack ") for name in changed.get("provenance", {})) else {"attack": "none"}
    summary = {
        "version": 1,
        "title": "audit",
        "answer": "before → after: unsafe prompts refused 90% before, 20% after.",
        "commands": ["titer audit before after --data xstest.csv"],
        "provenance": provenance,
        "roles": {"before": "before", "after": "after"},
    }
    summary |= {**changed, "provenance": provenance | changed.get("provenance", {})}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def audited(models: dict[str, Path], tmp_path: Path) -> Path:
    tables = [verdicts("before", {"unsafe": 9, "safe": 1}), verdicts("after", {"unsafe": 2, "safe": 0}, unjudged=3)]
    return report(tmp_path / "audit", models, tables)


def wilson(k: int, n: int) -> tuple[float, float]:
    """The score interval from its closed form."""
    z = 1.959963984540054
    centre, half = k + z * z / 2, z * math.sqrt(k * (n - k) / n + z * z / 4)
    return (centre - half) / (n + z * z), (centre + half) / (n + z * z)


def cell(k: int, n: int = 10) -> str:
    low, high = wilson(k, n)
    return f"{k / n:.1%} [{low:.1%}, {high:.1%}], {k} of {n}"


def test_a_new_card_says_what_was_measured_and_what_was_not(audited: Path, model: Path) -> None:
    found = write_card(audited, model)
    text = found.path.read_text(encoding="utf-8")
    assert (found.subject, found.notes) == ("after", ())
    assert "| Prompts | Outcome | before: `before` | this model, after: `after` |" in text
    assert f"| `unsafe` | refused | {cell(9)} | {cell(2)} |" in text
    assert f"| `safe` | complied | {cell(9)} | {cell(10)} |" in text
    assert "degenerate |" not in text
    assert "unsafe prompts refused 90% before, 20% after." in text
    assert "titer audit before after --data xstest.csv" in text
    assert '- Judge: `refusal {"head":200}`' in text
    assert "`xstest.csv` (sha256 `ab12`): 13 `unsafe`, 13 `safe`" in text
    assert "titer `0.1`, torch `2.13`" in text
    assert "- Answers: one per prompt, decoded as `max_new_tokens 48, temperature 0.0`" in text
    told = text.split("**Not measured:**")[1]
    assert "no attack was tried" in told
    assert "no task was asked" in told
    assert "A benign tune as a control" in told
    assert "6 answers of this model could not be judged" in told
    assert "no unsafe prompt was asked" not in told
    assert PROMPT not in text
    assert ANSWER not in text


def test_the_card_fills_the_fields_of_a_model_s_documentation(audited: Path, models: dict[str, Path], model: Path) -> None:
    (model / "README.md").write_text("---\nlicense: mit\npipeline_tag: question-answering\n---\n# Mine\n", encoding="utf-8")
    for _ in range(2):
        text = write_card(audited, model).path.read_text(encoding="utf-8")
    card = ModelCard(text)
    assert (card.data.pipeline_tag, card.data.library_name, card.data.license) == ("question-answering", "transformers", "mit")
    assert text.count("library_name:") == text.count("pipeline_tag:") == 1
    shown = html.unescape(text.split("**For the model's documentation**")[1]).replace("\u2060", "")
    before, after = (open_checkpoint(models[name]) for name in ("before", "after"))
    weights = AutoModelForCausalLM.from_pretrained(models["after"])
    assert f"- Model authenticity: content key {after.key}, " in shown
    assert f"- Model dependencies: measured together with before ({before.key})" in shown
    layers, width = weights.config.num_hidden_layers, weights.config.hidden_size
    assert f"- Model architecture: LlamaForCausalLM, {layers} layers, {width} wide" in shown
    assert f"- Total model size: {weights.num_parameters():,} parameters\n" in shown
    assert f"at most {weights.config.max_position_embeddings:,} tokens" in shown
    assert "- Adversarial testing: none" in shown
    assert "- Left to the provider: legal name, release dates, licence" in shown


def test_a_model_with_code_of_its_own_is_described_without_running_it(audited: Path, model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").unlink()
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}}
    (model / "config.json").write_text(json.dumps({**config, **own}))
    (model / "own.py").write_text("raise SystemExit('it ran')\n")
    shown = documented(resolve(str(model), trusted=True), "own", {"model own": "k"}, {}, {})
    assert shown["Model architecture"] == "own, defined by code in the model's own folder, which was not run for this card"
    assert "Total model size" not in shown


def test_the_header_holds_the_model_s_own_rates(audited: Path, model: Path) -> None:
    card = ModelCard(write_card(audited, model).path.read_text(encoding="utf-8"))
    found = {(one.dataset_split, one.metric_type): one for one in card.data.eval_results}
    assert card.data.model_name == "after"
    assert set(found) == {(kind, f"{o}_rate") for kind in ("unsafe", "safe") for o in ("refused", "complied", "partial", "degenerate")}
    one = found["unsafe", "refused_rate"]
    assert (one.metric_value, one.metric_args["n"], one.dataset_name, one.dataset_type) == (0.2, 10, "xstest.csv", "prompts")
    assert (one.metric_args["low"], one.metric_args["high"]) == pytest.approx(wilson(2, 10), abs=5e-5)
    assert one.dataset_args == {"sha256": "ab12"}


class Tags(HTMLParser):
    """The tags of a page, and the text of each of its cells."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.attributes: list[Any] = []
        self.within = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [pair for pair in attrs if pair[0] not in ("style", "class")]
        if tag in ("td", "th"):
            self.within = True
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        self.within = self.within and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.within:
            self.cells[-1] += data


def test_nothing_from_a_model_or_a_file_becomes_markup_or_yaml(models: dict[str, Path], model: Path, tmp_path: Path) -> None:
    named = {HOSTILE: models["before"], "`": models["after"]}
    tables = [verdicts(HOSTILE, {"unsafe": 9, HOSTILE: 1}), verdicts("`", {"unsafe": 2, HOSTILE: 0})]
    hostile = {
        "data": HOSTILE,
        "data sha256": HOSTILE,
        "judge": HOSTILE,
        f"attack {HOSTILE}": HOSTILE,
        "titer": HOSTILE,
        "second judge": HOSTILE,
    }
    folder = report(
        tmp_path / "r", named, tables, answer=HOSTILE, commands=[f"titer '{HOSTILE}' ```"], provenance=hostile, roles={HOSTILE: "before"}
    )
    card = write_card(folder, model)
    text = card.path.read_text(encoding="utf-8")
    head, body = text.split("\n---\n", 1)
    assert list(ModelCard(text).data.to_dict()) == ["library_name", "pipeline_tag", "model-index"]
    assert "\x1b" not in text
    assert head.count("\n# titer:") == body.count("\n<!-- titer:") == 2
    page = Tags(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(body))
    assert set(page.tags) <= {"h2", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "code", "ul", "li", "pre"}
    assert page.attributes == []
    assert page.tags.count("td") == 4 * page.tags.count("tr") - 4
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in HOSTILE)
    assert page.cells[2] == f"before: {shown}"
    assert page.cells[3] == "this model: `"
    assert write_card(folder, model).path.read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    "old",
    [
        "",
        "# A model\n\ntext",
        "# A model\r\n\r\ntext\r\n",
        "---\nlicense: mit\ntags:\n- x\n---\n\n# A model\n",
        "\ufeff---\r\nlicense: mit # why\r\n---\r\n# A model\r\nno end",
        "\n---\nlicense: mit\n---\n",
        "---\n\n---\ntext\n",
    ],
)
def test_every_byte_outside_the_marks_stays(audited: Path, models: dict[str, Path], model: Path, tmp_path: Path, old: str) -> None:
    readme = model / "README.md"
    readme.write_bytes(old.encode())
    write_card(audited, model)
    first = readme.read_bytes().decode()
    assert ModelCard(first.removeprefix("\ufeff")).data.eval_results
    assert without_blocks(first, old).startswith(old)
    assert set(without_blocks(first, old)[len(old) :]) <= {"\r", "\n"}
    assert ("\n" in first.replace("\r\n", "")) != ("\r\n" in old)
    write_card(audited, model)
    assert readme.read_bytes().decode() == first
    readme.write_bytes(f"{first}later".encode())
    tables = [verdicts("before", {"unsafe": 9}), verdicts("after", {"unsafe": 7})]
    write_card(report(tmp_path / "other", models, tables), model)
    second = readme.read_bytes().decode()
    assert (cell(7) in second, cell(2) in second, second.endswith("-->\r\nlater" if "\r\n" in old else "-->\nlater")) == (True, False, True)
    assert without_blocks(second, old) == without_blocks(first, old)


def without_blocks(text: str, old: str) -> str:
    """What stands before the section, the header's block taken out, or the header where `old` had none."""
    line = "\r\n" if "\r\n" in old else "\n"
    if REGEX_YAML_BLOCK.search(old.removeprefix("\ufeff")):
        text = text[: text.index(line + HEADER[0])] + text[text.index(HEADER[1]) + len(HEADER[1]) :]
    else:
        text = text.split(f"{HEADER[1]}{line}---{line}", 1)[1].removeprefix(line if old else "")
    return text[: text.index(SECTION[0])]


@pytest.mark.parametrize(
    ("old", "word"),
    [
        (f"{SECTION[0]}\ntext\n", "1 lines '<!-- titer:begin -->' and 0 lines"),
        (f"{SECTION[1]}\n{SECTION[0]}\n", "one of each, in this order"),
        (f"{SECTION[0]}\n{SECTION[1]}\n{SECTION[0]}\n", "remove the extra ones"),
        ("---\na: [1\n---\n", "cannot be read as that of a model card"),
        ("---\njust words\n---\n", "cannot be read as that of a model card"),
        ("---\n{license: mit}\n---\n", "cannot be read as that of a model card"),
        (b"caf\xe9", "not UTF-8"),
    ],
)
def test_a_readme_that_cannot_be_changed_safely_is_left_as_it_is(audited: Path, model: Path, old: str | bytes, word: str) -> None:
    readme = model / "README.md"
    readme.write_bytes(old if isinstance(old, bytes) else old.encode())
    before = readme.read_bytes()
    with pytest.raises(TiterError, match=word):
        write_card(audited, model)
    assert readme.read_bytes() == before


def test_a_mark_within_a_line_is_text(audited: Path, model: Path) -> None:
    (model / "README.md").write_text(f"It stands between {SECTION[0]} and {SECTION[1]}.\n")
    write_card(audited, model)
    assert f"between {SECTION[0]} and {SECTION[1]}.\n\n{SECTION[0]}\n## Safety" in (model / "README.md").read_text()


def test_results_of_others_in_the_header_stay_and_are_told(audited: Path, model: Path) -> None:
    head = "---\nlicense: mit\nmodel-index:\n- name: mine\n  results: []\n---\n"
    (model / "README.md").write_text(head)
    found = write_card(audited, model)
    assert "its own model-index" in found.notes[0]
    assert found.path.read_text().startswith(f"{head}\n{SECTION[0]}\n")


def test_a_report_about_another_model_is_refused(audited: Path, models: dict[str, Path], model: Path) -> None:
    found = read_report(audited)
    assert about(found, models["before"]) == "before"
    (model / "generation_config.json").unlink()
    with pytest.raises(TiterError, match=r"not about .*it measured before, after.*titer audit BEFORE"):
        write_card(audited, model)
    assert not (model / "README.md").exists()
    with pytest.raises(TiterError, match="no folder at"):
        write_card(audited, Path("owner/name"))


@pytest.mark.parametrize(
    ("file", "content", "word"),
    [
        ("summary.json", None, "summary.json is missing.*run the report's command again"),
        ("summary.json", '{"version": 2}', "version"),
        ("summary.json", "[]", "holds a list"),
        ("results.csv", "a,b\n1,2\n", "cannot be read as a report's results"),
        ("results.csv", "table,model,set,layer,measure,value,low,high,count,n\nprobe,a,b,1,c,1,1,1,1,1\n", "no outcome rates"),
        ("results.csv", "table,model,set,layer,measure,value,low,high,count,n\nrates,a,b,,refused,much,1,1,1,1\n", "cannot be read"),
        ("claims.json", '{"claims": [{"name": "x"}]}', "claims.json"),
        ("claims.json", '{"claims": 3}', "no list of claims"),
    ],
)
def test_a_faulty_report_is_one_clear_error(audited: Path, model: Path, file: str, content: str | None, word: str) -> None:
    (audited / file).unlink()
    if content is not None:
        (audited / file).write_text(content)
    with pytest.raises(TiterError, match=word):
        write_card(audited, model)


def test_claims_stand_with_their_verdict_and_control(audited: Path, model: Path) -> None:
    claim = {"name": "c", "statement": "It <holds>.", "source": "", "paper_value": None, "statistic": "s", "value": 0.25}
    claim |= {"interval": [0.1, 0.4], "seeds": [0], "control": {"name": "sham", "value": 0.0}, "margin": 0.0}
    (audited / "claims.json").write_text(
        json.dumps({"claims": [claim | {"verdict": "supported", "provisional": True, "reason": "r"}]}), encoding="utf-8"
    )
    text = write_card(audited, model).path.read_text(encoding="utf-8")
    assert "- **supported, provisional** (0.25 against sham): It &#60;holds&#62;." in text


def test_the_gaps_are_those_of_the_report(models: dict[str, Path], tmp_path: Path) -> None:
    tables = [verdicts("after", {"prefill": 1, "sst2": 2})]
    one = {"after": models["after"]}
    found = read_report(report(tmp_path / "r", one, tables, provenance={"attack prefill": "k=2", "judge": "rubric {}"}))
    told = " ".join(gaps(found, "after"))
    for word in ("Jailbreaks other than `prefill`", "Refusal of unsafe prompts", "Over-refusal", "The model before"):
        assert word in told
    for word in ("no attack was tried", "Capability", "benign tune", "knows whether", "could not be judged"):
        assert word not in told

    tables = [verdicts("before", {"unsafe": 1}), verdicts("after", {"unsafe": 2})]
    told = " ".join(gaps(read_report(report(tmp_path / "s", models, tables, roles={"before": "benign control"})), "after"))
    assert "Over-refusal" in told
    assert "Refusal of unsafe prompts" not in told
    assert "benign tune" not in told
    summary = json.loads((tmp_path / "s" / "summary.json").read_text())
    del summary["provenance"]["attack"]
    (tmp_path / "s" / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(TiterError, match=r"does not say which attacks were tried.*run the report's command again"):
        gaps(read_report(tmp_path / "s"), "after")


def test_a_single_model_comes_after_nothing(models: dict[str, Path], model: Path, tmp_path: Path) -> None:
    folder = report(tmp_path / "r", {"after": models["after"]}, [verdicts("after", {"unsafe": 2})])
    assert "| Prompts | Outcome | this model: `after` |" in write_card(folder, model).path.read_text(encoding="utf-8")


def test_of_two_models_with_equal_weights_the_later_is_meant(models: dict[str, Path], tmp_path: Path) -> None:
    folder = report(tmp_path / "r", {"a": models["after"], "b": models["after"]}, [verdicts("a", {"safe": 1}), verdicts("b", {"safe": 1})])
    assert about(read_report(folder), models["after"]) == "b"


def test_a_header_that_would_say_something_else_is_not_written(audited: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("titer.report.card.placed", lambda old, body, header, further: (f"---\nlicense: mit\n---\n{body}", ()))
    with pytest.raises(TiterError, match="would not say what was measured"):
        write_card(audited, model)
    assert not (model / "README.md").exists()


def test_a_numeric_or_empty_name_is_a_name(models: dict[str, Path], model: Path, tmp_path: Path) -> None:
    named = {"007": models["before"], "NA": models["after"]}
    folder = report(tmp_path / "r", named, [verdicts("007", {"unsafe": 1}), verdicts("NA", {"unsafe": 2})], roles={})
    found = write_card(folder, model)
    assert found.subject == "NA"
    assert "| `007` | this model: `NA` |" in found.path.read_text()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("titer audit a owner/name runs/x --data p.csv", "titer audit a owner/name runs/x --data p.csv"),
        ("titer audit /home/me/a ~/b --data '/home/me/my dir/p q.csv'", "titer audit a b --data 'p q.csv'"),
        ("titer audit /home/me/a+/srv/x/ad --capability 'sst2:/home/me/my dir/d.tsv'", "titer audit a+ad --capability sst2:d.tsv"),
        ("titer evaluate m --stream=harm=/home/me/h.jsonl:comply", "titer evaluate m --stream=harm=h.jsonl:comply"),
        (r"titer evaluate 'C:\Users\me\m'", "titer evaluate m"),
        (
            'titer x --judge-set endpoint=\'{"url": "https://h.test/v1/"}\'',
            'titer x --judge-set endpoint=\'{"url": "https://h.test/v1/"}\'',
        ),
    ],
)
def test_a_command_tells_no_folder_of_the_machine(given: str, told: str) -> None:
    assert command(given) == told


def test_a_setting_tells_no_folder_of_the_machine() -> None:
    assert placeless('/home/me/judge.py {"model":"/home/me/my guard","url":"http://localhost/v1"}') == (
        'judge.py {"model":"my guard","url":"http://localhost/v1"}'
    )


@pytest.mark.parametrize("text", ["`", "``a``", "a`b``c", " ", "|", "\\|", "a\\", "*x*", "<b>"])
def test_a_code_span_shows_the_text_as_it_is(text: str) -> None:
    page = MarkdownIt("commonmark").enable("table").render(f"| x {code(text, cell=True)} | y |\n| --- | --- |\n")
    assert Tags(page).cells == [f"x {text.strip() or '–'}", "y"]


@pytest.mark.parametrize(
    "text", ["1. a", "*a* _b_ ~~c~~ `d`", "<b>&amp;</b>", "[a](b) ![c](d)", "# a", "- a", "a\\", "90% [71%, 87%], n = 3"]
)
def test_running_text_shows_the_text_as_it_is(text: str) -> None:
    page = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(f"**x** {prose(text)}")
    shown = Tags(f"<td>{page.removeprefix('<p><strong>x</strong> ').removesuffix('</p>' + chr(10))}</td>").cells
    assert [one.replace("\u2060", "") for one in shown] == [text]


def test_a_readme_that_the_run_store_has_listed_is_not_touched(audited: Path, models: dict[str, Path], tmp_path: Path) -> None:
    stage = tmp_path / "stages" / "key"
    (stage / "model").mkdir(parents=True)
    for file in models["after"].iterdir():
        (stage / "model" / file.name).write_bytes(file.read_bytes())
    (stage / "manifest.json").write_text('{"sha256": {"model/config.json": "x"}}')
    write_card(audited, stage / "model")  # a file beside the listed ones is no damage
    (stage / "manifest.json").write_text('{"sha256": {"model/README.md": "x"}}')
    with pytest.raises(TiterError, match="belongs to the run store"):
        write_card(audited, stage / "model")
