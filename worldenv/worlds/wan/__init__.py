"""Action-conditioned Wan video models as RLinf publishes them."""
