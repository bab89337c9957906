"""Repairs and guards beside each other at matched utility, on the world and on a real model."""
