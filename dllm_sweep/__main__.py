"""`python -m dllm_sweep` is `dllm-sweep`."""

from dllm_sweep.cli import main

main(prog_name="dllm-sweep")
