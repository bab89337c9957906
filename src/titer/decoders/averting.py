"""Averting: make tokens that lead to an unsafe answer unlikely, by a predictor trained on whole labelled answers.

Safety is a property of the whole answer, so its label cannot be a cost of each token. A GRU reads the prompt and the answer so far and
gives V, the probability that an answer with this beginning ends unsafe. It is trained on each prefix of labelled answers, with the label
of the whole answer. At each place it reads the model's embedding of the token; with `reads` = hidden, it also reads the model's last
hidden state before the token (the paper's pairs of action and state), and the model then runs twice.

Decoding: logits'(a) = logits(a) - strength V(prefix, a) for the `top` likeliest tokens a. The logits of all other tokens are lowered by
the largest of these amounts. With a `target`, the strength is found by dual ascent on the prompts that the GRU learned from, until the
mean V of whole answers equals the target. Once V is above `refuse_above`, the answer is replaced by a refusal.
Source: arXiv 2304.03081 (a GRU over trajectories, and its Lagrangian), carried over to text: a value for each prefix instead of one for
the whole, and the GRU's last state instead of the mean over time.
Shapes: B rows, T tokens, D width of an embedding, S of a hidden state (0: none is read), F = D + S, H hidden units of the GRU.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.functional import pad as padded
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from titer.core.errors import TiterError
from titer.data.draws import drawn
from titer.data.encode import answer_ids, pad, prompt_ids
from titer.data.example import Example, positions
from titer.decoders.base import Beside, Decoder, Guide, Guided, State, Step
from titer.models.hooks import reading
from titer.models.lm import LM, Decoding
from titer.models.modes import evaluating

RATE, NEW = 3e-3, 48  # Adam's learning rate for the GRU; tokens of an answer in the ascent's rounds
BATCH = 32
DRAWS = 384  # fewest answers drawn in a round of the ascent: half of 12 rounds then give V to within one percentage point
LEAST = 4  # fewest answers of each label


class Averting(Decoder):
    """Makes unsafe tokens unlikely, by a fixed `strength` or one found for a `target` share of unsafe answers; may refuse instead."""

    SOURCE = "arXiv 2304.03081, carried to text"
    VERSION = 3
    NEUTRAL = {"strength": 0.0}

    reads: Literal["tokens", "hidden"] = Field(
        default="tokens", description="what V reads: the tokens only, or also the last layer's state before each"
    )
    strength: float = Field(
        default=10.0, ge=0, description="by how much a token's logit falls if the answer is then certain to end unsafe (V = 1)"
    )
    top: int = Field(default=8, ge=1, description="how many of the likeliest tokens get a value V of their own")
    refuse_above: float | None = Field(default=None, ge=0, le=1, description="replace the answer by a refusal once V is above this")
    target: float | None = Field(default=None, gt=0, lt=1, description="share of unsafe answers to aim for; the strength is then found")
    rounds: int = Field(default=12, ge=1, le=1000, description="rounds of the search for the strength, each on all prompts it learned from")
    hidden: int = Field(default=64, ge=1, le=16384, description="hidden units of the GRU")
    answers: int = Field(default=512, ge=8, description="labelled answers that it learns from at most, drawn at random")
    epochs: int = Field(default=40, ge=1, le=100000, description="passes over these answers")
    seed: int = Field(default=0, description="seed of the GRU's start and of the order of the answers")

    def check(self, examples: Sequence[Example]) -> None:
        labels = [label for _, _, label in _labelled(examples)]
        for label in (True, False):
            if labels.count(label) < LEAST:
                raise TiterError(
                    f"averting has {labels.count(label)} {'unsafe' if label else 'safe'} answers to learn from",
                    expected=f"at least {LEAST} of each: unsafe prompts with comply and refuse, safe ones with comply",
                )

    def fit(self, lm: LM, others: Mapping[str, LM], examples: Sequence[Example]) -> State:
        """Trains the GRU, and finds the strength if there is a target; returns the state.

        The state: the GRU's tensors; `scale`, the factor on embeddings; `site` and `spread`, where hidden states are read and the factor
        on them; `refusal`, the most common refusal; with a target, the `strength` that was found. Errors: as `check`.
        """
        self.check(examples)
        labelled = drawn(_labelled(examples), self.answers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            learned = self._trained(lm, *zip(*labelled, strict=True))
        refusals = Counter(e.refuse for e in examples if e.refuse).most_common(1)
        state: State = {**learned, "refusal": refusals[0][0] if refusals else ""}
        return state if self.target is None else {**state, "strength": self._ascended(lm, state, [e.prompt for e in examples])}

    def logits(self, step: Step, state: State) -> torch.Tensor:
        strength = state.get("strength", self.strength)
        if not strength:
            return step.logits
        before, here = _read(step, state)
        likeliest = step.logits.topk(min(self.top, step.logits.shape[1]))
        V = Predictor(state).after(before, embedded(step.lm, likeliest.indices, state), here)
        lost = (strength * V).to(step.logits)  # the GRU is small and runs on the CPU
        everything = step.logits - lost.amax(1, keepdim=True)
        return everything.scatter(1, likeliest.indices, likeliest.values - lost)

    def stops(self, step: Step, state: State) -> torch.Tensor | None:
        if self.refuse_above is None:
            return None
        return (Predictor(state).value(_read(step, state)[0]) > self.refuse_above).to(step.new.device)

    def ending(self, answer: str, state: State) -> str:
        return str(state["refusal"])

    def _trained(self, lm: LM, prompts: Sequence[str], answers: Sequence[str], labels: Sequence[bool]) -> State:
        """Trains the GRU; returns its tensors, and the factors that scale what it reads to a standard deviation of 1."""
        heads, tails = prompt_ids(lm.tokenizer, prompts), answer_ids(lm.tokenizer, answers)
        rows, wanted = [h + t for h, t in zip(heads, tails, strict=True)], torch.tensor(labels, dtype=torch.float32)
        one = torch.ones(())
        begun: State = {"scale": one, "spread": one, "site": lm.sites.everywhere("resid")[-1] if self.reads == "hidden" else ""}
        with torch.no_grad():  # the spread of embeddings (all rows) and of hidden states (the first batch)
            table = lm.model.get_input_embeddings()(torch.tensor([i for row in rows for i in row], device=lm.device)).float()
            states = seen(lm, *pad(rows[:BATCH], 0, "right"), begun)[:, :, table.shape[1] :]
        begun = {**begun, "scale": (1 / table.std().clamp(min=1e-12)).cpu()}
        if states.numel():
            begun = {**begun, "spread": 1 / states.std().clamp(min=1e-12)}
        predictor = Predictor.fresh(table.shape[1] + states.shape[2], self.hidden)
        optimiser = torch.optim.Adam(predictor.parameters(), lr=RATE)  # every prefix is trained with its whole answer's label
        for _ in range(self.epochs):
            for some in torch.randperm(len(rows)).split(BATCH):
                ids, mask = pad([rows[i] for i in some], 0, "right")
                begin = torch.tensor([len(heads[i]) for i in some])[:, None]
                here = (mask.bool() & (torch.arange(ids.shape[1]) >= begin - 1)).float()  # from the end of the prompt on
                with torch.no_grad():
                    read = seen(lm, ids, mask, begun)
                V = predictor.head(predictor.gru(read)[0])[..., 0]
                apart = binary_cross_entropy_with_logits(V, wanted[some][:, None].expand(ids.shape), reduction="none")
                loss = ((apart * here).sum(1) / here.sum(1)).mean()  # each answer has weight 1, whatever its length
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        return {**{name: p.detach() for name, p in predictor.state_dict().items()}, **begun}

    def _ascended(self, lm: LM, state: State, prompts: Sequence[str]) -> float:
        """Returns the strength at which the mean V of whole answers equals the target.

        Each round draws answers and multiplies the strength by (mean V / target). V falls about in proportion to the strength or more
        slowly, so such a step is never far too long, for any model. In the first half of the rounds the steps are whole; in the second
        half they become shorter, and the mean of that half (in logs) averages out the noise of the draws.
        """
        eta, plain = math.log(max(self.strength, 1e-3)), self.model_copy(update={"target": None, "refuse_above": None})
        prompts, found = [*prompts] * math.ceil(DRAWS / len(prompts)), []
        for number in range(self.rounds):
            now = {**state, "strength": math.exp(eta)}
            guide = Guide(Guided(plain, state=now), lm, {}, prompts, None)
            said = lm.generate(prompts, Decoding(max_new_tokens=NEW, temperature=1.0, seed=self.seed + number), guide=guide)
            rows = [h + t for h, t in zip(prompt_ids(lm.tokenizer, prompts), answer_ids(lm.tokenizer, [c.text for c in said]), strict=True)]
            V = float(valued(lm, rows, state).mean())
            found.append(eta)
            eta += math.log(max(V, 1e-6) / float(self.target or 1)) / math.sqrt(max(1, number - self.rounds // 2 + 1))
        return math.exp(sum(found[len(found) // 2 :]) / len(found[len(found) // 2 :]))


def _labelled(examples: Sequence[Example]) -> list[tuple[str, str, bool]]:
    """Returns (prompt, answer, whether the answer is unsafe) for each answer that the examples have."""
    return [(e.prompt, answer, label) for e in examples for answer, label in ((e.comply, e.harmful), (e.refuse, False)) if answer]


class Predictor(nn.Module):
    """The GRU and its output layer, which give V; their tensors are taken from a state."""

    def __init__(self, state: State) -> None:
        super().__init__()
        hidden = state["head.weight"].shape[1]
        self.gru = nn.GRU(state["gru.weight_ih_l0"].shape[1], hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)
        self.load_state_dict({name: state[name] for name in self.state_dict()})

    @classmethod
    def fresh(cls, width: int, hidden: int) -> Predictor:
        gru, head = nn.GRU(width, hidden, batch_first=True), nn.Linear(hidden, 1)
        named = [*((f"gru.{n}", p) for n, p in gru.named_parameters()), *((f"head.{n}", p) for n, p in head.named_parameters())]
        return cls({name: p.detach() for name, p in named})

    def read(self, lm: LM, rows: Sequence[Sequence[int]], state: State) -> torch.Tensor:
        """Returns the GRU's state (B, H) after it has read rows of token ids."""
        lengths = torch.tensor([len(row) for row in rows])
        packed = pack_padded_sequence(seen(lm, *pad(rows, 0, "right"), state), lengths, batch_first=True, enforce_sorted=False)
        out, lengths = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        return out[torch.arange(len(rows)), lengths - 1]

    def after(self, before: torch.Tensor, tokens: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
        """Returns V (B, k) of each row continued by each of k tokens.

        `before` (B, H): the GRU's state; `tokens` (B, k, D): the tokens' embeddings; `here` (B, S): the model's hidden state.
        """
        B, k, _ = tokens.shape
        pairs = torch.cat([tokens, here[:, None].expand(B, k, -1)], dim=2).reshape(B * k, 1, -1)
        spread = before[:, None].expand(B, k, -1).reshape(1, B * k, -1).contiguous()
        return self.value(self.gru(pairs, spread)[1][0]).view(B, k)

    def value(self, read: torch.Tensor) -> torch.Tensor:
        """Returns V (n,) for the GRU's states (n, H)."""
        return self.head(read)[:, 0].sigmoid()


@torch.no_grad()
def valued(lm: LM, rows: Sequence[Sequence[int]], state: State) -> torch.Tensor:
    """Returns V (n,) of n rows of token ids."""
    predictor = Predictor(state)
    return predictor.value(predictor.read(lm, rows, state))


def embedded(lm: LM, ids: torch.Tensor, state: State) -> torch.Tensor:
    """Returns the model's embeddings of `ids`, on the CPU, times `scale`."""
    return lm.model.get_input_embeddings()(ids.to(lm.device)).float().cpu() * state["scale"].cpu()


def seen(lm: LM, ids: torch.Tensor, mask: torch.Tensor, state: State) -> torch.Tensor:
    """Returns what the GRU reads of right-padded rows, (B, T, F): each token's embedding, and the hidden state before it (at first 0)."""
    read = embedded(lm, ids, state)
    if not state["site"]:
        return read
    with torch.no_grad(), evaluating(lm.model), reading(lm.sites, [state["site"]]) as found:
        ids, mask = ids.to(lm.device), mask.to(lm.device)
        lm.model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False, logits_to_keep=1)
    return torch.cat([read, padded(_spread(found[state["site"]], state)[:, :-1], (0, 0, 1, 0))], dim=2)


def _spread(activation: torch.Tensor, state: State) -> torch.Tensor:
    return activation.float().cpu() * state["spread"].cpu()


def _read(step: Step, state: State) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the GRU's state (B, H) and the model's hidden state (B, S) after all tokens so far. Each place is read only once."""
    memory, n = step.memory, step.new.shape[1]
    if "read" not in memory:
        predictor = Predictor(state)
        memory |= {"predictor": predictor, "beside": Beside(step.lm, step.rows)}
        memory["read"] = (0, predictor.read(step.lm, step.rows, state), _here(step, 0, state))
    done, before, here = memory["read"]
    for at in range(done, n):
        pair = torch.cat([embedded(step.lm, step.new[:, at : at + 1], state), here[:, None]], dim=2)
        before, here = memory["predictor"].gru(pair, before[None].contiguous())[1][0], _here(step, at + 1, state)
    memory["read"] = (n, before, here)
    return before, here


def _here(step: Step, upto: int, state: State) -> torch.Tensor:
    """Returns the model's hidden state (B, S) after `upto` new tokens, from a separate run of the model."""
    if not state["site"]:
        return torch.zeros(len(step.rows), 0)
    with reading(step.lm.sites, [state["site"]]) as found:
        step.memory["beside"](step.new[:, :upto])
    return _spread(found[state["site"]], state)[:, -1]
