"""How each model is made: one file a stage."""
