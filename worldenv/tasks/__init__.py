"""True environments: for demonstrations, exploration and evaluation, never inside reinforcement learning."""
