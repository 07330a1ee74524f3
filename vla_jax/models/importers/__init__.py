"""Foreign checkpoints in this project's words: config, parameters, statistics, input contract."""
