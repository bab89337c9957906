"""Methods inside TRL's own trainers (`make parity`): SFTTrainer and DPOTrainer against titer's loop, and against themselves."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import llama
from tests.integrations.test_mixin import UNTRIED
from tests.integrations.trainers import LONG, Rows, by_titer, fresh, pairs, rows, settings, staged, weights
from tests.methods.contract import largest_gap, same
from tests.models.tiny import tiny
from titer.core.errors import TiterError
from titer.data.example import Batch
from titer.data.world import WorldSource
from titer.integrations.supported import HONOURED, unhonoured
from titer.integrations.trl import TiterMixin
from titer.integrations.watch import Watch
from titer.methods.base import Batches, Method
from titer.methods.booster import Booster
from titer.methods.dpo import DPO
from titer.methods.kl import KL
from titer.methods.lisa import Lisa
from titer.methods.rep_noise import RepNoise
from titer.methods.sft import SFT
from titer.methods.vaccine import Vaccine
from titer.models.likelihood import pair_nll
from titer.models.lm import LM, Decoding
from titer.probes.drift import drift, whole
from titer.stage import Lora, Stage

trl = pytest.importorskip("trl", reason="trl is not in the development set: make parity")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL 1.16 names a setting as transformers 5.23 did before

LORA = Lora(rank=2)
WAYS = [(1, None), (2, None), (2, LORA)]
IDS = ["1", "2", "2-lora"]
PAIR = ("preferred", "rejected")
SUMS = DPO(b_s=0.5, b_u=0.5, normalise="sum")  # DPO as published, and as TRL's with beta 0.5


class TreatedSFT(TiterMixin, trl.SFTTrainer):  # type: ignore[misc, name-defined]
    """SFTTrainer with a method."""


class PlainDPO(trl.DPOTrainer):  # type: ignore[misc, name-defined]
    """DPOTrainer on pairs that are tokens already."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


class TreatedDPO(TiterMixin, PlainDPO):
    """The same with a method."""


def table(found: Rows) -> Any:
    """A data set with a fingerprint of its own, which then is not pickled to make one."""
    import pyarrow
    from datasets import Dataset
    from datasets.table import InMemoryTable

    return Dataset(InMemoryTable(pyarrow.Table.from_pylist(found)), fingerprint="rows")


def sft(kind: Any, made: Stage, folder: Path, more: dict[str, Any] | None = None, **own: Any) -> tuple[Any, LM]:
    """SFTTrainer after training on the stage's data, and its model."""
    lm = fresh(made)
    quiet = {"max_length": None, "gradient_checkpointing": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
    args = trl.SFTConfig(**settings(made, folder, **quiet, **(more or {})))
    run = kind(model=lm.model, args=args, train_dataset=table(rows(made, lm.tokenizer)), processing_class=lm.tokenizer, **own)
    run.train()
    return run, lm


def treated_sft(made: Stage, folder: Path, **own: Any) -> tuple[Any, LM]:
    others = {name: one for name, one in made.streams.items() if name != "train"}
    return sft(TreatedSFT, made, folder, method=made.method, streams=others, **own)


def dpo(kind: Any, made: Stage, folder: Path, more: dict[str, Any] | None = None, **own: Any) -> tuple[Any, LM]:
    """DPOTrainer after training on the pairs of the stage's `preferred` and `rejected`, and its model."""
    lm = fresh(made)
    titers = "method" in own and "preferred" in own["method"].STREAMS  # whose loss does not know TRL's beta
    quiet = {"max_length": None, "gradient_checkpointing": False} | ({} if titers else {"beta": 0.5})
    args = trl.DPOConfig(**settings(made, folder, **{**quiet, **(more or {})}))
    first = None if made.adapter else llama(LONG).model
    data = table(pairs(made, lm.tokenizer, PAIR))
    run = kind(model=lm.model, ref_model=first, args=args, train_dataset=data, processing_class=lm.tokenizer, **own)
    run.train()
    return run, lm


def told(run: Any, *names: str) -> list[list[float]]:
    """What a trainer logged of each of these, step by step."""
    return [[line[name] for line in run.state.log_history if name in line] for name in names]


@pytest.mark.parametrize(("accumulation", "adapter"), WAYS, ids=IDS)
@pytest.mark.parametrize("method", [SFT(), Vaccine(rho=1.0), Lisa(k1=1, k2=2), Booster()], ids=lambda m: type(m).__name__)
def test_sft_trainer_with_a_method_is_titers_loop(tmp_path: Path, method: Method, accumulation: int, adapter: Lora | None) -> None:
    made = staged(method, accumulation, adapter=adapter)
    expected = by_titer(made, tmp_path / "titer")
    _, lm = treated_sft(made, tmp_path / "trl")
    found = weights(lm)
    assert largest_gap(expected, found) < 1e-6
    assert largest_gap(expected, llama(LONG).model.state_dict()) > 1e-4


@pytest.mark.parametrize("accumulation", [1, 2])
def test_neutral_is_the_plain_sft_trainer(tmp_path: Path, accumulation: int) -> None:
    """Bit for bit around TRL's loss, within rounding with the method's own; its metrics too, around its loss."""
    made = staged(Vaccine(rho=0.0), accumulation)
    one, plain = sft(trl.SFTTrainer, made, tmp_path / "plain")
    two, around = treated_sft(made, tmp_path / "around", trainer_loss=True)
    _, own = treated_sft(made, tmp_path / "own")
    expected = weights(plain)
    assert same(expected, weights(around))
    assert largest_gap(expected, weights(own)) < 1e-5  # AdamW's first steps enlarge what rounding does to tiny gradients
    names = ("loss", "grad_norm", "entropy", "num_tokens", "mean_token_accuracy")
    assert told(one, *names) == told(two, *names)


def test_vaccine_around_trls_loss_is_vaccine_and_counts_its_tokens_once(tmp_path: Path) -> None:
    made = staged(Vaccine(rho=1.0), 2)
    one, _ = sft(trl.SFTTrainer, made, tmp_path / "plain")
    two, around = treated_sft(made, tmp_path / "around", trainer_loss=True)
    assert largest_gap(by_titer(made, tmp_path / "titer"), weights(around)) < 1e-6
    assert told(one, "num_tokens") == told(two, "num_tokens")
    assert told(one, "entropy")[0][0] == told(two, "entropy")[0][0]  # of the pass without perturbation
    assert all(norm > 0 for norm in told(two, "vaccine_norm")[0])


def test_trls_own_settings_checkpointing_and_bf16(tmp_path: Path) -> None:
    made = staged(Vaccine(rho=1.0), 2)
    _, once = treated_sft(made, tmp_path / "once")
    again = staged(Vaccine(rho=1.0), 2)
    lm = fresh(again)
    args = trl.SFTConfig(
        **settings(again, tmp_path / "again", gradient_checkpointing=True, dataset_kwargs={"skip_prepare_dataset": True}, max_length=None)
    )
    run = TreatedSFT(
        model=lm.model, args=args, train_dataset=table(rows(again, lm.tokenizer)), processing_class=lm.tokenizer, method=again.method
    )
    run.train()
    assert largest_gap(weights(once), weights(lm)) < 1e-6
    half = staged(Vaccine(rho=1.0), 2, precision="bf16")
    _, mixed = treated_sft(half, tmp_path / "mixed", more={"bf16": True})
    assert largest_gap(by_titer(half, tmp_path / "titer"), weights(mixed)) < 1e-6


def test_a_reference_of_whole_weights_is_a_copy_of_the_start(tmp_path: Path) -> None:
    """TRL puts a head of its own in the place of the model's forward, which a copy would be led back by."""
    made = staged(KL(strength=1.0))
    run, lm = treated_sft(made, tmp_path / "trl")
    assert largest_gap(by_titer(made, tmp_path / "titer"), weights(lm)) < 1e-6
    assert told(run, "kl")[0][-1] > 1e-6


def test_a_watch_in_trl_sees_the_model_as_it_is(tmp_path: Path) -> None:
    examples = WorldSource(world=LONG, kind="unsafe").examples(np.arange(4))
    watch = Watch(examples, tmp_path / "lines.jsonl", decoding=Decoding(max_new_tokens=4))
    _, lm = treated_sft(staged(Vaccine(rho=1.0)), tmp_path, callbacks=[watch])
    expected = whole(drift(llama(LONG), lm, examples)).set_index("part").loc["all"]
    assert watch.measured[-1]["drift"]["norm"] == pytest.approx(expected.norm, rel=1e-5)
    assert expected.norm > 1e-3
    assert watch.measured[-1]["weight_change"]["most"] > 1e-3


@pytest.mark.parametrize(("accumulation", "adapter"), WAYS, ids=IDS)
@pytest.mark.parametrize("method", [SUMS, RepNoise(alpha=0.1, beta=0.1)], ids=lambda m: type(m).__name__)
def test_dpo_trainer_with_a_method_of_pairs_is_titers_loop(tmp_path: Path, method: Method, accumulation: int, adapter: Lora | None) -> None:
    made = staged(method, accumulation, adapter=adapter)
    expected = by_titer(made, tmp_path / "titer")
    _, lm = dpo(TreatedDPO, made, tmp_path / "trl", method=method)
    assert largest_gap(expected, weights(lm)) < 1e-6
    assert largest_gap(expected, llama(LONG).model.state_dict()) > 1e-4


@pytest.mark.parametrize(("accumulation", "adapter"), WAYS, ids=IDS)
def test_dpo_trainer_with_titers_dpo_or_a_neutral_vaccine_is_itself(tmp_path: Path, accumulation: int, adapter: Lora | None) -> None:
    made = staged(SUMS, accumulation, adapter=adapter)
    one, plain = dpo(PlainDPO, made, tmp_path / "plain")
    two, neutral = dpo(TreatedDPO, made, tmp_path / "neutral", method=Vaccine(rho=0.0))
    three, own = dpo(TreatedDPO, made, tmp_path / "own", method=SUMS)
    _, perturbed = dpo(TreatedDPO, made, tmp_path / "perturbed", method=Vaccine(rho=1.0))
    expected = weights(plain)
    assert same(expected, weights(neutral))
    names = ("loss", "grad_norm", "rewards/margins", "logps/chosen", "entropy", "num_tokens")
    assert told(one, *names) == told(two, *names)
    assert told(three, "loss")[0] == pytest.approx(told(one, "loss")[0], abs=1e-5)
    assert largest_gap(expected, weights(own)) < 1e-5
    assert largest_gap(expected, weights(perturbed)) > 1e-3


@pytest.mark.parametrize("adapter", [None, LORA], ids=["whole", "lora"])
def test_vaccine_perturbs_against_dpos_loss_and_spares_the_reference(tmp_path: Path, adapter: Lora | None) -> None:
    """The first step's loss and gradient norm, by hooks and autograd of this test's own: eps = rho g / ||g||, reference as it was."""
    made = staged(SUMS, adapter=adapter, steps=1)
    run, _ = dpo(TreatedDPO, made, tmp_path, method=Vaccine(rho=1.0))
    lm = fresh(made)
    batch = {name: made.streams[name].batch(0, made.batch, lm.tokenizer) for name in PAIR}
    with torch.no_grad():
        before = torch.stack(pair_nll(lambda both: logits(lm, both), batch))
    eps: list[torch.Tensor] = []
    found = torch.autograd.grad(preference(lm, batch, before, eps), eps)
    norm = torch.sqrt(sum((g**2).sum() for g in found))  # type: ignore[arg-type]
    moved = [(g / norm).detach() for g in found]
    loss = preference(lm, batch, before, moved)
    parameters = [p for p in lm.model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters)
    size = math.sqrt(sum(float((g**2).sum()) for g in gradients))
    assert told(run, "loss")[0][0] == pytest.approx(float(loss.detach()), rel=1e-4)
    assert told(run, "grad_norm")[0][0] == pytest.approx(size, rel=1e-3)
    assert float(loss.detach()) > math.log(2) + 0.05


def logits(lm: LM, both: Batch) -> torch.Tensor:
    found: torch.Tensor = lm.model(**both.inputs(), use_cache=False).logits
    return found


def preference(lm: LM, batch: Batches, before: torch.Tensor, eps: list[torch.Tensor]) -> torch.Tensor:
    """DPO's mean loss with eps added to every attention's output; an empty list is filled with zeros to differentiate."""
    filled = bool(eps)
    hooks = []
    for i, block in enumerate(lm.sites.blocks):

        def add(_: Any, __: Any, output: Any, i: int = i) -> Any:
            if not filled:
                eps.append(torch.zeros_like(output[0]).requires_grad_(True))
            return (output[0] + eps[i], *output[1:])

        hooks.append(block.attention[0].register_forward_hook(add))
    try:
        good, bad = pair_nll(lambda both: logits(lm, both), batch)
    finally:
        for hook in hooks:
            hook.remove()
    margins = 0.5 * ((before[0] - good) - (before[1] - bad))
    return torch.log1p(torch.exp(-margins)).mean()


def test_methods_with_a_loss_of_their_own_are_refused_on_pairs(tmp_path: Path) -> None:
    with pytest.raises(TiterError, match="KL's loss is its own"):
        dpo(TreatedDPO, staged(SUMS), tmp_path, method=KL())
    with pytest.raises(TiterError, match="of whole micro-batches"):
        dpo(TreatedDPO, staged(SUMS), tmp_path, method=Vaccine(rho=1.0, part=0.5))


@pytest.mark.parametrize("more", [{"sync_ref_model": True, "ref_model_sync_steps": 1}, {"precompute_ref_log_probs": True}])
def test_a_reference_held_beforehand_or_one_that_moves(tmp_path: Path, more: dict[str, Any]) -> None:
    """Around TRL's loss it is TRL's; titer's DPO is held to where training began, so a reference that moves is refused."""
    made = staged(SUMS)
    _, plain = dpo(PlainDPO, made, tmp_path / "plain", more)
    _, neutral = dpo(TreatedDPO, made, tmp_path / "neutral", more, method=Vaccine(rho=0.0))
    assert same(weights(plain), weights(neutral))
    if "sync_ref_model" in more:
        with pytest.raises(TiterError, match="does not know sync_ref_model=True or ref_model_sync_steps=1"):
            dpo(TreatedDPO, made, tmp_path / "own", more, method=SUMS)
        return
    _, own = dpo(TreatedDPO, made, tmp_path / "own", more, method=SUMS)
    assert largest_gap(by_titer(made, tmp_path / "titer"), weights(own)) < 1e-6


def mixture(kind: Any, folder: Path, coefficient: float | None = None, **own: Any) -> dict[str, torch.Tensor]:
    """A mixture's weights after two steps of SFTTrainer, whose loss adds the router's by default."""
    made = staged(SFT(), steps=2)
    tokenizer = LONG.tokenizer()
    torch.manual_seed(0)
    model = tiny("qwen3_moe", len(tokenizer))
    assert model.config.router_aux_loss_coef > 0
    more = {"max_length": None, "gradient_checkpointing": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
    args = trl.SFTConfig(**settings(made, folder, **more, router_aux_loss_coef=coefficient))
    run = kind(model=model, args=args, train_dataset=table(rows(made, tokenizer)), processing_class=tokenizer, **own)
    run.train()
    return dict(model.state_dict())


def test_the_router_s_loss_of_a_mixture_is_kept_or_refused(tmp_path: Path) -> None:
    plain = mixture(trl.SFTTrainer, tmp_path)
    assert same(plain, mixture(TreatedSFT, tmp_path, method=SFT(), trainer_loss=True))
    with pytest.raises(TiterError, match=r"does not know the router's balancing loss.*router_aux_loss_coef=0.0"):
        mixture(TreatedSFT, tmp_path, method=SFT())
    without = mixture(trl.SFTTrainer, tmp_path, 0.0)
    assert largest_gap(without, mixture(TreatedSFT, tmp_path, 0.0, method=SFT())) < 1e-5
    assert largest_gap(without, plain) > 1e-5


REFUSED = {  # of the trainer's loss, or never tried beside a method's own
    "padding_free packing packing_strategy loss_type loss_weights ld_alpha f_divergence_type f_alpha_divergence_coef label_smoothing beta",
    "use_weighting discopop_tau sync_ref_model ref_model_mixup_alpha ref_model_sync_steps",
}


@pytest.mark.parametrize("config", ["SFTConfig", "DPOConfig"])
def test_every_setting_of_trl_is_known_to_be_honoured_or_refused(config: str) -> None:
    """A field that a new version of TRL brings fails here until somebody has looked at it; until then a value is refused."""
    named = {field.name for field in dataclasses.fields(getattr(trl, config))}
    assert named - {name for names in (*HONOURED.values(), *REFUSED) for name in names.split()} == UNTRIED


@pytest.mark.parametrize("more", [{"packing": True}, {"loss_type": "dft"}, {"neftune_noise_alpha": 5.0}, {"padding_free": True}])
def test_a_setting_of_sft_that_is_not_honoured_is_refused(tmp_path: Path, more: dict[str, Any]) -> None:
    assert [one.split("=")[0] for one in unhonoured(trl.SFTConfig(output_dir=str(tmp_path), bf16=False, **more))] == list(more)


def test_what_means_the_same_loss_is_honoured(tmp_path: Path) -> None:
    assert unhonoured(trl.SFTConfig(output_dir=str(tmp_path), bf16=False, loss_type="chunked_nll", assistant_only_loss=True)) == []
    assert unhonoured(trl.DPOConfig(output_dir=str(tmp_path), bf16=False, beta=0.5)) == ["beta=0.5"]
