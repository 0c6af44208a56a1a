import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_sweep.decoding.options import check_decoding
from dllm_sweep.errors import InputError
from dllm_sweep.spec import DecodingSpec


@given(blocks=st.integers(1, 8), length=st.integers(1, 32), share=st.integers(1, 32))
def test_whole_blocks_with_whole_steps_are_accepted(blocks, length, share):
    spec = DecodingSpec(
        gen_length=blocks * length, block_length=length, steps=blocks * min(share, length)
    )
    check_decoding(spec)


@pytest.mark.parametrize("steps", [3, 33, -1])
def test_steps_that_do_not_fit_are_refused(steps):
    with pytest.raises(InputError, match="decoding: "):
        check_decoding(DecodingSpec(gen_length=32, block_length=16, steps=steps))


def test_checking_needs_no_torch():
    code = (
        "import sys; from dllm_sweep.decoding.options import check_decoding;"
        "from dllm_sweep.spec import DecodingSpec; check_decoding(DecodingSpec());"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
