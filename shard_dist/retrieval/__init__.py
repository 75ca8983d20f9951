"""A library of guidelines, and what finds the ones that a prompt calls for."""
