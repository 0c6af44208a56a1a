"""The embedded tiny diffusion language model: its generated data and its training."""
