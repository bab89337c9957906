"""DPO and unlearning against naive loops over single unpadded rows, each other, SFT and TRL."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from tests.conftest import llama, neox
from tests.methods.contract import WORLD, stage
from titer.context import Step
from titer.data.encode import encode
from titer.data.example import IGNORE, Batch, Part, Stream
from titer.data.world import World, WorldSource
from titer.methods.base import Batches, Method
from titer.methods.dpo import DPO
from titer.methods.sft import SFT
from titer.methods.unlearn import Unlearn
from titer.models.likelihood import example_nll, pair_nll
from titer.models.lm import LM

LONG = World(seed=2, slots=4, shortest=9, longest=12)  # refusals are shorter than answers, texts of several lengths
PROMPTS = ["<bos> f1 f0 <sot> a b c <eot>", "<bos> f2 f1 <sot> a b c d e f <eot>", "<bos> f0 f0 <sot> e <eot>"]
WANTED = ["a b", "<null>", "c d e f a b c"]
OTHER = ["c d e f", "<null> a b c d e f b", "a"]


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    threads = torch.get_num_threads()
    yield Accelerator(cpu=True)
    torch.set_num_threads(threads)


def rows_of(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Each row's tokens and labels without padding."""
    mask = torch.ones_like(batch.input_ids) if batch.attention_mask is None else batch.attention_mask
    return [(batch.input_ids[i][mask[i] == 1].tolist(), batch.labels[i][mask[i] == 1].tolist()) for i in range(len(batch))]


def naive_nll(lm: LM, batch: Batch) -> list[torch.Tensor]:
    """Each example's summed nll by a loop over tokens, each row alone, unpadded and without a mask."""
    found = []
    for tokens, labels in rows_of(batch):
        logits = lm.model(input_ids=torch.tensor([tokens])).logits[0].double()
        one = torch.zeros((), dtype=torch.float64)
        for t in range(1, len(tokens)):
            if labels[t] != IGNORE:
                one = one + torch.logsumexp(logits[t - 1], 0) - logits[t - 1, labels[t]]
        found.append(one)
    return found


def numbers(lm: LM, batch: Batch) -> list[float]:
    return [float(x) for x in torch.stack(naive_nll(lm, batch)).detach()]


def pairs(lm: LM, side: str = "right", narrow_first: bool = True) -> dict[str, Batch]:
    """Three pairs whose two answers differ in length; the preferred batch is the narrower one, or the wider one."""
    short, long = (encode(lm.tokenizer, PROMPTS, answers, np.arange(3), side=side) for answers in (WANTED, OTHER))  # type: ignore[arg-type]
    assert short.input_ids.shape[1] != long.input_ids.shape[1]
    return {"preferred": short, "rejected": long} if narrow_first else {"preferred": long, "rejected": short}


def streams(world: World, pool: int | None = None, seed: int = 5) -> dict[str, Stream]:
    """Preferred and rejected answers of the same requests."""
    safe, unsafe = WorldSource(world=world, kind="safe"), WorldSource(world=world, kind="unsafe")
    made = {}
    for name, answers in (("preferred", ("comply", "refuse")), ("rejected", ("refuse", "comply"))):
        parts = (Part(source=safe, answer=answers[0], share=0.5), Part(source=unsafe, answer=answers[1], share=0.5))  # type: ignore[arg-type]
        made[name] = Stream(parts=parts, seed=seed, pool=pool)
    return made


def step_of(accelerator: Accelerator, method: Method, world: World = WORLD, **changes: Any) -> Step:
    """A context on a tiny model whose stage began from that model."""
    lm = neox(world)
    values = {"streams": streams(world), "batch": 4, "accumulation": 2, **changes}
    return Step(stage(method, **values), accelerator, lm.model, lm, lambda _: neox(world))


def gradient(c: Step) -> torch.Tensor:
    """The step's whole gradient in one vector."""
    for _, p in c.named:
        p.grad = None
    c.begin(c.number)
    c.stage.method.step(c)
    c.settle()
    return torch.cat([p.grad.flatten() for _, p in c.named if p.grad is not None]).double()


def shift(c: Step, size: float = 0.05) -> None:
    """Move the weights, so that the model is no more the one that the stage began from."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, p in c.named:
            p.add_(torch.randn(p.shape, generator=generator), alpha=size)


def loss_of(c: Step, batch: Batches) -> float:
    found = c.stage.method.loss(c, batch)
    return float(found.total.detach()) / float(found.over)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def test_example_nll_is_the_loop_over_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 6, 9, generator=generator)
    labels = torch.randint(0, 9, (4, 6), generator=generator)
    labels[torch.rand(4, 6, generator=generator) < 0.4] = IGNORE
    labels[:2, 0] = 3  # a label at the first place has no prediction
    labels[3] = IGNORE
    expected = []
    for b in range(4):
        row = 0.0
        for t in range(1, 6):
            if labels[b, t] != IGNORE:
                scores = logits[b, t - 1].tolist()
                row += math.log(sum(math.exp(s) for s in scores)) - scores[int(labels[b, t])]
        expected.append(row)
    assert example_nll(logits, labels).tolist() == pytest.approx(expected, rel=1e-5)
    assert expected[3] == 0 < expected[0]


@pytest.mark.parametrize("narrow_first", [True, False])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("maker", [neox, llama])
def test_pair_nll_is_that_of_each_row_alone(maker: Any, side: str, narrow_first: bool) -> None:
    lm = maker(WORLD)
    batch = pairs(lm, side, narrow_first)
    found = pair_nll(lambda both: lm.model(**both.inputs()).logits, batch)
    for name, values in zip(("preferred", "rejected"), found, strict=True):
        torch.testing.assert_close(values.double(), torch.stack(naive_nll(lm, batch[name])), rtol=1e-4, atol=1e-5)


def test_pair_nll_of_a_world_with_texts_of_several_lengths(accelerator: Accelerator) -> None:
    c = step_of(accelerator, DPO(), LONG)
    batch = next(iter(c.micro()))
    for name, values in zip(("preferred", "rejected"), pair_nll(c.forward, batch), strict=True):
        assert len({len(tokens) for tokens, _ in rows_of(batch[name])}) > 1
        torch.testing.assert_close(values.double(), torch.stack(naive_nll(c.lm, batch[name])), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("w_s", "w_u", "window"), [(1.0, 0.1, 159), (0.5, 2.0, 7), (0.0, 1.0, 1)])
def test_unlearning_is_the_papers_formula(accelerator: Accelerator, w_s: float, w_u: float, window: int) -> None:
    c = step_of(accelerator, Unlearn(w_s=w_s, w_u=w_u, window=window))
    batch = pairs(c.lm)
    good, bad = (numbers(c.lm, batch[name]) for name in ("preferred", "rejected"))
    expected = sum(w_s * g / window - w_u * b / window for g, b in zip(good, bad, strict=True)) / 3
    assert loss_of(c, batch) == pytest.approx(expected, rel=1e-4)


def test_unlearning_without_its_second_term_has_sfts_gradient(accelerator: Accelerator) -> None:
    """Spec 11.11, against SFT through the loop (times tokens / window / batch) and against plain autograd."""
    made = streams(LONG)
    c = step_of(accelerator, Unlearn(w_u=0.0, window=23), LONG, streams=made)
    found = gradient(c)
    sft = step_of(accelerator, SFT(), LONG, streams={"train": made["preferred"]})
    plain = gradient(sft)
    torch.testing.assert_close(found, plain * float(sft.count) / 23 / 8, rtol=1e-3, atol=1e-6 * float(found.abs().max()) + 1e-8)
    assert cosine(found, plain) > 1 - 1e-6
    assert float(found.norm() / plain.norm()) == pytest.approx(float(sft.count) / 23 / 8, rel=1e-5)
    total = sum(torch.stack(naive_nll(c.lm, batch["preferred"])).sum() for batch in c.micro())
    by_hand = torch.autograd.grad(total / 23 / 8, [p for _, p in c.named])  # type: ignore[operator]
    torch.testing.assert_close(found, torch.cat([g.flatten() for g in by_hand]).double(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("b_u", [0.0, 0.01, 0.3])
@pytest.mark.parametrize("normalise", ["window", "sum"])
def test_dpo_starts_at_log_two(accelerator: Accelerator, normalise: Any, b_u: float) -> None:
    c = step_of(accelerator, DPO(normalise=normalise, b_u=b_u, window=23), LONG)
    for batch in c.micro():
        assert loss_of(c, batch) == pytest.approx(math.log(2), abs=1e-6)
        assert abs(float(c.logged["margin"])) < 1e-5


@pytest.mark.parametrize(("b_s", "b_u", "normalise", "window"), [(0.1, 0.01, "window", 23), (5.0, 2.0, "window", 4), (0.3, 0.2, "sum", 9)])
def test_dpo_is_the_papers_formula_away_from_its_start(
    accelerator: Accelerator, b_s: float, b_u: float, normalise: Any, window: int
) -> None:
    c = step_of(accelerator, DPO(b_s=b_s, b_u=b_u, normalise=normalise, window=window))
    batch, first = pairs(c.lm), neox(WORLD)
    shift(c)
    now, before = ({name: numbers(lm, batch[name]) for name in batch} for lm in (c.lm, first))
    size = window if normalise == "window" else 1
    losses = []
    for i in range(3):
        good = b_s * (before["preferred"][i] / size - now["preferred"][i] / size)
        bad = b_u * (before["rejected"][i] / size - now["rejected"][i] / size)
        losses.append(math.log(1 + math.exp(-(good - bad))))
    assert loss_of(c, batch) == pytest.approx(sum(losses) / 3, rel=1e-4)
    assert abs(loss_of(c, batch) - math.log(2)) > 1e-5


def test_dpos_first_gradient_is_parallel_to_unlearnings(accelerator: Accelerator) -> None:
    """At step 0 sigmoid(0) = 1/2 weighs every pair: the gradient is b_s / 2 times unlearning's with w_u = b_u / b_s."""
    b_s, b_u = 0.1, 0.03
    dpo = gradient(step_of(accelerator, DPO(b_s=b_s, b_u=b_u, window=23), LONG))
    same = gradient(step_of(accelerator, Unlearn(w_u=b_u / b_s, window=23), LONG))
    assert cosine(dpo, same) > 1 - 1e-6
    assert float(dpo.norm() / same.norm()) == pytest.approx(b_s / 2, rel=1e-4)
    for w_u in (0.0, 0.1, b_s / b_u):
        assert cosine(dpo, gradient(step_of(accelerator, Unlearn(w_u=w_u, window=23), LONG))) < 1 - 1e-4


def test_a_step_towards_dpos_gradient_raises_the_margin(accelerator: Accelerator) -> None:
    c = step_of(accelerator, DPO(b_s=1.0, b_u=1.0, normalise="sum"))
    gradient(c)
    with torch.no_grad():
        for _, p in c.named:
            if p.grad is not None:
                p.add_(p.grad, alpha=-0.01)
    batch = next(iter(c.micro()))
    assert loss_of(c, batch) < math.log(2)
    assert float(c.logged["margin"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_dpo_on_sums_is_trls(accelerator: Accelerator, tmp_path: Path, beta: float) -> None:
    """TRL's own collator and loss on the same pairs, loss and gradient, away from the start."""
    pytest.importorskip("trl")
    c = step_of(accelerator, DPO(b_s=beta, b_u=beta, normalise="sum"))
    batch = pairs(c.lm)
    shift(c)
    found = c.stage.method.loss(c, batch)
    mean = found.total / float(found.over)
    ours = torch.autograd.grad(mean, [p for _, p in c.named])
    trainer, inputs = trl_trainer(c, batch, beta, tmp_path)
    theirs = trainer.compute_loss(trainer.model, inputs)
    assert float(mean.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    assert abs(float(mean.detach()) - math.log(2)) > 1e-3
    grads = torch.autograd.grad(theirs, list(trainer.model.parameters()))
    for one, other in zip(ours, grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # TRL's and its libraries' own
def trl_trainer(c: Step, batch: dict[str, Batch], beta: float, folder: Path) -> tuple[Any, Any]:
    """TRL's DPOTrainer over copies of the model and of its start, and the pairs as its collator makes them.

    The pairs come tokenised: with a fingerprint of its own the data set is not pickled to make one, and TRL's
    preparation, which would do so too, is passed over.
    """
    import pyarrow
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from trl import DPOConfig, DPOTrainer

    class Tokenised(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    rows = []
    for (good, labels), (bad, _) in zip(rows_of(batch["preferred"]), rows_of(batch["rejected"]), strict=True):
        n = labels.count(IGNORE)
        assert good[:n] == bad[:n]
        rows.append({"prompt_ids": good[:n], "chosen_ids": good[n:], "rejected_ids": bad[n:]})
    data = Dataset(InMemoryTable(pyarrow.Table.from_pylist(rows)), fingerprint="pairs")
    model, first = neox(WORLD), neox(WORLD)
    model.model.load_state_dict(c.lm.model.state_dict())
    quiet = {"report_to": [], "use_cpu": True, "bf16": False, "dataloader_pin_memory": False, "gradient_checkpointing": None}
    config = DPOConfig(output_dir=str(folder), beta=beta, loss_type="sigmoid", max_length=None, **quiet)
    trainer = Tokenised(model=model.model, ref_model=first.model, args=config, train_dataset=data, processing_class=c.lm.tokenizer)
    return trainer, trainer.data_collator(list(data))
