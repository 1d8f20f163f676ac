"""The demo: the main job on real text, with real models."""
