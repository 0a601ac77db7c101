"""Dice, distances and cup-to-disc ratio from stored predictions."""
