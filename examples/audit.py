"""Audit a tune from Python and draw what moved: python examples/audit.py ALIGNED TUNED prompts.csv moved.svg

`prompts.csv` has the columns prompt and label (safe or unsafe). The chart shows each set's refusals before and after, and
the change with its 95 % interval. An interval that contains 0 shows neither a fall nor a rise.
"""

import sys

import altair as alt

from titer import api


def main(before: str, after: str, prompts: str, chart: str) -> None:
    order = api.AuditRequest([before, after], prompts, max_new_tokens=48)
    print(api.cost(order))  # what the audit will compute; no model is loaded yet
    found = api.audit(before, after, data=prompts, max_new_tokens=48)
    print(found.answer)
    print("page:", found.page)

    shifts = found.tables["shifts"]
    refused = shifts[shifts.outcome == "refused"]
    print(refused[["kind", "before", "after", "difference", "low", "high", "n"]].to_string(index=False))

    base = alt.Chart(refused).encode(y=alt.Y("kind", title=None))
    scale = alt.Scale(domain=[-1, 1])
    intervals = base.mark_rule(strokeWidth=3).encode(alt.X("low", title="change of the share refused", scale=scale), x2="high")
    points = base.mark_point(filled=True, size=80).encode(alt.X("difference", scale=scale))
    (intervals + points).properties(title=f"{before} → {after}", width=400).save(chart)

    flips = found.tables["flips"]
    print(f"{len(flips)} prompts changed their outcome; the first:")
    print(flips.head(5).to_string(index=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
