"""Scoring models on tasks: lm-eval's task files and metrics over a language model of our own."""
