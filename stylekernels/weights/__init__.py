"""Bundled styles: safetensors, each with its model card."""
