"""Watching a training: the numbers are those of saved checkpoints, the training is the same bit for bit, and limits stop it."""

from __future__ import annotations

import json
import math
import random
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

from tests.conftest import llama
from tests.integrations.trainers import LONG, fresh, staged, trainer
from tests.methods.contract import largest_gap, same
from titer.attacks.base import Attempt
from titer.core.errors import TiterError
from titer.core.stats import wilson
from titer.data.example import Example
from titer.data.world import WorldSource
from titer.evaluate import judged, sample
from titer.integrations.measured import Limits, changed, summed
from titer.integrations.trl import TiterMixin
from titer.integrations.watch import Watch
from titer.judges.base import Judge, Verdict, unjudged
from titer.methods.sft import SFT
from titer.methods.vaccine import Vaccine
from titer.models.checkpoint import open_checkpoint
from titer.models.lm import LM, Completion, Decoding, load
from titer.probes.drift import drift, whole
from titer.probes.weight_change import overall, weight_change
from titer.stage import Lora, Stage

SHORT = Decoding(max_new_tokens=6)


def prompts() -> list[Example]:
    """Six safe and six unsafe requests."""
    places = np.arange(6)
    return [e for kind in ("safe", "unsafe") for e in WorldSource(world=LONG, kind=kind).examples(places)]  # type: ignore[arg-type]


class Even(Judge):
    """A request and answer with an even checksum refuse: a tiny model's answers fall on both sides."""

    SOURCE = "a test"
    VERSION = 1

    def judge(self, example: Example, completion: Completion) -> Verdict:
        even = zlib.crc32(f"{example.prompt}{completion.text}".encode()) % 2 == 0
        return Verdict("refused" if even else "complied", float(not even), "checksum")


class Same(Judge):
    """The answers that are given refuse, all others comply."""

    SOURCE = "a test"
    VERSION = 1

    answers: dict[str, str]

    def judge(self, example: Example, completion: Completion) -> Verdict:
        same = self.answers[example.prompt] == completion.text
        return Verdict("refused" if same else "complied", float(not same), "given")


class Drawing(Judge):
    """It draws from every random generator."""

    SOURCE = "a test"
    VERSION = 1

    def judge(self, example: Example, completion: Completion) -> Verdict:
        drawn = random.random() + np.random.random() + float(torch.rand(()))  # noqa: NPY002
        return Verdict("refused", 0.0, f"{drawn}")


class Shy(Judge):
    """It can judge nothing."""

    SOURCE = "a test"
    VERSION = 1

    def judge(self, example: Example, completion: Completion) -> Verdict:
        return unjudged("shy")


def watching(folder: Path, **changes: Any) -> Watch:
    values: dict[str, Any] = {"every": 2, "judge": Even(), "decoding": SHORT, **changes}
    return Watch(values.pop("prompts", prompts()), folder / "watch" / "lines.jsonl", **values)


def watched(made: Stage, folder: Path, watch: TrainerCallback | None, lm: LM | None = None, **more: Any) -> tuple[Any, LM]:
    lm = lm or fresh(made)
    run = trainer(Trainer, made, lm, folder, more=more, callbacks=[watch] if watch else [])
    return run, lm


def fast(made: Stage) -> Stage:
    """The stage at a rate that changes answers in four steps."""
    return made.model_copy(update={"optimiser": made.optimiser.model_copy(update={"rate": 3e-2})})


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "watch" / "lines.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.long
@pytest.mark.parametrize("adapter", [None, Lora(rank=2)], ids=["whole", "lora"])
def test_the_numbers_are_those_of_the_saved_checkpoints(tmp_path: Path, adapter: Lora | None) -> None:
    """Every number again from two folders on disk, with the probes that an audit uses."""
    made = fast(staged(SFT(), adapter=adapter))
    watch = watching(tmp_path)
    run, lm = watched(made, tmp_path / "run", watch)
    run.train()
    lm.model = lm.model.merge_and_unload() if adapter else lm.model
    lm.save(tmp_path / "after")
    llama(LONG).save(tmp_path / "before")
    folders = [open_checkpoint(tmp_path / name) for name in ("before", "after")]
    before, after = (load(folder) for folder in folders)
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [0, 2, 4]
    assert found == watch.measured
    for line, one in ((found[0], before), (found[-1], after)):
        answers = judged(sample(one, [Attempt(e) for e in prompts()], SHORT, 4), Even())
        for name, harmful in (("refusal", True), ("over_refusal", False)):
            mine = answers[answers.harmful == harmful]
            rate = wilson(int((mine.outcome == "refused").sum()), len(mine))
            assert line[name] == pytest.approx({"rate": rate.value, "low": rate.low, "high": rate.high, "n": 6})
        assert line["could_not_judge"] == 0
    unsafe = [e for e in prompts() if e.harmful]
    expected = whole(drift(before, after, unsafe)).set_index("part").loc["all"]
    told = found[-1]["drift"]
    assert told["part"] == "all"
    assert told["tokens"] == expected.tokens
    for name in ("official", "norm", "cosine"):
        assert told[name] == pytest.approx(expected[name], rel=1e-3)
    table = weight_change(*folders, after.sites)
    for part in ("mlp", "attention", "other"):
        assert found[-1]["weight_change"][part] == pytest.approx(overall(table, part), rel=1e-3)
    assert found[-1]["weight_change"]["most"] == pytest.approx(max(overall(table, p) for p in set(table.part)), rel=1e-3)
    top = table.loc[table.relative_norm.idxmax()]
    assert found[-1]["weight_change"]["largest"]["relative_norm"] == pytest.approx(top.relative_norm, rel=1e-3)
    assert found[-1]["weight_change"]["largest"]["tensor"].endswith(top.tensor)


@pytest.mark.long
def test_before_the_first_step_nothing_has_moved(tmp_path: Path) -> None:
    run, _ = watched(staged(SFT(), precision="bf16"), tmp_path / "run", watching(tmp_path), bf16=True)
    run.train()
    first, last = lines(tmp_path)[0], lines(tmp_path)[-1]
    assert (first["drift"]["norm"], first["drift"]["official"], first["weight_change"]["most"]) == (0, 0, 0)
    assert last["drift"]["norm"] > 0 < last["weight_change"]["most"]


@pytest.mark.long
@pytest.mark.parametrize("adapter", [None, Lora(rank=2, dropout=0.2)], ids=["whole", "lora"])
def test_training_is_the_same_bit_for_bit(tmp_path: Path, adapter: Lora | None) -> None:
    """With dropout, checkpointing and sampled answers: the weights, and after each step modes, hooks, settings and generators."""
    made = staged(SFT(), 2, adapter=adapter)
    ends = []
    for name in ("without", "with"):
        lm = fresh(made)
        lm.model.config.attention_dropout = 0.2
        for block in lm.sites.blocks:
            block.attention[0].attention_dropout = 0.2  # type: ignore[assignment]
        watch = (
            watching(tmp_path, every=1, judge=Drawing(), decoding=Decoding(max_new_tokens=4, temperature=1.0)) if name == "with" else None
        )
        seen = Seen()
        run, lm = watched(made, tmp_path / name, watch, lm, activation_checkpointing=True)
        run.add_callback(seen)
        run.train()
        ends.append((dict(lm.model.state_dict()), seen.seen, run.state.log_history[-2]["loss"]))
    assert same(ends[0][0], ends[1][0])
    assert ends[0][1:] == ends[1][1:]
    assert len(lines(tmp_path)) == 5


class Seen(TrainerCallback):
    """What a callback could have left: modes, hooks, settings, gradients and the state of every random generator, after each step."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        modes = [(name, m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()]
        generators = (torch.get_rng_state().sum().item(), random.getstate(), np.random.get_state()[1].sum())  # noqa: NPY002
        asked = [(p.requires_grad, p.grad is None, p.is_inference()) for p in model.parameters()]
        self.seen.append((modes, generators, asked, str(model.generation_config), model.config.use_cache))


@pytest.mark.long
def test_a_measurement_leaves_every_module_in_its_own_mode(tmp_path: Path) -> None:
    watch = watching(tmp_path, every=1)
    run, lm = watched(staged(SFT(), steps=1), tmp_path / "run", watch)
    run.train()
    next(lm.model.children()).eval()  # a part in evaluation mode, within a model in training
    modes = [module.training for module in lm.model.modules()]
    assert len(set(modes)) == 2
    watch.on_step_end(run.args, run.state, run.control, model=lm.model)
    assert [module.training for module in lm.model.modules()] == modes
    assert len(watch.measured) == 3


@pytest.mark.long
@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"weight_change_above": 1e-6}, "weight_change is .*, above the limit 1e-06"),
        ({"drift_above": 1e-6}, "drift is .*, above the limit 1e-06"),
        ({"drift_above": 1e-6, "weight_change_above": 1e-6}, "drift is .*; weight_change is"),
    ],
)
def test_a_limit_stops_training_and_says_why(tmp_path: Path, limits: dict[str, float], said: str) -> None:
    watch = watching(tmp_path, limits=Limits(**limits))
    run, _ = watched(staged(SFT()), tmp_path / "run", watch)
    with pytest.warns(UserWarning, match=f"training stops at step 2: {said}"):
        run.train()
    assert run.state.global_step == 2
    assert [line["step"] for line in lines(tmp_path)] == [0, 2]
    assert lines(tmp_path)[0]["beyond"] == ""
    assert watch.stopped == lines(tmp_path)[-1]["beyond"] != ""


def test_rates_against_limits() -> None:
    line = {"refusal": {"rate": 0.5, "low": 0.2, "high": 0.8, "n": 8}, "over_refusal": {"rate": 0.3, "low": 0.1, "high": 0.6, "n": 9}}
    assert Limits(refusal_below=0.5, over_refusal_above=0.3).crossed(line) == ""
    assert Limits(refusal_below=0.51).crossed(line) == "refusal is 0.500 [0.200, 0.800] of 8, below the limit 0.51"
    assert Limits(over_refusal_above=0.29).crossed(line) == "over_refusal is 0.300 [0.100, 0.600] of 9, above the limit 0.29"
    assert Limits(refusal_below=0.8, over_refusal_above=0.1, sure=True).crossed(line) == ""
    assert Limits(refusal_below=0.81, sure=True).crossed(line)
    assert Limits(over_refusal_above=0.09, sure=True).crossed(line)
    unknown = {"refusal": {"rate": None, "low": None, "high": None, "n": 0}, "drift": {"norm": None}}
    assert Limits(refusal_below=0.0).crossed(unknown) == "no answer could be judged for refusal"
    assert Limits(drift_above=1.0).crossed(unknown) == "drift is not finite"


@pytest.mark.long
def test_refusal_that_falls_stops_training(tmp_path: Path) -> None:
    """The untrained model's own answers count as refusals, so they are all there before the first step and fewer later."""
    texts = llama(LONG).generate([e.prompt for e in prompts()], SHORT)
    judge = Same(answers={e.prompt: c.text for e, c in zip(prompts(), texts, strict=True)})
    watch = watching(tmp_path, judge=judge, limits=Limits(refusal_below=0.9), every=1)
    run, lm = watched(fast(staged(SFT())), tmp_path / "run", watch)
    with pytest.warns(UserWarning, match="refusal is 0"):
        run.train()
    rates = [line["refusal"]["rate"] for line in lines(tmp_path)]
    assert rates[0] == 1
    assert all(rate >= 0.9 for rate in rates[:-1])
    assert rates[-1] < 0.9
    assert run.state.global_step == len(rates) - 1 < 4
    now = judged(sample(lm, [Attempt(e) for e in prompts()], SHORT, 4), judge)
    assert rates[-1] == (now[now.harmful].outcome == "refused").mean()


@pytest.mark.long
def test_a_limit_beyond_the_start_is_refused(tmp_path: Path) -> None:
    first = watching(tmp_path)
    run, _ = watched(staged(SFT(), steps=1), tmp_path / "one", first)
    run.train()
    rate = first.measured[0]["refusal"]["rate"]
    assert 0 < rate < 1
    run, _ = watched(staged(SFT()), tmp_path / "two", watching(tmp_path, limits=Limits(refusal_below=rate + 0.1)))
    with pytest.raises(TiterError, match="before the first step: refusal is"):
        run.train()
    run, _ = watched(staged(SFT()), tmp_path / "three", watching(tmp_path, judge=Shy(), limits=Limits(refusal_below=0.1)))
    with pytest.raises(TiterError, match="no answer could be judged for refusal"):
        run.train()


@pytest.mark.long
def test_a_folder_can_hold_the_start(tmp_path: Path) -> None:
    llama(LONG).save(tmp_path / "before")
    llama(LONG, seed=1).save(tmp_path / "other")
    found = []
    for start in (None, tmp_path / "before"):
        watch = watching(tmp_path, start=start)
        watched(staged(SFT()), tmp_path / "run", watch)[0].train()
        assert (watch._kept is None) == (start is not None)
        found.append([{k: v for k, v in line.items() if k != "seconds"} for line in watch.measured])
    assert found[0] == found[1]
    run, _ = watched(staged(SFT()), tmp_path / "run", watching(tmp_path, start=tmp_path / "other"))
    with pytest.raises(TiterError, match=r"does not hold .* as training begins with it"):
        run.train()


@pytest.mark.long
def test_a_resumed_training_is_measured_against_its_first_start(tmp_path: Path) -> None:
    made, more = staged(SFT()), {"save_strategy": "steps", "save_steps": 2}
    whole_run = watching(tmp_path / "a")
    watched(made, tmp_path / "run", whole_run, **more)[0].train()
    again = watching(tmp_path / "b")
    watched(made, tmp_path / "again", again, **more)[0].train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert [line["step"] for line in again.measured] == [4]
    assert again.measured[0]["weight_change"] == whole_run.measured[-1]["weight_change"]
    assert again.measured[0]["drift"] == whole_run.measured[-1]["drift"]
    late = watching(tmp_path / "c")
    run, _ = watched(made, tmp_path / "late", None, **more)
    run.add_callback(late)
    with pytest.raises(TiterError, match="where it began is not known"):
        run.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    gone_on = fresh(made)
    gone_on.model.load_state_dict(load_file(tmp_path / "run" / "checkpoint-2" / "model.safetensors"))
    run, _ = watched(made, tmp_path / "own", watching(tmp_path / "d"), gone_on, **more)
    with pytest.raises(TiterError, match="where it began is not known"):  # the trainer was made with the checkpoint's own weights
        run.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))


@pytest.mark.long
def test_what_is_frozen_in_between_has_moved_all_the_same(tmp_path: Path) -> None:
    class Freeze(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            model.get_input_embeddings().requires_grad_(False)

    llama(LONG).model.save_pretrained(tmp_path / "start")
    for start in (None, tmp_path / "start"):
        watch, lm = watching(tmp_path, inside=("weight_change",), start=start), fresh(staged(SFT()))
        trainer(Trainer, staged(SFT()), lm, tmp_path / "run", callbacks=[Freeze(), watch]).train()
        assert watch.measured[-1]["weight_change"] == summed(changed(llama(LONG), lm))


@pytest.mark.long
def test_the_last_line_is_of_the_best_model_where_that_is_loaded(tmp_path: Path) -> None:
    watch, made = watching(tmp_path, inside=("weight_change",), every=4), fast(staged(SFT()))
    more = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 1, "eval_steps": 1, "load_best_model_at_end": True}
    more |= {"metric_for_best_model": "eval_loss", "greater_is_better": True}
    lm = fresh(made)
    run = trainer(Trainer, made, lm, tmp_path / "run", more=more, callbacks=[watch], eval_dataset=[])
    run.eval_dataset = run.train_dataset
    run.train()
    best = run.state.best_global_step
    assert best < 4
    assert [line["step"] for line in watch.measured] == [0, 4, best]
    assert watch.measured[-1]["epoch"] < watch.measured[-2]["epoch"]
    table = changed(llama(LONG), lm)
    assert watch.measured[-1]["weight_change"] == summed(table)


@pytest.mark.long
def test_prompts_without_refusals_and_no_look_inside(tmp_path: Path) -> None:
    """Drift is then of the prompts' own tokens, whatever stands behind them; without `inside` no copy is kept."""
    bare = [replace(e, refuse=None) for e in prompts()]
    watch, full = watching(tmp_path / "bare", prompts=bare), watching(tmp_path / "full")
    run, lm = watched(staged(SFT()), tmp_path / "run", watch)
    run.add_callback(full)
    run.train()
    told = watch.measured[-1]["drift"]
    unsafe = [e for e in prompts() if e.harmful]
    expected = whole(drift(llama(LONG), lm, unsafe)).set_index("part").loc["prompt"]
    assert told["part"] == "prompt"
    assert told["norm"] == pytest.approx(expected.norm, rel=1e-5)
    assert told["tokens"] == expected.tokens
    outside = watching(tmp_path / "outside", inside=())
    watched(staged(SFT()), tmp_path / "run2", outside)[0].train()
    assert outside._kept is None
    assert set(outside.measured[-1]) == {"step", "epoch", "could_not_judge", "refusal", "over_refusal", "seconds", "beyond"}


@pytest.mark.long
def test_a_file_of_prompts_and_only_one_kind(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text("prompt,label\n<bos> f1 f0 <sot> a b c <eot>,unsafe\n<bos> f0 f0 <sot> e <eot>,unsafe\n")
    watch = watching(tmp_path, prompts=tmp_path / "prompts.csv")
    watched(staged(SFT(), steps=1), tmp_path / "run", watch)[0].train()
    assert watch.measured[0]["refusal"]["n"] == 2
    assert watch.measured[0]["over_refusal"] is None


@pytest.mark.long
def test_beside_a_method_in_the_trainer(tmp_path: Path) -> None:
    """The mixin and the watch together: the weights are the mixin's alone."""

    class Treated(TiterMixin, Trainer):
        pass

    ends = []
    for watch in (None, watching(tmp_path, every=1)):
        made = staged(Vaccine(rho=1.0))
        lm = fresh(made)
        run = trainer(Treated, made, lm, tmp_path / "run", callbacks=[watch] if watch else [], method=made.method)
        run.train()
        ends.append(dict(lm.model.state_dict()))
    assert same(*ends)
    assert largest_gap(ends[0], llama(LONG).model.state_dict()) > 1e-3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompts": []}, "no prompts"),
        ({"every": 0}, "no step between measurements"),
        ({"prompts": prompts()[:6], "inside": (), "limits": Limits(refusal_below=0.5)}, "a limit on refusal, and no unsafe prompts"),
        ({"prompts": prompts()[6:], "limits": Limits(over_refusal_above=0.5)}, "a limit on over-refusal, and no safe prompts"),
        ({"prompts": prompts()[:6]}, "there are no unsafe prompts"),
        ({"inside": (), "limits": Limits(drift_above=0.5)}, "a limit on drift, which is not measured"),
        ({"inside": ("drift",), "limits": Limits(weight_change_above=0.5)}, "a limit on weight change, which is not measured"),
    ],
)
def test_what_cannot_be_watched_is_refused_at_once(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(TiterError, match=said):
        watching(tmp_path, **changes)


@pytest.mark.long
def test_weights_that_are_not_finite_are_told(tmp_path: Path) -> None:
    class Break(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            with torch.no_grad():
                model.get_input_embeddings().weight.fill_(math.nan)

    watch = watching(tmp_path, every=1, limits=Limits(drift_above=10.0, weight_change_above=10.0))
    run, _ = watched(staged(SFT()), tmp_path / "run", watch)
    run.add_callback(Break())
    with pytest.warns(UserWarning, match="drift is not finite; weight_change is not finite"):
        run.train()
    assert lines(tmp_path)[-1]["drift"]["norm"] is None
