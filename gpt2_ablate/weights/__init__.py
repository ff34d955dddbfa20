"""Trained weights on disk: `folder` is the project's own form."""
