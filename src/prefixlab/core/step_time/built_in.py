"""Profiles that ship with the package, by name.

Owns their numbers, and says where each comes from. Invariant: each is a whole profile, provenance included.
"""

from __future__ import annotations

from prefixlab.core.step_time.model import LinearStepTime
from prefixlab.core.step_time.profile import Provenance, StepTimeProfile

H200_8B = "h200-llama-3.1-8b"

PROFILES = {
    # 7.5e9 weights are multiplied with every token, and a token has 131,072 bytes of KV. Measured on an H200:
    # a (m, 6144, 4096) product in bfloat16, scaled to all weights, costs 4.8 ms + 3.6 µs · m at m = 1 … 128
    # (3.1 TB/s) and 19.6 µs · m at m = 512 … 16,384 (770 TFLOP/s); prefill attention (32 heads, 8 of KV, 128
    # wide, all 32 layers) 0.83 to 1.1 ns a pair in prompts of 3,000 tokens and more; decode attention 30 to
    # 50 ns a token read (4.1 TB/s), and at least 0.3 ms. To the 5.1 ms this makes for any step, 0.9 ms are
    # added for all other kernels, sampling and launches: an assumption.
    H200_8B: StepTimeProfile(
        provenance=Provenance(
            machine="1 x NVIDIA H200 SXM, 141 GB",
            model="Llama-3.1-8B, bfloat16",
            method="worked out from the shape and measured times of single operations, no whole step",
            source="aiconfigurator h200_sxm, sglang 0.5.14 (Apache-2.0): gemm and attention, bfloat16",
        ),
        step_time=LinearStepTime(
            fixed_s=6.0e-3,
            prefill_token_s=20e-6,
            prefill_attention_s=0.9e-9,
            decode_row_s=4e-6,
            decode_context_s=32e-9,
        ),
    ),
}
