"""A flag that would change nothing is refused; published commands and reruns from flags.txt are not."""

from __future__ import annotations

import pytest

from benchmark import federated_main
from benchmark.federated import checks, settings
from benchmark.run import command
from benchmark.training import flags as model_flags
from flair.errors import FlairError

LOCAL = "--local_noise_multiplier=3"
LOOKS = ("--rounds_per_client_eval=10",)
ADAPTING = ("--algorithm=fed_prox", "--proximal_adapts_to=train_loss")


def _check(*given):
    flags = command.parse(federated_main.FLAGS, ["--tfrecords_dir=anywhere", *given])
    checks.check_federated_flags(flags)
    assert model_flags.image_size(flags) == (224, 224)
    return flags.lines(), settings.federated_config(flags, None)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--algorithm=fed_sgd", "--client_learning_rate=0.01"], "--client_learning_rate=0.01"),
        (["--algorithm=fed_sgd", "--client_clipnorm=1"], "--client_clipnorm=1"),
        (["--algorithm=fed_sgd", "--global_clipnorm"], "--global_clipnorm"),
        (["--algorithm=mime_lite", "--client_clipnorm=1"], "--client_clipnorm=1"),
        (["--client_clipnorm=0", "--global_clipnorm"], "--global_clipnorm"),
        (["--l2_norm_clip=0.5"], "--l2_norm_clip=0.5"),
        (["--target_unclipped_quantile=0.5"], "--target_unclipped_quantile=0.5"),
        (["--accountant=rdp"], "--accountant=rdp"),
        (["--delta=1e-6"], "--delta=1e-06"),
        (["--clipped_count_stddev=3"], "--clipped_count_stddev=3"),
        (["--simulated_clients_per_round=500"], "--simulated_clients_per_round=500"),
        (["--published_noise"], "--published_noise"),
        (["--epsilon=2", "--target_unclipped_quantile=0", "--clipped_count_stddev=3"], "--clipped_count_stddev=3"),
        (["--epsilon=2", "--aggregator=tree", "--clipped_count_stddev=3"], "--clipped_count_stddev=3"),
        (["--noise_multiplier=0", "--delta=0.01"], "--delta=0.01 has no effect with --noise_multiplier=0"),
        (["--noise_multiplier=0", "--keep_noise_key"], "--keep_noise_key=True has no effect with --noise_multiplier=0"),
        (["--noise_multiplier=0", "--epsilon=2"], "--epsilon and --noise_multiplier are both given"),
        (["--noise_multiplier=0", "--aggregator=tree"], "--noise_multiplier=0: --aggregator=tree is a way to add"),
        (["--noise_multiplier=0", "--target_unclipped_quantile=0.5"], "--target_unclipped_quantile=0.5: with --noise_"),
        ([LOCAL, "--epsilon=2"], f"{LOCAL} and --epsilon=2 are both given"),
        ([LOCAL, "--noise_multiplier=0"], f"{LOCAL} and --noise_multiplier=0 are both given"),
        ([LOCAL, "--target_unclipped_quantile=0.5"], "--target_unclipped_quantile=0.5 has no effect with --local_"),
        ([LOCAL, "--simulated_clients_per_round=500"], "--simulated_clients_per_round=500 has no effect with --local_"),
        ([LOCAL, "--client_weighting=examples"], f"--client_weighting=examples: with {LOCAL}"),
        ([LOCAL, "--aggregator=robust"], f"--aggregator=robust: with {LOCAL}"),
        ([LOCAL, "--aggregator=tree"], f"--aggregator=tree: with {LOCAL}"),
        ([LOCAL, "--algorithm=mime_lite"], "--algorithm=mime_lite sends full gradients"),
        ([LOCAL, "--runtime=tff"], "--runtime=tff: TFF's own clients add no noise"),
        ([LOCAL, "--aggregator=secure"], f"--aggregator=secure: with {LOCAL}"),
        (["--aggregator=secure", "--epsilon=2"], "--aggregator=secure: a private run clips and sums"),
        (["--aggregator=secure", "--noise_multiplier=0"], "--aggregator=secure: a private run clips and sums"),
        (["--aggregator=secure", "--runtime=tff"], "--runtime=tff: TFF's own runtime has no secure sums"),
        (["--aggregator=secure", "--algorithm=mime_lite"], "--algorithm=mime_lite sends full gradients beside the"),
        (["--aggregator=secure", "--debug_measurements"], "--debug_measurements sends norms of updates beside the"),
        (["--algorithm=scaffold", "--epsilon=2"], "--algorithm=scaffold: a user's control variate is kept and shapes"),
        (["--algorithm=scaffold", LOCAL], "--algorithm=scaffold: a user's control variate is kept and shapes"),
        (["--algorithm=scaffold", "--runtime=tff"], "--runtime=tff: TFF's own clients keep nothing"),
        (["--algorithm=scaffold", "--aggregator=robust"], "--aggregator=robust would act on updates alone"),
        (["--algorithm=scaffold", "--aggregator=secure"], "--aggregator=secure would act on updates alone"),
        (["--algorithm=scaffold", *LOOKS], "--rounds_per_client_eval=10 trains clients of a round a second time"),
        (
            ["--algorithm=scaffold", "--iid", "--mean_datapoints_per_user=9", "--fresh_photos"],
            "--fresh_photos: an artificial client has other photos at every visit",
        ),
        (
            ["--algorithm=fed_prox", "--proximal_adapts_to=val_loss", "--epsilon=2", "--noise_key_file=key"],
            "--noise_key_file=key: mu follows the validation loss",
        ),
        (
            ["--algorithm=fed_prox", "--proximal_adapts_to=val_loss", "--total_rounds=9", "--rounds_per_eval=9"],
            "--proximal_adapts_to=val_loss: mu would not adapt before the last round",
        ),
        (["--early_stopping=9", "--total_rounds=9"], "--early_stopping=9: nothing would stop --total_rounds=9"),
        (["--algorithm=scaffold", "--client_weighting=examples"], "--client_weighting=examples: the control variates"),
        (["--user_state_dir=there"], "--user_state_dir=there has no effect with --algorithm=fed_avg"),
        (["--proximal_adapts_to=val_loss"], "--proximal_adapts_to=val_loss has no effect without --algorithm=fed_prox"),
        ([*ADAPTING, "--proximal_strength=2"], "--proximal_adapts_to=train_loss: mu adapts between 0 and 1"),
        ([*ADAPTING, "--proximal_step=0"], "--proximal_adapts_to=train_loss: mu adapts between 0 and 1"),
        ([*ADAPTING, "--runtime=tff"], "--runtime=tff: mu is fixed in TFF's own process"),
        ([*ADAPTING, "--epsilon=2"], "--proximal_adapts_to=train_loss: the loss of the clients has no noise"),
        ([*ADAPTING, LOCAL], "--proximal_adapts_to=train_loss: the loss of the clients has no noise"),
        (["--proximal_step=0.2"], "--proximal_step=0.2 has no effect without --proximal_adapts_to"),
        (["--proximal_patience=5"], "--proximal_patience=5 has no effect without --proximal_adapts_to"),
        (["--server_momentum=0.5"], "--server_momentum=0.5"),
        (["--server_optimizer=sgd", "--server_epsilon=0.1"], "--server_epsilon=0.1"),
        (["--server_optimizer=adagrad", "--server_beta_2=0.9"], "--server_beta_2=0.9"),
        (["--server_weight_decay=0.1"], "--server_weight_decay=0.1"),
        (["--server_final_learning_rate=0.01"], "--server_final_learning_rate=0.01"),
        (["--total_rounds=10", "--client_warmup_rounds=11"], "--client_warmup_rounds=11"),
        (["--total_rounds=10", "--server_warmup_rounds=11"], "--server_warmup_rounds=11"),
        (["--clients_per_client_eval=9"], "--clients_per_client_eval has no effect without --rounds_per_client_eval"),
        (["--federated_eval_local_training"], "--federated_eval_local_training has no effect without --federated_eval"),
        ([*LOOKS, "--federated_eval_clients=9"], "--federated_eval_clients has no effect without --federated_eval"),
        ([*LOOKS, "--total_rounds=9"], "--rounds_per_client_eval=10: no client would be looked at in --total_rounds=9"),
        ([*LOOKS, "--runtime=tff"], "--rounds_per_client_eval=10: --runtime=tff shows no client's update; use --run"),
        ([*LOOKS, "--aggregator=secure"], "--rounds_per_client_eval=10 looks at single updates, which --aggregator=s"),
    ],
)
def test_a_flag_without_effect_is_refused_in_one_line(given, named):
    with pytest.raises(FlairError) as refused:
        _check(*given)
    assert str(refused.value).startswith(f"{named}")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["--epsilon=2.0", "--l2_norm_clip=0.1"],  # as published
        ["--l2_norm_clip=0.1", "--target_unclipped_quantile=0.1"],
        ["--epsilon=2", "--accountant=rdp", "--target_unclipped_quantile=0.5", "--clipped_count_stddev=30"],
        ["--epsilon=2", "--aggregator=tree"],
        [LOCAL, "--delta=1e-6", "--accountant=rdp", "--l2_norm_clip=0.5", "--client_datasets_random_seed=3"],
        ["--noise_multiplier=0", "--l2_norm_clip=0.5", "--client_datasets_random_seed=3"],
        ["--noise_multiplier=1", "--aggregator=tree", "--target_unclipped_quantile=0"],
        ["--algorithm=fed_sgd"],
        # These train clients at the end, with plain SGD.
        ["--algorithm=fed_sgd", "--client_learning_rate=0.01", "--federated_eval", "--federated_eval_local_training"],
        ["--algorithm=mime_lite", "--client_learning_rate=0.01", "--server_momentum=0.5"],
        ["--server_optimizer=momentum", "--server_momentum=0.5"],
        ["--server_optimizer=adamw", "--server_weight_decay=0", "--server_beta_2=0.99"],
        ["--total_rounds=10", "--server_warmup_rounds=10", "--server_lr_schedule=linear"],
        ["--client_weighting=uniform"],
        [*LOOKS, "--clients_per_client_eval=9", "--federated_eval_local_training", "--algorithm=fed_sgd"],
        ["--algorithm=scaffold", "--user_state_dir=there", "--iid", "--client_weighting=uniform"],
        ["--algorithm=scaffold", "--reuse_clients", "--server_optimizer=momentum", "--debug_measurements"],
        [*ADAPTING, "--proximal_patience=5", "--proximal_step=0.2"],
        ["--algorithm=fed_prox", "--proximal_adapts_to=val_loss", "--proximal_strength=1", "--epsilon=2"],
    ],
)
def test_what_has_an_effect_passes_and_so_does_its_flags_txt(given):
    lines, _ = _check(*given)
    assert {line.partition("=")[0] for line in lines} > {"--l2_norm_clip", "--accountant", "--client_clipnorm"}
    assert _check(*lines)[0] == lines


def test_a_flag_kept_for_old_scripts_says_that_it_does_nothing(capsys):
    _check("--clients_per_thread=100")
    line = capsys.readouterr().err
    assert "--clients_per_thread=100 has no effect" in line
    assert line.count("\n") == 1
    _check()
    assert capsys.readouterr().err == ""


def test_every_client_counts_once_under_privacy():
    with pytest.raises(FlairError, match="--client_weighting=examples"):
        _check("--epsilon=2", "--client_weighting=examples")
    assert _check("--client_weighting=uniform")[1].client.weighted is False
    assert _check("--algorithm=scaffold")[1].client.weighted is False
    assert _check()[1].client.weighted is True


def test_server_schedule_ends_where_it_was_told():
    given = ["--total_rounds=5000", "--server_warmup_rounds=30", "--server_lr_schedule=linear"]
    rates = _check(*given, "--server_final_learning_rate=0.02")[1].server_optimizer.learning_rates
    # The schedule of pfl-research: 0.1 after the warm-up, 0.02 + 0.08 * (rounds left / rounds after the warm-up).
    assert rates[29] == pytest.approx(0.1)
    assert rates[2515] == pytest.approx(0.06)
    assert rates[4999] == pytest.approx(0.02, abs=2e-5)
