"""Continuous listening: which windows are classified, and when a word has been recognised."""
