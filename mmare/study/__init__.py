"""What is learned: one ``study.toml``, its choices, recipes and strategy options."""
