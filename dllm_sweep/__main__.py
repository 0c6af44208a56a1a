"""`python -m dllm_sweep` is the command line."""

from dllm_sweep.cli import main

main()
