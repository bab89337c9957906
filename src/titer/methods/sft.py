"""Supervised fine-tuning: mean token cross-entropy on the trained answers.

Safety SFT (SSFT) is this method on a stream of unsafe -> refuse and safe -> comply.
Source: arXiv 2407.10264, section 4 (SSFT); arXiv 2402.01109, equation 1 (the inner loss).
"""

from __future__ import annotations

from titer.methods.base import Method


class SFT(Method):
    """Plain supervised fine-tuning; it has no hyper-parameters of its own."""

    SOURCE = "arXiv 2407.10264, section 4"
    VERSION = 1
    NEUTRAL = {}
