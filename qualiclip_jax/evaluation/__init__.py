"""Evaluation: correlation with human opinion, protocols, significance, and the synthetic benchmark."""
