"""OpenVLA-OFT (Kim et al. 2025, arXiv 2502.19645) from a folder in its authors' layout, without their code."""
