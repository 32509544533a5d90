"""The stream processor of Lapse and the tools of those who operate it."""
