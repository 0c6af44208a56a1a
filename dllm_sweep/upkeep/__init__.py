"""Keeping a store and its files clean: what can go, and what is at odds."""
