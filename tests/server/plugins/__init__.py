"""Plugins that misbehave, or show everything, for the tests of the server and the page."""
