import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_sweep.decoding.options import check_decoding, sampler_of
from dllm_sweep.errors import InputError, UnknownName
from dllm_sweep.spec import DecodingSpec

TIMELINE = {"sampler": "timeline", "algorithm": "entropy"}


@given(blocks=st.integers(1, 8), length=st.integers(1, 32), share=st.integers(1, 32))
def test_whole_blocks_with_whole_steps_are_accepted(blocks, length, share):
    spec = DecodingSpec(
        gen_length=blocks * length, block_length=length, steps=blocks * min(share, length)
    )
    check_decoding(spec)


@given(gen_length=st.integers(1, 300), steps=st.integers(1, 300))
def test_the_timeline_takes_any_number_of_steps_and_reads_no_blocks(gen_length, steps):
    check_decoding(DecodingSpec(gen_length=gen_length, steps=steps, block_length=7, **TIMELINE))


@pytest.mark.parametrize("steps", [3, 33, -1])
def test_steps_that_do_not_fit_are_refused(steps):
    with pytest.raises(InputError, match="decoding: "):
        check_decoding(DecodingSpec(gen_length=32, block_length=16, steps=steps))


@pytest.mark.parametrize(
    "options",
    [
        {"cfg_scale": 0.5, "forbid_end": True, "defer_end": True, "temperature": 0.3},
        {"threshold": 0.9, "cache": "dual"},
        {"factor": 1.0, "cache": "prefix", "steps": 1},
        {"algorithm": "random"},
        {**TIMELINE, "temperature": 0.2, "top_p": 0.95, "top_k": 50, "algorithm_temperature": 0.1},
        {"sampler": "timeline", "algorithm": "maskgit_plus", "threshold": 0.9},
        {"sampler": "timeline", "algorithm": "origin", "temperature": 1.0},
    ],
)
def test_options_that_go_together_are_accepted(options):
    check_decoding(DecodingSpec(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algorithm": "entropy"}, "'entropy' belongs to the timeline sampler: set sampler"),
        ({"sampler": "timeline"}, "take one of entropy, maskgit_plus, origin, topk_margin"),
        ({"sampler": "beam"}, "sampler 'beam' is unknown: blockwise or timeline"),
        ({"cache": "both"}, "cache 'both' is unknown: none, prefix, dual"),
        ({"top_p": 0.9}, "top_p belongs to the timeline sampler, not to blockwise"),
        ({"algorithm_temperature": 0.1}, "algorithm_temperature belongs to the timeline"),
        ({**TIMELINE, "cache": "dual"}, "cache belongs to the blockwise sampler, not to timeline"),
        ({**TIMELINE, "cfg_scale": 1.0}, "cfg_scale belongs to the blockwise"),
        ({**TIMELINE, "forbid_end": True}, "forbid_end belongs to the blockwise"),
        ({**TIMELINE, "factor": 1.0}, "factor belongs to the blockwise"),
        ({"threshold": 0.9, "factor": 1.0}, "threshold and factor exclude each other"),
        ({"threshold": 0.9, "algorithm": "random"}, "it needs algorithm low_confidence"),
        ({**TIMELINE, "threshold": 0.9}, "it needs algorithm maskgit_plus"),
        ({"cache": "dual", "cfg_scale": 1.0}, "cfg_scale and cache exclude each other"),
        ({"cache": "dual", "steps": 1}, "cache dual is never read with one step a block"),
        ({"cfg_scale": float("inf")}, "cfg_scale inf must be finite"),
        ({"threshold": 0.0}, "threshold 0.0 must be above 0 and at most 1"),
        ({"factor": 0.0}, "factor 0.0 must be finite and above 0"),
        ({**TIMELINE, "top_p": 1.5}, "top_p 1.5 must be above 0 and at most 1"),
        ({**TIMELINE, "top_k": 0}, "top_k 0 must be at least 1"),
        (
            {"sampler": "timeline", "algorithm": "origin", "algorithm_temperature": 0.1},
            "origin draws its positions already",
        ),
        (
            {
                "sampler": "timeline",
                "algorithm": "maskgit_plus",
                "threshold": 0.9,
                "algorithm_temperature": 0.1,
            },
            "threshold and algorithm_temperature exclude each other",
        ),
        (
            {"sampler": "timeline", "algorithm": "maskgit_plus", "threshold": 0.9, "steps": 5},
            "threshold needs steps that divide gen_length 32, not 5",
        ),
    ],
)
def test_options_that_exclude_each_other_are_refused_in_one_line(options, message):
    with pytest.raises(InputError, match=message) as caught:
        check_decoding(DecodingSpec(**options))
    assert "\n" not in str(caught.value)


def test_an_algorithm_of_one_s_own_names_its_sampler(tmp_path):
    rule = tmp_path / "rule.py"
    rule.write_text("class Rule:\n    pass\n\nPLUGIN = Rule()\n")
    with pytest.raises(InputError, match="names no sampler: give it the attribute sampler"):
        sampler_of(f"{rule}:PLUGIN")
    with pytest.raises(UnknownName):
        sampler_of("rule")


def test_checking_needs_no_torch():
    code = (
        "import sys; from dllm_sweep.decoding.options import check_decoding;"
        "from dllm_sweep.spec import DecodingSpec; check_decoding(DecodingSpec());"
        "check_decoding(DecodingSpec(sampler='timeline', algorithm='origin'));"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
