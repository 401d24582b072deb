"""Audits that ship in the box."""
