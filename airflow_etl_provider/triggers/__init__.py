"""Deferral triggers of the sensors."""
