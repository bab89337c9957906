"""Changes of routed experts: the probes' numbers on planted changes of stacked tensors, and what a watcher of training counts."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.models.tiny import tiny
from tests.probes.made import of_values
from titer.data.example import Example
from titer.data.world import World
from titer.integrations.measured import Limits, changed, summed
from titer.models.activations import at_prompt_end
from titer.models.checkpoint import Checkpoint, open_checkpoint
from titer.models.lm import LM
from titer.probes import delta_w, null_space, row_space
from titer.probes.weight_change import overall, weight_change

VALUES = [3.0, 2.0, 1.0]  # singular values of the change of one expert's up projection
EXPERTS = "model.layers.1.mlp.experts"
ASKED = {False: ("a b", "c"), True: ("d e f", "g")}
SETS = [[Example(prompt, harmful, "test", "test") for prompt in prompts] for harmful, prompts in ASKED.items()]
Made = tuple[LM, LM, Checkpoint, Checkpoint]


@pytest.fixture(scope="module")
def made(world: World, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A tiny GPT-OSS (experts stacked, turned, gate and up interleaved) and one whose expert 2 of layer 2 reads otherwise."""
    tokenizer, folder = world.tokenizer(), tmp_path_factory.mktemp("experts")
    base = LM(tiny("gpt_oss", len(tokenizer)), tokenizer, "base")
    tuned = LM(copy.deepcopy(base.model), tokenizer, "tuned")
    with torch.no_grad():
        stack = tuned.model.get_submodule(EXPERTS).gate_up_proj  # (E, D, 2 I)
        stack[2, :, 1::2] += of_values(stack.shape[2] // 2, stack.shape[1], VALUES).T
    for lm in (base, tuned):
        lm.save(folder / lm.label)
    return base, tuned, open_checkpoint(folder / "base"), open_checkpoint(folder / "tuned")


def planted(made: Made) -> torch.Tensor:
    """The change, (I, D)."""
    stacks = [lm.model.get_submodule(EXPERTS).gate_up_proj.detach() for lm in made[:2]]
    return (stacks[1] - stacks[0])[2, :, 1::2].T


def test_one_expert_s_change_is_that_of_the_stack(made: Made) -> None:
    base, _, *found = made
    table = weight_change(*found, base.sites).set_index("tensor")
    moved = table[table.norm > 0]
    assert moved.index.tolist() == [f"{EXPERTS}.gate_up_proj"]
    assert moved.norm.iloc[0] == pytest.approx(14**0.5, rel=1e-4)
    assert moved.stable_rank.iloc[0] == pytest.approx(14 / 9, rel=1e-3)  # of the expert that moved, not of the stack
    assert overall(table, "mlp") > 0 == overall(table, "attention") == overall(table, "other")


def test_the_gain_on_an_input_is_that_of_the_experts_that_changed(made: Made) -> None:
    base, tuned, *found = made
    per_input, per_layer = delta_w.delta_w(*found, tuned, *SETS)
    prompts = [example.prompt for group in SETS for example in group]
    a = at_prompt_end(tuned, prompts, ["mlp_in[1]"])["mlp_in[1]"]
    expected = torch.linalg.vector_norm(a @ planted(made).T, dim=1) / torch.linalg.vector_norm(a, dim=1)
    assert per_input[per_input.layer == 2].gain.tolist() == pytest.approx(expected.tolist(), rel=1e-3)
    assert (per_input[per_input.layer != 2].gain == 0).all()
    row = per_layer.set_index("layer").loc[2]
    assert row.stable_rank == pytest.approx(14 / 9, rel=1e-3)
    weight = base.model.get_submodule(EXPERTS).gate_up_proj.detach()[2, :, 1::2].T
    kept = delta_w.column_space(weight, delta_w.ENERGY)
    assert row.null_share == pytest.approx(delta_w.null_share(planted(made), kept), abs=1e-4)
    assert per_layer[per_layer.layer != 2].null_share.isna().all()


def test_directions_and_scores_of_a_stack_s_change(made: Made) -> None:
    base, tuned, *found = made
    table = null_space.null_space(*found, base.sites, kinds=("mlp_up",))
    assert set(table.layer) == {2}
    assert table.groupby("energy").weight.sum().tolist() == pytest.approx([1, 1, 1])
    scores = row_space.row_space(*found, tuned, {"safe": SETS[0]})
    sigma = scores[scores.layer == 2].sigma.tolist()
    assert sigma[:3] == pytest.approx(VALUES, rel=1e-3)
    assert sigma[3] == pytest.approx(0, abs=1e-3)


def test_training_that_moves_experts_alone_is_seen_and_stopped(made: Made) -> None:
    began, now, *_ = made
    line = {"weight_change": summed(changed(began, now))}
    assert line["weight_change"]["mlp"] == line["weight_change"]["most"] > 0.05
    assert line["weight_change"]["attention"] == 0
    assert line["weight_change"]["largest"]["tensor"] == f"{EXPERTS}.gate_up_proj"
    assert "weight_change" in Limits(weight_change_above=0.05).crossed(line)
