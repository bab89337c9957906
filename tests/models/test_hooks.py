"""Reading, adding and replacing do what they say and leave no hook, also after an error."""

from __future__ import annotations

import pytest
import torch

from titer.core.errors import TiterError
from titer.models.hooks import adding, catching, reading, replacing
from titer.models.lm import LM

IDS = torch.tensor([[1, 9, 12, 3, 20, 21, 22, 4], [1, 8, 11, 3, 25, 26, 27, 4]])


def hooks(lm: LM) -> int:
    """How many forward hooks the model carries."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())


def logits(lm: LM) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(input_ids=IDS).logits


def test_reading_changes_nothing_and_sees_every_site(family: LM) -> None:
    plain = logits(family)
    with reading(family.sites, family.sites.names()) as seen:
        assert torch.equal(logits(family), plain)
    assert sorted(seen) == sorted(family.sites.names())
    assert all(a.shape[:2] == IDS.shape and a.ndim == 3 for a in seen.values())
    assert hooks(family) == 0


def test_adding_zero_changes_nothing_and_adding_more_does(family: LM) -> None:
    plain = logits(family)
    for site in family.sites.names():
        with reading(family.sites, [site]) as seen:
            logits(family)
        width = seen[site].shape[-1]
        with adding(family.sites, {site: torch.zeros(width)}):
            assert torch.equal(logits(family), plain)
        with adding(family.sites, {site: torch.linspace(-3, 3, width)}):
            assert not torch.allclose(logits(family), plain)
    assert torch.equal(logits(family), plain)
    assert hooks(family) == 0


def test_what_is_added_is_what_the_next_reader_sees(family: LM) -> None:
    delta = torch.arange(16.0)
    with reading(family.sites, ["mlp_out[0]"]) as before:
        logits(family)
    with adding(family.sites, {"mlp_out[0]": delta}), reading(family.sites, ["mlp_out[0]"]) as after:
        logits(family)
    torch.testing.assert_close(after["mlp_out[0]"], before["mlp_out[0]"] + delta)


def test_replacing_the_mlp_output_by_nothing_leaves_the_stream_as_it_was(family: LM) -> None:
    names = ["attn_out[1]", "resid[0]", "resid[1]"]
    with replacing(family.sites, {"mlp_out[1]": torch.zeros_like}), reading(family.sites, names) as seen:
        logits(family)
    torch.testing.assert_close(seen["resid[1]"], seen["resid[0]"] + seen["attn_out[1]"])


def test_patching_one_input_s_activation_into_another_carries_its_logits(lm: LM) -> None:
    lm.model.eval()
    whole = logits(lm)
    with reading(lm.sites, ["resid[1]"]) as seen:
        logits(lm)
    swapped = seen["resid[1]"].flip(0)
    with replacing(lm.sites, {"resid[1]": lambda _: swapped}):
        torch.testing.assert_close(logits(lm), whole.flip(0))


def test_no_hook_is_left_after_an_error_inside_the_block(family: LM) -> None:
    with pytest.raises(RuntimeError, match="stop"), reading(family.sites, family.sites.names()):
        raise RuntimeError("stop")
    assert hooks(family) == 0


def test_no_hook_is_left_after_an_error_inside_an_edit(family: LM) -> None:
    def fail(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), replacing(family.sites, {"embed": fail}):
        logits(family)
    assert hooks(family) == 0


def test_no_hook_is_left_when_one_of_the_names_is_wrong(family: LM) -> None:
    with pytest.raises(TiterError, match="unknown site"), reading(family.sites, ["embed", "nowhere[0]"]):
        pass
    assert hooks(family) == 0


def test_gradients_pass_through_what_is_added(lm: LM) -> None:
    delta = torch.zeros(16, requires_grad=True)
    with adding(lm.sites, {"resid[0]": delta}):
        lm.model(input_ids=IDS).logits.sum().backward()
    assert delta.grad is not None
    assert float(delta.grad.abs().sum()) > 0


def test_what_is_caught_is_the_gradient_to_what_is_added(family: LM) -> None:
    names = [name for name in family.sites.names() if name != "embed"]
    with reading(family.sites, names) as seen:
        logits(family)
    deltas = {name: torch.zeros_like(seen[name], requires_grad=True) for name in names}
    caught: dict[str, torch.Tensor] = {}
    with adding(family.sites, deltas), catching(family.sites, names, caught.__setitem__):
        family.model(input_ids=IDS).logits.square().sum().backward()
    assert hooks(family) == 0
    for name in names:
        torch.testing.assert_close(caught[name], deltas[name].grad)


def test_a_gradient_is_caught_where_nothing_below_is_trained(family: LM) -> None:
    family.model.requires_grad_(False)
    caught: dict[str, torch.Tensor] = {}
    with catching(family.sites, ["attn_out[0]"], caught.__setitem__):
        family.model(input_ids=IDS).logits.square().sum().backward()
    assert caught["attn_out[0]"].shape == (2, 8, 16)
    assert caught["attn_out[0]"].any()
