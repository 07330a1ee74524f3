#!/usr/bin/env bash
# Runs `vla train` on every host of a Cloud TPU slice that exists already.
#
#   TPU=my-pod ZONE=us-central2-b REPOSITORY=URL launch/tpu_pod.sh \
#       --config configs/octo_base.py:data=/mnt/shared/bridge --workdir /mnt/shared/runs/octo
#
# Needs gcloud, logged in, and a slice: `gcloud compute tpus tpu-vm create "$TPU" --zone "$ZONE" …`.
# On each host jax finds the others by itself (parallel/processes.py): the command is the same on all.
# Data and workdir must be a file system that every host mounts under the same path (gs:// is not
# read yet). After a preemption, run the
# same line again: training goes on at the last checkpoint.
# Not tried on a real pod yet: no TPU was at hand when it was written.
set -euo pipefail

[ "$#" -gt 0 ] || { sed -n '2,13p' "$0" >&2; exit 2; }

: "${TPU:?name of the TPU slice}"
: "${ZONE:?its zone}"
: "${REPOSITORY:?where the hosts clone this repository from}"
REVISION="${REVISION:-main}"

# Quoted once here, so that the hosts' shells see the arguments as this one got them.
arguments="$(printf '%q ' "$@")"

on_all() { gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all --command "$1"; }

# Set-up, a no-op when it is there: the repository at one revision, jax for TPU on top of its pins.
on_all "set -e
  [ -d vla_jax ] || git clone $(printf '%q' "$REPOSITORY") vla_jax
  cd vla_jax && git fetch -q && git checkout -q $(printf '%q' "$REVISION") && make setup
  .venv/bin/python -m pip install -q \"jax[tpu]==\$(.venv/bin/python -c 'import jax; print(jax.__version__)')\""

on_all "cd vla_jax && .venv/bin/vla train $arguments"
