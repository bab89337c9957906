"""Averting: tokens that lead to an unsafe answer are made unlikely, by a predictor that has seen whole answers labelled.

Safety is a property of the whole answer, so its label cannot be a cost of each token. A GRU reads prompt and answer (the model's own
input embeddings) and gives V, the probability that an answer so begun ends unsafe; it is trained on every prefix of labelled answers with
the label of the whole. Then logits'(a) = logits(a) - strength V(prefix, a) for the `top` likeliest tokens, and those beyond them lose as
much as the worst of these. With a `target` the strength is found by dual ascent on the prompts it learned from, until V of whole answers
is that on average; above `refuse_above` an answer is replaced by a refusal. Source: arXiv 2304.03081 (GRU over trajectories, its
Lagrangian), carried to text: a value at each prefix in place of one of the whole, the last state in place of the mean over time.
Shapes: B rows, T tokens, D width, H hidden units.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from titer.core.errors import TiterError
from titer.data.draws import drawn
from titer.data.encode import answer_ids, pad, prompt_ids
from titer.data.example import Example
from titer.decoders.base import Decoder, Guide, Guided, State, Step
from titer.models.lm import LM, Decoding

RATE, ASCENT, NEW = 3e-3, 4.0, 48  # Adam's rate of the GRU; of the dual ascent, in logs; tokens of an answer in its rounds
BATCH = 32
DRAWS = 192  # answers a round of the ascent draws at least, for a share within three points
LEAST = 4  # answers of each label


class Averting(Decoder):
    """How strongly, or to which share of unsafe answers; whether to refuse instead."""

    SOURCE = "arXiv 2304.03081, carried to text"
    VERSION = 1
    NEUTRAL = {"strength": 0.0}

    strength: float = Field(default=10.0, ge=0, description="logits that a token loses which is sure to end unsafe")
    top: int = Field(default=8, ge=1, description="likeliest tokens whose values are looked at")
    refuse_above: float | None = Field(default=None, ge=0, le=1, description="refuse in an answer's place once its value is beyond this")
    target: float | None = Field(default=None, gt=0, lt=1, description="share of unsafe answers to be reached; finds the strength")
    rounds: int = Field(default=12, ge=1, description="of the dual ascent, each with all prompts it learned from")
    hidden: int = Field(default=64, ge=1)
    answers: int = Field(default=512, ge=8, description="labelled answers that it learns from at most, drawn")
    epochs: int = Field(default=40, ge=1)
    seed: int = 0

    def check(self, examples: Sequence[Example]) -> None:
        labels = [label for _, _, label in _labelled(examples)]
        for label in (True, False):
            if labels.count(label) < LEAST:
                raise TiterError(
                    f"averting has {labels.count(label)} {'unsafe' if label else 'safe'} answers to learn from",
                    expected=f"at least {LEAST} of each: unsafe prompts with comply and refuse, safe ones with comply",
                )

    def fit(self, lm: LM, others: Mapping[str, LM], examples: Sequence[Example]) -> State:
        """The GRU's tensors, `scale` of embeddings, `strength`, `refusal`: the examples' commonest. Errors: as `check`."""
        self.check(examples)
        labelled = _labelled(examples)
        labelled = drawn(_labelled(examples), self.answers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            learned = self._trained(lm, *zip(*labelled, strict=True))
        refusals = Counter(e.refuse for e in examples if e.refuse).most_common(1)
        state: State = {**learned, "strength": self.strength, "refusal": refusals[0][0] if refusals else ""}
        return state if self.target is None else {**state, "strength": self._ascended(lm, state, [e.prompt for e in examples])}

    def logits(self, step: Step, state: State) -> torch.Tensor:
        if not state["strength"]:
            return step.logits
        before = _read(step, state)
        likeliest = step.logits.topk(min(self.top, step.logits.shape[1]))
        V = Predictor(state).after(before, embedded(step.lm, likeliest.indices, state))
        lost = (state["strength"] * V).to(step.logits)  # what is read is small, and read on the CPU
        everything = step.logits - lost.amax(1, keepdim=True)
        return everything.scatter(1, likeliest.indices, likeliest.values - lost)

    def stops(self, step: Step, state: State) -> torch.Tensor | None:
        if self.refuse_above is None:
            return None
        return (Predictor(state).value(_read(step, state)) > self.refuse_above).to(step.new.device)

    def ending(self, answer: str, state: State) -> str:
        return str(state["refusal"])

    def _trained(self, lm: LM, prompts: Sequence[str], answers: Sequence[str], labels: Sequence[bool]) -> dict[str, torch.Tensor]:
        heads, tails = prompt_ids(lm.tokenizer, prompts), answer_ids(lm.tokenizer, answers)
        rows, wanted = [h + t for h, t in zip(heads, tails, strict=True)], torch.tensor(labels, dtype=torch.float32)
        with torch.no_grad():
            table = lm.model.get_input_embeddings()(torch.tensor([i for row in rows for i in row], device=lm.device)).float()
        scale = (1 / table.std().clamp(min=1e-12)).cpu()
        predictor = Predictor.fresh(table.shape[1], self.hidden)
        optimiser = torch.optim.Adam(predictor.parameters(), lr=RATE)
        for _ in range(self.epochs):
            for some in torch.randperm(len(rows)).split(BATCH):
                ids, mask = pad([rows[i] for i in some], 0, "right")
                begin = torch.tensor([len(heads[i]) for i in some])[:, None]
                here = (mask.bool() & (torch.arange(ids.shape[1]) >= begin - 1)).float()  # from the prompt alone on
                with torch.no_grad():
                    read = embedded(lm, ids, {"scale": scale})
                V = predictor.head(predictor.gru(read)[0])[..., 0]
                apart = binary_cross_entropy_with_logits(V, wanted[some][:, None].expand(ids.shape), reduction="none")
                loss = ((apart * here).sum(1) / here.sum(1)).mean()  # every answer counts as one, however long
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        return {**{name: p.detach() for name, p in predictor.state_dict().items()}, "scale": scale}

    def _ascended(self, lm: LM, state: State, prompts: Sequence[str]) -> float:
        """The strength at which whole answers' V is the target on average: log strength climbs while it is above, and falls below."""
        eta, plain = math.log(max(self.strength, 1e-3)), self.model_copy(update={"target": None, "refuse_above": None})
        prompts, found = [*prompts] * math.ceil(DRAWS / len(prompts)), []
        for number in range(self.rounds):
            now = {**state, "strength": math.exp(eta)}
            guide = Guide(Guided(plain, state=now), lm, {}, prompts, None)
            said = lm.generate(prompts, Decoding(max_new_tokens=NEW, temperature=1.0, seed=self.seed + number), guide=guide)
            rows = [h + t for h, t in zip(prompt_ids(lm.tokenizer, prompts), answer_ids(lm.tokenizer, [c.text for c in said]), strict=True)]
            with torch.no_grad():
                predictor = Predictor(state)
                V = float(predictor.value(predictor.read(lm, rows, state)).mean())
            found.append(eta)
            eta += ASCENT / math.sqrt(number + 1) * (V - float(self.target or 0))
        return math.exp(sum(found[len(found) // 2 :]) / len(found[len(found) // 2 :]))


def _labelled(examples: Sequence[Example]) -> list[tuple[str, str, bool]]:
    """Prompt, answer, whether that answer is unsafe."""
    return [(e.prompt, answer, label) for e in examples for answer, label in ((e.comply, e.harmful), (e.refuse, False)) if answer]


class Predictor(nn.Module):
    """GRU and head over embeddings, with the tensors of a state."""

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
        """State (B, H) behind rows of ids."""
        ids, _ = pad(rows, 0, "right")
        packed = pack_padded_sequence(
            embedded(lm, ids, state), torch.tensor([len(row) for row in rows]), batch_first=True, enforce_sorted=False
        )
        out, lengths = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        return out[torch.arange(len(rows)), lengths - 1]

    def after(self, before: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """V (B, k) of each row with one more token of k, their embeddings (B, k, D)."""
        B, k, D = tokens.shape
        spread = before[:, None].expand(B, k, -1).reshape(1, B * k, -1).contiguous()
        return self.value(self.gru(tokens.reshape(B * k, 1, D), spread)[1][0]).view(B, k)

    def value(self, read: torch.Tensor) -> torch.Tensor:
        """V (n,) of states (n, H)."""
        return self.head(read)[:, 0].sigmoid()


def embedded(lm: LM, ids: torch.Tensor, state: State) -> torch.Tensor:
    """The model's own embeddings of ids, on the CPU, of one spread."""
    return lm.model.get_input_embeddings()(ids.to(lm.device)).float().cpu() * state["scale"].cpu()


def _read(step: Step, state: State) -> torch.Tensor:
    """The GRU's state (B, H) behind everything so far, read once a place."""
    memory, n = step.memory, step.new.shape[1]
    predictor = memory.setdefault("predictor", Predictor(state))
    if "read" not in memory:
        memory["read"] = [0, predictor.read(step.lm, step.rows, state)]
    for at in range(memory["read"][0], n):
        token = embedded(step.lm, step.new[:, at : at + 1], state)
        memory["read"] = [at + 1, predictor.gru(token, memory["read"][1][None].contiguous())[1][0]]
    return memory["read"][1]  # type: ignore[no-any-return]
