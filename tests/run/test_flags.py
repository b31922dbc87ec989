"""The table of flags: every flag says its role, and what follows from the roles."""

from __future__ import annotations

import dataclasses
import importlib

import pytest
from absl import flags as absl_flags

from benchmark import central_main, federated_main, personalize_main
from benchmark.run import command
from benchmark.run.flags import (
    ALIKE,
    CHANGEABLE,
    RECORDED,
    SETTINGS,
    SWEPT,
    Flags,
    Role,
    boolean,
    define,
    integer,
    names_of,
    one_of,
    path,
)

DOORS = [
    importlib.import_module(f"benchmark.{name}")
    for name in (
        *(
            "agreement_main",
            "analytics_main",
            "audit_main",
            "central_main",
            "convert_torchvision",
            "demo_main",
            "discriminator_main",
            "evaluate_main",
            "federated_main",
        ),
        *("personalize_main", "privacy_main", "report_main", "tfds_main"),
    )
]
TRAININGS = (central_main.FLAGS, federated_main.FLAGS)
EVERY_FLAG = [
    pytest.param(door.FLAGS, flag, id=f"{door.__name__}.{flag.name}") for door in DOORS for flag in door.FLAGS
]


@pytest.mark.parametrize(("table", "flag"), EVERY_FLAG)
def test_forgetting_the_role_of_a_flag_fails(table, flag):
    forgotten = [dataclasses.replace(one, role=None) if one is flag else one for one in table]
    with pytest.raises(TypeError, match=f"--{flag.name} has no role"):
        define(forgotten)


def test_a_flag_cannot_be_written_without_a_role():
    with pytest.raises(TypeError, match="role"):
        integer("rounds", 1, "Rounds.")
    with pytest.raises(TypeError, match="role"):
        boolean("quick", "Quick.")


def test_a_name_given_twice_is_refused():
    with pytest.raises(absl_flags.DuplicateFlagError):
        define([boolean("quick", "Quick.", Role.SPEED), boolean("quick", "Quick.", Role.SPEED)])


def test_what_a_continued_run_may_change():
    federated = Flags(federated_main.FLAGS, ["--tfrecords_dir=a"])
    assert set(federated.names(CHANGEABLE)) == {
        *("overwrite", "dry_run", "num_users", "run_dir", "save_model_dir", "restore_model_path", "backbone_weights"),
        *("rounds_per_checkpoint", "clients_per_thread", "eval_batch_size", "feature_dir", "loggers", "user_state_dir"),
        *("num_workers", "ray_address", "worker_cpus", "worker_gpus"),
    }
    central = Flags(central_main.FLAGS, ["--tfrecords_dir=a"])
    assert {"minutes_per_checkpoint", "microbatch_size", "num_epochs"} < set(central.names(CHANGEABLE))
    personalize = Flags(personalize_main.FLAGS, ["--tfrecords_dir=a", "--model=b"])
    assert set(personalize.names(CHANGEABLE)) == {
        "overwrite",
        "run_dir",
        "num_episodes",
        "query_size_limit",
        "dump_dir",
    }


def test_what_decides_a_private_result_can_be_changed_by_no_continued_run():
    flags = Flags(federated_main.FLAGS, ["--tfrecords_dir=a"])
    for name in ("epsilon", "noise_multiplier", "delta", "seed", "noise_key_file", "clients_per_round", "total_rounds"):
        assert name not in flags.names(CHANGEABLE)


def test_what_a_run_records_and_what_machines_share():
    flags = Flags(central_main.FLAGS, ["--tfrecords_dir=a"])
    assert set(flags.names(Role)) - set(flags.names(RECORDED)) == {"overwrite", "dry_run", "num_users"}
    assert set(flags.names(RECORDED)) - set(flags.names(ALIKE)) == {
        *("tfrecords_dir", "tfds_data_dir", "restore_model_path", "backbone_weights"),
        *("save_model_dir", "run_dir", "minutes_per_checkpoint", "feature_dir", "loggers"),
    }


def test_what_a_sweep_varies_and_a_report_shows():
    swept, shown = names_of(TRAININGS, SWEPT), names_of(TRAININGS, SETTINGS)
    assert {"server_learning_rate", "learning_rate", "model", "restore_model_path", "backbone_weights"} < swept.keys()
    assert not {"run_dir", "overwrite", "eval_batch_size", "num_workers", "rounds_per_checkpoint"} & swept.keys()
    assert not {"run_dir", "save_model_dir", "overwrite", "rounds_per_checkpoint"} & shown.keys()


def test_values_lines_and_defaults():
    table = [integer("rounds", 5, "Rounds.", Role.RESULT), boolean("again", "Again.", Role.CALL)]
    table.append(path("place", None, "Place.", Role.PLACE))
    flags = command.parse(table, ["--rounds=7", "--again"])
    assert (flags.rounds, flags["again"], flags.place) == (7, True, None)
    assert flags.is_changed("rounds") and not flags.is_changed("place")
    assert flags.is_typed("rounds") and not flags.is_typed("place")
    assert flags.lines() == ["--rounds=7"] and flags.lines(Role) == ["--again=true", "--rounds=7"]
    assert flags.defaults() == {"rounds": "5", "again": "false"}
    with pytest.raises(AttributeError):
        _ = flags.epochs


def test_a_call_has_flags_of_its_own():
    table = [integer("rounds", 5, "Rounds.", Role.RESULT)]
    assert Flags(table, ["--rounds=7"]).rounds == 7
    assert Flags(table).rounds == 5


@pytest.mark.parametrize("given", [[], ["--one=a", "--other=b"]])
def test_exactly_one_of_two_is_given(given):
    table = one_of(path("one", None, "One.", Role.DATA), path("other", None, "Other.", Role.DATA))
    with pytest.raises(absl_flags.Error, match="give either --one or --other"):
        Flags(table, given)
    assert Flags(table, ["--other=b"]).other == "b"
