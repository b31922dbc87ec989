"""The flags of `--runtime=ray`: how many workers, on which cluster, and what each may use. Imports nothing heavy."""

from __future__ import annotations

import importlib.util
import re

from absl import flags

from flair.errors import FlairError

flags.DEFINE_integer(
    "num_workers", None, "With --runtime=ray: workers that share a round; none: as many as there is room for.", 1
)
flags.DEFINE_string(
    "ray_address",
    None,
    "With --runtime=ray: host:port of a running Ray cluster, or auto; none: a cluster of this machine for this run.",
)
flags.DEFINE_integer("worker_cpus", 1, "With --runtime=ray: processor cores, and threads, of a worker.", 1)
flags.DEFINE_float(
    "worker_gpus", 0.0, "With --runtime=ray: GPUs of a worker; 0.5 lets two workers share one.", lower_bound=0
)

FLAGS = flags.FLAGS
# They say where a run is computed, not what.
RAY_FLAGS = ("num_workers", "ray_address", "worker_cpus", "worker_gpus")


def check_ray_flags(is_ray: bool) -> None:
    """Refuses what cannot work, before anything heavy is imported.

    Raises:
      FlairError: a flag of Ray without `--runtime=ray`, a number or address that Ray does not take, or no Ray.
    """
    if not is_ray:
        given = next((name for name in RAY_FLAGS if FLAGS[name].value != FLAGS[name].default), None)
        if given is not None:
            raise FlairError(f"--{given} has no effect without --runtime=ray; add that or leave it out")
        return
    if FLAGS.worker_gpus > 1 and FLAGS.worker_gpus != int(FLAGS.worker_gpus):
        raise FlairError(f"--worker_gpus={FLAGS.worker_gpus:g}: expected a whole number, or a fraction below 1")
    address = FLAGS.ray_address
    if address is not None and address != "auto":
        host, _, port = address.rpartition(":")
        if "/" in address or not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536:
            raise FlairError(
                f"--ray_address={address}: expected host:port as `ray start --head` printed it (the default port is "
                "6379), or auto, on a machine of the cluster"
            )
    if importlib.util.find_spec("ray") is None:
        raise FlairError("--runtime=ray: the package ray is not installed; add it with `make environment EXTRAS=ray`")
