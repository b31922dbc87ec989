"""The FLAIR benchmark: central, federated and private federated training."""

import flair as flair  # whose commands and these answer to Ctrl-C from their first line on
