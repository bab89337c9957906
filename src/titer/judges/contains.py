"""Judge for questions of fact: does the model's answer contain a right answer, as whole words?

Any of the row's accepted forms counts. Capitals, accents, punctuation and articles are ignored (`data/facts.py`). Unlike in the source,
which looks for a substring, "art" is not found in "party". As in the source, an answer that names several things, or denies the right
one, counts as right. In an answer that refuses, a right answer counts only if it stands outside the clauses that refuse.
Source: arXiv 2409.19476, section 4 (accuracy: the true answer is a substring of the model's); whole words are Titer's own rule.
"""

from __future__ import annotations

from pydantic import Field

from titer.core.errors import visible
from titer.data.example import Example
from titer.data.facts import ARTICLES, core, stands
from titer.data.plain import plain
from titer.data.refusals import turned_away
from titer.judges.base import Judge, Verdict, nonsense
from titer.models.lm import Completion


class Contains(Judge):
    """Judges whether an answer names a right answer (complied), something else (partial) or nothing (degenerate), or refuses."""

    SOURCE = "arXiv 2409.19476, section 4 (accuracy by substring), own rule of whole words"
    VERSION = 10
    BY_ANSWER = True

    articles: tuple[str, ...] = Field(default=ARTICLES, description="words that are ignored before and inside an answer")

    def judge(self, example: Example, completion: Completion) -> Verdict:
        articles = [article.casefold() for article in self.articles if article.strip()]
        forms = [form for form in (example.comply or "", *example.also) if core(form) and stands(form, form, articles)]
        if not forms:
            return Verdict("could_not_judge", 0.0, "the example has no answer of a word that is no article")
        fault, text = nonsense(completion.text.strip()), plain(completion.text)
        bare = any(core(form) == core(text) for form in forms)  # a bare "No." may be the right answer
        phrase, rest = ("", "") if fault or bare else turned_away(completion.text, example.prompt)
        named = next((form for form in forms if stands(form, rest if phrase else text, articles)), None)
        if named is not None:
            return Verdict("complied", 1.0, f"names {visible(named, 60)}")
        if fault:
            return Verdict("degenerate", 0.0, fault)
        if phrase:
            return Verdict("refused", 0.0, f"{phrase[:40]!r}")
        return Verdict("partial", 0.0, "names no right answer")
