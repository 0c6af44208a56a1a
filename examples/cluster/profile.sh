# shellcheck shell=bash
# dllm-sweep: what a login shell on a machine of the cluster needs (cluster.yaml appends this).
export PATH="$HOME/venv/bin:$PATH"
# Ray asks for the token in ~/.ray/auth_token.
export RAY_AUTH_MODE=token
# The store's address, brought by `ray rsync-up cluster.yaml store.env '~/store.env'`.
# shellcheck source=/dev/null
if [ -f "$HOME/store.env" ]; then . "$HOME/store.env"; fi
