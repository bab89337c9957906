"""Repairs and guards compared at equal cost, on the world and on a real model."""
