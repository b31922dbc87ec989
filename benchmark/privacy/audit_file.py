"""audit.json in a run folder: what was claimed of a run and recorded of its canaries, whatever an audit needs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from benchmark.privacy.accounting import MAX_ROUNDS
from benchmark.privacy.audit import LEAST_CANARIES, CanaryScores, Claim, Influence, Noise
from benchmark.privacy.request import LEAST_NOISE, MOST_NOISE
from benchmark.privacy.rounding import finite
from benchmark.run.files import read_json
from benchmark.run.shapes import NUMBER, NUMBER_OR_NULL, misfit
from flair.errors import FlairError
from flair.files import checked_json

FORMAT_VERSION = 1
_MOST_SCORE = 1e100  # whose square is a number still
_FILE = {
    "format": int,
    "claim": {"epsilon": NUMBER_OR_NULL, "delta": NUMBER, "accountant": str, "noise_multiplier": NUMBER}
    | {"clipped_count_stddev": NUMBER_OR_NULL}
    | {"sampling_probability": NUMBER, "rounds": int, "clients_per_round": NUMBER},
    "included": [int],
    "scores": {"released": [NUMBER], "final": [NUMBER]},
    "noise": [{"weights": str, "numbers": int, "squares": NUMBER}],
    "influence": {"canaries": int, "total": NUMBER, "squares": NUMBER},
}


def write(path: Path, claim: Claim, scores: CanaryScores) -> None:
    """Writes audit.json."""
    content = {
        "format": FORMAT_VERSION,
        "claim": {**claim._asdict(), "epsilon": finite(claim.epsilon)},
        "included": scores.included.astype(int).tolist(),
        "scores": {"released": scores.released.tolist(), "final": scores.final.tolist()},
        "noise": [one._asdict() for one in scores.noise],
        "influence": scores.influence._asdict(),
    }
    checked_json.write(path, content)


def read(path: Path) -> tuple[Claim, CanaryScores] | None:
    """What `write` wrote, None where there is no file; a FlairError where it is damaged."""
    found = read_json(path, {})
    if found is None:
        return None
    reason = misfit(found, _FILE)  # also where the file has a checksum: it may be another file's
    if reason is not None:
        raise FlairError(f"{path}: is no audit ({reason}); put the file of the run folder back")
    if found["format"] != FORMAT_VERSION:
        raise FlairError(f"{path}: has format {found['format']}, this version reads {FORMAT_VERSION}: use its own")
    claimed, scores, influence = found["claim"], found["scores"], found["influence"]
    claim = Claim(*(claimed[name] for name in Claim._fields))
    claim = claim._replace(epsilon=math.inf) if claim.epsilon is None else claim
    seen = CanaryScores(
        np.array(found["included"]) != 0,
        np.array(scores["released"], np.float64),
        np.array(scores["final"], np.float64),
        tuple(Noise(*(one[name] for name in Noise._fields)) for one in found["noise"]),
        Influence(*(influence[name] for name in Influence._fields)),
    )
    if not (_is_possible(claim) and _are_possible(seen)):
        raise FlairError(
            f"{path}: expected {LEAST_CANARIES} canaries or more, each with two scores, the noise of every tensor, and "
            "numbers that a run can have; it is damaged: put the file of the run folder back"
        )
    return claim, seen


def _is_possible(claim: Claim) -> bool:
    """Also refuses what is not a number, which compares as false."""
    stddev = 1.0 if claim.clipped_count_stddev is None else claim.clipped_count_stddev
    return (
        claim.epsilon >= 0
        and 0 < claim.delta < 1
        and LEAST_NOISE <= claim.noise_multiplier <= MOST_NOISE
        and LEAST_NOISE <= stddev <= MOST_NOISE
        and 0 < claim.sampling_probability <= 1
        and 1 <= claim.rounds <= MAX_ROUNDS
        and 0 < claim.clients_per_round < math.inf
    )


def _are_possible(seen: CanaryScores) -> bool:
    numbers = [*seen.released, *seen.final, *(one.squares for one in seen.noise), *seen.influence]
    return (
        len(seen.included) >= LEAST_CANARIES
        and {len(seen.released), len(seen.final)} == {len(seen.included)}
        and len(seen.noise) > 0
        and bool((np.abs(numbers) < _MOST_SCORE).all())
        and all(one.numbers > 0 and one.squares >= 0 for one in seen.noise)
        and seen.influence.canaries >= 0
        and seen.influence.squares >= 0
    )
