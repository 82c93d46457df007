"""Policies that answer chat messages: a local model or an OpenAI-compatible endpoint."""
