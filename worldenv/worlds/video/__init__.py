"""World models that are video-diffusion U-Nets of diffusers."""
