#!/usr/bin/env bash
# Everything that waits for an accelerator: what steps cost, and arms on real data. See benchmarks/accelerator.py.
#
#   benchmarks/accelerator.sh                 all parts, the table at the end; call it again to go on
#   benchmarks/accelerator.sh 'step-*'        some parts
#   benchmarks/accelerator.sh --list          which there are
#   benchmarks/accelerator.sh --tiny          all in miniature, to see that it runs
#
# Nothing is downloaded: torch, transformers and accelerate have to be there; wheels/*.whl are unpacked beside them, models/ and
# data/ are read. Without trl its step is left out, without a metric's library predictions are kept and exact match is shown.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if ls wheels/*.whl >/dev/null 2>&1; then
    packages="$PWD/build/wheels"
    [ -d "$packages" ] || "$PYTHON" -m pip install --quiet --no-index --no-deps --target "$packages" wheels/*.whl
    export PYTHONPATH="$PYTHONPATH:$packages"
fi
exec "$PYTHON" -m benchmarks.accelerator "$@"
