"""Methods inside transformers' Trainer against titer's own loop: weights, accumulation, adapters, resume, finish, errors."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from tests.conftest import llama
from tests.integrations.trainers import LONG, Rows, by_titer, collated, fresh, rows, staged, trainer, weights
from tests.methods.contract import largest_gap, loader, same
from tests.models.tiny import tiny
from titer.core.errors import TiterError
from titer.integrations.supported import HONOURED, unhonoured
from titer.integrations.trainer_step import batches_of
from titer.integrations.trl import TiterMixin
from titer.methods.antidote import Antidote
from titer.methods.base import Batches, Context, Loss, Method
from titer.methods.booster import Booster
from titer.methods.constrained_sft import ConstrainedSFT
from titer.methods.dpo import DPO
from titer.methods.ewc import EWC
from titer.methods.kl import KL
from titer.methods.lisa import Lisa
from titer.methods.safe_lora import SafeLoRA
from titer.methods.sft import SFT
from titer.methods.t_vaccine import TVaccine
from titer.methods.vaccine import Vaccine
from titer.models.lm import LM
from titer.stage import Lora, Stage

METHODS = [
    SFT(),
    Vaccine(rho=1.0),
    Vaccine(rho=1.0, scope="example", every=2, part=0.5),
    TVaccine(rho=1.0, layers=1, resample=2),
    Lisa(k1=1, k2=2, rho=0.5),
    Booster(),
    EWC(strength=10.0, examples=8),
    KL(strength=1.0),
    ConstrainedSFT(),
    Antidote(examples=8),
]


class Treated(TiterMixin, Trainer):
    """transformers' Trainer with a method."""


def treated(made: Stage, folder: Path, lm: Any = None, more: dict[str, Any] | None = None, **own: Any) -> tuple[Any, Any]:
    """A trainer with the stage's method, and its model."""
    lm = lm or fresh(made)
    others = {name: one for name, one in made.streams.items() if name != "train"}
    return trainer(Treated, made, lm, folder, more=more, method=made.method, streams=others, **own), lm


def trained(made: Stage, folder: Path, **own: Any) -> dict[str, torch.Tensor]:
    run, lm = treated(made, folder, **own)
    run.train()
    return weights(lm)


def test_a_data_set_of_no_example_is_told(tmp_path: Path) -> None:
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(TiterError, match=r"holds no example.*raise max_length"):
        Treated(model=fresh(staged(SFT())).model, args=args, train_dataset=[], method=SFT())


@pytest.mark.long
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
def test_weights_are_those_of_titers_loop(tmp_path: Path, method: Method, accumulation: int) -> None:
    made = staged(method, accumulation)
    expected = by_titer(made, tmp_path / "titer")
    found = trained(made, tmp_path / "trainer")
    assert largest_gap(expected, found) < 1e-6
    assert largest_gap(expected, llama(LONG).model.state_dict()) > 1e-3


@pytest.mark.long
@pytest.mark.parametrize("method", [Vaccine(rho=1.0), KL(strength=1.0), Lisa(k1=1, k2=2)], ids=lambda m: type(m).__name__)
def test_with_an_adapter_too(tmp_path: Path, method: Method) -> None:
    made = staged(method, 2, adapter=Lora(rank=2))
    expected = by_titer(made, tmp_path / "titer")
    assert largest_gap(expected, trained(made, tmp_path / "trainer")) < 1e-6
    assert largest_gap(expected, llama(LONG).model.state_dict()) > 1e-4


@pytest.mark.long
def test_in_bf16_too(tmp_path: Path) -> None:
    made = staged(Vaccine(rho=1.0), precision="bf16")
    expected = by_titer(made, tmp_path / "titer")
    assert largest_gap(expected, trained(made, tmp_path / "trainer", more={"bf16": True})) < 1e-6
    assert largest_gap(expected, trained(staged(Vaccine(rho=1.0)), tmp_path / "plain")) > 1e-6


@pytest.mark.parametrize("trainer_loss", [True, False])
def test_neutral_is_the_plain_trainer_with_a_short_last_step(tmp_path: Path, trainer_loss: bool) -> None:
    """Two epochs of 20 rows in micro-batches of 4, 3 a step: the second step of each has 2 micro-batches."""
    made = staged(Vaccine(rho=0.0)).model_copy(update={"batch": 4, "accumulation": 3})
    more = {"max_steps": -1, "num_train_epochs": 2}
    data = rows(made, fresh(made).tokenizer)[:20]
    plain, other = fresh(made), fresh(made)
    one = trainer(Trainer, made, plain, tmp_path / "plain", data, more)
    one.train()
    two = trainer(Treated, made, other, tmp_path / "treated", data, more, method=made.method, trainer_loss=trainer_loss)
    two.train()
    assert one.state.global_step == two.state.global_step == 4
    assert largest_gap(weights(plain), weights(other)) < 1e-6
    losses = [[line["loss"] for line in run.state.log_history if "loss" in line] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_around_the_trainers_loss_vaccine_is_the_same(tmp_path: Path) -> None:
    """The trainer's loss is cross-entropy here, so where it comes from changes nothing."""
    made = staged(Vaccine(rho=1.0), 2)
    assert largest_gap(by_titer(made, tmp_path / "titer"), trained(made, tmp_path / "trainer", trainer_loss=True)) < 1e-6


def test_padding_on_the_left_changes_nothing(tmp_path: Path) -> None:
    """A trainer says no positions, so they are told from the mask."""
    made = staged(SFT())
    right, left = fresh(made), fresh(made)
    trainer(Treated, made, right, tmp_path / "right", method=made.method).train()
    run = trainer(Treated, made, left, tmp_path / "left", method=made.method)
    run.data_collator = turned
    run.train()
    assert largest_gap(weights(right), weights(left)) < 1e-5  # AdamW's first steps enlarge what rounding does to tiny gradients
    inputs = turned(rows(made, left.tokenizer)[:4])
    batch = batches_of(inputs, frozenset({"train"}))["train"]
    assert batch.position_ids is not None
    for places, mask in zip(batch.position_ids, inputs["attention_mask"] == 1, strict=True):
        assert places[mask].tolist() == list(range(int(mask.sum())))
    assert not bool(inputs["attention_mask"].all())


def turned(examples: Rows) -> dict[str, torch.Tensor]:
    """Rows padded on the left."""
    inputs = collated(examples)
    gaps = (inputs["attention_mask"] == 0).sum(1).tolist()
    return {name: torch.stack([row.roll(gap) for row, gap in zip(tensor, gaps, strict=True)]) for name, tensor in inputs.items()}


def test_checkpointing_changes_nothing(tmp_path: Path) -> None:
    made = staged(Vaccine(rho=1.0))
    again = trained(made, tmp_path / "again", more={"activation_checkpointing": True})
    assert largest_gap(trained(made, tmp_path / "once"), again) < 1e-6


@pytest.mark.parametrize("method", [Lisa(k1=1, k2=2), Vaccine(rho=1.0, reuse=True)], ids=lambda m: type(m).__name__)
def test_resumes_with_what_the_method_kept(tmp_path: Path, method: Method) -> None:
    made, more = staged(method), {"save_strategy": "steps", "save_steps": 2}
    whole = trained(made, tmp_path / "whole", more=more)
    run, lm = treated(made, tmp_path / "again", more=more)
    run.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert same(whole, weights(lm))
    (tmp_path / "whole" / "checkpoint-2" / "titer.safetensors").unlink()
    run, _ = treated(made, tmp_path / "lacking", more=more)
    with pytest.raises(TiterError, match="what the method kept is not known"):
        run.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))


@pytest.mark.long
@pytest.mark.parametrize("adapter", [None, Lora(rank=2)])
def test_a_resumed_run_finds_its_reference_or_says_that_it_cannot(tmp_path: Path, adapter: Lora | None) -> None:
    """The start is the model without its adapter; of whole weights it must be given."""
    made, more = staged(KL(strength=1.0), adapter=adapter), {"save_strategy": "steps", "save_steps": 2}
    whole = trained(made, tmp_path / "whole", more=more)
    place = str(tmp_path / "whole" / "checkpoint-2")
    if adapter is None:
        run, _ = treated(made, tmp_path / "lacking", more=more)
        with pytest.raises(TiterError, match="reads the model 'base', and none was given"):
            run.train(resume_from_checkpoint=place)
    run, lm = treated(made, tmp_path / "again", more=more, reads={} if adapter else {"base": llama(LONG).model})
    run.train(resume_from_checkpoint=place)
    assert same(whole, weights(lm))


def test_an_adapter_that_goes_on_is_held_to_where_it_began(tmp_path: Path) -> None:
    """An adapter trained before: the reference is the model with it, not without, so the first divergence is zero."""
    made = staged(KL(strength=1.0), adapter=Lora(rank=2))
    lm = fresh(made)
    first, _ = treated(staged(SFT(), adapter=Lora(rank=2)), tmp_path / "first", lm=lm)
    first.train()
    run, _ = treated(made, tmp_path / "second", lm=lm)
    run.train()
    told = [line["kl"] for line in run.state.log_history if "kl" in line]
    assert abs(told[0]) < 1e-7 < told[-1]


@pytest.mark.long
def test_models_that_a_method_reads(tmp_path: Path) -> None:
    made = staged(SafeLoRA(layers=2), adapter=Lora(rank=2))
    read: dict[str, Any] = {"aligned": llama(LONG), "unaligned": loader(lambda _: llama(LONG))("unaligned")}
    expected = by_titer(made, tmp_path / "titer", lambda name: read[name])
    assert largest_gap(expected, by_titer(staged(SFT(), adapter=Lora(rank=2)), tmp_path / "sft")) > 1e-4
    assert largest_gap(expected, trained(made, tmp_path / "trainer", reads=read)) < 1e-6
    read["aligned"].save(tmp_path / "aligned")
    again = trained(made, tmp_path / "again", reads={**read, "aligned": tmp_path / "aligned"})
    assert largest_gap(expected, again) < 1e-6


def test_an_edit_under_the_adapter_is_told(tmp_path: Path) -> None:
    run, _ = treated(staged(Antidote(examples=8), adapter=Lora(rank=2)), tmp_path)
    with pytest.warns(UserWarning, match="changed weights under the adapter"):
        run.train()


class Stopping(Method):
    """Plain SFT that ends itself after the second step."""

    SOURCE = "a test"
    VERSION = 1
    NEUTRAL = "none: it exists to stop"

    def loss(self, c: Context, batch: Batches) -> Loss:
        c.log("place", float(c.number))
        if c.number == 1:
            c.stop("enough")
        return SFT().loss(c, batch)


def test_a_method_can_stop_and_its_numbers_are_logged(tmp_path: Path) -> None:
    run, _ = treated(staged(Stopping()), tmp_path)
    with pytest.warns(UserWarning, match="Stopping ends training: enough"):
        run.train()
    assert run.state.global_step == 2
    assert [line["place"] for line in run.state.log_history if "place" in line] == [0.0, 1.0]


def test_a_step_without_labels_moves_nothing(tmp_path: Path) -> None:
    made = staged(SFT(), steps=1)
    lm = fresh(made)
    data = [{**row, "labels": [-100] * len(row["labels"])} for row in rows(made, lm.tokenizer)]
    run = trainer(Treated, made, lm, tmp_path, data, method=SFT())
    run.train()
    assert largest_gap(weights(lm), llama(LONG).model.state_dict()) == 0


@pytest.mark.parametrize(
    ("method", "own", "said"),
    [
        (Lisa(), {}, "Lisa trains on train, alignment; given are none"),
        (SFT(), {"streams": {"harmful": 1}}, "SFT does not use the stream harmful"),
        (SFT(), {"streams": {"train": 1}}, "SFT trains on train; given are train"),
        (SafeLoRA(), {}, "SafeLoRA reads the model aligned, unaligned"),
        (SFT(), {"reads": {"aligned": 1}}, "SFT does not read the model aligned"),
        (KL(), {"trainer_loss": True}, "KL's loss is its own"),
    ],
)
def test_what_does_not_fit_the_method_is_refused_at_once(method: Method, own: dict[str, Any], said: str) -> None:
    with pytest.raises(TiterError, match=said):
        Treated(method=method, **own)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"torch_compile": True}, "torch_compile"),
        ({"optim": "lomo"}, "steps within the backward pass"),
        ({"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": True}}, "reentrant checkpointing"),
    ],
)
def test_settings_that_are_not_supported_are_refused(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises(TiterError, match=said):
        treated(staged(SFT()), tmp_path, more=more)


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = staged(SFT())
    lm = fresh(made)
    monkeypatch.setattr("accelerate.Accelerator.num_processes", property(lambda _: 2))
    with pytest.raises(TiterError, match="several processes or devices"):
        trainer(Treated, made, lm, tmp_path, method=SFT())


def test_settings_of_a_loss_that_is_not_used_are_refused(tmp_path: Path) -> None:
    run, _ = treated(staged(SFT()), tmp_path, more={"label_smoothing_factor": 0.1})
    with pytest.raises(TiterError, match="does not know label_smoothing_factor"):
        run.train()


UNTRIED = {  # of every trainer: of its loss, or never tried beside a method's own
    *("label_smoothing_factor", "use_liger_kernel", "liger_kernel_config", "neftune_noise_alpha"),
    *("torch_empty_cache_steps", "auto_find_batch_size"),
}


def test_every_setting_of_a_trainer_is_known_to_be_honoured_or_refused() -> None:
    """A field that a new version brings fails here until somebody has looked at it; its values are refused until then."""
    named = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert named - {name for names in HONOURED.values() for name in names.split()} == UNTRIED


def test_a_setting_that_nobody_has_looked_at_is_refused(tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Later(TrainingArguments):
        focal: float = 0.0

    assert unhonoured(Later(output_dir=str(tmp_path), learning_rate=1e-2, logging_steps=3, weight_decay=0.1)) == []
    assert unhonoured(Later(output_dir=str(tmp_path), focal=2.0, neftune_noise_alpha=5.0)) == ["neftune_noise_alpha=5.0", "focal=2.0"]


def test_a_mixture_that_adds_its_router_s_loss_is_refused(tmp_path: Path) -> None:
    made = staged(SFT())
    tokenizer = LONG.tokenizer()
    model = tiny("qwen3_moe", len(tokenizer))
    model.config.output_router_logits = True
    run = trainer(Treated, made, LM(model, tokenizer, "mixture"), tmp_path, method=made.method)
    with pytest.raises(TiterError, match="does not know the router's balancing loss"):
        run.train()


def test_batches_of_another_form_are_refused(tmp_path: Path) -> None:
    made = staged(SFT())
    lm = fresh(made)
    inputs = collated(rows(made, lm.tokenizer)[:2])
    train, both = frozenset({"train"}), frozenset({"preferred", "rejected"})
    with pytest.raises(TiterError, match="are single answers, and the method wants preferred and rejected"):
        batches_of(inputs, both)
    with pytest.raises(TiterError, match="hold pixel_values"):
        batches_of({**inputs, "pixel_values": inputs["labels"]}, train)
    with pytest.raises(TiterError, match="hands out batches of input_ids"):
        batches_of({"input_ids": inputs["input_ids"]}, train)
    run = trainer(Treated, made, lm, tmp_path, method=DPO())
    with pytest.raises(TiterError, match="are single answers"):
        run.train()
