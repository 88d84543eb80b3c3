"""Backbones, heads and what changes them from outside. Knows torch and timm, never the config."""
