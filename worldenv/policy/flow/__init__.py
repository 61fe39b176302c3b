"""Flow-matching policies from released checkpoints in LeRobot's layout: pi0 (of transformers) and SmolVLA."""
