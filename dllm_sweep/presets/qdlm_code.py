"""The study of arXiv 2508.14896 as its released code (QDLM) runs it: `preset: qdlm-code`.

Where the code does not do what the paper says, each difference is a parameter of a method here, so
that a disagreement with the published tables can be traced to one of them: docs/presets.md lists
all, with what no parameter reproduces. The evaluation is that of `paper`, apart from how Dream
writes. What the code says of LLaDA holds here for all models whose blocks are named like LLaDA's;
the others get what it says of Dream.
"""

from __future__ import annotations

from dataclasses import replace

from dllm_sweep.presets import paper
from dllm_sweep.presets.base import LEFT_OPEN, MethodSettings, TaskSettings
from dllm_sweep.spec import CalibrationSpec

_STUDY = paper.PLUGIN
_LLADA = {
    "gptq": MethodSettings(
        parameters=(
            ("activation_order", False),
            ("damping", 0.01),
            ("output_first", True),
            # The code asks for attn_q, attn_k and attn_v, which no block has, and misses nothing.
            ("skip_modules", ("*.q_proj", "*.k_proj", "*.v_proj")),
            ("static_groups", False),
        ),
        symmetric=True,
    ),
    "awq": MethodSettings(
        parameters=(("grid_points", 20), ("max_shrink", 0.5), ("search_on", "block")),
        symmetric=False,
    ),
}
_METHODS = {
    "gptq": MethodSettings(
        parameters=(("activation_order", False), ("damping", 0.01), ("static_groups", False)),
        symmetric=True,
    ),
    "awq": MethodSettings(parameters=(("grid_points", 20), ("max_shrink", 0.5)), symmetric=False),
    "smoothquant": MethodSettings(
        parameters=(
            ("activation_symmetric", False),
            ("alpha", 0.5),
            ("groups", "all"),
            ("scale_from", "first"),
        ),
        symmetric=False,
        operands="qkv",
    ),
    "quarot": MethodSettings(
        parameters=(
            ("activation_clip", 1.0),
            ("activation_symmetric", True),
            ("mse_clip", True),
            ("operand_clip", 1.0),
            ("operand_grids", "token"),
            ("operand_symmetric", True),
            ("solver", "gptq"),
        ),
        symmetric=True,
        operands="kv",
    ),
    "duquant": MethodSettings(
        parameters=(
            ("activation_clip", 0.9),
            ("activation_symmetric", False),
            ("alpha", 0.5),
            ("block_size", 128),
            ("calibrate_on", "mean"),
            ("operand_clip", 0.9),
            ("permutations", 1),
            ("scale_from", "first"),
            ("searches", 1),
            ("steps", 256),
            ("value_clip", 1.0),
            ("weight_clip", 0.8),
        ),
        symmetric=False,
        operands="qkv",
    ),
}
"""What the code does for all families; `_LLADA` has what it does otherwise for LLaDA's blocks."""
_SEEDS = {"awq": 42, "smoothquant": 2, "duquant": 2}
"""Seeds of the choice of text; 0 for the others."""
_QUAROT_LENGTH = 4096
"""Tokens of QuaRot's texts for LLaDA; the paper says 2048."""
_DREAM_TEMPERATURE, _DREAM_TOP_P = 0.08, 0.9
"""How the authors' Dream scripts write."""


class QdlmCodePreset:
    """Settings of the code of arXiv 2508.14896 by task, method and family."""

    tasks = _STUDY.tasks
    dtype = _STUDY.dtype

    def settings(self, task: str, family: str) -> TaskSettings:
        """Say how the code runs `task`: as the paper says, but for what Dream writes.

        Raises:
            UnknownName: If there are no settings for that family.
        """
        found = _STUDY.settings(task, family)
        if family != "dream" or found.decoding is None:
            return found
        decoding = replace(found.decoding, temperature=_DREAM_TEMPERATURE, top_p=_DREAM_TOP_P)
        return replace(found, decoding=decoding)

    def method(self, method: str, family: str) -> MethodSettings:
        """Say what the code does for a method, which depends on how the family names its blocks."""
        known = _METHODS | _LLADA if family in paper.LLADA_LIKE else _METHODS
        return known.get(method, LEFT_OPEN)

    def calibration(self, method: str, family: str) -> CalibrationSpec | None:
        """Text that the code calibrates a method on; None if it needs none."""
        found = _STUDY.calibration(method, family)
        if found is None:
            return None
        found = replace(found, seed=_SEEDS.get(method, found.seed))
        long = method == "quarot" and family in paper.LLADA_LIKE
        return replace(found, length=_QUAROT_LENGTH) if long else found


PLUGIN = QdlmCodePreset()
