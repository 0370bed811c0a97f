# shellcheck shell=bash
# Read by the other scripts: messages, dry runs, and the compiler flags of each chip.

DRY_RUN=${DRY_RUN:-}

die() {
  echo "${0##*/}: $*" >&2
  exit 2
}

# need VALUE FLAG VARIABLE: stops when a setting has no value.
need() {
  [[ -n $1 ]] || die "$2 (or \$$3) must be given, got nothing"
}

# run COMMAND...: runs it, or prints it in a dry run, quoted so that it can be pasted.
run() {
  if [[ -n $DRY_RUN ]]; then
    printf '%q ' "$@" | sed 's/ $//'
    echo
  else
    "$@"
  fi
}

# Flags that change how XLA schedules, never what it computes.  Those of the user come last and win.
chip_flags() {
  local tpu="" gpu=""
  case $1 in
    v4* | v5p*)
      # Gathers of the next layer's weights run beside this layer's matrix products ...
      tpu="--xla_enable_async_all_gather=true"
      tpu+=" --xla_tpu_enable_async_collective_fusion=true"
      tpu+=" --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true"
      # ... also where they need several steps, which is so on a 3-D torus.
      tpu+=" --xla_tpu_enable_async_collective_fusion_multiple_steps=true"
      # The tensor core goes on computing while a collective is under way.
      tpu+=" --xla_tpu_overlap_compute_collective_tc=true"
      # Both cores of a chip work as one; a gather fused into them would stall the second.
      tpu+=" --xla_tpu_megacore_fusion_allow_ags=false"
      ;;
    v5e* | v5litepod*)
      # One core a chip and a 2-D torus: the same overlap, without the megacore flags.
      tpu="--xla_enable_async_all_gather=true"
      tpu+=" --xla_tpu_enable_async_collective_fusion=true"
      tpu+=" --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true"
      tpu+=" --xla_tpu_overlap_compute_collective_tc=true"
      ;;
    v6e*)
      tpu="--xla_enable_async_all_gather=true"
      tpu+=" --xla_tpu_enable_async_collective_fusion=true"
      tpu+=" --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true"
      tpu+=" --xla_tpu_overlap_compute_collective_tc=true"
      # 128 MiB of VMEM a core; the default leaves most of it unused by fusions.
      tpu+=" --xla_tpu_scoped_vmem_limit_kib=98304"
      ;;
    gpu)
      # Collectives start as early and are waited for as late as the data allows.
      gpu="--xla_gpu_enable_latency_hiding_scheduler=true"
      # Triton for all matrix products: odd sizes, as in the projections of adapters, gain most.
      gpu+=" --xla_gpu_triton_gemm_any=true"
      # The engine and the trainer share the device, so nearly all of it is claimed once.
      # (jax refuses both names of the variable at once, and goes on without the GPU.)
      [[ -n ${XLA_PYTHON_CLIENT_MEM_FRACTION:-} ]] || export XLA_CLIENT_MEM_FRACTION=${XLA_CLIENT_MEM_FRACTION:-0.92}
      ;;
    none) ;;
    *) die "--chip must be v4, v5e, v5p, v6e, gpu or none, got '$1'" ;;
  esac
  if [[ -n $tpu ]]; then export LIBTPU_INIT_ARGS="$tpu${LIBTPU_INIT_ARGS:+ $LIBTPU_INIT_ARGS}"; fi
  if [[ -n $gpu ]]; then export XLA_FLAGS="$gpu${XLA_FLAGS:+ $XLA_FLAGS}"; fi
}

# wait_for PID: its exit code.  A trapped signal interrupts `wait`; the trap must set SIGNALLED.
wait_for() {
  local code before=0
  while true; do
    SIGNALLED=""
    wait "$1"
    code=$?
    [[ $code == 127 ]] && code=$before # it ended in the very moment of the signal
    [[ -z $SIGNALLED ]] && return "$code"
    before=$code
  done
}
