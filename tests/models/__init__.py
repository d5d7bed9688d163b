"""Tests of `assistant.models`."""
