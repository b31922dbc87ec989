"""The FLAIR benchmark: central, federated and private federated training."""
