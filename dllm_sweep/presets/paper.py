"""arXiv 2508.14896 (v3), "Quantization Meets dLLMs", as the paper states it: `preset: paper`.

Section 4.1 and appendix A of the paper say shots, lengths, steps, and how each method was set up;
what they leave open is taken from the code that the authors published with it, or decided here, and
docs/tasks.md and docs/presets.md say which:

- From the paper: tasks and shots; 128 Monte-Carlo draws, 1 for MMLU; LLaDA's lengths, steps and
  blocks; temperature 0, no guidance, low-confidence remasking; Dream's 128 new tokens and top-p of
  0.95; bfloat16; plain prompts without a chat template; the calibration texts; the weight grids,
  GPTQ's order and groups, the strengths and clip ratios, and what attention rounds.
- From the authors' later Dream scripts: entropy order, as many steps as new tokens; GSM8K by its
  flexible filter.
- Decided here: HellaSwag and ARC-Challenge by `acc_norm`, which the published levels match; 128
  draws for Dream on MMLU, which the paper did not run (where the letter is one token, any number
  gives the same exact value); the settings of families that the paper did not run.
"""

from __future__ import annotations

from dllm_sweep.errors import UnknownName
from dllm_sweep.presets.base import LEFT_OPEN, MethodSettings, TaskSettings
from dllm_sweep.spec import CalibrationSpec, DecodingSpec

_SHOTS = {
    "winogrande": 0,
    "piqa": 0,
    "arc_challenge": 0,
    "arc_easy": 0,
    "hellaswag": 0,
    "mmlu": 5,
    "gsm8k": 4,
    "minerva_math": 0,
    "humaneval": 0,
    "mbpp": 3,
}
_METRICS = {
    "arc_challenge": "acc_norm",
    "hellaswag": "acc_norm",
    "gsm8k": "exact_match,flexible-extract",
}
_LENGTHS = {"gsm8k": 256, "minerva_math": 256, "humaneval": 512, "mbpp": 512}
"""Tokens that LLaDA writes; it takes as many steps."""
_BLOCKS = {"gsm8k": 32, "minerva_math": 64, "humaneval": 32, "mbpp": 32}
_DRAWS = 128
LLADA_LIKE = ("illada", "llada", "llada_moe")
"""Models with LLaDA's sampler and estimator; the paper ran LLaDA-8B alone of them."""
_FAMILIES = (*LLADA_LIKE, "dream", "sdar")
_SDAR_BLOCK = 4
"""The block that SDAR's chat models were trained with."""
_DREAM = DecodingSpec(
    gen_length=128,
    steps=128,
    block_length=128,
    algorithm="entropy",
    sampler="timeline",
    top_p=0.95,
)
WIKITEXT = CalibrationSpec(
    source="Salesforce/wikitext",
    subset="wikitext-2-raw-v1",
    split="train",
    samples=128,
    length=2048,
    digest="Salesforce/wikitext@b08601e04326c79dfdd32d625aee71d232d685c3",
)
PILE = CalibrationSpec(
    source="mit-han-lab/pile-val-backup",
    split="validation",
    samples=128,
    length=512,
    digest="mit-han-lab/pile-val-backup@2f5e46ae6a69cf0dce4b12f78241c408936ca0e4",
)
_METHODS = {
    "gptq": MethodSettings(
        parameters=(("activation_order", False), ("damping", 0.01), ("static_groups", False)),
        symmetric=False,
    ),
    "awq": MethodSettings(parameters=(("grid_points", 20), ("max_shrink", 0.5)), symmetric=False),
    "smoothquant": MethodSettings(
        parameters=(("activation_symmetric", False), ("alpha", 0.5)), symmetric=False
    ),
    "quarot": MethodSettings(
        parameters=(("activation_symmetric", True), ("mse_clip", True), ("solver", "gptq")),
        symmetric=True,
        operands="kv",
    ),
    "duquant": MethodSettings(
        parameters=(
            ("activation_clip", 0.9),
            ("activation_symmetric", False),
            ("alpha", 0.5),
            ("block_size", 128),
            ("permutations", 1),
            ("searches", 1),
            ("steps", 256),
            ("weight_clip", 0.8),
        ),
        symmetric=False,
        operands="qkv",
    ),
}
"""What the paper says of each method; it makes no difference between families."""
_UNCALIBRATED = ("fp", "rtn")


class PaperPreset:
    """Settings of arXiv 2508.14896 by task, method and family."""

    tasks = tuple(_SHOTS)
    dtype = "bfloat16"

    def settings(self, task: str, family: str) -> TaskSettings:
        """Say how the study ran `task` with models of `family`.

        Args:
            task: Any task; one that the study did not run gets nothing but the estimator.
            family: `llada`, `dream`, or a family that the paper did not run (`illada`,
                `llada_moe`, `sdar`).

        Raises:
            UnknownName: If there are no settings for that family.
        """
        if family not in _FAMILIES:
            raise UnknownName("model family of the study's presets", family, _FAMILIES)
        estimator = "dream" if family == "dream" else "llada"
        if task not in _SHOTS:
            return TaskSettings(estimator=estimator)
        written = task in _LENGTHS
        return TaskSettings(
            shots=_SHOTS[task],
            draws=None if written else _draws(task, family),
            estimator=None if written else estimator,
            decoding=_decoding(task, family) if written else None,
            metric=_METRICS.get(task),
        )

    def method(self, method: str, family: str) -> MethodSettings:
        """Say what the paper states of a method, the same for every family."""
        return _METHODS.get(method, LEFT_OPEN)

    def calibration(self, method: str, family: str) -> CalibrationSpec | None:
        """Text that the study calibrated a method on (its appendix A); None if it needs none."""
        if method in _UNCALIBRATED:
            return None
        return PILE if method == "awq" else WIKITEXT


def _draws(task: str, family: str) -> int:
    """One draw is exact for LLaDA where an answer is one token."""
    return 1 if task == "mmlu" and family != "dream" else _DRAWS


def _decoding(task: str, family: str) -> DecodingSpec:
    if family == "dream":
        return _DREAM
    length = _LENGTHS[task]
    block = _SDAR_BLOCK if family == "sdar" else _BLOCKS[task]
    return DecodingSpec(gen_length=length, steps=length, block_length=block)


PLUGIN = PaperPreset()
