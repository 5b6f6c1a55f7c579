"""How a network learns from an objective: settings, one update, the loop around it,
and what it tells.
"""
