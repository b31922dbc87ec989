"""The weights that training starts from: a saved model's, a backbone's, or random ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.model import specs
from benchmark.run.flags import Flags
from flair.errors import FlairError
from flair.files.regular_file import file_sha256

if TYPE_CHECKING:
    import tensorflow as tf

NO_WEIGHTS = "none"


def check(flags: Flags) -> None:
    """Refuses starting weights that cannot be, by a FlairError that names the flag."""
    given, restore = flags.backbone_weights, flags.restore_model_path
    if flags.normalization != "auto" and flags.model not in specs.OURS:
        raise FlairError(
            f"--normalization={flags.normalization}: {flags.model} has the normalization that it has; leave it out, or "
            f"take --model={' or '.join(specs.OURS)}"
        )
    if given not in (None, NO_WEIGHTS):
        _check_backbone(flags)
    if restore is not None and not Path(restore).is_file():
        raise FlairError(f"--restore_model_path={restore}: no such file; expected a .h5 or .keras file")
    if flags.normalization == "frozen_batch" and file(flags) is None and not flags.dry_run:
        raise FlairError(
            "--normalization=frozen_batch keeps the statistics of pretrained weights; give --restore_model_path "
            "(Apple's resnet18.h5 is at models/resnet18.h5 below the base address of download_dataset.py)"
        )


def backbone(flags: Flags) -> str | None:
    """What all layers but the classifier start from: `imagenet`, a file, or None."""
    given = flags.backbone_weights
    if given is None and specs.is_keras(flags.model) and flags.restore_model_path is None:
        return specs.IMAGENET
    return None if given == NO_WEIGHTS else given


def is_given(flags: Flags) -> bool:
    """Whether training starts from weights that are not random."""
    return flags.restore_model_path is not None or backbone(flags) is not None


def file(flags: Flags) -> Path | None:
    """The file of weights that training starts from, None for random ones; that of `imagenet` is fetched."""
    given = backbone(flags)
    if given == specs.IMAGENET:
        from benchmark.model import applications

        return applications.imagenet_file(flags.model)
    found = flags.restore_model_path if given is None else given
    return None if found is None else Path(found)


def restore(flags: Flags, model: tf.keras.Model, is_announced: bool = True) -> None:
    """Loads the weights to start from, if there are any, and prints what was loaded and what was not."""
    from benchmark.model import loading

    given, restored = backbone(flags), flags.restore_model_path
    if given is not None:
        report = loading.load_backbone(model, given)
    elif restored is not None:
        report = loading.load_by_name(model, restored)
    else:
        return
    if is_announced:
        print(f"{restored if given is None else file(flags)}: {report}", flush=True)


def facts(flags: Flags) -> dict[str, str] | None:
    """Path and SHA-256 of the file that training starts from, for run.json; None for random weights."""
    found = file(flags)
    return None if found is None else {"path": str(found), "sha256": file_sha256(found)}


def network_digest(flags: Flags, model: tf.keras.Model) -> str | None:
    """What tells a network from others of its name, or with other weights; None: --seed and `facts` say it all."""
    from benchmark.model import identity

    if flags.model in specs.OURS and backbone(flags) is None:
        return None
    return identity.network_digest(model)


def _check_backbone(flags: Flags) -> None:
    given, restore = flags.backbone_weights, flags.restore_model_path
    if restore is not None:
        raise FlairError(
            f"--backbone_weights={given} and --restore_model_path={restore} are both given, and each names the weights "
            "to start from; give one of them"
        )
    if given == specs.IMAGENET:
        if not specs.is_keras(flags.model):
            raise FlairError(
                f"--backbone_weights=imagenet: only networks of tf.keras.applications (--model=keras:NAME) have such; "
                f"for --model={flags.model} give a file"
            )
    elif not Path(given).is_file():
        raise FlairError(
            f"--backbone_weights={given}: no such file; expected a .h5, .keras or .safetensors file, imagenet or none"
        )
