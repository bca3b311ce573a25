"""Stylize pictures with exported models: no torch is imported here."""
