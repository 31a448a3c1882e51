"""Scoring: from images, arrays or files, to quality scores."""
