"""Texts that say what the columns of an audit's folded tables mean: name of the table -> the line above it. L7."""

from __future__ import annotations

LEGENDS = {
    "what moved": "kind: the set of prompts. before, after: rates of the outcome. difference: after minus before on the same prompts, with its "
    "95 % interval (low, high). n: prompts judged both times.",
    "what moved, less the control's": "effect: the change's. control: the control's. difference: effect minus control on the same prompts, "
    "with its 95 % interval (low, high). n: prompts judged for all three models.",
    "prompts that flipped": "kind: the set of prompts. before, after: the outcomes.",
    "refused, by phrases anywhere": "refused: the share of answers with a phrase of refusal anywhere, with its 95 % interval (low, high).",
    "size of the change": "relative_norm: ‖ΔW‖ / ‖W‖ over all matrices of the part (of the part vectors: over norms' weights and biases). tensors: matrices, or stacks of them. changed: how many "
    "of them changed. stable_rank: median of ‖ΔW‖²_F / ‖ΔW‖²₂; small means that few directions changed.",
    "ΔW: where it acts": "ratio: ‖ΔW a‖ / ‖a‖ on unsafe prompts divided by that on safe ones (1: no preference). mean: over layers, with its "
    "95 % interval. _random: the same for a random ΔW of equal singular values.",
    "ΔW: null space and rank": "null_share: the share of ΔW's energy in the left null space of the weights before. null_share_random: the "
    "same for a random ΔW of equal singular values. relative_norm: ‖ΔW‖ / ‖W‖.",
    "separation inside": "d_prime: the distance between safe and unsafe prompts in standard deviations. auroc: how often a safe prompt scores "
    "above an unsafe one (0.5: chance). tau_safe, tau_unsafe: mean τ (distance to the unsafe centroid minus distance to the safe one); "
    "tau_gap: their difference. auroc_shuffled: the mean with shuffled labels. best_shuffled: the same for each shuffle's best layer; 95 % "
    "of these are below best_shuffled_high, and 95 % of their d_prime below d_prime_shuffled_high.",
    "refusal direction": "norm: the length of the direction; relative: over the mean length of an activation. split_half: the cosine between "
    "directions from two halves of the prompts, mean over random splits (low, high: the middle 95 %). reliability: the same, estimated for "
    "all prompts. _shuffled: with shuffled labels; norm_shuffled_high: their 95th percentile.",
    "refusal direction, turned": "cosine, degrees: between the two models' directions from all prompts. norm_ratio: after over before. _halves: "
    "between directions from different halves of the prompts. ceiling, degrees_ceiling: what noise alone would show there. degrees_limit: "
    "95 % of data sets without a turn stay below it in all layers at once. turned: degrees_halves exceeds degrees_limit.",
    "drift": "site: resid is the residual stream, attn_out the attention's output. value: mean ‖Δh‖ / ‖h‖ with its 95 % interval (low, high). "
    "cosine: between the activations before and after.",
    "sensitivity": "The norm of the gradient of the largest next-token logit with respect to the prompt's embeddings: its median with its 95 % "
    "interval (low, high).",
    "uncertainty on correct answers": "Measured on reference answers. entropy: in nats, over the vocabulary; _top10: over the ten likeliest "
    "tokens, renormalised; _top10_cut: not renormalised. probability: mean of the answer's own tokens.",
    "agreement of two judges": "left_out: answers that one of the two could not judge. agreed: the share with equal outcomes. kappa: agreement "
    "beyond chance (1: full, 0: chance).",
    "fingerprint: every matrix": "share: the share of the change's energy in rank 1. removed: how much of what the matrix wrote along that "
    "direction is gone. own: 1 if the change removes what was written along it, at any strength; rest: the same for all other directions. edited: a direction was "
    "removed. common: mean |cos| with the direction that the changes share. refusal: largest |cos| with a layer's refusal direction "
    "(refusal_layer). _random: what chance shows.",
    "unlike benign tunes": "value: the tune's. control: the mean of the benign tunes. limit: what a further benign tune stays below, or shuffled "
    "labels of the probe. Movements are natural logarithms.",
}
