"""Find the cheapest repair of a tuned model: python examples/repair.py ALIGNED TUNED prompts.csv task.jsonl OUT

Plain scaling moves the weights part of the way back to ALIGNED, in four strengths, and one audit measures all four models. `prompts.csv`
has the columns prompt and label (safe or unsafe), `task.jsonl` has questions and answers of the task that the user tuned for. The best
strength is chosen on these prompts, so audit the chosen folder again on other prompts before you trust its numbers.
"""

import sys
from pathlib import Path

from titer import api

PRICE = 0.02  # how much of the task's accuracy may be lost


def main(aligned: str, tuned: str, prompts: str, task: str, out: str) -> None:
    made = api.repair(tuned, method="scale", reads={"aligned": aligned}, strength="grid", to=out)
    print("made:", ", ".join(made.models))
    found = api.audit(
        aligned,
        tuned,
        *made.models,
        data=prompts,
        no_base=True,
        capability=[f"questions:{task}"],
        no_why=True,
        max_new_tokens=48,
    )
    answers = found.tables["verdicts"]
    rates = {
        "unsafe refused": answers[answers.kind == "unsafe"].groupby("model").outcome.agg(lambda one: (one == "refused").mean()),
        "task right": answers[answers.kind == "questions"].groupby("model").outcome.agg(lambda one: (one == "complied").mean()),
    }
    for name in [Path(tuned).name, *(Path(one).name for one in made.models)]:
        print(name, {what: round(float(shares.get(name, float("nan"))), 3) for what, shares in rates.items()})
    kept = rates["task right"].get(Path(tuned).name, 0.0) - PRICE
    allowed = [one for one in made.models if rates["task right"].get(Path(one).name, 0.0) >= kept]
    best = max(allowed, key=lambda one: rates["unsafe refused"].get(Path(one).name, 0.0), default=tuned)
    print("best within the price:", best, "| page:", found.page)


if __name__ == "__main__":
    main(*sys.argv[1:])
