"""Does a defence hold against an attacker who tunes? python examples/sweep_on_ray.py [RUNS [ON]]

Against plain alignment (sft) and against Vaccine, a small grid of attacks is tried: two learning rates by two shares of harmful data. The
worst one is chosen on a seed of its own, then it and the usual attack are repeated on fresh worlds. ON says where the trainings run:
`ray` starts a cluster of this machine (pip install 'titer[ray]'), `auto` joins the one this machine belongs to, `ray://HOST:PORT` reaches
one elsewhere, `processes` needs no Ray. The run folder keeps what is trained, so a second call goes on where the first one stopped.
Some hours of two cores; `titer sweep huang2024 --over ... --dry-run` prices it.
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
