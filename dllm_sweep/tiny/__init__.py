"""The embedded tiny diffusion language models: their generated data and their training."""
