"""The evaluation of arXiv 2508.14896 (v3), "Quantization Meets dLLMs": `preset: paper`.

Section 4.1 and appendix A of the paper say shots, lengths and steps; what they leave open is taken
from the code that the authors published with it, or decided here, and docs/tasks.md says which:

- From the paper: tasks and shots; 128 Monte-Carlo draws, 1 for MMLU; LLaDA's lengths, steps and
  blocks; temperature 0, no guidance, low-confidence remasking; Dream's 128 new tokens and top-p of
  0.95; bfloat16; plain prompts without a chat template; the calibration texts.
- From the authors' later Dream scripts: entropy order, as many steps as new tokens; GSM8K by its
  flexible filter.
- Decided here: HellaSwag and ARC-Challenge by `acc_norm`, which the published levels match; 128
  draws for Dream on MMLU, which the paper did not run (where the letter is one token, any number
  gives the same exact value); the settings of families that the paper did not run.
"""

from __future__ import annotations

from dllm_sweep.errors import UnknownName
from dllm_sweep.presets.base import TaskSettings
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
_LLADA_LIKE = ("illada", "llada", "llada_moe")
"""Models with LLaDA's sampler and estimator; the paper ran LLaDA-8B alone of them."""
_FAMILIES = (*_LLADA_LIKE, "dream", "sdar")
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
_WIKITEXT = CalibrationSpec(
    source="Salesforce/wikitext",
    subset="wikitext-2-raw-v1",
    split="train",
    samples=128,
    length=2048,
    digest="Salesforce/wikitext@b08601e04326c79dfdd32d625aee71d232d685c3",
)
_PILE = CalibrationSpec(
    source="mit-han-lab/pile-val-backup",
    split="validation",
    samples=128,
    length=512,
    digest="mit-han-lab/pile-val-backup@2f5e46ae6a69cf0dce4b12f78241c408936ca0e4",
)


class PaperPreset:
    """Settings of arXiv 2508.14896 by task and family."""

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
            raise UnknownName("model family of the preset 'paper'", family, _FAMILIES)
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

    def calibration(self, method: str) -> CalibrationSpec | None:
        """Text that the study calibrated a method on (its appendix A); None if it needs none."""
        if method in ("fp", "rtn"):
            return None
        return _PILE if method == "awq" else _WIKITEXT


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
