"""Data sets of LeRobot, v2.1 and v3.0, read and written by pyarrow and av alone: pip install "worldenv[lerobot]"."""
