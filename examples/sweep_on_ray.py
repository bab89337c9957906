"""Does a defence hold against an attacker who tunes their attack? python examples/sweep_on_ray.py [RUNS [ON]]

The script tries a small grid of attacks against plain alignment (sft) and against Vaccine: two learning rates by two shares of harmful
data. The worst attack is chosen on a seed of its own. Then the worst and the usual attack are repeated on fresh worlds. ON says where the
trainings run: `ray` starts a cluster on this machine (pip install 'titer[ray]'), `auto` joins the cluster that this machine belongs to,
`ray://HOST:PORT` reaches a cluster elsewhere, `processes` needs no Ray. The run folder keeps what was trained, so a second call continues
where the first one stopped. It takes some hours on two cores; `titer sweep huang2024 --over ... --dry-run` estimates the cost.
"""

import sys

from titer import api

ATTACKS = "lr=1e-4:3e-4,ratio=0.05:0.1"
DEFENCES = "method=sft:vaccine"


def main(runs: str = "runs", on: str = "ray") -> None:
    found = api.sweep("huang2024", over=f"{ATTACKS},{DEFENCES}", attacker="grid", seeds=2, bases=1, on=on, runs=runs)
    print(found.answer)
    for claim in found.claims:
        print(f"{claim.name}: {claim.verdict}, {claim.value} {claim.interval}")
    print("page:", found.page)


if __name__ == "__main__":
    main(*sys.argv[1:])
