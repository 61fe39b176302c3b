"""The programs `worldenv-...`: their options, what they do, and what a run folder keeps of the settings."""
