"""The contract, kept by the tutorial's plugin."""

from assistant.testing import PluginContract
from plugins.hello import Hello


class TestHello(PluginContract):
    plugin = Hello
