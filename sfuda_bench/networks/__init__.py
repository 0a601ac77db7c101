"""Segmentation networks and their parts."""
