"""Align by Vaccine inside TRL, with Watch: python examples/vaccine_trl.py MODEL align.jsonl prompts.csv OUT [STEPS]

`align.jsonl` has lines {"prompt": [...], "completion": [...]}, the form in which TRL's SFTTrainer reads conversations or texts.
`prompts.csv` has the columns prompt and label (safe or unsafe). Needs `pip install titer[trl]`. Watch asks the prompts before, during and
after the training. It stops the training if clearly more than a fifth of the safe prompts are refused: the whole interval must be above
that limit. It writes what it measured into OUT/watch.jsonl.
"""

import sys
from pathlib import Path

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from titer.integrations.trl import TiterMixin
from titer.integrations.watch import Limits, Watch
from titer.methods.vaccine import Vaccine
from titer.models.lm import Decoding


class VaccineTrainer(TiterMixin, SFTTrainer):
    """SFTTrainer with Vaccine's step: two passes, the second under the perturbation of the activations that raises the loss most."""


def main(model: str, data: str, prompts: str, out: str, steps: str = "240") -> None:
    limits = Limits(over_refusal_above=0.2, sure=True)
    watch = Watch(prompts, Path(out) / "watch.jsonl", every=100, limits=limits, decoding=Decoding(max_new_tokens=32))
    settings = SFTConfig(
        output_dir=out,
        max_steps=int(steps),
        per_device_train_batch_size=4,
        learning_rate=1e-4,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to=[],
    )
    trainer = VaccineTrainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        processing_class=AutoTokenizer.from_pretrained(model),
        args=settings,
        train_dataset=load_dataset("json", data_files=data, split="train"),
        callbacks=[watch],
        method=Vaccine(rho=2.0),
    )
    trainer.train()
    trainer.save_model(out)
    first, last = watch.measured[0], watch.measured[-1]
    print("unsafe prompts refused before and after:", first["refusal"], last["refusal"])
    print("stopped:", watch.stopped or "no", "| next: titer audit", model, out, "--data", prompts)


if __name__ == "__main__":
    main(*sys.argv[1:])
