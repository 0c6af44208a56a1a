"""How large the study's ten tasks are: what a cost estimate needs before any data is at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

GENERATION = "generate_until"
CHOICE = "multiple_choice"


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """Sizes of one task.

    Numbers of items are those of the published test sets (of the validation sets where a task is
    scored on them). Numbers of tokens are means that depend on the tokenizer, here a byte-level
    BPE of 131,072 entries, counted on the first 200 items; LLaDA's and Dream's tokenizers are of
    that size. MATH's and MMLU's are rounded estimates for the whole sets.

    Attributes:
        output_type: `multiple_choice` or `generate_until`, as lm-eval calls them.
        items: Items of the task; of a group, of all its members.
        prompt_tokens: Mean tokens of a question without examples.
        example_tokens: Mean tokens that each example in the prompt adds.
        choices: Answers to be scored for an item; 1 for generation.
        answer_tokens: Mean tokens of an answer; for generation, of the reference answer.
        members: Names and items of a group's members; empty for a single task.
    """

    output_type: str
    items: int
    prompt_tokens: float
    example_tokens: float
    choices: int
    answer_tokens: float
    members: tuple[tuple[str, int], ...] = ()

    def items_within(self, limit: int | None) -> int:
        """Count the items that are run under a limit, which holds for each member of a group."""
        if limit is None:
            return self.items
        sizes = [size for _, size in self.members] or [self.items]
        return sum(min(size, limit) for size in sizes)

    def tokens_with(self, shots: int) -> float:
        """Mean tokens of a prompt with so many examples."""
        return self.prompt_tokens + shots * self.example_tokens


_MMLU = (
    ("abstract_algebra", 100),
    ("anatomy", 135),
    ("astronomy", 152),
    ("business_ethics", 100),
    ("clinical_knowledge", 265),
    ("college_biology", 144),
    ("college_chemistry", 100),
    ("college_computer_science", 100),
    ("college_mathematics", 100),
    ("college_medicine", 173),
    ("college_physics", 102),
    ("computer_security", 100),
    ("conceptual_physics", 235),
    ("econometrics", 114),
    ("electrical_engineering", 145),
    ("elementary_mathematics", 378),
    ("formal_logic", 126),
    ("global_facts", 100),
    ("high_school_biology", 310),
    ("high_school_chemistry", 203),
    ("high_school_computer_science", 100),
    ("high_school_european_history", 165),
    ("high_school_geography", 198),
    ("high_school_government_and_politics", 193),
    ("high_school_macroeconomics", 390),
    ("high_school_mathematics", 270),
    ("high_school_microeconomics", 238),
    ("high_school_physics", 151),
    ("high_school_psychology", 545),
    ("high_school_statistics", 216),
    ("high_school_us_history", 204),
    ("high_school_world_history", 237),
    ("human_aging", 223),
    ("human_sexuality", 131),
    ("international_law", 121),
    ("jurisprudence", 108),
    ("logical_fallacies", 163),
    ("machine_learning", 112),
    ("management", 103),
    ("marketing", 234),
    ("medical_genetics", 100),
    ("miscellaneous", 783),
    ("moral_disputes", 346),
    ("moral_scenarios", 895),
    ("nutrition", 306),
    ("philosophy", 311),
    ("prehistory", 324),
    ("professional_accounting", 282),
    ("professional_law", 1534),
    ("professional_medicine", 272),
    ("professional_psychology", 612),
    ("public_relations", 110),
    ("security_studies", 245),
    ("sociology", 201),
    ("us_foreign_policy", 100),
    ("virology", 166),
    ("world_religions", 171),
)
_MATH = (
    ("algebra", 1187),
    ("counting_and_prob", 474),
    ("geometry", 479),
    ("intermediate_algebra", 903),
    ("num_theory", 540),
    ("prealgebra", 871),
    ("precalc", 546),
)


def _choice(items: int, prompt: float, example: float, choices: int, answer: float) -> TaskFacts:
    return TaskFacts(
        output_type=CHOICE,
        items=items,
        prompt_tokens=prompt,
        example_tokens=example,
        choices=choices,
        answer_tokens=answer,
    )


def _generation(items: int, prompt: float, example: float, answer: float) -> TaskFacts:
    return TaskFacts(
        output_type=GENERATION,
        items=items,
        prompt_tokens=prompt,
        example_tokens=example,
        choices=1,
        answer_tokens=answer,
    )


FACTS: Mapping[str, TaskFacts] = MappingProxyType(
    {
        "winogrande": _choice(1267, 17, 24, 2, 5.5),
        "piqa": _choice(1838, 13, 26, 2, 23.3),
        "arc_challenge": _choice(1172, 30, 41, 4, 6.0),
        "arc_easy": _choice(2376, 28, 26, 4, 4.5),
        "hellaswag": _choice(10042, 50, 85, 4, 28.6),
        "mmlu": TaskFacts(
            output_type=CHOICE,
            items=14042,
            prompt_tokens=110,
            example_tokens=110,
            choices=4,
            answer_tokens=1,
            members=tuple((f"mmlu_{subject}", items) for subject, items in _MMLU),
        ),
        "gsm8k": _generation(1319, 66, 160, 121),
        "minerva_math": TaskFacts(
            output_type=GENERATION,
            items=5000,
            prompt_tokens=85,
            example_tokens=148,
            choices=1,
            answer_tokens=200,
            members=tuple((f"minerva_math_{subset}", items) for subset, items in _MATH),
        ),
        "humaneval": _generation(164, 138, 0, 56),
        "mbpp": _generation(500, 126, 195, 71),
    }
)
"""The ten tasks of arXiv 2508.14896 by their lm-eval names, in the order of its tables."""
